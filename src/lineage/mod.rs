//! Lineage of content, read from Git: the versions of a path, and the chain of stages, parameters, inputs and
//! commits that produced it.

mod states;
mod trace;
mod versions;

pub use self::{
    states::State,
    trace::{Introduction, Lineage, Node, Origin, trace},
    versions::{Version, content_at, versions},
};
