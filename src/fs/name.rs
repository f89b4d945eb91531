//! Names of entries: temporary files of mlx, and checksums of names.
//!
//! ```text
//! .mlx-tmp-PID-COUNT-NONCE  name of a temporary file; PID is its process
//! ```

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::fs::TEMP_PREFIX;

/// Returns a checksum of a name, the same within one process.
pub fn hash_name(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// Returns the process id in the name of a temporary file of mlx; `None` for any other name.
pub fn temp_file_pid(name: &[u8]) -> Option<u32> {
    let rest = std::str::from_utf8(name.strip_prefix(TEMP_PREFIX)?).ok()?;
    let parts: Vec<&str> = rest.split('-').collect();
    let [pid, count, nonce] = parts[..] else { return None };
    let valid = count.parse::<u64>().is_ok() && u64::from_str_radix(nonce, 16).is_ok();
    pid.parse().ok().filter(|_| valid)
}

/// Returns a name `.mlx-tmp-PID-COUNT-NONCE` that is unique among running processes.
pub fn new_temp_name() -> Vec<u8> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nonce = crate::fs::coarse_now() & 0xff_ffff;
    [TEMP_PREFIX, format!("{}-{count}-{nonce:x}", std::process::id()).as_bytes()].concat()
}
