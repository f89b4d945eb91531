//! Fault injection for tests: makes chosen disk operations fail. Release builds contain none of it.
//!
//! Every disk operation passes a numbered fault point. The variable `MLX_FAULT` says what happens there:
//!
//! ```text
//! fail:N       the N-th operation fails
//! kill:N       the process ends at the N-th operation, by SIGKILL
//! stop:N       the process stops there (SIGSTOP) until it is continued, so that another can run meanwhile
//! die:N        as stop:N, and the process ends at the operation after that, by SIGKILL
//! stuck:N      every operation fails from the N-th on
//! full:N       every operation that needs disk space fails from the N-th on, as on a full disk
//! short        reads and writes transfer one byte at a time, with interruptions between them
//! record:FILE  folder creations, removals, renames and syncs are logged to FILE, in order
//! tell:FILE    the name of every operation is logged to FILE
//! ```
//!
//! With `+plain` behind it, renames also know no flags, as on some file systems; `+plain` alone is valid,
//! too.

#[cfg(test)]
pub use self::crash::Crash;
#[cfg(debug_assertions)]
pub use self::injection::{knows_rename_flags, logged_point, point, transfer_size};

#[cfg(not(debug_assertions))]
pub use self::release::{knows_rename_flags, logged_point, point, transfer_size};

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
    pub fn logged_point(_: &'static str, _: impl FnOnce() -> String) -> io::Result<()> {
        Ok(())
    }

    #[inline]
    pub fn knows_rename_flags() -> bool {
        true
    }

    #[expect(clippy::unnecessary_wraps, reason = "in debug builds it fails")]
    #[inline]
    pub fn transfer_size(wanted: usize) -> io::Result<usize> {
        Ok(wanted)
    }
}

