//! A place where tests break the disk. `MLX_FAULT=fail:N` makes the N-th operation fail, `kill:N`
//! ends the process there, as SIGKILL would, `stop:N` halts it until it is told to go on: whatever else runs meanwhile
//! comes between two operations. Nothing of it is in a release build.

use std::io;

#[cfg(test)]
pub use self::crash::Crash;

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

    use rustix::process::Signal;

    static ORDER: LazyLock<Option<(Option<Signal>, u64)>> = LazyLock::new(|| {
        let order = std::env::var("MLX_FAULT").ok()?;
        let (how, at) = order.split_once(':')?;
        let signal = [("kill", Signal::KILL), ("stop", Signal::STOP)].into_iter().find(|it| it.0 == how);
        Some((signal.map(|it| it.1), at.parse().ok()?))
    });
    static PASSED: AtomicU64 = AtomicU64::new(0);

    #[cfg(test)]
    crash::point(operation)?;
    let Some((signal, at)) = *ORDER else { return Ok(()) };
    if PASSED.fetch_add(1, Ordering::SeqCst) + 1 != at {
        return Ok(());
    }
    if let Some(signal) = signal {
        let _dead_or_going_on = rustix::process::kill_process(rustix::process::getpid(), signal);
        return Ok(());
    }
    Err(io::Error::other(format!("fault point {at}: {operation}")))
}

/// A crash without a process of its own: on one thread everything fails from the n-th operation on.
#[cfg(test)]
mod crash {
    use std::{cell::Cell, io};

    thread_local! {
        /// Operations that are left, where a crash is due.
        static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
        static STRUCK: Cell<bool> = const { Cell::new(false) };
    }

    /// As long as this lives, the disk is as if the process were dead, from some operation on.
    pub struct Crash(());

    impl Crash {
        pub fn at(operation: u64) -> Self {
            LEFT.set(Some(operation));
            STRUCK.set(false);
            Self(())
        }

        /// Whether the last crash has come about.
        pub fn struck() -> bool {
            STRUCK.get()
        }

        /// Lets somebody look at what is left meanwhile.
        pub fn pause<T>(look: impl FnOnce() -> T) -> T {
            let left = LEFT.take();
            let seen = look();
            LEFT.set(left);
            seen
        }
    }

    impl Drop for Crash {
        fn drop(&mut self) {
            LEFT.set(None);
            STRUCK.set(false);
        }
    }

    pub fn point(operation: &str) -> io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(0 | 1) => {
                LEFT.set(Some(0));
                STRUCK.set(true);
                Err(io::Error::other(format!("crashed before: {operation}")))
            }
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }
}
