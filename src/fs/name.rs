//! Names of entries: those that mlx itself gives in folders of the user, and checksums of names.
//!
//! ```text
//! .mlx-tmp-PID-COUNT-IDENTITY       temporary file; PID and IDENTITY tell its process
//! .mlx-old-NAME-PID-COUNT-IDENTITY  file that was NAME until the process began to replace or remove it
//! ```
//!
//! Earlier versions put another number in the place of the identity, which is that of no process.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::fs::{TEMP_PREFIX, process::Process};

const ASIDE_PREFIX: &[u8] = b".mlx-old-";
/// Number of bytes of an original name that are kept: some file systems take names of 143 bytes only, and a
/// number and two ids are added.
const KEPT_LEN: usize = 100;

/// Name that mlx itself gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnName<'n> {
    /// A temporary file.
    Temp { process: Process },
    /// A file that had another name, which may be cut off, and may be the only copy of its bytes.
    Aside { process: Process, name: &'n [u8] },
}

impl OwnName<'_> {
    /// Returns the process that gave the name.
    pub fn process(self) -> Process {
        match self {
            Self::Temp { process } | Self::Aside { process, .. } => process,
        }
    }
}

/// Returns a checksum of a name, the same within one process.
pub fn hash_name(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// Reads a name that mlx gave; `None` for any other name.
pub fn own_name(name: &[u8]) -> Option<OwnName<'_>> {
    let is_temp = name.starts_with(TEMP_PREFIX);
    let rest = name.strip_prefix(if is_temp { TEMP_PREFIX } else { ASIDE_PREFIX })?;
    let mut parts = rest.rsplitn(4, |&byte| byte == b'-');
    let mut text = || std::str::from_utf8(parts.next()?).ok();
    let (identity, count, pid) = (text()?, text()?, text()?.parse().ok()?);
    let process = Process { pid, identity: u64::from_str_radix(identity, 16).ok()? };
    count.parse::<u64>().ok()?;
    match (is_temp, parts.next()) {
        (true, None) => Some(OwnName::Temp { process }),
        (false, Some(name)) if !name.is_empty() => Some(OwnName::Aside { process, name }),
        _ => None,
    }
}

/// Returns a name for a temporary file that is unique among running processes.
pub fn new_temp_name() -> Vec<u8> {
    [TEMP_PREFIX, unique().as_bytes()].concat()
}

/// Returns a name for what was `name`, unique among running processes.
pub fn new_aside_name(name: &[u8]) -> Vec<u8> {
    [ASIDE_PREFIX, cut(name), b"-", unique().as_bytes()].concat()
}

/// Returns names that a user sees, in the order to try, for what was `name` and must not be lost.
pub fn kept_names(name: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (1_u64..).map(move |number| [cut(name), format!(".kept-{number}").as_bytes()].concat())
}

fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let Process { pid, identity } = Process::current();
    format!("{pid}-{count}-{identity:x}")
}

/// Returns the start of a long name, without a part of a character at its end.
fn cut(name: &[u8]) -> &[u8] {
    let is_start = |at: &usize| name.get(*at).is_none_or(|byte| byte & 0xc0 != 0x80);
    let end = (0..=name.len().min(KEPT_LEN)).rev().find(is_start).unwrap_or(0);
    &name[..if end == 0 { name.len().min(KEPT_LEN) } else { end }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_given() {
        let process = Process::current();
        assert_eq!(own_name(&new_temp_name()), Some(OwnName::Temp { process }));
        for name in [&b"a"[..], b"a-1-2-3", b"-", b"\xff\x80", &[b'x'; 255]] {
            let aside = new_aside_name(name);
            assert!(aside.len() <= 143 && kept_names(name).next().unwrap().len() <= 143);
            assert_eq!(own_name(&aside), Some(OwnName::Aside { process, name: cut(name) }));
        }
        for name in [
            ".mlx-tmp-x-1-2",
            ".mlx-tmp-1-x-2",
            ".mlx-tmp-1-2-x",
            ".mlx-tmp-1-2",
            ".mlx-old-1-2-3",
            ".mlx-old--1-2-3",
            "a",
            "",
        ] {
            assert_eq!(own_name(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        assert_eq!(cut(b"short"), b"short");
        assert_eq!(cut("é".repeat(127).as_bytes()), "é".repeat(KEPT_LEN / 2).as_bytes());
        assert_eq!(cut(&[0x80; 255]).len(), KEPT_LEN);
        assert_eq!(kept_names(b"a.csv").nth(1).unwrap(), b"a.csv.kept-2");
    }
}
