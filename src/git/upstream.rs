//! The repository that others share: what it holds, and what is sent to it. Through the user's own `git`, which
//! knows their keys, with fixed arguments; no hook and no helper of a repository runs.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Output, Stdio},
    time::Duration,
};

use crate::{
    error::{Doing, Error, Kind, Result},
    git::{Git, Rev, ours},
};

/// How often a name that somebody else writes is waited for, and how long.
const LOCKED: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// A remote of Git.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream(pub String);

/// Names that a remote of Git has, each with the object it stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing(pub BTreeMap<String, String>);

/// What became of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    Done,
    /// Somebody else was first, or the other side says no: its words.
    Refused(String),
}

impl Git {
    /// The remote that keeps the record: what `mlx.remote` in Git's settings names, else `origin`, else the only
    /// one. Never that of the branch: who works on a fork does not answer to the fork's policy.
    pub fn upstream(&self) -> Result<Option<Upstream>> {
        let names: Vec<String> = self.repo.remote_names().iter().map(ToString::to_string).collect();
        let known = |it: &str| names.iter().any(|name| name == it);
        if let Some(said) = self.repo.config_snapshot().string("mlx.remote") {
            let said = said.to_string();
            return if known(&said) { Ok(Some(Upstream(said))) } else { Err(no_such(&said)) };
        }
        match &names[..] {
            _ if known("origin") => Ok(Some(Upstream("origin".to_owned()))),
            [] => Ok(None),
            [one] => Ok(Some(Upstream(one.clone()))),
            many => {
                let message = format!("none of the Git remotes {} is called `origin`", many.join(", "));
                Err(Error::usage(message)
                    .hint("say which one keeps the record: `git config mlx.remote NAME`"))
            }
        }
    }

    /// What the remote holds now: its default branch (`HEAD`), tags, and the audit chain.
    pub fn listing(&self, upstream: &Upstream, names: &[&str]) -> Result<Listing> {
        let args = [&["ls-remote", "--quiet", &upstream.0][..], names].concat();
        let output = self.program(&args, b"")?;
        if !output.status.success() {
            return Err(unreachable(upstream, &output));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let rows = text.lines().filter_map(|it| it.split_once('\t')).filter(|it| !it.1.ends_with("^{}"));
        Ok(Listing(rows.map(|(id, name)| (name.to_owned(), id.to_owned())).collect()))
    }

    /// Brings what these refspecs name.
    pub fn fetch(&self, upstream: &Upstream, refspecs: &[String]) -> Result<()> {
        if refspecs.is_empty() {
            return Ok(());
        }
        let args = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--stdin", &upstream.0];
        for turn in 0.. {
            let output = self.program(&args, refspecs.join("\n").as_bytes())?;
            // Another mlx of this repository may bring the same names.
            let locked = String::from_utf8_lossy(&output.stderr).contains("lock");
            if output.status.success() {
                break;
            } else if !locked || turn == LOCKED {
                return Err(unreachable(upstream, &output));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Sends all of these (object, name) or none.
    pub fn push(&self, upstream: &Upstream, what: &[(String, String)]) -> Result<Pushed> {
        let refspecs: Vec<String> = what.iter().map(|(id, name)| format!("{id}:{name}")).collect();
        let mut args = vec!["push", "--atomic", "--porcelain", &upstream.0];
        args.extend(refspecs.iter().map(String::as_str));
        let output = self.program(&args, b"")?;
        if output.status.success() {
            return Ok(Pushed::Done);
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let refused: Vec<&str> = said.lines().filter_map(|it| it.strip_prefix("!\t")).collect();
        if refused.is_empty() {
            return Err(unreachable(upstream, &output));
        }
        let server = String::from_utf8_lossy(&output.stderr).into_owned();
        let server = server.lines().filter_map(|it| it.strip_prefix("remote: ")).collect::<Vec<_>>();
        Ok(Pushed::Refused([refused, server].concat().join("; ").replace('\t', " ")))
    }

    /// Whether an object is here.
    pub fn has(&self, id: &str) -> bool {
        gix::ObjectId::from_hex(id.as_bytes()).is_ok_and(|it| self.repo.has_object(it))
    }

    /// The commit that a full name stands for, if there is one.
    pub fn tip(&self, name: &str) -> Result<Option<Rev>> {
        let doing = || format!("cannot read `{name}`");
        match ours(self.repo.try_find_reference(name), doing)? {
            Some(mut found) => Ok(found.peel_to_commit().ok().map(|it| Rev(it.id))),
            None => Ok(None),
        }
    }

    /// Runs the user's `git` in this repository.
    fn program(&self, args: &[&str], input: &[u8]) -> Result<Output> {
        let mut command = Command::new("git");
        command.arg("-C").arg(&self.root).args([
            "-c",
            "core.hooksPath=/dev/null",
            "-c",
            "credential.interactive=never",
        ]);
        command.args(args).env("GIT_ALLOW_PROTOCOL", "https:ssh:file").env("LC_ALL", "C");
        command.env("GIT_TERMINAL_PROMPT", "0");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().doing(|| "cannot run `git`".into())?;
        // It may end without reading.
        let _ended = child.stdin.take().map(|mut it| it.write_all(input));
        child.wait_with_output().doing(|| "cannot run `git`".into())
    }
}

fn no_such(name: &str) -> Error {
    Error::usage(format!("there is no Git remote `{name}`, which `mlx.remote` names"))
        .hint("`git remote -v` lists them; `git config mlx.remote NAME` names another")
}

fn unreachable(upstream: &Upstream, output: &Output) -> Error {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let said: Vec<&str> = said.lines().filter(|it| !it.trim().is_empty()).take(2).collect();
    let said = if said.is_empty() { format!("`git` ended with {}", output.status) } else { said.join(" ") };
    let error =
        Error::new(Kind::Unavailable, format!("the Git remote `{}` cannot be reached: {said}", upstream.0));
    error.hint("try again when it is there; `git remote -v` shows its address")
}
