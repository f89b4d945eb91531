//! SIGTERM and Ctrl-C for work that waits in plain threads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Doing, Result};

/// Nobody waits longer than this to see that they should stop.
const STEP: Duration = Duration::from_millis(50);

/// Whether the process was asked to end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on a signal to end is noted instead of ending the process; a second one ends it.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        let told = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.doing(|| "cannot wait for signals".into())?;
        let signals = {
            let _inside = runtime.enter();
            signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)))
        };
        let (mut term, mut int) = signals.doing(|| "cannot wait for signals".into())?;
        let wait = move || {
            runtime.block_on(async {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            });
            told.ask();
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
