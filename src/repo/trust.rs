//! Decides which endpoints may receive cloud credentials: those that the user trusted on this machine.
//!
//! An untrusted repository can name any endpoint. Until the user runs `mlx remote trust`, only the cloud's
//! own endpoints get credentials. The user's file holds addresses and options, never secrets.

use crate::{
    error::{Error, Kind, Result},
    fs::Root,
    path::RepoPath,
    repo::{config::RemoteConfig, files::change_user_file, keys::is_secret, user_dir},
};

const FILE: &str = "trusted.txt";

impl RemoteConfig {
    /// Returns the trusted text: the URL and the options that decide where requests go.
    fn trust_entry(&self) -> String {
        self.entry_of(&|key| !is_secret(key))
    }

    fn entry_of(&self, is_shown: &dyn Fn(&str) -> bool) -> String {
        let options = self.options.iter().filter(|(key, _)| is_shown(key));
        let options = options.map(|(key, value)| format!(" {key}={value}"));
        format!("{}{}", self.url, options.collect::<String>()).replace('\n', " ")
    }

    /// Returns true if credentials may be sent to this remote.
    pub fn is_trusted(&self) -> Result<bool> {
        const ROUTING_OPTIONS: [&str; 4] = ["endpoint", "profile", "role_arn", "external_id"];
        if self.private || !ROUTING_OPTIONS.iter().any(|it| self.options.contains_key(*it)) {
            return Ok(true);
        }
        Ok(read_trusted()?.lines().any(|it| it == self.trust_entry()))
    }

    /// Records in the user's own settings that credentials may be sent to this remote.
    pub fn trust(&self) -> Result<()> {
        let entry = self.trust_entry();
        change_user_file(&RepoPath::from_text(FILE)?, |text| {
            *text = self.without_secrets(text);
            if !text.lines().any(|line| line == entry) {
                text.push_str(&entry);
                text.push('\n');
            }
            Ok(())
        })
    }

    /// Removes a line with secrets of this remote, as earlier versions wrote it.
    pub fn forget_secrets(&self) -> Result<()> {
        let text = read_trusted()?;
        if self.without_secrets(&text) == text {
            return Ok(());
        }
        change_user_file(&RepoPath::from_text(FILE)?, |text| {
            *text = self.without_secrets(text);
            Ok(())
        })
    }

    fn without_secrets(&self, text: &str) -> String {
        let (full, entry) = (self.entry_of(&|_| true), self.trust_entry());
        let kept = text.lines().filter(|line| *line == entry || *line != full);
        kept.map(|line| format!("{line}\n")).collect()
    }

    /// The error for a remote that the user has not trusted.
    pub fn untrusted_error(&self) -> Error {
        let endpoint = self.options.get("endpoint").unwrap_or(&self.url);
        let message =
            format!("the repository wants your credentials sent to `{endpoint}` (remote `{}`)", self.name);
        Error::new(Kind::Denied, message)
            .hint(format!("if you trust that endpoint, run `mlx remote trust {}` once", self.name))
    }
}

fn read_trusted() -> Result<String> {
    let Some(dir) = user_dir().filter(|dir| crate::fs::is_dir(dir)) else { return Ok(String::new()) };
    let bytes = Root::open(&dir)?.read_if_exists(&RepoPath::from_text(FILE)?)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
