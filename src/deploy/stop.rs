//! Shutdown signals (SIGTERM and Ctrl-C), as an async event for the server and as a flag for blocking
//! threads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{getpid, kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Result, WithContext};

/// Longest time until a sleeping thread notices a stop request.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Stream of the signals that ask the process to end.
pub(super) struct StopSignals(Signal, Signal);

impl StopSignals {
    /// Installs the handlers; from then on the signals no longer end the process. Must be called inside a
    /// runtime.
    pub fn new() -> Result<Self> {
        let on = |kind| signal(kind).context(|| "cannot wait for signals".into());
        Ok(Self(on(SignalKind::terminate())?, on(SignalKind::interrupt())?))
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) {
        tokio::select! { _ = self.0.recv() => {}, _ = self.1.recv() => {} }
    }
}

/// Flag that is set once the process was asked to end. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Returns a flag that the first signal sets instead of ending the process. A second signal kills the
    /// process at once, even if it is blocked.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        let flag = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context(|| "cannot wait for signals".into())?;
        let mut signals = {
            let _inside = runtime.enter();
            StopSignals::new()?
        };
        let wait = move || {
            runtime.block_on(signals.next());
            flag.request();
            runtime.block_on(signals.next());
            // SIGTERM and SIGINT are caught now, and SIGKILL cannot be; it harms no stored data.
            let _dead = kill_process(getpid(), rustix::process::Signal::KILL);
        };
        thread::Builder::new()
            .name("signals".into())
            .spawn(wait)
            .context(|| "cannot start a thread".into())?;
        Ok(stop)
    }

    /// Sets the flag, as a signal does.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns true once a stop was requested.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps, and returns true if the whole time passed; false as soon as a stop is requested.
    pub fn sleep(&self, duration: Duration) -> bool {
        let end = Instant::now() + duration;
        while !self.is_requested() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(POLL_INTERVAL));
        }
        false
    }
}
