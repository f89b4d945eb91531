//! A store in order: what must be kept, what may go, what is whole, what takes the room.
//!
//! Everything here starts from [`Roots`]: what any name of Git, any worktree and any clone that shares the store
//! leads to. [`collect`] removes the rest, [`check`] compares bytes with names and mends, [`usage`] counts.

mod check;
mod clones;
mod collect;
#[cfg(test)]
mod laws;
mod mark;
mod memory;
mod repair;
mod roots;
mod seen;
mod usage;

pub use self::{
    check::{Checked, Hit, check},
    clones::{List, forget, renew, renew_if_allowed},
    collect::{Collected, collect},
    repair::{Mended, Source},
    roots::{Holder, Place, Rooted, Roots},
    usage::{Class, Revision, Share, Usage, usage},
};
