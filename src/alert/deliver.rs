//! Alerts on their way to people: a file, a command, a webhook. Where they go only the user's own settings say,
//! never a file that somebody else committed.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    error::{Doing, Error, Kind, Result},
    fs,
    repo::Config,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Where alerts go.
#[derive(Clone, Debug, Default)]
pub struct Sinks {
    pub file: Option<PathBuf>,
    /// For the shell; the alert comes as JSON on its standard input.
    pub command: Option<String>,
    pub webhook: Option<String>,
}

impl Sinks {
    pub fn of(config: &Config) -> Self {
        let text = |key: &str| config.get(key).map(|it| it.0.to_owned());
        Self {
            file: text("alert.file").map(PathBuf::from),
            command: text("alert.command"),
            webhook: text("alert.webhook"),
        }
    }
}

/// Hands an alert to every sink; what went wrong, one error a sink. The alert itself is on the record already.
pub fn deliver(sinks: &Sinks, root: &Path, alert: &Value) -> Vec<Error> {
    let mut failed = Vec::new();
    let mut note = |done: Result<()>| failed.extend(done.err());
    if let Some(file) = &sinks.file {
        let place = root.join(file);
        let line = format!("{alert}\n");
        note(fs::append_outside(&place, line.as_bytes()));
    }
    if let Some(command) = &sinks.command {
        note(run(command, root, alert).doing(|| "the alert's command failed".into()));
    }
    if let Some(webhook) = &sinks.webhook {
        note(post(webhook, alert).doing(|| "the alert's webhook failed".into()));
    }
    failed
}

fn run(command: &str, root: &Path, alert: &Value) -> Result<()> {
    let doing = || format!("cannot run `{command}`");
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(root).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = shell.spawn().doing(doing)?;
    // It may end without reading.
    let _ended = child.stdin.take().map(|mut it| it.write_all(alert.to_string().as_bytes()));
    let status = child.wait().doing(doing)?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::new(Kind::Stage, format!("`{command}` ended with {status}")))
    }
}

fn post(address: &str, alert: &Value) -> Result<()> {
    let wrong = |it: reqwest::Error| Error::new(Kind::Unavailable, it.without_url().to_string());
    drop(rustls::crypto::ring::default_provider().install_default());
    let client =
        reqwest::blocking::Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none());
    let mut request = client.build().map_err(wrong)?.post(address).header("content-type", "application/json");
    if let Ok(token) = std::env::var("MLX_WEBHOOK_TOKEN") {
        request = request.bearer_auth(token);
    }
    let answer = request.body(alert.to_string()).send().map_err(wrong)?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(Error::new(Kind::Unavailable, format!("it answered {}", answer.status())))
}
