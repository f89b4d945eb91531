//! A model in use.
//!
//! A picture's way: [`http`] takes a request and checks it, [`Served`] has the package and its network,
//! [`batch`] runs several requests at once, [`protocol`] reads and writes tensors of the Open Inference
//! Protocol. The network runs on a thread of its own; the async runtime only ever waits for it.

mod batch;
pub mod client;
mod counters;
mod http;
mod page;
mod protocol;
mod served;
pub mod stop;
pub mod watch;

pub use self::{
    batch::Limits,
    http::{Options, Service, serve},
    page::escape,
    served::{Answer, Served},
};
