//! Links inside a dependency: the path in the repository that each leads to.
//!
//! A command reads through links, while the digest of a link covers its text alone. So a link that leads out
//! of the dependency makes its target a dependency as well, and one that leads out of the repository is
//! refused: nothing out there is read.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

use crate::{
    error::{Error, Kind, Result},
    fs::FileKind,
    path::{RepoPath, escape_bytes},
    store::EntryKind,
    workspace::{Node, Workspace},
};

/// Links that are followed one after the other before they count as a circle, as in the kernel.
const MAX_HOPS: usize = 40;

impl Workspace<'_> {
    /// Returns the paths outside `node`, the scanned content of `path`, that links inside it lead to. A
    /// dangling link leads nowhere.
    pub fn link_targets(&self, path: &RepoPath, node: &Node) -> Result<Vec<RepoPath>> {
        let mut targets = Vec::new();
        node.walk(&path.parent().unwrap_or_default(), &mut |folder, leaf| {
            if leaf.kind != EntryKind::Link {
                return Ok(());
            }
            let link = folder.join(&leaf.name)?;
            let Some(target) = self.resolve_link(&link)? else { return Ok(()) };
            let is_inside = target.strip_prefix(path).is_some_and(|below| node.contains(&below));
            if !is_inside {
                if path.is_within(&target) {
                    let message = format!("the link `{link}` leads to `{target}`, which contains `{path}`");
                    return Err(Error::usage(message).hint("name as dependencies what the stage reads there"));
                }
                targets.push(target);
            }
            Ok(())
        })?;
        targets.sort();
        targets.dedup();
        Ok(targets)
    }

    /// Returns the path that a link leads to in the end; `None` if nothing exists there.
    fn resolve_link(&self, link: &RepoPath) -> Result<Option<RepoPath>> {
        let files = &self.repo.files;
        let text = files.read_link(link)?;
        let mut here = link.parent().unwrap_or_default();
        let mut pending = Vec::new();
        let mut next = text.clone();
        for _ in 0..MAX_HOPS {
            let inside = below_root(&next, self.repo.root());
            if next.starts_with(b"/") {
                here = RepoPath::root();
            }
            let names = inside.ok_or_else(|| leads_out(link, &text))?;
            pending.extend(names.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
            match self.walk_names(&mut here, &mut pending)? {
                Walked::End => return Ok(Some(here)),
                Walked::Nowhere => return Ok(None),
                Walked::Out => return Err(leads_out(link, &text)),
                Walked::Link(target) => next = target,
            }
        }
        Ok(None)
    }

    /// Walks from `here` along the names, of which the last comes first, to their end or to the next link.
    fn walk_names(&self, here: &mut RepoPath, names: &mut Vec<Vec<u8>>) -> Result<Walked> {
        while let Some(name) = names.pop() {
            match &name[..] {
                b"" | b"." => {}
                b".." => match here.parent() {
                    Some(parent) => *here = parent,
                    None => return Ok(Walked::Out),
                },
                name => {
                    let Ok(path) = here.join(name) else { return Ok(Walked::Out) };
                    match self.repo.files.stat(&path)?.map(|it| it.kind) {
                        None => return Ok(Walked::Nowhere),
                        Some(FileKind::Symlink) if !self.is_stored_link(&path) => {
                            return Ok(Walked::Link(self.repo.files.read_link(&path)?));
                        }
                        Some(_) => *here = path,
                    }
                }
            }
        }
        Ok(Walked::End)
    }

    /// Returns true for a link that `cache.link` made into the store: it counts as the file it leads to.
    fn is_stored_link(&self, path: &RepoPath) -> bool {
        let target = self.repo.files.read_link(path);
        target.is_ok_and(|target| self.repo.store.large_from_link(&target).is_some())
    }
}

enum Walked {
    End,
    Nowhere,
    Out,
    /// The text of a link on the way; the names after it are still to be walked.
    Link(Vec<u8>),
}

/// Returns the part of a link's text below the repository's root; the text itself if it is relative.
fn below_root<'t>(text: &'t [u8], root: &Path) -> Option<&'t [u8]> {
    if !text.starts_with(b"/") {
        return Some(text);
    }
    let below = Path::new(OsStr::from_bytes(text)).strip_prefix(root).ok()?;
    Some(below.as_os_str().as_bytes())
}

fn leads_out(link: &RepoPath, text: &[u8]) -> Error {
    let message = format!("the link `{link}` leads out of the repository: to `{}`", escape_bytes(text));
    Error::new(Kind::Denied, message)
        .hint("copy its target into the repository, or remove the link: nothing outside is read or recorded")
}
