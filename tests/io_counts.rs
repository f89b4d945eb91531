//! Tests that costs depend on the number of changed files, not on the size of the folder: counts what `add`,
//! `status`, `commit`, `diff` and `checkout` read and write. The benchmark `change` measures the same with up
//! to a million files.

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
    workspace::{AddRules, Workspace, checkout},
};

/// Size of each file, in bytes.
const FILE_SIZE: u64 = 8;

/// Counts of what one operation read and wrote, and its duration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub files_hashed: u64,
    pub pages_read: u64,
    pub contents_written: u64,
    pub pages_written: u64,
    pub time: Duration,
}

/// Progress listener that counts the bytes read from the workspace.
struct ReadCounter(AtomicU64);

impl Progress for ReadCounter {
    fn event(&self, event: Event<'_>) {
        if let Event::Advanced { by } = event {
            self.0.fetch_add(by, Ordering::Relaxed);
        }
    }
}

/// Returns the path of a file by number: a thousand in each folder, or all in one if `flat`.
fn file_path(root: &Path, number: usize, flat: bool) -> std::path::PathBuf {
    let folder = if flat { root.join("data") } else { root.join(format!("data/{:04}", number / 1000)) };
    folder.join(format!("{number:07}.txt"))
}

fn write(root: &Path, number: usize, flat: bool, round: u8) {
    fs::write(file_path(root, number, flat), format!("{round}{number:07}")).unwrap();
}

/// Returns the numbers of the `changes` files that a round changes, spread evenly over the folder.
fn changed_files(files: usize, changes: usize) -> impl Iterator<Item = usize> {
    (0..changes).map(move |index| index * (files / changes) + index)
}

/// Creates a Git repository with a folder of `files` small files.
fn create_repo(files: usize, flat: bool) -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    let git = |args: &[&str]| Command::new("git").arg("-C").arg(temp.path()).args(args).status().unwrap();
    assert!(git(&["init", "-q"]).success());
    fs::create_dir(temp.path().join(".mlx")).unwrap();
    for number in 0..files {
        if number == 0 || number % 1000 == 0 && !flat {
            fs::create_dir_all(file_path(temp.path(), number, flat).parent().unwrap()).unwrap();
        }
        write(temp.path(), number, flat, 0);
    }
    wait_for_clock_tick();
    temp
}

/// Waits for the next tick of the clock: the stat cache does not trust files written within the current one.
fn wait_for_clock_tick() {
    std::thread::sleep(Duration::from_millis(50));
}

/// Runs one operation as a process of its own would, from the stat cache on disk to the stat cache on disk.
/// Returns its cost and its result.
fn measure<T>(root: &Path, operation: impl FnOnce(&Workspace<'_>, &dyn Progress) -> T) -> (Cost, T) {
    wait_for_clock_tick();
    let repo = Repo::discover(root).unwrap();
    let written = |repo: &Repo, pages: bool| {
        repo.store.inventory().unwrap().packed_objects().filter(|it| it.1 == pages).count() as u64
    };
    let (contents, pages) = (written(&repo, false), written(&repo, true));
    let (reading, start) = (ReadCounter(AtomicU64::new(0)), Instant::now());
    let workspace = Workspace::open(&repo).unwrap();
    let result = operation(&workspace, &reading);
    workspace.save(&Silent).unwrap();
    let cost = Cost {
        time: start.elapsed(),
        files_hashed: reading.0.into_inner() / FILE_SIZE,
        pages_read: repo.store.reads(),
        contents_written: written(&repo, false) - contents,
        pages_written: written(&repo, true) - pages,
    };
    (cost, result)
}

fn pointer(workspace: &Workspace<'_>) -> Pointer {
    workspace.pointers().unwrap().into_pointers().unwrap().remove(0)
}

/// Measures each operation on a folder of `files` files, `changes` of which change.
pub fn measure_all(files: usize, changes: usize, flat: bool) -> Vec<(&'static str, Cost)> {
    let temp = create_repo(files, flat);
    let root = temp.path();
    let data = RepoPath::from_text("data").unwrap();
    let edit = |round: u8| changed_files(files, changes).for_each(|number| write(root, number, flat, round));
    let add = |workspace: &Workspace<'_>, progress: &dyn Progress| {
        workspace.add(&data, AddRules::default(), progress).unwrap()
    };
    let compare = |workspace: &Workspace<'_>, progress: &dyn Progress| {
        workspace.compare(&pointer(workspace), progress).unwrap().changes.len()
    };
    let mut measured = Vec::new();
    let (first, old) = measure(root, add);
    measured.push(("add, first", first));
    measured.push(("add, nothing new", measure(root, add).0));
    let (same, none) = measure(root, compare);
    assert_eq!(none, 0);
    measured.push(("status, nothing new", same));
    edit(1);
    let (add_changed, new) = measure(root, add);
    measured.push(("add, changed", add_changed));
    edit(2);
    let (status, changed) = measure(root, compare);
    assert_eq!(changed, changes);
    measured.push(("status, changed", status));
    measured.push((
        "commit",
        measure(root, |workspace, progress| (compare(workspace, progress), add(workspace, progress))).0,
    ));
    let (compared, differences) = measure(root, |workspace, _| {
        let (old, new) = (old.content.digest, new.content.digest);
        diff(&workspace.repo.store, &data, Some(&old), Some(&new)).unwrap().len()
    });
    assert_eq!(differences, changes);
    measured.push(("diff of two versions", compared));
    let (restored, done) = measure(root, |workspace, _| checkout(workspace, &old, false, &Silent).unwrap());
    assert_eq!((done.written, done.removed), (changes as u64, 0));
    measured.push(("checkout, changed", restored));
    measured
}

