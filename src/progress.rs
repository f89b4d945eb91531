//! How long work says what it is doing, without knowing who listens.

/// Whoever draws, logs or tests progress.
pub trait Progress: Sync {
    fn event(&self, event: Event<'_>);

    /// A fact worth a line that is no failure.
    fn note(&self, message: &str) {
        self.event(Event::Note { message });
    }

    /// Something the user should look at.
    fn warn(&self, message: &str) {
        self.event(Event::Warning { message });
    }
}

/// A closed list, so that every listener sees every case.
#[derive(Debug)]
pub enum Event<'a> {
    Started {
        task: &'a str,
        total: Option<u64>,
    },
    Advanced {
        by: u64,
    },
    Finished,
    /// What a stage's command printed.
    Output {
        bytes: &'a [u8],
    },
    Note {
        message: &'a str,
    },
    Warning {
        message: &'a str,
    },
}

/// Says nothing.
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event<'_>) {}
}
