//! A place where tests break the disk. `MLX_FAULT=fail:N` makes the N-th operation fail, `kill:N`
//! ends the process there, as SIGKILL would, `stop:N` halts it until it is told to go on: whatever else runs meanwhile
//! comes between two operations. `tell:FILE` writes down what is done, an operation a line. Nothing of it is in a release
//! build.

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

    static ORDER: LazyLock<Option<Order>> = LazyLock::new(|| Order::parse(&std::env::var("MLX_FAULT").ok()?));
    static PASSED: AtomicU64 = AtomicU64::new(0);

    #[cfg(test)]
    crash::point(operation)?;
    let (signal, at) = match &*ORDER {
        None => return Ok(()),
        Some(Order::Tell(path)) => return tell(path, operation),
        Some(Order::Break { signal, at }) => (*signal, *at),
    };
    if PASSED.fetch_add(1, Ordering::SeqCst) + 1 != at {
        return Ok(());
    }
    if let Some(signal) = signal {
        let _dead_or_going_on = rustix::process::kill_process(rustix::process::getpid(), signal);
        return Ok(());
    }
    Err(io::Error::other(format!("fault point {at}: {operation}")))
}

#[cfg(debug_assertions)]
enum Order {
    Break { signal: Option<rustix::process::Signal>, at: u64 },
    Tell(std::path::PathBuf),
}

#[cfg(debug_assertions)]
impl Order {
    fn parse(order: &str) -> Option<Self> {
        use rustix::process::Signal;

        let (how, what) = order.split_once(':')?;
        if how == "tell" {
            return Some(Self::Tell(what.into()));
        }
        let signal = [("kill", Signal::KILL), ("stop", Signal::STOP)].into_iter().find(|it| it.0 == how);
        Some(Self::Break { signal: signal.map(|it| it.1), at: what.parse().ok()? })
    }
}

#[cfg(debug_assertions)]
fn tell(path: &std::path::Path, operation: &str) -> io::Result<()> {
    use std::io::Write as _;

    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    // One write, so that threads do not mix their lines.
    file.write_all(format!("{operation}\n").as_bytes())
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
