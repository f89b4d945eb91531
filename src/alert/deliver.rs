//! Alerts on their way to people: a file, a command, a webhook. Where they go only the user's own settings say,
//! never a file that somebody else committed.

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
    error::{Doing, Error, Kind, Result},
    fs,
    repo::Config,
};

const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(20);

/// One of the ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sink {
    File,
    Command,
    Webhook,
}

/// Where alerts go.
#[derive(Clone, Debug)]
pub struct Sinks {
    pub file: Option<PathBuf>,
    /// For the shell; the alert comes as a line of JSON on its standard input.
    pub command: Option<String>,
    pub webhook: Option<String>,
    /// How long the command and the webhook may take, each.
    pub patience: Duration,
}

impl Sinks {
    pub fn of(config: &Config) -> Self {
        let text = |key: &str| config.get(key).map(|it| it.0.to_owned());
        Self {
            file: text("alert.file").map(PathBuf::from),
            command: text("alert.command"),
            webhook: text("alert.webhook"),
            patience: PATIENCE,
        }
    }

    /// Those that are set.
    pub fn there(&self) -> Vec<Sink> {
        let all = [
            (Sink::File, self.file.is_some()),
            (Sink::Command, self.command.is_some()),
            (Sink::Webhook, self.webhook.is_some()),
        ];
        all.into_iter().filter(|it| it.1).map(|it| it.0).collect()
    }

    /// Hands an alert to one sink. What gives no answer at all is `Unavailable`: it is no use to ask it again soon.
    pub fn tell(&self, sink: Sink, root: &Path, alert: &Value) -> Result<()> {
        let line = format!("{alert}\n");
        match (sink, &self.file, &self.command, &self.webhook) {
            (Sink::File, Some(file), ..) => fs::append_outside(&root.join(file), line.as_bytes()),
            (Sink::Command, _, Some(command), _) => {
                run(command, root, &line, self.patience).doing(|| "the alert's command failed".into())
            }
            (Sink::Webhook, .., Some(webhook)) => {
                post(webhook, line, self.patience).doing(|| "the alert's webhook failed".into())
            }
            _ => Ok(()),
        }
    }
}

fn run(command: &str, root: &Path, line: &str, patience: Duration) -> Result<()> {
    let doing = || format!("cannot run `{command}`");
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(root).stdin(Stdio::piped()).stdout(Stdio::null());
    // A group of its own, so that what it started ends with it.
    let mut child = shell.process_group(0).spawn().doing(doing)?;
    // It may end without reading.
    let _ended = child.stdin.take().map(|mut it| it.write_all(line.as_bytes()));
    match wait(&mut child, patience).doing(doing)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(Error::new(Kind::Stage, format!("`{command}` ended with {status}"))),
        None => {
            let text = format!("`{command}` did not end within {} s", patience.as_secs_f32());
            Err(Error::new(Kind::Unavailable, text))
        }
    }
}

/// How a command ended; none where it had to be stopped.
fn wait(child: &mut Child, patience: Duration) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            let _gone = group.map(|it| kill_process_group(it, Signal::KILL));
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(STEP);
    }
}

fn post(address: &str, line: String, patience: Duration) -> Result<()> {
    let wrong = |it: reqwest::Error| {
        let late = format!("there was no answer within {} s", patience.as_secs_f32());
        let text = if it.is_timeout() { late } else { it.without_url().to_string() };
        Error::new(Kind::Unavailable, text)
    };
    drop(rustls::crypto::ring::default_provider().install_default());
    let client =
        reqwest::blocking::Client::builder().timeout(patience).redirect(reqwest::redirect::Policy::none());
    let mut request = client.build().map_err(wrong)?.post(address).header("content-type", "application/json");
    if let Ok(token) = std::env::var("MLX_WEBHOOK_TOKEN") {
        request = request.bearer_auth(token);
    }
    let answer = request.body(line).send().map_err(wrong)?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(Error::new(Kind::Stage, format!("it answered {}", answer.status())))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use serde_json::json;

    use super::*;

    fn sinks(command: &str) -> Sinks {
        let patience = Duration::from_millis(300);
        Sinks { file: None, command: Some(command.into()), webhook: None, patience }
    }

    #[test]
    fn a_command_that_does_not_end_is_stopped_with_all_it_started() {
        let temp = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let sinks = sinks("sleep 60 & echo $! > pid; wait");
        let error = sinks.tell(Sink::Command, temp.path(), &json!({})).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(error.full_text().ends_with("did not end within 0.3 s"), "{}", error.full_text());
        assert_eq!(error.kind(), Kind::Unavailable);
        let pid = String::from_utf8(fs::read_outside(&temp.path().join("pid")).unwrap()).unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        // Whoever inherits the dead one may not have buried it yet.
        let state = fs::read_outside(Path::new(&format!("/proc/{}/stat", pid.as_raw_nonzero())));
        let gone = state.is_ok_and(|it| !String::from_utf8_lossy(&it).contains(") Z "));
        assert!(!gone, "the command's child lives on");
    }

    #[test]
    fn a_command_gets_a_line() {
        let temp = tempfile::tempdir().unwrap();
        sinks("cat > told").tell(Sink::Command, temp.path(), &json!({"a": 1})).unwrap();
        assert_eq!(fs::read_outside(&temp.path().join("told")).unwrap(), b"{\"a\":1}\n");
    }

    #[test]
    fn a_webhook_that_says_nothing_is_said_to_be_late() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let webhook = Some(format!("http://{}/", listener.local_addr().unwrap()));
        let sinks = Sinks { webhook, ..sinks("true") };
        let error = sinks.tell(Sink::Webhook, Path::new("/"), &json!({})).unwrap_err();
        assert_eq!(error.full_text(), "the alert's webhook failed: there was no answer within 0.3 s");
    }
}
