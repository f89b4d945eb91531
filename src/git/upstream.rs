//! Talks to the shared Git remote: lists its refs, fetches and pushes.
//!
//! It runs the user's `git`, which has their credentials, with fixed arguments: no hook or helper of the
//! repository runs, `git` never prompts, and only HTTPS, SSH and local paths are allowed.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Output, Stdio},
};

use crate::{
    error::{Error, Kind, Result, WithContext},
    git::{Git, Rev, from_gix},
};

/// Name of a Git remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream(pub String);

/// Refs of a Git remote: full name to object id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefListing(pub BTreeMap<String, String>);

/// A ref of a Git remote, and the local ref that is to keep its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefToFetch {
    /// Full name at the remote.
    pub name: String,
    /// Object id that the remote listed for it.
    pub id: String,
    /// Full name here.
    pub local: String,
    /// True if the local ref may move from another object.
    pub may_move: bool,
}

/// Outcome of a push that reached the remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    Done,
    /// The remote rejected the push, because another one came first or by a rule of its own; with its
    /// message.
    Rejected(String),
}

impl Git {
    /// Returns the remote that holds the audit record: `mlx.remote` in Git's configuration, else `origin`,
    /// else the only remote. The remote of the current branch is not used, so that the policy of a fork never
    /// applies.
    pub fn upstream(&self) -> Result<Option<Upstream>> {
        let names: Vec<String> = self.repo.remote_names().iter().map(ToString::to_string).collect();
        let exists = |wanted: &str| names.iter().any(|name| name == wanted);
        if let Some(configured) = self.repo.config_snapshot().string("mlx.remote") {
            let configured = configured.to_string();
            let found = exists(&configured);
            return if found { Ok(Some(Upstream(configured))) } else { Err(unknown_remote(&configured)) };
        }
        match &names[..] {
            _ if exists("origin") => Ok(Some(Upstream("origin".to_owned()))),
            [] => Ok(None),
            [one] => Ok(Some(Upstream(one.clone()))),
            many => {
                let message = format!("none of the Git remotes {} is named `origin`", many.join(", "));
                Err(Error::usage(message)
                    .hint("choose the one that holds the audit record: `git config mlx.remote NAME`"))
            }
        }
    }

    /// Lists the current refs of the remote that match `names`, as arguments of `git ls-remote`.
    pub fn list_refs(&self, upstream: &Upstream, names: &[&str]) -> Result<RefListing> {
        let args = [&["ls-remote", "--quiet", &upstream.0][..], names].concat();
        let output = self.run_git(&args, b"")?;
        if !output.status.success() {
            return Err(unreachable(upstream, &output));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let rows = text.lines().filter_map(|line| line.split_once('\t'));
        let rows = rows.filter(|(_, name)| !name.ends_with("^{}"));
        Ok(RefListing(rows.map(|(id, name)| (name.to_owned(), id.to_owned())).collect()))
    }

    /// Fetches refs of the remote. `git` fetches their objects, and mlx itself writes the local refs, so that
    /// the lock file of a killed process stops neither.
    pub fn fetch(&self, upstream: &Upstream, refs: &[RefToFetch]) -> Result<()> {
        if refs.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = refs.iter().map(|wanted| wanted.name.as_str()).collect();
        let args =
            ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--refmap=", "--stdin", &upstream.0];
        let output = self.run_git(&args, names.join("\n").as_bytes())?;
        if output.status.success() { self.write_fetched(refs) } else { Err(unreachable(upstream, &output)) }
    }

    /// Pushes `updates` (object id, ref name) atomically: all of them or none.
    pub fn push(&self, upstream: &Upstream, updates: &[(String, String)]) -> Result<PushOutcome> {
        let refspecs: Vec<String> = updates.iter().map(|(id, name)| format!("{id}:{name}")).collect();
        let mut args = vec!["push", "--atomic", "--porcelain", &upstream.0];
        args.extend(refspecs.iter().map(String::as_str));
        let output = self.run_git(&args, b"")?;
        if output.status.success() {
            return Ok(PushOutcome::Done);
        }
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let rejected: Vec<&str> = stdout.lines().filter_map(|line| line.strip_prefix("!\t")).collect();
        if rejected.is_empty() {
            return Err(unreachable(upstream, &output));
        }
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let remote = stderr.lines().filter_map(|line| line.strip_prefix("remote: ")).collect::<Vec<_>>();
        Ok(PushOutcome::Rejected([rejected, remote].concat().join("; ").replace('\t', " ")))
    }

    /// Returns true if an object exists in this clone.
    pub fn has_object(&self, id: &str) -> bool {
        gix::ObjectId::from_hex(id.as_bytes()).is_ok_and(|id| self.repo.has_object(id))
    }

    /// Resolves a full ref name to a commit; `None` if it does not exist or leads to no commit.
    pub fn resolve_ref(&self, name: &str) -> Result<Option<Rev>> {
        let context = || format!("cannot read `{name}`");
        match from_gix(self.repo.try_find_reference(name), context)? {
            Some(mut found) => Ok(found.peel_to_commit().ok().map(|commit| Rev(commit.id))),
            None => Ok(None),
        }
    }

    /// Runs the user's `git` in this repository with this input, and captures its output.
    pub(super) fn run_git(&self, args: &[&str], input: &[u8]) -> Result<Output> {
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
        let mut child = command.spawn().context(|| "cannot run `git`".into())?;
        // It may exit without reading its input.
        let _unread = child.stdin.take().map(|mut stdin| stdin.write_all(input));
        child.wait_with_output().context(|| "cannot run `git`".into())
    }
}

fn unknown_remote(name: &str) -> Error {
    Error::usage(format!("Git remote `{name}`, set as `mlx.remote`, not found"))
        .hint("list the remotes with `git remote -v`, and choose one with `git config mlx.remote NAME`")
}

fn unreachable(upstream: &Upstream, output: &Output) -> Error {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).take(2).collect();
    let reason =
        if lines.is_empty() { format!("`git` ended with {}", output.status) } else { lines.join(" ") };
    let error =
        Error::new(Kind::Unavailable, format!("the Git remote `{}` cannot be reached: {reason}", upstream.0));
    error.hint("check its address with `git remote -v`, then try again")
}
