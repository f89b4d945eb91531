//! A place where tests break the disk. `MLX_FAULT=fail:N` makes the N-th operation fail, `kill:N`
//! ends the process there, as SIGKILL would; `stop:N` halts it until it is told to go on, so that others come between two
//! operations; from `stuck:N` on every one fails; from `full:N` on every one fails that needs room, as on a full disk;
//! `short` hands out and takes bytes one at a time, with interruptions between them; `record:FILE` writes down what is
//! synced and what gets its name, in order, and `tell:FILE` the name of every operation. Nothing of it is in a release
//! build.

#[cfg(test)]
pub use self::crash::Crash;
#[cfg(debug_assertions)]
pub use self::order::{piece, point, tell};

#[cfg(not(debug_assertions))]
pub use self::release::{piece, point, tell};

#[cfg(not(debug_assertions))]
mod release {
    use std::io;

    #[expect(clippy::unnecessary_wraps, reason = "in debug builds it fails")]
    #[inline]
    pub fn point(_: &'static str) -> io::Result<()> {
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "in debug builds it fails")]
    #[inline]
    pub fn tell(_: &'static str, _: impl FnOnce() -> String) -> io::Result<()> {
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "in debug builds it fails")]
    #[inline]
    pub fn piece(wanted: usize) -> io::Result<usize> {
        Ok(wanted)
    }
}

#[cfg(debug_assertions)]
mod order {
    use std::{
        fs, io,
        io::Write as _,
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    use rustix::process::Signal;

    enum Order {
        Fail(u64),
        Signal(Signal, u64),
        Stuck(u64),
        Full(u64),
        Short,
        Record(fs::File),
        Tell(fs::File),
    }

    static ORDER: LazyLock<Option<Order>> = LazyLock::new(|| {
        let order = std::env::var("MLX_FAULT").ok()?;
        let (how, at) = order.split_once(':').unwrap_or((&order, ""));
        match how {
            "kill" => at.parse().ok().map(|it| Order::Signal(Signal::KILL, it)),
            "stop" => at.parse().ok().map(|it| Order::Signal(Signal::STOP, it)),
            "fail" => at.parse().ok().map(Order::Fail),
            "stuck" => at.parse().ok().map(Order::Stuck),
            "full" => at.parse().ok().map(Order::Full),
            "short" => Some(Order::Short),
            "tell" => append(at).map(Order::Tell),
            _ => append(at).map(Order::Record),
        }
    });
    fn append(path: &str) -> Option<fs::File> {
        fs::OpenOptions::new().append(true).create(true).open(path).ok()
    }

    /// What a full disk refuses.
    const NEED_ROOM: [&str; 8] = ["create", "folder", "link", "mkdir", "rename", "sync", "sync-all", "write"];

    static PASSED: AtomicU64 = AtomicU64::new(0);
    static PIECES: AtomicU64 = AtomicU64::new(0);

    pub fn point(operation: &'static str) -> io::Result<()> {
        #[cfg(test)]
        crate::fs::fault::crash::point(operation)?;
        let Some(order) = &*ORDER else { return Ok(()) };
        let passed = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
        match *order {
            Order::Signal(signal, at) if passed == at => {
                let _dead_or_going_on = rustix::process::kill_process(rustix::process::getpid(), signal);
                Ok(())
            }
            // One write, so that threads do not mix their lines.
            Order::Tell(ref file) => {
                let mut file: &fs::File = file;
                file.write_all(format!("{operation}\n").as_bytes())
            }
            Order::Fail(at) if passed == at => {
                Err(io::Error::other(format!("fault point {at}: {operation}")))
            }
            Order::Stuck(at) if passed >= at => Err(rustix::io::Errno::IO.into()),
            Order::Full(at) if passed >= at && NEED_ROOM.contains(&operation) => {
                Err(rustix::io::Errno::NOSPC.into())
            }
            _ => Ok(()),
        }
    }

    /// As [`point`], of what counts when the power goes: it stands in the record before it happens.
    pub fn tell(operation: &'static str, what: impl FnOnce() -> String) -> io::Result<()> {
        if let Some(Order::Record(file)) = &*ORDER {
            let mut file: &fs::File = file;
            file.write_all(format!("{operation} {}\n", what()).as_bytes())?;
        }
        point(operation)
    }

    /// How many of `wanted` bytes are read or written at once.
    pub fn piece(wanted: usize) -> io::Result<usize> {
        if !matches!(*ORDER, Some(Order::Short)) {
            return Ok(wanted);
        }
        match PIECES.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => Err(io::ErrorKind::Interrupted.into()),
            _ => Ok(wanted.min(1)),
        }
    }
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
