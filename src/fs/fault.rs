//! A place where tests break the disk. `MLX_FAULT=fail:N` makes the N-th operation fail, `kill:N`
//! ends the process there, as SIGKILL would. Nothing of it is in a release build.

use std::io;

#[cfg(not(debug_assertions))]
#[expect(clippy::unnecessary_wraps, reason = "in debug builds it fails")]
#[inline]
pub fn point(_: &'static str) -> io::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
pub fn point(operation: &'static str) -> io::Result<()> {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    static ORDER: LazyLock<Option<(bool, u64)>> = LazyLock::new(|| {
        let order = std::env::var("MLX_FAULT").ok()?;
        let (how, at) = order.split_once(':')?;
        Some((how == "kill", at.parse().ok()?))
    });
    static PASSED: AtomicU64 = AtomicU64::new(0);

    let Some((kill, at)) = *ORDER else { return Ok(()) };
    if PASSED.fetch_add(1, Ordering::SeqCst) + 1 != at {
        return Ok(());
    }
    if kill {
        let _dead = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    Err(io::Error::other(format!("fault point {at}: {operation}")))
}
