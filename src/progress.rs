//! Progress events of long operations, independent of who shows them.
//!
//! Work functions take a `&dyn Progress` and report to it. The command line draws the events, tests record
//! them, and [`Silent`] discards them.

use crate::error::Error;

/// Receiver of progress events.
pub trait Progress: Sync {
    fn event(&self, event: Event<'_>);

    /// Reports a fact that is worth a line but is not a failure.
    fn note(&self, message: &str) {
        self.event(Event::Note { message });
    }

    /// Reports something that the user should check.
    fn warn(&self, message: &str) {
        self.event(Event::Warning { message });
    }

    /// Reports an error of one of several tasks, of which the others go on.
    fn fail(&self, error: &Error) {
        self.event(Event::Failed { error });
    }
}

/// Progress event. The list is closed, so that every receiver handles every case.
#[derive(Debug)]
pub enum Event<'a> {
    /// A task began; `total` is its amount of work, if known.
    Started {
        task: &'a str,
        total: Option<u64>,
    },
    Advanced {
        by: u64,
    },
    Finished,
    /// Output of a stage's command.
    Output {
        bytes: &'a [u8],
    },
    Note {
        message: &'a str,
    },
    Warning {
        message: &'a str,
    },
    Failed {
        error: &'a Error,
    },
}

/// Progress receiver that discards all events.
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event<'_>) {}
}
