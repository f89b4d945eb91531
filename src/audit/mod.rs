//! Who did what, and when: one timeline, read from commits, tags and the audit chain.

mod timeline;
mod verify;

pub use self::{
    timeline::{Row, What, timeline},
    verify::{Checked, verify},
};
