//! Lineage of content, read from Git: the versions of a path, and the chain of stages, parameters, inputs and
//! commits that produced it.

mod trace;
mod versions;

pub use self::{
    trace::{Introduction, Lineage, Node, Origin, trace},
    versions::{State, Version, content_at, versions},
};
