//! Names of entries: those that mlx itself gives in folders of the user, and checksums of names.
//!
//! ```text
//! .mlx-tmp-PID-COUNT-NONCE       temporary file; PID is its process
//! .mlx-old-NAME-PID-COUNT-NONCE  file that was NAME until the process began to replace or remove it
//! ```

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::fs::TEMP_PREFIX;

const ASIDE_PREFIX: &[u8] = b".mlx-old-";
/// Number of bytes of an original name that are kept: some file systems take names of 143 bytes only, and a
/// number and two ids are added.
const KEPT_LEN: usize = 100;

/// Name that mlx itself gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnName<'n> {
    /// A temporary file.
    Temp { pid: u32 },
    /// A file that had another name, which may be cut off, and may be the only copy of its bytes.
    Aside { pid: u32, name: &'n [u8] },
}

impl OwnName<'_> {
    /// Returns the process that gave the name.
    pub fn pid(self) -> u32 {
        match self {
            Self::Temp { pid } | Self::Aside { pid, .. } => pid,
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
    let (nonce, count, pid) = (text()?, text()?, text()?.parse().ok()?);
    if count.parse::<u64>().is_err() || u64::from_str_radix(nonce, 16).is_err() {
        return None;
    }
    match (is_temp, parts.next()) {
        (true, None) => Some(OwnName::Temp { pid }),
        (false, Some(name)) if !name.is_empty() => Some(OwnName::Aside { pid, name }),
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
    let nonce = crate::fs::coarse_now() & 0xff_ffff;
    format!("{}-{count}-{nonce:x}", std::process::id())
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
        let pid = std::process::id();
        assert_eq!(own_name(&new_temp_name()), Some(OwnName::Temp { pid }));
        for name in [&b"a"[..], b"a-1-2-3", b"-", b"\xff\x80", &[b'x'; 255]] {
            let aside = new_aside_name(name);
            assert!(aside.len() <= 143 && kept_names(name).next().unwrap().len() <= 143);
            assert_eq!(own_name(&aside), Some(OwnName::Aside { pid, name: cut(name) }));
        }
        for name in [".mlx-tmp-x-1-2", ".mlx-tmp-1-2", ".mlx-old-1-2-3", ".mlx-old--1-2-3", "a", ""] {
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
