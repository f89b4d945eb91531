//! SIGTERM and Ctrl-C: waited for, or noted for work that waits in plain threads.

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

use crate::error::{Doing, Result};

/// Nobody waits longer than this to see that they should stop.
const STEP: Duration = Duration::from_millis(50);

/// Signals that ask for an end.
pub(super) struct Ends(Signal, Signal);

impl Ends {
    /// From now on they end nothing by themselves. Wants to be called inside a runtime.
    pub fn new() -> Result<Self> {
        let on = |kind| signal(kind).doing(|| "cannot wait for signals".into());
        Ok(Self(on(SignalKind::terminate())?, on(SignalKind::interrupt())?))
    }

    pub async fn next(&mut self) {
        tokio::select! { _ = self.0.recv() => {}, _ = self.1.recv() => {} }
    }
}

/// Whether the process was asked to end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on a signal to end is noted instead of ending the process; a second one ends it at once, whatever
    /// it waits for.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        let told = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.doing(|| "cannot wait for signals".into())?;
        let mut ends = {
            let _inside = runtime.enter();
            Ends::new()?
        };
        let wait = move || {
            runtime.block_on(ends.next());
            told.ask();
            runtime.block_on(ends.next());
            // Nothing that we keep is harmed by this signal, and no other is left that nobody catches.
            let _dead = kill_process(getpid(), rustix::process::Signal::KILL);
        };
        thread::Builder::new().name("signals".into()).spawn(wait).doing(|| "cannot start a thread".into())?;
        Ok(stop)
    }

    /// Asks for an end, as a signal does.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits, less long when asked to stop meanwhile; false then.
    pub fn sleep(&self, duration: Duration) -> bool {
        let end = Instant::now() + duration;
        while !self.is_asked() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(STEP));
        }
        false
    }
}
