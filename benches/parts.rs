//! Microbenchmarks of hashing, stored folders, the stat cache and `status`: `cargo bench`. Whole commands,
//! compared with other tools, are left to an outside harness; tests assert the counts that must not grow with
//! the size of a folder.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up should panic")]
#![expect(clippy::disallowed_methods, reason = "benchmarks are the user: they write files as users do")]

use std::{fs, path::Path, process::Command};

use divan::{Bencher, black_box, counter::BytesCount};
use mlx::{
    digest::Digest,
    path::RepoPath,
    progress::Silent,
    repo::Repo,
    store::{EntryKind, Store, TreeEntry, Writer, diff, put_folder, replace},
    workspace::{AddRules, Workspace},
};

fn main() {
    divan::main();
}

const SIZES: [usize; 2] = [10_000, 100_000];

#[divan::bench(args = [4 << 10, 12 << 10, 1 << 20])]
fn digest(bencher: Bencher<'_, '_>, size: usize) {
    let bytes = vec![7; size];
    bencher.counter(BytesCount::new(size)).bench(|| Digest::of(black_box(&bytes)));
}

fn rows(count: usize) -> Vec<TreeEntry> {
    let row = |at: usize| TreeEntry {
        name: format!("f{at:07}.bin").into_bytes().into(),
        kind: EntryKind::File,
        size: 8000,
        files: 1,
        digest: Digest::of(&at.to_le_bytes()),
    };
    (0..count).map(row).collect()
}

/// Builds the pages and the digest of one folder.
#[divan::bench(args = SIZES)]
fn tree(bencher: Bencher<'_, '_>, count: usize) {
    let rows = rows(count);
    bencher.bench(|| put_folder(black_box(&rows), None).unwrap());
}

fn store(at: &Path) -> Store {
    Store::open(mlx::fs::Root::open(at).unwrap()).unwrap()
}

/// Changes one file of a stored folder, which writes only the pages above it.
#[divan::bench(args = SIZES, sample_count = 10)]
fn change_one(bencher: Bencher<'_, '_>, count: usize) {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path());
    let mut writer = Writer::new(&store);
    let old = put_folder(&rows(count), Some(&mut writer)).unwrap();
    writer.finish().unwrap();
    let path = RepoPath::from_text("f0000077.bin").unwrap();
    let mut round = 0_u64;
    bencher.bench_local(|| {
        round += 1;
        let mut writer = Writer::new(&store);
        let entry = TreeEntry { digest: Digest::of(&round.to_le_bytes()), ..rows(1).remove(0) };
        let new = replace(&mut writer, &store, Some(&old.digest), &path, Some(entry)).unwrap();
        writer.finish().unwrap();
        let differences = diff(&store, &RepoPath::root(), Some(&old.digest), Some(&new.digest)).unwrap();
        assert_eq!(differences.len(), 1);
    });
}

/// Creates a Git repository with a tracked folder of small files, a thousand in each subfolder.
fn tracked(count: usize) -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    let git = |args: &[&str]| {
        assert!(Command::new("git").arg("-C").arg(temp.path()).args(args).status().unwrap().success());
    };
    git(&["init", "-q"]);
    fs::create_dir(temp.path().join(".mlx")).unwrap();
    for at in 0..count {
        let folder = temp.path().join(format!("data/{:03}", at / 1000));
        if at % 1000 == 0 {
            fs::create_dir_all(&folder).unwrap();
        }
        fs::write(folder.join(format!("{at}.txt")), at.to_string()).unwrap();
    }
    let repo = Repo::discover(temp.path()).unwrap();
    let workspace = Workspace::open(&repo).unwrap();
    let path = RepoPath::from_text("data").unwrap();
    workspace.add(&path, AddRules::default(), &Silent).unwrap();
    // Files written within one tick of the clock are hashed once more before the stat cache trusts them.
    std::thread::sleep(std::time::Duration::from_millis(50));
    workspace.content(&path, &Silent).unwrap();
    workspace.save(&Silent).unwrap();
    drop(workspace);
    temp
}

/// Loads the stat cache.
#[divan::bench(args = SIZES, sample_count = 10)]
fn read_index(bencher: Bencher<'_, '_>, count: usize) {
    let temp = tracked(count);
    let repo = Repo::discover(temp.path()).unwrap();
    bencher.bench_local(|| drop(black_box(Workspace::open(&repo).unwrap())));
}

/// Compares a folder with its pointer when nothing has changed.
#[divan::bench(args = SIZES, sample_count = 10)]
fn status_without_changes(bencher: Bencher<'_, '_>, count: usize) {
    let temp = tracked(count);
    let repo = Repo::discover(temp.path()).unwrap();
    let pointer = repo.pointer(&RepoPath::from_text("data").unwrap()).unwrap().unwrap();
    bencher.bench_local(|| {
        let workspace = Workspace::open(&repo).unwrap();
        let item = workspace.compare(&pointer, &Silent).unwrap();
        assert!(item.changes.is_empty());
    });
}
