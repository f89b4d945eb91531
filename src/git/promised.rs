//! Objects that a partial clone (`git clone --filter=…`) left at its remote: they are fetched when they are
//! needed, as Git itself does.
//!
//! The user's `git` fetches them, as it does tags and events. A caller that reads many calls
//! [`Git::prefetch`] first, so that they come in one request, or in few if the remote refuses some.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use crate::{
    error::{Error, Kind, Result, WithContext},
    git::{Git, NewFiles, Rev, from_gix, unreadable, upstream::Upstream},
};

/// Number of requests in a row that the remote may refuse before it is not asked again.
const MAX_REFUSED: usize = 50;

/// Objects that the remote of a partial clone did not send, each with the reason.
#[derive(Clone, Default)]
pub(super) struct NotSent {
    refused: BTreeMap<gix::ObjectId, String>,
    /// Number of requests that failed since one succeeded.
    in_a_row: usize,
    /// The reason why it is not asked again: for each object, that would hold up a command for long.
    gave_up: Option<String>,
}

impl Git {
    /// Reads an object; one that is promised by a remote is fetched first.
    pub(super) fn object(&self, id: gix::ObjectId, context: impl Fn() -> String) -> Result<gix::Object<'_>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if let Ok(object) = self.repo.find_object(id) {
            return Ok(object);
        }
        self.fetch_promised(&[id]).context(&context)?;
        self.repo.find_object(id).map_err(|error| unreadable(&error, &context()))
    }

    /// Reads a tree as [`Git::object`] does.
    pub(super) fn tree(&self, id: gix::ObjectId, context: impl Fn() -> String) -> Result<gix::Tree<'_>> {
        from_gix(self.object(id, &context)?.try_into_tree(), context)
    }

    /// Returns the id of a commit's tree.
    pub(super) fn tree_id(&self, rev: &Rev, context: impl Fn() -> String) -> Result<gix::ObjectId> {
        let commit = from_gix(self.object(rev.0, &context)?.try_into_commit(), &context)?;
        Ok(from_gix(commit.tree_id(), context)?.detach())
    }

    /// Fetches in a partial clone, in few requests, the files of these commits whose last name `wanted`
    /// accepts, as far as possible: an error is that of the object that is read later and is missing.
    pub fn prefetch(&self, revs: &[Rev], wanted: fn(&[u8]) -> bool) {
        if self.promisor().is_none() {
            return;
        }
        let id = |rev| self.tree_id(rev, || "cannot read Git's history".to_owned()).ok();
        let _trees = self.fetch_promised(&revs.iter().filter_map(id).collect::<Vec<_>>());
        let mut files = NewFiles::new(self, wanted);
        let mut blobs = Vec::new();
        for rev in revs {
            let _unreadable = files.list(rev, &mut |_, blob| {
                blobs.push(blob.id());
                Ok(true)
            });
        }
        blobs.sort_unstable();
        blobs.dedup();
        let _blobs = self.fetch_promised(&blobs);
    }

    /// Fetches those of these objects that are not here, if this is a partial clone. It is an error if the
    /// remote does not send one of them.
    fn fetch_promised(&self, ids: &[gix::ObjectId]) -> Result<()> {
        let mut missing: Vec<_> = ids.iter().filter(|id| !self.repo.has_object(**id)).copied().collect();
        missing.sort_unstable();
        missing.dedup();
        let Some(remote) = self.promisor().filter(|_| !missing.is_empty()) else { return Ok(()) };
        let is_refused = |id: &&gix::ObjectId| self.not_sent.borrow().refused.contains_key(*id);
        let asked: Vec<_> = missing.iter().filter(|id| !is_refused(id)).copied().collect();
        self.fetch_in_parts(&remote, &asked)?;
        let not_sent = self.not_sent.borrow();
        let reason = missing.iter().find_map(|id| not_sent.refused.get(id)).or(not_sent.gave_up.as_ref());
        let Some(reason) = reason else { return Ok(()) };
        let message =
            format!("this partial clone lacks objects, and `{}` did not send them: {reason}", remote.0);
        Err(Error::new(Kind::Unavailable, message).hint("check the remote with `git fetch`, then try again"))
    }

    /// Fetches objects in one request; if the remote refuses it, in smaller ones: it sends nothing if it
    /// lacks one of the objects.
    fn fetch_in_parts(&self, remote: &Upstream, ids: &[gix::ObjectId]) -> Result<()> {
        if ids.is_empty() || self.not_sent.borrow().gave_up.is_some() {
            return Ok(());
        }
        let failed = self.fetch_objects(remote, ids)?;
        let mut not_sent = self.not_sent.borrow_mut();
        let Some(reason) = failed else {
            not_sent.in_a_row = 0;
            return Ok(());
        };
        not_sent.in_a_row += 1;
        if not_sent.in_a_row >= MAX_REFUSED || self.list_refs(remote, &["HEAD"]).is_err() {
            not_sent.gave_up = Some(reason);
        } else if let [id] = ids {
            not_sent.refused.insert(*id, reason);
        } else {
            drop(not_sent);
            let (one, other) = ids.split_at(ids.len() / 2);
            self.fetch_in_parts(remote, one)?;
            self.fetch_in_parts(remote, other)?;
        }
        Ok(())
    }

    /// Fetches objects in one request; returns the reason if it fails.
    fn fetch_objects(&self, remote: &Upstream, ids: &[gix::ObjectId]) -> Result<Option<String>> {
        let args = [
            "-c",
            "fetch.negotiationAlgorithm=noop",
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            "--recurse-submodules=no",
            "--filter=blob:none",
            "--stdin",
            &remote.0,
        ];
        let lines: String = ids.iter().map(|id| format!("{id}\n")).collect();
        let output = self.run_git(&args, lines.as_bytes())?;
        if output.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let reason = text.lines().find(|line| !line.trim().is_empty());
        Ok(Some(reason.unwrap_or("`git fetch` failed").to_owned()))
    }

    /// Returns the remote that promised the objects that are not here; `None` unless this is a partial clone.
    pub(super) fn promisor(&self) -> Option<Upstream> {
        let config = self.repo.config_snapshot();
        if let Some(name) = config.string("extensions.partialClone") {
            return Some(Upstream(name.to_string()));
        }
        let names = self.repo.remote_names();
        let is_promisor = |name: &String| config.boolean(&format!("remote.{name}.promisor")) == Some(true);
        names.iter().map(ToString::to_string).find(is_promisor).map(Upstream)
    }
}
