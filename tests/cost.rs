//! Cost follows the change, not the size: what `add`, `commit`, `status` and `diff` read and write of a folder of `n`
//! files of which `k` changed. The benchmark `change` runs the same with up to a million files.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use mlx::{
    path::RepoPath,
    pointer::Pointer,
    progress::{Event, Progress, Silent},
    repo::Repo,
    store::diff,
    workspace::{Workspace, checkout},
};

/// Bytes of each file.
const LENGTH: u64 = 8;

/// What one operation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub files_hashed: u64,
    pub pages_read: u64,
    pub contents_written: u64,
    pub pages_written: u64,
    pub time: Duration,
}

/// Counts bytes of the workspace that were read.
struct Reading(AtomicU64);

impl Progress for Reading {
    fn event(&self, event: Event<'_>) {
        if let Event::Advanced { by } = event {
            self.0.fetch_add(by, Ordering::Relaxed);
        }
    }
}

/// Where the file of this number lies; a thousand in each folder, or all in one.
fn place(root: &Path, at: usize, flat: bool) -> std::path::PathBuf {
    let folder = if flat { root.join("data") } else { root.join(format!("data/{:04}", at / 1000)) };
    folder.join(format!("{at:07}.txt"))
}

fn write(root: &Path, at: usize, flat: bool, round: u8) {
    fs::write(place(root, at, flat), format!("{round}{at:07}")).unwrap();
}

/// Numbers of the `changes` files that a round changes, all over the folder.
fn some(files: usize, changes: usize) -> impl Iterator<Item = usize> {
    (0..changes).map(move |it| it * (files / changes) + it)
}

/// A Git repository with a folder of `files` small files.
fn world(files: usize, flat: bool) -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    let git = |args: &[&str]| Command::new("git").arg("-C").arg(temp.path()).args(args).status().unwrap();
    assert!(git(&["init", "-q"]).success());
    fs::create_dir(temp.path().join(".mlx")).unwrap();
    for at in 0..files {
        if at == 0 || at % 1000 == 0 && !flat {
            fs::create_dir_all(place(temp.path(), at, flat).parent().unwrap()).unwrap();
        }
        write(temp.path(), at, flat, 0);
    }
    settle();
    temp
}

/// What was written within the tick of the clock is not vouched for.
fn settle() {
    std::thread::sleep(Duration::from_millis(50));
}

/// Runs one operation as a process of its own would: from the index on disk to the index on disk.
fn cost<T>(root: &Path, work: impl FnOnce(&Workspace<'_>, &dyn Progress) -> T) -> (Cost, T) {
    settle();
    let repo = Repo::discover(root).unwrap();
    let written = |repo: &Repo, pages: bool| {
        repo.store.stock().unwrap().packed().filter(|it| it.1 == pages).count() as u64
    };
    let (contents, pages) = (written(&repo, false), written(&repo, true));
    let (reading, start) = (Reading(AtomicU64::new(0)), Instant::now());
    let workspace = Workspace::open(&repo).unwrap();
    let done = work(&workspace, &reading);
    workspace.save(&Silent).unwrap();
    let cost = Cost {
        time: start.elapsed(),
        files_hashed: reading.0.into_inner() / LENGTH,
        pages_read: repo.store.reads(),
        contents_written: written(&repo, false) - contents,
        pages_written: written(&repo, true) - pages,
    };
    (cost, done)
}

fn pointer(workspace: &Workspace<'_>) -> Pointer {
    workspace.pointers().unwrap().whole().unwrap().remove(0)
}

/// What each operation costs with `files` files, `changes` of which change.
pub fn costs(files: usize, changes: usize, flat: bool) -> Vec<(&'static str, Cost)> {
    let temp = world(files, flat);
    let root = temp.path();
    let data = RepoPath::from_text("data").unwrap();
    let edit = |round: u8| some(files, changes).for_each(|it| write(root, it, flat, round));
    let add =
        |workspace: &Workspace<'_>, progress: &dyn Progress| workspace.add(&data, &[], progress).unwrap();
    let compare = |workspace: &Workspace<'_>, progress: &dyn Progress| {
        workspace.compare(&pointer(workspace), progress).unwrap().changes.len()
    };
    let mut found = Vec::new();
    let (first, old) = cost(root, add);
    found.push(("add, first", first));
    found.push(("add, nothing new", cost(root, add).0));
    let (same, none) = cost(root, compare);
    assert_eq!(none, 0);
    found.push(("status, nothing new", same));
    edit(1);
    let (add_changed, new) = cost(root, add);
    found.push(("add, changed", add_changed));
    edit(2);
    let (status, changed) = cost(root, compare);
    assert_eq!(changed, changes);
    found.push(("status, changed", status));
    found.push(("commit", cost(root, |it, progress| (compare(it, progress), add(it, progress))).0));
    let (between, differences) = cost(root, |workspace, _| {
        let (old, new) = (old.content.digest, new.content.digest);
        diff(&workspace.repo.store, &data, Some(&old), Some(&new)).unwrap().len()
    });
    assert_eq!(differences, changes);
    found.push(("diff of two versions", between));
    let (back, done) = cost(root, |it, _| checkout(it, &old, false, &Silent).unwrap());
    assert_eq!((done.written, done.removed), (changes as u64, 0));
    found.push(("checkout, changed", back));
    found
}

#[test]
fn what_is_read_and_written_follows_the_change() {
    for (flat, pages) in [(false, 40), (true, 24)] {
        let by_size = [2_000, 6_000].map(|files| costs(files, 5, flat));
        for ((what, few), (_, many)) in by_size[0].iter().zip(&by_size[1]).skip(1) {
            let what = format!("{what}, flat: {flat}");
            // A file that `commit` compared and then stores is read for each of the two.
            let hashed = if what.contains("nothing") || what.contains("diff") { 0 } else { 10 };
            for cost in [few, many] {
                assert!(cost.files_hashed <= hashed, "{what}: {cost:?}");
                assert!(cost.contents_written <= 5, "{what}: {cost:?}");
                assert!(cost.pages_written <= pages / 2, "{what}: {cost:?}");
            }
            if what.contains("diff") {
                assert!(many.pages_read <= pages, "{what}: {many:?}");
            }
        }
        assert_eq!(by_size[1][0].1.contents_written, 6_000);
    }
}
