//! Store maintenance: garbage collection, integrity checks and repair, and disk usage.
//!
//! Everything here starts from [`Roots`]: all objects that Git's names, worktrees, and clones sharing the
//! store refer to. [`collect()`] removes the rest, [`check()`] verifies stored bytes and repairs damage,
//! [`usage()`] reports disk usage.

mod check;
mod checked_out;
mod clone_list;
mod clones;
mod collect;
mod history_cache;
mod leftovers;
mod mark;
#[cfg(test)]
mod model_test;
mod references;
mod repair;
mod revisions;
mod roots;
mod snapshot;
mod usage;

pub use self::{
    check::{AffectedPath, CheckReport, check},
    clone_list::CloneNeeds,
    clones::{forget_clone, publish_needs, publish_needs_if_allowed},
    collect::{GcMode, GcReport, collect},
    leftovers::FreedLeftovers,
    repair::{RepairReport, RepairSource},
    revisions::Revision,
    roots::{Reference, Referrer, RootEntry, Roots},
    usage::{ClassUsage, Share, Usage, usage},
};