#[cfg(debug_assertions)]
mod injection {
    use std::{
        fs, io,
        io::Write as _,
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    use rustix::process::Signal;

    enum Fault {
        Fail(u64),
        Signal(Signal, u64),
        StopAndKill(u64),
        Stuck(u64),
        Full(u64),
        Short,
        /// Logs operations whose order matters after a power cut.
        LogDurable(fs::File),
        /// Logs the name of every operation.
        LogAll(fs::File),
    }

    /// End of a setting with which renames know no flags.
    const PLAIN: &str = "+plain";

    static KNOWS_RENAME_FLAGS: LazyLock<bool> =
        LazyLock::new(|| !std::env::var("MLX_FAULT").is_ok_and(|setting| setting.ends_with(PLAIN)));

    static FAULT: LazyLock<Option<Fault>> = LazyLock::new(|| {
        let setting = std::env::var("MLX_FAULT").ok()?;
        let setting = setting.trim_end_matches(PLAIN);
        let (name, value) = setting.split_once(':').unwrap_or((setting, ""));
        match name {
            "kill" => value.parse().ok().map(|at| Fault::Signal(Signal::KILL, at)),
            "stop" => value.parse().ok().map(|at| Fault::Signal(Signal::STOP, at)),
            "die" => value.parse().ok().map(Fault::StopAndKill),
            "fail" => value.parse().ok().map(Fault::Fail),
            "stuck" => value.parse().ok().map(Fault::Stuck),
            "full" => value.parse().ok().map(Fault::Full),
            "short" => Some(Fault::Short),
            "tell" => open_log(value).map(Fault::LogAll),
            _ => open_log(value).map(Fault::LogDurable),
        }
    });

    fn open_log(path: &str) -> Option<fs::File> {
        fs::OpenOptions::new().append(true).create(true).open(path).ok()
    }

    /// Operations that fail on a full disk.
    const NEED_SPACE: [&str; 8] =
        ["create", "folder", "link", "mkdir", "rename", "sync", "sync-all", "write"];

    static OPERATIONS: AtomicU64 = AtomicU64::new(0);
    static TRANSFERS: AtomicU64 = AtomicU64::new(0);

    /// Counts an operation and injects the fault that is due at it.
    pub fn point(operation: &'static str) -> io::Result<()> {
        #[cfg(test)]
        crate::fs::fault::crash::point(operation)?;
        let Some(fault) = &*FAULT else { return Ok(()) };
        let number = OPERATIONS.fetch_add(1, Ordering::SeqCst) + 1;
        match *fault {
            Fault::Signal(signal, at) if number == at => send(signal),
            Fault::StopAndKill(at) if number == at => send(Signal::STOP),
            Fault::StopAndKill(at) if number == at + 1 => send(Signal::KILL),
            // A single write, so that lines of different threads do not mix.
            Fault::LogAll(ref file) => {
                let mut file: &fs::File = file;
                file.write_all(format!("{operation}\n").as_bytes())
            }
            Fault::Fail(at) if number == at => {
                Err(io::Error::other(format!("fault point {at}: {operation}")))
            }
            Fault::Stuck(at) if number >= at => Err(rustix::io::Errno::IO.into()),
            Fault::Full(at) if number >= at && NEED_SPACE.contains(&operation) => {
                Err(rustix::io::Errno::NOSPC.into())
            }
            _ => Ok(()),
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is the outcome of a point")]
    fn send(signal: Signal) -> io::Result<()> {
        let _killed_or_continued = rustix::process::kill_process(rustix::process::getpid(), signal);
        Ok(())
    }

    /// Like [`point`], for an operation whose order matters after a power cut: `record:FILE` logs it, with
    /// the `subject`, before it happens.
    pub fn logged_point(operation: &'static str, subject: impl FnOnce() -> String) -> io::Result<()> {
        if let Some(Fault::LogDurable(file)) = &*FAULT {
            let mut file: &fs::File = file;
            file.write_all(format!("{operation} {}\n", subject()).as_bytes())?;
        }
        point(operation)
    }

    /// Returns false if renames are to fail that say more than the two names.
    pub fn knows_rename_flags() -> bool {
        *KNOWS_RENAME_FLAGS
    }

    /// Returns how many of `wanted` bytes to read or write in one call.
    pub fn transfer_size(wanted: usize) -> io::Result<usize> {
        if !matches!(*FAULT, Some(Fault::Short)) {
            return Ok(wanted);
        }
        match TRANSFERS.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => Err(io::ErrorKind::Interrupted.into()),
            _ => Ok(wanted.min(1)),
        }
    }
}

/// Simulated crash inside the test process: every operation fails from the n-th on. In a test that runs alone
/// in its process, that holds for every thread; otherwise for the thread of the test, since others test, too.
#[cfg(test)]
mod crash {
    use std::{
        cell::Cell,
        io,
        process::Command,
        sync::{LazyLock, Mutex, PoisonError},
    };

    /// Variable that is set in a process that runs one test alone.
    const ALONE: &str = "MLX_TEST_ALONE";

    #[derive(Clone, Copy, Default)]
    struct State {
        /// Number of operations until the crash, if one is set.
        remaining: Option<u64>,
        happened: bool,
    }

    static IS_ALONE: LazyLock<bool> = LazyLock::new(|| std::env::var_os(ALONE).is_some());
    static OF_PROCESS: Mutex<State> = Mutex::new(State { remaining: None, happened: false });

    thread_local! {
        static OF_THREAD: Cell<State> = Cell::default();
    }

    fn with_state<T>(act: impl FnOnce(&mut State) -> T) -> T {
        if *IS_ALONE {
            return act(&mut OF_PROCESS.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let mut state = OF_THREAD.get();
        let result = act(&mut state);
        OF_THREAD.set(state);
        result
    }

    /// Guard during whose life every operation from the chosen one on fails, as if the process were dead.
    pub struct Crash(());

    impl Crash {
        pub fn at(operation: u64) -> Self {
            with_state(|state| *state = State { remaining: Some(operation), happened: false });
            Self(())
        }

        /// Returns true once the crash has happened.
        pub fn has_happened() -> bool {
            with_state(|state| state.happened)
        }

        /// Runs `inspect` without the crash, to examine the state of the disk.
        pub fn pause<T>(inspect: impl FnOnce() -> T) -> T {
            let remaining = with_state(|state| state.remaining.take());
            let result = inspect();
            with_state(|state| state.remaining = remaining);
            result
        }

        /// Runs the body of the test of this full name alone in a process, so that its crashes are of all
        /// threads.
        pub fn alone(test: &str, body: impl FnOnce()) {
            if *IS_ALONE {
                return body();
            }
            let exe = std::env::current_exe().unwrap();
            let output = Command::new(exe).args([test, "--exact"]).env(ALONE, "1").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
        }
    }

    impl Drop for Crash {
        fn drop(&mut self) {
            with_state(|state| *state = State::default());
        }
    }

    pub fn point(operation: &str) -> io::Result<()> {
        with_state(|state| match state.remaining {
            None => Ok(()),
            Some(0 | 1) => {
                *state = State { remaining: Some(0), happened: true };
                Err(io::Error::other(format!("crashed before: {operation}")))
            }
            Some(remaining) => {
                state.remaining = Some(remaining - 1);
                Ok(())
            }
        })
    }
}
