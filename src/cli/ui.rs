//! The terminal. What was asked for goes to standard output; everything else to standard error.

use std::{
    borrow::Cow,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    sync::Mutex,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::{
    cli::{Global, Report},
    error::{Error, Kind},
    progress::{Event, Progress},
};

const FOUND: u8 = 10;

pub struct Ui {
    json: bool,
    quiet: bool,
    verbose: bool,
    terminal: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Ui {
    pub fn new(global: &Global) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            terminal,
            bar: Mutex::new(None),
        }
    }

    /// Shows what a command has to say and turns it into an exit code.
    pub fn show(&self, report: &impl Report) -> ExitCode {
        if self.json {
            let mut value = report.json();
            if let (Some(error), Some(map)) = (report.failure(), value.as_object_mut()) {
                map.insert("error".to_owned(), describe(error));
            }
            print(&json_text(&value));
        } else if !self.quiet {
            let text = report.to_string();
            let text = harmless(text.trim_end());
            print(&if text.is_empty() { String::new() } else { format!("{text}\n") });
        }
        match report.failure() {
            Some(error) => {
                if !self.json {
                    self.tell(error);
                }
                ExitCode::from(error.kind() as u8)
            }
            None => ExitCode::from(if report.found() { FOUND } else { 0 }),
        }
    }

    pub fn fail(&self, error: &Error) -> ExitCode {
        if self.json {
            print(&json_text(&json!({ "error": describe(error) })));
        } else {
            self.tell(error);
        }
        ExitCode::from(error.kind() as u8)
    }

    /// Shows what clap has to say: help, the version, or that the arguments are wrong.
    pub fn refuse(error: &clap::Error, json: bool) -> ExitCode {
        if !error.use_stderr() {
            print(&error.to_string());
            return ExitCode::SUCCESS;
        }
        if json {
            let text = error.to_string();
            let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            let ours = Error::new(Kind::Usage, message).hint("see `mlx --help`");
            print(&json_text(&json!({ "error": describe(&ours) })));
        } else {
            say(&harmless(&error.to_string()));
        }
        ExitCode::from(Kind::Usage as u8)
    }

    fn tell(&self, error: &Error) {
        self.clear();
        let color = self.terminal && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        let (on, off) = if color { ("\u{1b}[1;31m", "\u{1b}[0m") } else { ("", "") };
        if self.verbose {
            say(&format!("{on}error:{off} {}\n", harmless(&error.to_string())));
            let mut next = std::error::Error::source(error);
            while let Some(source) = next {
                say(&format!("  because: {}\n", harmless(&source.to_string())));
                next = source.source();
            }
        } else {
            say(&format!("{on}error:{off} {}\n", harmless(&error.full_text())));
        }
        if let Some(hint) = error.hint_text() {
            say(&format!("hint: {}\n", harmless(hint)));
        }
    }

    fn with_bar(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        act(&mut self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn clear(&self) {
        self.with_bar(|bar| bar.take().iter().for_each(ProgressBar::finish_and_clear));
    }

    /// A line above the progress bar.
    fn line(&self, text: &str) {
        self.with_bar(|bar| match bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        });
    }
}

fn describe(error: &Error) -> Value {
    json!({"kind": error.kind().name(), "message": error.full_text(), "hint": error.hint_text()})
}

/// Of control characters only line ends and tabs pass; nor do those that turn the order of letters, or end a line
/// without being seen.
fn is_odd(it: char) -> bool {
    let turns =
        matches!(it, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || it.is_control() && !matches!(it, '\n' | '\t')
}

/// What others wrote must not move the cursor, forge a line's color, or look like another name.
fn harmless(text: &str) -> Cow<'_, str> {
    spelt(text, &|it| it.escape_unicode().to_string())
}

/// JSON that a terminal takes, too: the same value, some letters spelt out.
fn json_text(value: &Value) -> String {
    let text = format!("{value:#}\n");
    spelt(&text, &|it| format!("\\u{:04x}", u32::from(it))).into_owned()
}

fn spelt<'t>(text: &'t str, spell: &dyn Fn(char) -> String) -> Cow<'t, str> {
    if !text.contains(is_odd) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for it in text.chars() {
        if is_odd(it) { out.push_str(&spell(it)) } else { out.push(it) }
    }
    out.into()
}

/// A reader that went away is no reason to panic.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _gone = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A line from a thread that works beside the terminal's.
pub fn log(message: &str) {
    say(&format!("{}\n", harmless(message)));
}

fn say(text: &str) {
    let _gone = std::io::stderr().lock().write_all(text.as_bytes());
}

fn bar(task: &str, total: Option<u64>) -> ProgressBar {
    let template = "{msg:>10} {bar:30} {bytes}/{total_bytes} {eta}";
    let bar = total.map_or_else(ProgressBar::new_spinner, |total| {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(total).with_style(style)
    });
    bar.set_message(task.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

impl Progress for Ui {
    fn event(&self, event: Event<'_>) {
        let silent = self.quiet || self.json;
        match event {
            Event::Started { task, total } if self.terminal && !silent => {
                self.with_bar(|it| *it = Some(bar(task, total)));
            }
            Event::Advanced { by } => self.with_bar(|it| it.iter().for_each(|it| it.inc(by))),
            Event::Finished => self.clear(),
            Event::Output { bytes } if !silent => {
                self.with_bar(|_| {
                    let _gone = std::io::stderr().lock().write_all(bytes);
                });
            }
            Event::Note { message } if !silent => self.line(&format!("{}\n", harmless(message))),
            Event::Warning { message } if !self.quiet => {
                self.line(&format!("warning: {}\n", harmless(message)));
            }
            _ => {}
        }
    }
}