#[test]
fn reads_and_writes_depend_on_the_changes_not_on_the_folder_size() {
    for (flat, pages) in [(false, 40), (true, 24)] {
        let by_size = [2_000, 6_000].map(|files| measure_all(files, 5, flat));
        for ((operation, small), (_, large)) in by_size[0].iter().zip(&by_size[1]).skip(1) {
            let label = format!("{operation}, flat: {flat}");
            // `commit` reads a changed file twice: to compare it and to store it.
            let hashed = if label.contains("nothing") || label.contains("diff") { 0 } else { 10 };
            for cost in [small, large] {
                assert!(cost.files_hashed <= hashed, "{label}: {cost:?}");
                assert!(cost.contents_written <= 5, "{label}: {cost:?}");
                assert!(cost.pages_written <= pages / 2, "{label}: {cost:?}");
            }
            if label.contains("diff") {
                assert!(large.pages_read <= pages, "{label}: {large:?}");
            }
        }
        assert_eq!(by_size[1][0].1.contents_written, 6_000);
    }
}

#[test]
fn folders_in_which_all_is_ignored_cost_no_pages() {
    let reads = [100, 400].map(|folders| {
        let temp = create_repo(2, false);
        let root = temp.path();
        for number in 0..folders {
            for (folder, file) in [(format!("d{number}"), "f"), (format!("e{number}"), "a.tmp")] {
                fs::create_dir_all(root.join("data").join(&folder)).unwrap();
                fs::write(root.join("data").join(folder).join(file), "x").unwrap();
            }
        }
        fs::write(root.join(".mlxignore"), "*.tmp\n").unwrap();
        let data = RepoPath::from_text("data").unwrap();
        measure(root, |workspace, _| workspace.add(&data, AddRules::default(), &Silent).unwrap());
        let (cost, changes) = measure(root, |workspace, progress| {
            workspace.compare(&pointer(workspace), progress).unwrap().changes.len()
        });
        assert_eq!(changes, 0);
        cost.pages_read
    });
    assert!(reads[1] <= 20, "{reads:?}");
}

#[test]
fn all_files_as_parts_cost_as_much_as_their_folder() {
    use mlx::workspace::{CheckoutStats, checkout_parts};
    for flat in [false, true] {
        let (files, temp) = (2_000, create_repo(2_000, flat));
        let root = temp.path();
        let data = RepoPath::from_text("data").unwrap();
        let (_, pointer) =
            measure(root, |workspace, _| workspace.add(&data, AddRules::default(), &Silent).unwrap());
        let name = |number| file_path(Path::new(""), number, flat);
        let all: Vec<_> =
            (0..files).map(|at| RepoPath::from_text(name(at).to_str().unwrap()).unwrap()).collect();
        let parts: Vec<_> = all.iter().map(|part| (&pointer, part)).collect();
        let written = |done: Vec<(RepoPath, CheckoutStats)>| done.iter().map(|it| it.1.written).sum::<u64>();
        let mut reads = Vec::new();
        for parts in [&[(&pointer, &data)][..], &parts] {
            fs::remove_dir_all(root.join("data")).unwrap();
            let (cost, done) = measure(root, |workspace, _| {
                workspace.check_parts(parts).unwrap();
                assert_eq!(workspace.part_contents(parts).unwrap().len(), parts.len());
                checkout_parts(workspace, parts, &[], false, &Silent).unwrap()
            });
            assert_eq!(written(done), files as u64);
            reads.push(cost.pages_read);
            let (cost, done) =
                measure(root, |workspace, _| checkout_parts(workspace, parts, &[], false, &Silent).unwrap());
            assert_eq!(written(done), 0);
            reads.push(cost.pages_read);
        }
        assert!(reads[2] <= 3 * reads[0] && reads[3] <= 3 * reads[1] + 30, "flat: {flat}, {reads:?}");
    }
}
