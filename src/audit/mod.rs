//! The audit trail: one timeline of commits, tags and events of the audit chain (`refs/mlx/audit`), and a
//! check that it was not tampered with.

mod timeline;
mod verify;

pub use self::{
    timeline::{Activity, Row, timeline},
    verify::{Verification, verify},
};
