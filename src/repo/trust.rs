//! Which places may see the user's cloud credentials: those that the user named, on this machine.
//!
//! A stranger's repository can name any endpoint; until `mlx remote trust` was typed here, only the
//! cloud's own endpoints get credentials.

use crate::{
    error::{Error, Kind, Result},
    fs::{Root, Sync},
    path::RepoPath,
    repo::{RemoteConfig, user_dir},
};

const FILE: &str = "trusted.txt";

impl RemoteConfig {
    /// What is trusted: the place and everything that decides where requests go.
    fn trust_entry(&self) -> String {
        let options = self.options.iter().map(|(key, value)| format!(" {key}={value}"));
        format!("{}{}", self.url, options.collect::<String>()).replace('\n', " ")
    }

    /// Whether credentials may go there.
    pub fn is_trusted(&self) -> Result<bool> {
        const ROUTING_OPTIONS: [&str; 4] = ["endpoint", "profile", "role_arn", "external_id"];
        if self.private || !ROUTING_OPTIONS.iter().any(|it| self.options.contains_key(*it)) {
            return Ok(true);
        }
        Ok(read_trusted()?.lines().any(|it| it == self.trust_entry()))
    }

    /// Remembers, in the user's own settings, that credentials may go there.
    pub fn trust(&self) -> Result<()> {
        let mut text = read_trusted()?;
        if !text.lines().any(|it| it == self.trust_entry()) {
            text.push_str(&self.trust_entry());
            text.push('\n');
            user_root()?.write_mode(&RepoPath::from_text(FILE)?, text.as_bytes(), Sync::Yes, 0o600)?;
        }
        Ok(())
    }

    /// The refusal to send credentials to a place that nobody vouched for.
    pub fn untrusted_error(&self) -> Error {
        let endpoint = self.options.get("endpoint").unwrap_or(&self.url);
        let message =
            format!("the repository wants your credentials sent to `{endpoint}` (remote `{}`)", self.name);
        Error::new(Kind::Denied, message)
            .hint(format!("if that place is yours, say so once with `mlx remote trust {}`", self.name))
    }
}

fn user_root() -> Result<Root> {
    let dir = user_dir().ok_or_else(|| Error::not_found("there is no home folder").hint("set HOME"))?;
    Root::create(&dir)
}

fn read_trusted() -> Result<String> {
    let Some(dir) = user_dir().filter(|it| crate::fs::is_dir(it)) else { return Ok(String::new()) };
    let bytes = Root::open(&dir)?.read_if_there(&RepoPath::from_text(FILE)?)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
