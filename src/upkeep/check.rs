//! Every byte against its name, every pointer of all history; what damage hits, by path and commit.

use std::{
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use crate::{
    digest::Digest,
    error::{Error, Result},
    path::{DEEPEST, RepoPath},
    pointer::{Content, Shape},
    progress::Progress,
    repo::Repo,
    store::{EntryKind, FaultKind, Page, Store, VerifyReport, decode_page},
    upkeep::{
        collect::only_one,
        mark::{Marked, mark},
        repair::{Mended, mend},
        roots::{Detail, Holder, Place, Roots, roots},
        seen::{Seen, look},
    },
    workspace::Workspace,
};

/// How often others may change what is tracked while it is checked.
const TRIES: u32 = 10;

/// A damaged object and who needs it: the path of the file, not of its folder's pointer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    pub object: Digest,
    pub place: Place,
}

/// What a check found.
#[derive(Debug, Default)]
pub struct Checked {
    pub verified: VerifyReport,
    /// Objects that something needs and whose bytes are wrong or lost.
    pub damaged: BTreeSet<Digest>,
    pub hits: Vec<Hit>,
    /// Pages of folders among what is not here.
    pub pages: BTreeSet<Digest>,
    /// Objects that something needs and that are not here, though a remote may have them.
    pub absent: BTreeSet<Digest>,
    /// Pointers and lockfiles that cannot be understood, with where they stand.
    pub unreadable: Vec<(String, Error)>,
    /// Files of the workspace that share their bytes with a damaged file of the store.
    pub changed: Vec<(RepoPath, Digest)>,
    pub pointers: u64,
    pub commits: u64,
    /// What was brought back, where that was asked for.
    pub mended: Option<Mended>,
}

impl Checked {
    /// Whether anything is damaged now.
    pub fn found(&self) -> bool {
        let left = match &self.mended {
            Some(mended) => !mended.left.is_empty(),
            None => !self.damaged.is_empty() || !self.verified.faults.is_empty(),
        };
        left || !self.unreadable.is_empty()
    }
}

/// Checks everything; with `repair` it brings back what it can.
pub fn check(workspace: &Workspace<'_>, repair: bool, progress: &dyn Progress) -> Result<Checked> {
    let repo = workspace.repo;
    let _alone = if repair { Some(only_one(repo, progress)?) } else { None };
    if repair {
        // What only they name is not lost.
        repo.store.rebuild_indexes()?;
    }
    let (found, mut checked) = settled(repo, progress)?;
    if !checked.verified.faults.is_empty() {
        // From here on what is wrong counts as absent, so that whoever has it stores it again.
        if repair {
            repo.store.quarantine(&checked.verified)?;
        } else {
            repo.store.mark_lost(&checked.verified);
        }
        see_what_is_hit(repo, &found, &mut checked)?;
    }
    if repair {
        checked.mended = Some(mend(workspace, &checked, progress)?);
        mend_below(workspace, &found, &mut checked, progress)?;
    }
    Ok(checked)
}

/// What is needed and what is wrong with it. Before anything is accused it is looked again: what a pointer named a
/// moment ago may have been given up and freed since, or lie in another pack.
fn settled(repo: &Repo, progress: &dyn Progress) -> Result<(Roots, Checked)> {
    for turn in 0.. {
        // What other clones need is theirs to check.
        let seen = Seen { lists: Vec::new(), ..look(repo, 0)? };
        let mut found = roots(repo, &seen, Detail::Places)?;
        let mut checked = Checked {
            verified: repo.store.verify(progress)?,
            unreadable: found.unreadable.drain(..).chain(found.guessed.drain(..)).collect(),
            pointers: found.contents.len() as u64,
            commits: found.commits,
            ..Checked::default()
        };
        checked.changed = changed_in_place(repo, &found, &checked.verified)?;
        see_what_is_hit(repo, &found, &mut checked)?;
        let moved = || Ok(repo.store.refresh()? || Seen { lists: Vec::new(), ..look(repo, 0)? } != seen);
        if !checked.found() || turn == TRIES || !moved()? {
            return Ok((found, checked));
        }
    }
    unreachable!("the loop ends by returning")
}

/// A page that is back may show more that is missing.
fn mend_below(
    workspace: &Workspace<'_>,
    found: &Roots,
    checked: &mut Checked,
    progress: &dyn Progress,
) -> Result<()> {
    for _ in 0..DEEPEST {
        let mut next = Checked::default();
        see_what_is_hit(workspace.repo, found, &mut next)?;
        if next.damaged.iter().all(|it| checked.damaged.contains(it)) {
            break;
        }
        next.damaged.retain(|it| !checked.damaged.contains(it));
        let more = mend(workspace, &next, progress)?;
        checked.damaged.append(&mut next.damaged);
        checked.hits.append(&mut next.hits);
        checked.absent = next.absent;
        let mended = checked.mended.get_or_insert_default();
        mended.back.extend(more.back);
        mended.left.extend(more.left);
        mended.trouble = mended.trouble.take().or(more.trouble);
    }
    Ok(())
}

