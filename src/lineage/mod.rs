//! Where a thing came from, read from Git: versions of a path, and the chain of stage, command,
//! parameters, inputs and commit that made it.

mod trace;
mod versions;

pub use self::{
    trace::{Lineage, Node, Origin, speaks, trace},
    versions::{Version, content_at, versions},
};
