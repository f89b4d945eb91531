//! Delivers alerts to a file, a command or a webhook.
//!
//! The targets come from the user's own settings only, never from a file that another user committed.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs,
    repo::Config,
};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Kind of target that alerts are delivered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sink {
    File,
    Command,
    Webhook,
}

/// Configured targets of alerts.
#[derive(Clone, Debug)]
pub struct Sinks {
    /// File to append alerts to, as lines of JSON; relative to the repository's root.
    pub file: Option<PathBuf>,
    /// Shell command; it gets the alert as a line of JSON on standard input.
    pub command: Option<String>,
    /// URL to post the alert to, as JSON.
    pub webhook: Option<String>,
    /// Time limit for the command and for the webhook, each.
    pub timeout: Duration,
}

impl Sinks {
    /// Reads the targets from the user's settings.
    pub fn from_config(config: &Config) -> Self {
        let text = |key: &str| config.get(key).map(|(value, _)| value.to_owned());
        Self {
            file: text("alert.file").map(PathBuf::from),
            command: text("alert.command"),
            webhook: text("alert.webhook"),
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// Returns the kinds of target that are configured.
    pub fn configured(&self) -> Vec<Sink> {
        let all = [
            (Sink::File, self.file.is_some()),
            (Sink::Command, self.command.is_some()),
            (Sink::Webhook, self.webhook.is_some()),
        ];
        all.into_iter().filter(|(_, is_set)| *is_set).map(|(sink, _)| sink).collect()
    }

    /// Delivers an alert to one target. The error is `Unavailable` if the target does not respond at all, so
    /// that the caller does not try it again soon.
    pub fn send(&self, sink: Sink, root: &Path, alert: &Value) -> Result<()> {
        let line = format!("{alert}\n");
        match (sink, &self.file, &self.command, &self.webhook) {
            (Sink::File, Some(file), ..) => fs::append_user_file(&root.join(file), line.as_bytes()),
            (Sink::Command, _, Some(command), _) => {
                run(command, root, &line, self.timeout).context(|| "the alert command failed".into())
            }
            (Sink::Webhook, .., Some(webhook)) => {
                post(webhook, line, self.timeout).context(|| "the alert webhook failed".into())
            }
            _ => Ok(()),
        }
    }
}

fn run(command: &str, root: &Path, line: &str, timeout: Duration) -> Result<()> {
    let context = || format!("cannot run `{command}`");
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(root).stdin(Stdio::piped()).stdout(Stdio::null());
    // A process group of its own, so that its child processes can be killed with it.
    let mut child = shell.process_group(0).spawn().context(context)?;
    // The command may exit without reading its input.
    let _written = child.stdin.take().map(|mut stdin| stdin.write_all(line.as_bytes()));
    match wait(&mut child, timeout).context(context)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(Error::new(Kind::Stage, format!("`{command}` failed: {status}"))),
        None => {
            let text = format!("`{command}` did not finish within {} s", timeout.as_secs_f32());
            Err(Error::new(Kind::Unavailable, text))
        }
    }
}

/// Waits for a command and returns its status; after the timeout kills its process group and returns none.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            let _killed = group.map(|id| kill_process_group(id, Signal::KILL));
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL_INTERVAL);
    }
}

fn post(address: &str, line: String, timeout: Duration) -> Result<()> {
    let failed = |error: reqwest::Error| {
        let late = format!("no response within {} s", timeout.as_secs_f32());
        // The URL may contain a secret.
        let text = if error.is_timeout() { late } else { error.without_url().to_string() };
        Error::new(Kind::Unavailable, text)
    };
    drop(rustls::crypto::ring::default_provider().install_default());
    let client =
        reqwest::blocking::Client::builder().timeout(timeout).redirect(reqwest::redirect::Policy::none());
    let mut request =
        client.build().map_err(failed)?.post(address).header("content-type", "application/json");
    if let Ok(token) = std::env::var("MLX_WEBHOOK_TOKEN") {
        request = request.bearer_auth(token);
    }
    let response = request.body(line).send().map_err(failed)?;
    if response.status().is_success() {
        return Ok(());
    }
    Err(Error::new(Kind::Stage, format!("it responded with {}", response.status())))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use serde_json::json;

    use super::*;

    fn sinks(command: &str) -> Sinks {
        let timeout = Duration::from_millis(300);
        Sinks { file: None, command: Some(command.into()), webhook: None, timeout }
    }

    /// Returns true once the process has ended: a killed one runs on until it is scheduled again, and its new
    /// parent may not have reaped it yet.
    fn has_ended(pid: u32) -> bool {
        let end = Instant::now() + Duration::from_mins(1);
        while Instant::now() < end {
            let state = fs::read_user_file(Path::new(&format!("/proc/{pid}/stat"))).unwrap_or_default();
            if state.is_empty() || String::from_utf8_lossy(&state).contains(") Z ") {
                return true;
            }
            thread::sleep(POLL_INTERVAL);
        }
        false
    }

    #[test]
    fn a_command_that_does_not_finish_is_killed_with_its_children() {
        // On a busy machine the command may not have started its child before it is killed.
        for millis in [300, 3000, 30000] {
            let temp = tempfile::tempdir().unwrap();
            let timeout = Duration::from_millis(millis);
            let sinks = Sinks { timeout, ..sinks("sleep 600 & echo $! > new; mv new pid; wait") };
            let error = sinks.send(Sink::Command, temp.path(), &json!({})).unwrap_err();
            let says = format!("did not finish within {} s", timeout.as_secs_f32());
            assert!(error.chain_text().ends_with(&says), "{}", error.chain_text());
            assert_eq!(error.kind(), Kind::Unavailable);
            if let Ok(pid) = fs::read_user_file(&temp.path().join("pid")) {
                let pid = String::from_utf8(pid).unwrap().trim().parse().unwrap();
                assert!(has_ended(pid), "the command's child is still running");
                return;
            }
        }
        panic!("the command did not start its child");
    }

    #[test]
    fn a_command_gets_the_alert_as_a_line_of_json() {
        let temp = tempfile::tempdir().unwrap();
        sinks("cat > received").send(Sink::Command, temp.path(), &json!({"a": 1})).unwrap();
        assert_eq!(fs::read_user_file(&temp.path().join("received")).unwrap(), b"{\"a\":1}\n");
    }

    #[test]
    fn a_webhook_that_does_not_respond_is_reported_as_a_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let webhook = Some(format!("http://{}/", listener.local_addr().unwrap()));
        let sinks = Sinks { webhook, ..sinks("true") };
        let error = sinks.send(Sink::Webhook, Path::new("/"), &json!({})).unwrap_err();
        assert_eq!(error.chain_text(), "the alert webhook failed: no response within 0.3 s");
    }
}