fn see_what_is_hit(repo: &Repo, found: &Roots, checked: &mut Checked) -> Result<()> {
    let marked = mark(&repo.store, found)?;
    sort_out(repo, found, &marked, checked);
    let mut finder = Finder { store: &repo.store, wrong: &checked.damaged, known: HashMap::new() };
    checked.hits = finder.hits(found);
    checked.pages.extend(marked.absent.union(&marked.damaged));
    Ok(())
}

/// What is needed and not here is damaged if it was here once, or if there is nowhere to bring it from.
fn sort_out(repo: &Repo, found: &Roots, marked: &Marked, checked: &mut Checked) {
    let alone = repo.config.remotes().is_empty();
    // What is named by its digest alone may be no object at all.
    let sure = |it: &Digest| found.contents.get(it).is_none_or(|it| it.content.is_some());
    for digest in marked.kept.objects.iter().filter(|it| !repo.store.contains(it)) {
        if repo.store.is_damaged(digest) || alone && sure(digest) {
            checked.damaged.insert(*digest);
        } else if sure(digest) {
            checked.absent.insert(*digest);
        }
    }
}

/// Files of this worktree that are the same file on disk as a damaged one of the store: somebody wrote to a link.
fn changed_in_place(repo: &Repo, found: &Roots, verified: &VerifyReport) -> Result<Vec<(RepoPath, Digest)>> {
    let whole = verified.faults.iter().filter_map(|it| match it.kind {
        FaultKind::LargeFile(digest) => Some(digest),
        _ => None,
    });
    let whole: BTreeSet<Digest> = whole.collect();
    let mut changed = Vec::new();
    if whole.is_empty() {
        return Ok(changed);
    }
    let mut finder = Finder { store: &repo.store, wrong: &whole, known: HashMap::new() };
    for hit in finder.hits(found) {
        let stored = RepoPath::from_text(&format!("objects/{}", hit.object.hex()))?;
        let stored = repo.store.root().stamp(&stored)?;
        let here = matches!(&hit.place.holder, Holder::Worktree(root) if root == repo.root());
        if !here {
            continue;
        }
        let Some(stamp) = repo.files.stamp(&hit.place.path)? else { continue };
        let linked = match stamp.form {
            crate::fs::Form::Link => {
                let target = repo.files.read_link(&hit.place.path)?;
                repo.store.linked(&target).is_some_and(|it| it.digest() == hit.object)
            }
            _ => stored.is_some_and(|it| it.inode == stamp.inode && it.ctime == stamp.ctime),
        };
        if linked {
            changed.push((hit.place.path, hit.object));
        }
    }
    changed.dedup();
    Ok(changed)
}

/// Objects of some set below folders, each folder looked at once.
struct Finder<'f> {
    store: &'f Store,
    wrong: &'f BTreeSet<Digest>,
    known: HashMap<Digest, Rc<[(RepoPath, Digest)]>>,
}

impl Finder<'_> {
    fn hits(&mut self, found: &Roots) -> Vec<Hit> {
        let mut hits = BTreeSet::new();
        if self.wrong.is_empty() {
            return Vec::new();
        }
        for (digest, rooted) in &found.contents {
            let below = match rooted.content {
                Some(Content { kind: Shape::Tree, .. }) => self.below(digest),
                _ if self.wrong.contains(digest) => [(RepoPath::root(), *digest)].into(),
                _ => continue,
            };
            for place in &rooted.places {
                for (path, object) in below.iter() {
                    let Ok(path) = place.path.join_path(path) else { continue };
                    let place = Place { holder: place.holder.clone(), path };
                    hits.insert(Hit { object: *object, place });
                }
            }
        }
        hits.into_iter().collect()
    }

    /// Of a folder that cannot be read, the folder itself.
    fn below(&mut self, tree: &Digest) -> Rc<[(RepoPath, Digest)]> {
        if let Some(found) = self.known.get(tree) {
            return Rc::clone(found);
        }
        let mut found = Vec::new();
        if self.wrong.contains(tree) {
            found.push((RepoPath::root(), *tree));
        }
        let page = self.store.contains(tree).then(|| self.store.read(tree).and_then(|it| decode_page(&it)));
        match page {
            Some(Ok(Page::Branch(_, rows))) => {
                for row in rows.iter().filter(|it| it.digest != *tree) {
                    found.extend(self.below(&row.digest).iter().cloned());
                }
            }
            Some(Ok(Page::Leaf(rows))) => {
                for row in &rows {
                    let Ok(name) = RepoPath::from_bytes(&row.name) else { continue };
                    if row.kind == EntryKind::Folder {
                        let below = self.below(&row.digest);
                        found.extend(below.iter().filter_map(|it| Some((name.join_path(&it.0).ok()?, it.1))));
                    } else if self.wrong.contains(&row.digest) {
                        found.push((name, row.digest));
                    }
                }
            }
            _ => {}
        }
        let found: Rc<[_]> = found.into();
        self.known.insert(*tree, Rc::clone(&found));
        found
    }
}
