//! Terminal output: reports go to standard output; errors, warnings and progress go to standard error.
//! Nothing that others wrote (file names, messages) can move the cursor, change colors or imitate another
//! name: unsafe characters are escaped, in text and in JSON.

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
    cli::{Global, Report, interrupt},
    error::{Error, Kind, WithContext as _},
    progress::{Event, Progress},
};

/// Exit code when a check found something.
const EXIT_FINDINGS: u8 = 10;

/// Output settings from the global flags, and the current progress bar.
pub struct Ui {
    json: bool,
    quiet: bool,
    verbose: bool,
    /// True if standard error is a terminal.
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

    /// Prints a report, as text or JSON, and returns its exit code.
    pub fn show_report(&self, report: &impl Report) -> ExitCode {
        let written = if self.json {
            let mut value = report.json();
            match (report.failure(), value.as_object_mut()) {
                (Some(error), Some(map)) => drop(map.insert("error".to_owned(), error_json(error))),
                (Some(error), None) => self.print_error(error),
                (None, _) => {}
            }
            write_stdout(&json_text(&value))
        } else if self.quiet {
            Ok(())
        } else {
            let text = report.to_string();
            let text = sanitize(text.trim_end());
            write_stdout(&if text.is_empty() { String::new() } else { format!("{text}\n") })
        };
        let code = match report.failure() {
            Some(error) => {
                if !self.json {
                    self.print_error(error);
                }
                error.kind() as u8
            }
            None if report.has_findings() => EXIT_FINDINGS,
            None => 0,
        };
        self.end(written, code)
    }

    /// Prints the error that ended a command and returns its exit code.
    pub fn show_error(&self, error: &Error) -> ExitCode {
        let code = error.kind() as u8;
        if !self.json {
            self.print_error(error);
            return ExitCode::from(code);
        }
        let written = write_stdout(&json_text(&json!({ "error": error_json(error) })));
        // The reason must not be lost with the document.
        if written.is_err() {
            self.print_error(error);
        }
        self.end(written, code)
    }

    /// Prints the text that clap returns as an error: help, the version, or a usage error. Returns the exit
    /// code.
    pub fn show_clap_error(error: &clap::Error, json: bool) -> ExitCode {
        let ui = Self::new(&Global { json, ..Global::default() });
        if !error.use_stderr() {
            return ui.end(write_stdout(&error.to_string()), 0);
        }
        if json {
            let text = error.to_string();
            let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            return ui.show_error(&Error::new(Kind::Usage, message).hint("see `mlx --help`"));
        }
        write_stderr(&sanitize(&error.to_string()));
        ExitCode::from(Kind::Usage as u8)
    }

    /// Returns the exit code of a command whose output was written or not: output that is lost is an error.
    /// A reader that has seen enough ends mlx as it ends other tools, unless there is a failure to report.
    fn end(&self, written: std::io::Result<()>, code: u8) -> ExitCode {
        let Err(error) = written else { return ExitCode::from(code) };
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            if code == 0 {
                interrupt::end_by_closed_pipe();
            }
            return ExitCode::from(code);
        }
        let lost = Err::<(), _>(error).context(|| "cannot write to standard output".to_owned());
        let Err(error) = lost else { return ExitCode::from(code) };
        self.print_error(&error);
        ExitCode::from(if code == 0 { error.kind() as u8 } else { code })
    }

    fn print_error(&self, error: &Error) {
        self.clear_bar();
        let color = self.terminal && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        let (on, off) = if color { ("\u{1b}[1;31m", "\u{1b}[0m") } else { ("", "") };
        if self.verbose {
            write_stderr(&format!("{on}error:{off} {}\n", sanitize(&error.to_string())));
            let mut next = std::error::Error::source(error);
            while let Some(source) = next {
                write_stderr(&format!("  caused by: {}\n", sanitize(&source.to_string())));
                next = source.source();
            }
        } else {
            write_stderr(&format!("{on}error:{off} {}\n", sanitize(&error.chain_text())));
        }
        if let Some(hint) = error.hint_text() {
            write_stderr(&format!("hint: {}\n", sanitize(hint)));
        }
    }

    fn with_bar(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        act(&mut self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn clear_bar(&self) {
        self.with_bar(|bar| bar.take().iter().for_each(ProgressBar::finish_and_clear));
    }

    /// Prints a text above the progress bar.
    fn print_above_bar(&self, text: &str) {
        self.with_bar(|bar| match bar {
            Some(bar) => bar.suspend(|| write_stderr(text)),
            None => write_stderr(text),
        });
    }
}

fn error_json(error: &Error) -> Value {
    json!({"kind": error.kind().name(), "message": error.chain_text(), "hint": error.hint_text()})
}

/// Returns true for control characters other than line ends and tabs, for characters that change the text
/// direction, and for invisible line ends.
fn is_unsafe(c: char) -> bool {
    let invisible =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    invisible || c.is_control() && !matches!(c, '\n' | '\t')
}

/// Escapes unsafe characters: text that others wrote must not move the cursor, change a line's color, or
/// imitate another name.
fn sanitize(text: &str) -> Cow<'_, str> {
    escape_unsafe(text, &|c| c.escape_unicode().to_string())
}

/// Formats JSON so that it is safe on a terminal, too: the same value, with unsafe characters as `\u`
/// escapes.
fn json_text(value: &Value) -> String {
    let text = format!("{value:#}\n");
    escape_unsafe(&text, &|c| format!("\\u{:04x}", u32::from(c))).into_owned()
}

fn escape_unsafe<'t>(text: &'t str, escape: &dyn Fn(char) -> String) -> Cow<'t, str> {
    if !text.contains(is_unsafe) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) { out.push_str(&escape(c)) } else { out.push(c) }
    }
    out.into()
}

fn write_stdout(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Prints that Ctrl-C ended the command, below a progress bar that may stand on the line.
pub fn show_interrupted() {
    write_stderr(if std::io::stderr().is_terminal() { "\ninterrupted\n" } else { "interrupted\n" });
}

/// Prints a line to standard error from a background thread, without the progress bar.
pub fn log(message: &str) {
    write_stderr(&format!("{}\n", sanitize(message)));
}

fn write_stderr(text: &str) {
    let _closed = std::io::stderr().lock().write_all(text.as_bytes());
}

fn progress_bar(task: &str, total: Option<u64>) -> ProgressBar {
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
                self.with_bar(|bar| *bar = Some(progress_bar(task, total)));
            }
            Event::Advanced { by } => self.with_bar(|bar| bar.iter().for_each(|shown| shown.inc(by))),
            Event::Finished => self.clear_bar(),
            Event::Output { bytes } if !silent => {
                self.with_bar(|_| {
                    let _closed = std::io::stderr().lock().write_all(bytes);
                });
            }
            Event::Note { message } if !silent => self.print_above_bar(&format!("{}\n", sanitize(message))),
            Event::Warning { message } if !self.quiet => {
                self.print_above_bar(&format!("warning: {}\n", sanitize(message)));
            }
            Event::Failed { error } if !self.json => self.print_error(error),
            _ => {}
        }
    }
}
