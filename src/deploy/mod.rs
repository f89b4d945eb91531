//! A model in use.
//!
//! A picture's way: [`http`] lets a request in, [`handlers`] answer it within the limits of [`service`], [`Served`]
//! has the package and its network, [`batch`] runs several requests at once, [`protocol`] reads and writes tensors
//! of the Open Inference Protocol. On the other side, [`client`] asks and [`watch`] asks for a camera. The network runs on a thread of its own; the async runtime only ever waits for it.

mod batch;
pub mod client;
mod counters;
mod handlers;
mod http;
mod note;
mod page;
mod protocol;
mod served;
mod service;
pub mod stop;
pub mod watch;

pub use self::{
    batch::Limits,
    http::serve,
    page::escape,
    served::{Answer, Served},
    service::{Options, Service},
};
