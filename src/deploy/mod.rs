//! A model in use.
//!
//! A picture's way: [`listen`] takes the connection, [`http`] lets a request in, [`handlers`] answer it within the limits of [`service`], [`Served`]
//! has the package and its network, [`batch`] runs several requests at once, [`protocol`] reads and writes tensors
//! of the Open Inference Protocol. The network runs on a thread of its own;
//! the async runtime only ever waits for it. From outside, [`Client`] asks, [`watch`] asks for a camera, and
//! [`apptest`] sees whether a service does what its version promised.

pub mod apptest;
mod batch;
pub mod client;
mod counters;
mod handlers;
mod http;
mod listen;
mod note;
mod page;
mod protocol;
mod room;
#[cfg(test)]
mod samples;
mod served;
mod service;
pub mod stop;
pub mod watch;

pub use self::{
    batch::Limits,
    client::{Answered, Client},
    listen::serve,
    note::GONE,
    page::escape,
    served::{Answer, Served},
    service::{Options, Service},
};
