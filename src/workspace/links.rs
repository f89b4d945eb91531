//! Links inside a dependency: the path in the repository that each leads to.
//!
//! A command reads through links, while the digest of a link covers its text alone. So a link that leads out
//! of the dependency makes its target a dependency as well, and one that leads out of the repository is
//! refused: nothing out there is read. Content that mlx keeps has no links that lead out of it.

use std::{collections::BTreeSet, ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

use crate::{
    error::{Error, Kind, Result},
    fs::{self, FileKind, Listing},
    path::{RepoPath, escape_bytes},
    workspace::{Workspace, filter::ScanFilter},
};

/// Links that are followed one after the other before they count as a circle, as in the kernel.
const MAX_HOPS: usize = 40;

/// Links inside a dependency, as one walk found them.
#[derive(Clone, Debug, Default)]
pub struct Links {
    found: Vec<RepoPath>,
    /// The topmost paths in the dependency that are left out: a link to one of them leads out, too.
    left_out: BTreeSet<RepoPath>,
}

impl Links {
    /// Returns the links that a walk of the folder `path` listed, without those that mlx keeps.
    pub(super) fn new(
        path: &RepoPath,
        listing: &Listing,
        filter: ScanFilter<'_>,
        kept: &BTreeSet<RepoPath>,
    ) -> Self {
        let mut found = Vec::new();
        if !kept.contains(path) {
            collect_links(path, listing, kept, &mut found);
        }
        let left_out = filter.into_left_out().into_iter();
        Self { found, left_out: left_out.filter_map(|(folder, name)| folder.join(&name).ok()).collect() }
    }
}

impl Workspace<'_> {
    /// Walks the folder `path` for links; at other paths there are none. `kept` are the paths that mlx keeps.
    pub fn find_links(&self, path: &RepoPath, kept: &BTreeSet<RepoPath>) -> Result<Links> {
        let files = &self.repo.files;
        if kept.contains(path) || files.stat(path)?.is_none_or(|stat| stat.kind != FileKind::Folder) {
            return Ok(Links::default());
        }
        let filter = self.dependency_filter(path, kept)?;
        let listing = fs::on_io_threads(|| files.entries(path, &filter))?;
        Ok(Links::new(path, &listing, filter, kept))
    }

    /// Returns the paths outside the folder `path` that links inside it lead to. `kept` are the paths that
    /// mlx keeps: where nothing exists, they are what a link leads to; other dangling links lead nowhere.
    pub fn link_targets(
        &self,
        path: &RepoPath,
        links: &Links,
        kept: &BTreeSet<RepoPath>,
    ) -> Result<Vec<RepoPath>> {
        let files = &self.repo.files;
        let mut targets = Vec::new();
        for link in links.found.iter().filter(|link| !self.is_stored_link(link)) {
            let Some(target) = self.resolve_link(link)? else { continue };
            if target.is_within(path) && !target.ancestors().any(|above| links.left_out.contains(&above)) {
                continue;
            }
            if files.stat(&target)?.is_none() {
                targets.extend(kept_at(&target, kept));
                continue;
            }
            if path.is_within(&target) {
                let message = format!("the link `{link}` leads to `{target}`, which contains `{path}`");
                return Err(Error::usage(message).hint("name as dependencies what the stage reads there"));
            }
            targets.push(target);
        }
        targets.sort();
        targets.dedup();
        Ok(targets)
    }

    /// Returns the path that a link leads to in the end, whether or not something exists there; `None` for a
    /// circle.
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
                Walked::Out => return Err(leads_out(link, &text)),
                Walked::Link(target) => next = target,
            }
        }
        Ok(None)
    }

    /// Walks from `here` along the names, of which the last comes first, to their end or to the next link.
    fn walk_names(&self, here: &mut RepoPath, names: &mut Vec<Vec<u8>>) -> Result<Walked> {
        let mut is_missing = false;
        while let Some(name) = names.pop() {
            match &name[..] {
                b"" | b"." => {}
                b".." => match here.parent() {
                    Some(parent) => *here = parent,
                    None => return Ok(Walked::Out),
                },
                name => {
                    let Ok(path) = here.join(name) else { return Ok(Walked::Out) };
                    // Below a missing folder nothing exists.
                    let stat = if is_missing { None } else { self.repo.files.stat(&path)? };
                    if stat.is_some_and(|it| it.kind == FileKind::Symlink) && !self.is_stored_link(&path) {
                        return Ok(Walked::Link(self.repo.files.read_link(&path)?));
                    }
                    (is_missing, *here) = (stat.is_none(), path);
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
    Out,
    /// The text of a link on the way; the names after it are still to be walked.
    Link(Vec<u8>),
}

/// Adds the links at and below a folder that a walk listed, without those that mlx keeps.
fn collect_links(folder: &RepoPath, listing: &Listing, kept: &BTreeSet<RepoPath>, links: &mut Vec<RepoPath>) {
    for entry in listing.iter().filter(|entry| entry.stat.kind != FileKind::File) {
        let Ok(path) = folder.join(entry.name) else { continue };
        match entry.stat.kind {
            _ if kept.contains(&path) => {}
            FileKind::Symlink => links.push(path),
            _ => collect_links(&path, entry.children, kept, links),
        }
    }
}

/// Returns the missing path itself if mlx keeps it or a folder above it, or else what mlx keeps in it.
fn kept_at(path: &RepoPath, kept: &BTreeSet<RepoPath>) -> Vec<RepoPath> {
    if path.ancestors().any(|above| kept.contains(&above)) {
        return vec![path.clone()];
    }
    kept.iter().filter(|inner| inner.is_within(path)).cloned().collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_links_to_whole_names_of_the_root_lead_below_it() {
        let below = |text: &'static str| below_root(text.as_bytes(), Path::new("/work/repo"));
        for text in ["", "a/b", "../repo/a"] {
            assert_eq!(below(text), Some(text.as_bytes()), "a relative link is its own text");
        }
        for (text, inside) in [("/work/repo/a/b", "a/b"), ("/work/repo", ""), ("/work/repo/../x", "../x")] {
            assert_eq!(below(text), Some(inside.as_bytes()), "{text}");
        }
        for text in ["/", "/work", "/work/repository/a", "/repo/a", "/a"] {
            assert_eq!(below(text), None, "{text}");
        }
    }

    #[test]
    fn a_link_to_a_missing_path_leads_to_what_mlx_keeps_at_or_in_it() {
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        let kept = ["a/b", "a/c", "d"].map(path).into();
        for (missing, leads_to) in [
            ("a", &["a/b", "a/c"][..]),
            ("a/b", &["a/b"]),
            ("a/b/x", &["a/b/x"]),
            ("a/bc", &[]),
            ("d/e/f", &["d/e/f"]),
            ("e", &[]),
        ] {
            let leads_to: Vec<_> = leads_to.iter().map(|text| path(text)).collect();
            assert_eq!(kept_at(&path(missing), &kept), leads_to, "{missing}");
        }
    }
}
