//! Decides which endpoints may receive cloud credentials: those that the user trusted on this machine.
//!
//! An untrusted repository can name any endpoint. Until the user runs `mlx remote trust`, only the cloud's
//! own endpoints get credentials.

use crate::{
    error::{Error, Kind, Result},
    fs::{Root, Sync},
    path::RepoPath,
    repo::{RemoteConfig, user_dir},
};

const FILE: &str = "trusted.txt";

impl RemoteConfig {
    /// Returns the trusted text: the URL and all options, since they decide where requests go.
    fn trust_entry(&self) -> String {
        let options = self.options.iter().map(|(key, value)| format!(" {key}={value}"));
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
        let mut text = read_trusted()?;
        if !text.lines().any(|it| it == self.trust_entry()) {
            text.push_str(&self.trust_entry());
            text.push('\n');
            user_root()?.write_mode(&RepoPath::from_text(FILE)?, text.as_bytes(), Sync::Now, 0o600)?;
        }
        Ok(())
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

fn user_root() -> Result<Root> {
    let dir = user_dir().ok_or_else(|| Error::not_found("your home folder is unknown").hint("set HOME"))?;
    Root::create(&dir)
}

fn read_trusted() -> Result<String> {
    let Some(dir) = user_dir().filter(|dir| crate::fs::is_dir(dir)) else { return Ok(String::new()) };
    let bytes = Root::open(&dir)?.read_if_exists(&RepoPath::from_text(FILE)?)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
