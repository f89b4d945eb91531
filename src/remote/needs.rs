//! Names the paths that need an object, by a search in the trees that are stored here.
//!
//! Only a transfer that fails needs them: to keep a path for each object would take more memory than all
//! else.

use std::collections::{BTreeSet, HashSet};

use crate::{
    digest::Digest,
    path::RepoPath,
    remote::Wants,
    repo::Repo,
    store::{EntryKind, Page, read_page},
};

/// Largest number of paths in a message.
const MAX_NAMED: usize = 10;

/// Names the paths that need one of these pages or files.
pub fn named(repo: &Repo, wants: &Wants, objects: &BTreeSet<Digest>) -> String {
    let mut search = Search { repo, objects, seen: HashSet::new(), found: BTreeSet::new() };
    wants.contents.iter().for_each(|(path, content)| search.object(path, &content.digest));
    let named: Vec<_> = search.found.iter().take(MAX_NAMED).map(|path| format!("`{path}`")).collect();
    match search.found.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

struct Search<'s> {
    repo: &'s Repo,
    objects: &'s BTreeSet<Digest>,
    /// Pages that were searched: one path for each of their files is enough.
    seen: HashSet<Digest>,
    found: BTreeSet<RepoPath>,
}

impl Search<'_> {
    /// Searches the page or file at a path, and all below. Not recursive: the tree may be arbitrarily deep.
    fn object(&mut self, path: &RepoPath, digest: &Digest) {
        let mut waiting = vec![(path.clone(), *digest)];
        while let Some((path, digest)) = waiting.pop() {
            if self.objects.contains(&digest) {
                self.found.insert(path);
            } else if self.repo.store.contains_packed(&digest) && self.seen.insert(digest) {
                self.below(&path, &digest, &mut waiting);
            }
        }
    }

    /// Finds files in a page, and adds its pages to `waiting`.
    fn below(&mut self, path: &RepoPath, digest: &Digest, waiting: &mut Vec<(RepoPath, Digest)>) {
        // What cannot be read is not searched: it is the reason of the message, or was a file.
        match read_page(&self.repo.store, digest) {
            Ok(Page::Branch(_, rows)) => waiting.extend(rows.iter().map(|row| (path.clone(), row.digest))),
            Ok(Page::Leaf(rows)) => {
                for row in rows {
                    let Ok(path) = path.join(&row.name) else { continue };
                    if row.kind == EntryKind::Folder {
                        waiting.push((path, row.digest));
                    } else if self.objects.contains(&row.digest) {
                        self.found.insert(path);
                    }
                }
            }
            Err(_) => {}
        }
    }
}
