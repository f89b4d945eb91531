//! Signals that end the process as they end other Unix tools, with a word on why where a person waits for it.

use std::thread;

use signal_hook::{
    consts::{SIGINT, SIGPIPE},
    iterator::Signals,
    low_level::emulate_default_handler,
};

use crate::fs;

/// Calls `say` on Ctrl-C before the process ends by that signal, so that a calling shell stops, too. An
/// ignored signal stays ignored. Commands that end gracefully by themselves do not call this.
pub fn announce(say: fn()) {
    if fs::is_signal_ignored(SIGINT) {
        return;
    }
    let Ok(mut signals) = Signals::new([SIGINT]) else { return };
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            say();
            let _ended = emulate_default_handler(signal);
        }
    };
    let _started = thread::Builder::new().name("interrupt".into()).spawn(wait);
}

/// Ends the process as the signal does by which a closed pipe ends other tools. Rust ignores it, so that a
/// write fails instead.
pub fn end_by_closed_pipe() {
    let _ended = emulate_default_handler(SIGPIPE);
}
