//! Model serving: an HTTP inference service, its clients, and an application test for served versions.
//!
//! [`listen`] accepts connections, [`http`] authenticates and routes requests, [`handlers`] answer them
//! within the limits of [`service`]. [`ServedModel`] is a loaded package; [`batch`] runs several requests in
//! one model call, and [`protocol`] parses and writes tensors of the Open Inference Protocol. The model runs
//! on a thread of its own; the async runtime only waits for it. On the client side, [`Client`] sends
//! requests, [`watch`] sends the images that appear in a folder, and [`apptest`] tests a running service
//! against its registered version.

pub mod apptest;
mod batch;
mod body_memory;
pub mod client;
mod counters;
mod handlers;
mod http;
mod listen;
mod page;
mod protocol;
mod request_log;
mod served_model;
mod service;
pub mod stop;
#[cfg(test)]
mod test_service;
pub mod watch;

pub use self::{
    batch::BatchLimits,
    client::{Client, ServiceResponse},
    listen::serve,
    page::escape_html,
    request_log::CLIENT_CLOSED,
    served_model::{Prediction, ServedModel},
    service::{Options, Service},
};
