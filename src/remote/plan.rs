//! Plans a push: finds what the remote lacks of the wanted contents, in the order in which it is to be sent.
//!
//! All pages and contents of a wanted tree are compared with the remote's indexes, which costs no request: a
//! page at the remote does not prove that what it names is there, as packs may have been lost.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    digest::Digest,
    error::{Error, Kind as ErrorKind, Result, WithContext},
    path::RepoPath,
    pointer::{Content, ContentKind},
    remote::{Wants, catalog::Catalog, contents::Contents},
    store::{EntryKind, Kind, Page, Store, read_page},
};

/// Objects to send, and what neither side has.
#[derive(Default)]
pub struct Plan {
    /// Contents of files, with their sizes, sorted.
    pub contents: Vec<(Digest, u64)>,
    /// Large files of the local store of which the remote has a list of chunks, with their sizes.
    pub listed: BTreeMap<Digest, u64>,
    /// Pages of trees, each after all pages that it names, and the root pages of wanted trees last.
    pub pages: Vec<Digest>,
    /// Wants that stay incomplete at the remote, each with an object that neither side has.
    pub incomplete: Vec<(RepoPath, Digest)>,
    /// Digests of the wants that are complete once all of this is sent.
    pub complete: HashSet<Digest>,
}

impl Plan {
    /// Compares what `wants` names with the store and with the remote.
    pub fn new(store: &Store, catalog: &Catalog, wants: &Wants) -> Result<Self> {
        let mut walk = Walk {
            store,
            catalog,
            plan: Self::default(),
            contents: Contents::default(),
            seen: HashMap::new(),
            inner: HashSet::new(),
        };
        for (path, content) in &wants.contents {
            let lacking = walk.want(content).context(|| format!("cannot push `{path}`"))?;
            match lacking {
                Some(digest) => walk.plan.incomplete.push((path.clone(), digest)),
                None => drop(walk.plan.complete.insert(content.digest)),
            }
        }
        let Walk { mut plan, contents, inner, .. } = walk;
        plan.contents = contents.into_sorted();
        let is_root = |page: &Digest| plan.complete.contains(page) && !inner.contains(page);
        let (roots, pages): (Vec<_>, Vec<_>) = plan.pages.iter().partition(|page| is_root(page));
        plan.pages = [pages, roots].concat();
        Ok(plan)
    }

    /// Adds large files of which the remote has lists, but lacks chunks.
    pub fn send_again(&mut self, files: &HashSet<Digest>) {
        self.contents.extend(files.iter().map(|file| (*file, self.listed[file])));
        self.contents.sort_unstable();
    }

    /// Returns true if the content of a file is to be sent.
    pub fn has_content(&self, digest: &Digest) -> bool {
        self.contents.binary_search_by_key(digest, |content| content.0).is_ok()
    }

    /// The error that names what could not be pushed, if anything.
    pub fn failure(&self, remote: &str) -> Option<Error> {
        let (path, digest) = self.incomplete.first()?;
        let more = match self.incomplete.len() - 1 {
            0 => String::new(),
            more => format!(", and objects of {more} more paths"),
        };
        let message =
            format!("neither this clone nor the remote `{remote}` has {} of `{path}`{more}", digest.short());
        let error = Error::new(ErrorKind::NotFound, message);
        Some(error.hint("push from a machine that has it; everything else has been pushed"))
    }
}

struct Walk<'w> {
    store: &'w Store,
    catalog: &'w Catalog,
    plan: Plan,
    contents: Contents,
    /// Pages that were walked, each with an object below it that neither side has.
    seen: HashMap<Digest, Option<Digest>>,
    /// Pages that other pages name.
    inner: HashSet<Digest>,
}

/// Page whose children are being walked.
struct Frame {
    page: Digest,
    is_at_remote: bool,
    children: Vec<Digest>,
    lacking: Option<Digest>,
}

impl Walk<'_> {
    /// Plans one want. Returns an object of it that neither side has.
    fn want(&mut self, content: &Content) -> Result<Option<Digest>> {
        if content.kind == ContentKind::Tree {
            self.tree(content.digest)
        } else {
            Ok(self.file(content.digest, content.size))
        }
    }

    /// Plans a file's content. Returns its digest if neither side has it.
    fn file(&mut self, digest: Digest, size: u64) -> Option<Digest> {
        if self.catalog.find(&digest, &[Kind::Content, Kind::Tree]).is_some() {
            return None;
        }
        if !self.store.contains(&digest) {
            return (!self.catalog.has_content(&digest)).then_some(digest);
        }
        if self.catalog.find(&digest, &[Kind::Chunks]).is_none() {
            self.contents.insert(digest, size);
        } else if let Some(size) = self.store.large_size(&digest) {
            self.plan.listed.insert(digest, size);
        }
        None
    }

    /// Plans the pages of a tree, each after those below it. Not recursive: the tree may be untrusted and
    /// arbitrarily deep.
    fn tree(&mut self, root: Digest) -> Result<Option<Digest>> {
        let mut stack = Vec::from_iter(self.enter(root)?);
        while let Some(frame) = stack.last_mut() {
            if let Some(child) = frame.children.pop() {
                self.inner.insert(child);
                match self.seen.get(&child) {
                    Some(lacking) => frame.lacking = frame.lacking.or(*lacking),
                    None => stack.extend(self.enter(child)?),
                }
                continue;
            }
            let Frame { page, is_at_remote, lacking, .. } = stack.pop().expect("it has a last frame");
            self.seen.insert(page, lacking);
            if lacking.is_none() && !is_at_remote {
                self.plan.pages.push(page);
            }
            if let Some(parent) = stack.last_mut() {
                parent.lacking = parent.lacking.or(lacking);
            }
        }
        Ok(self.seen[&root])
    }

    /// Reads a page that was not walked yet; `None` if its outcome is known without its children.
    fn enter(&mut self, page: Digest) -> Result<Option<Frame>> {
        if self.seen.contains_key(&page) {
            return Ok(None);
        }
        let is_at_remote = self.catalog.find(&page, &[Kind::Content, Kind::Tree]).is_some();
        let read = match read_page(self.store, &page) {
            // What is below it cannot be known here.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.seen.insert(page, (!is_at_remote).then_some(page));
                return Ok(None);
            }
            read => read?,
        };
        // A cycle cannot be: a page would hold its own digest.
        let mut frame = Frame { page, is_at_remote, children: Vec::new(), lacking: None };
        match read {
            Page::Branch(_, rows) => frame.children.extend(rows.iter().map(|row| row.digest)),
            Page::Leaf(rows) => {
                for row in rows {
                    if row.kind == EntryKind::Folder {
                        frame.children.push(row.digest);
                    } else {
                        frame.lacking = self.file(row.digest, row.size).or(frame.lacking);
                    }
                }
            }
        }
        Ok(Some(frame))
    }
}
