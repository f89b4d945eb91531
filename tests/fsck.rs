//! Tests `mlx fsck`, which finds and repairs damaged files of the store, and `mlx du`, which reports disk
//! usage.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    loop_mount::random_bytes,
    sandbox::{Sandbox, snapshot},
};

/// Creates a repository with small files, a large one, runs and two commits.
fn setup() -> Sandbox {
    let sandbox = Sandbox::new();
    for at in 0..12 {
        sandbox.write(&format!("data/d{}/f{at}", at % 3), format!("content {at} ").repeat(20));
    }
    sandbox.write("data/large", vec![5_u8; 1_200_000]);
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'cat data/d0/f0 > o'\ndeps = ['data']\nouts = ['o']\n");
    sandbox.ok("add data");
    sandbox.ok("repro");
    sandbox.commit("one");
    sandbox.write("data/d0/f0", "changed");
    sandbox.ok("add data");
    sandbox.ok("repro");
    sandbox.commit("two");
    sandbox
}

fn with_remote(sandbox: &Sandbox) {
    let remote = sandbox.root().join("remote");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.ok("push --all-commits");
}

fn store_files(sandbox: &Sandbox) -> Vec<PathBuf> {
    let store = sandbox.repo.join(".git/mlx");
    let folders = ["packs", "objects", "runs"].map(|name| store.join(name));
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn edit_file(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Runs `fsck`, expects this exit code and returns its JSON.
fn fsck(sandbox: &Sandbox, args: &str, code: i32) -> Value {
    let ran = sandbox.mlx(&format!("fsck {args} --json"));
    assert_eq!(ran.code, code, "{}\n{}", ran.out, ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

/// Asserts that a checkout restores the data of both commits.
fn assert_both_commits_restore(
    sandbox: &Sandbox,
    expected: &std::collections::BTreeMap<Vec<u8>, String>,
    case: &str,
) {
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    fs::remove_file(sandbox.repo.join("o")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(&snapshot(&sandbox.repo), expected, "{case}");
    sandbox.git("checkout -q HEAD~1");
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/d0/f0"), "content 0 ".repeat(20), "{case}");
    sandbox.git("checkout -q main");
    sandbox.ok("checkout");
}

#[test]
fn fsck_of_an_intact_store_finds_nothing() {
    let sandbox = setup();
    let output = sandbox.ok("fsck");
    assert!(output.ends_with("of 2 commits\nno problems found\n"), "{output}");
    assert_eq!(fsck(&sandbox, "", 0)["damaged"], json!([]));
}

type Corruption = (&'static str, fn(&mut Vec<u8>));

const CORRUPTIONS: [Corruption; 5] = [
    ("a flipped bit", |bytes| {
        let at = bytes.len() / 3;
        bytes[at] ^= 0x10;
    }),
    ("no bytes", Vec::clear),
    ("one byte", |bytes| bytes.truncate(1)),
    ("a missing byte", |bytes| bytes.truncate(bytes.len() - 1)),
    ("an extra byte", |bytes| bytes.push(b'x')),
];

/// Corrupts each store file in each way, in turn: `fsck` reports it and repairs it from the remote.
#[test]
fn fsck_repairs_every_corruption_in_every_store_file() {
    let sandbox = setup();
    with_remote(&sandbox);
    let expected = snapshot(&sandbox.repo);
    for (corruption, edit) in CORRUPTIONS {
        for file in store_files(&sandbox) {
            let name = format!("{corruption} in {}", file.display());
            // Only the remote has an intact copy.
            let _none = fs::remove_dir_all(sandbox.repo.join("data"));
            let _none = fs::remove_file(sandbox.repo.join("o"));
            edit_file(&file, edit);
            let found = fsck(&sandbox, "", 10);
            assert!(!found["faults"].as_array().unwrap().is_empty(), "{name}");
            let repaired = fsck(&sandbox, "--repair", 0);
            assert!(
                repaired["damaged"].as_array().unwrap().iter().all(|object| object["from"] != Value::Null),
                "{name}"
            );
            assert_eq!(fsck(&sandbox, "", 0)["faults"], json!([]), "{name}");
            sandbox.ok("checkout");
            assert_both_commits_restore(&sandbox, &expected, &name);
        }
    }
    let quarantined = fs::read_dir(sandbox.repo.join(".git/mlx/quarantine")).unwrap().count();
    assert!(quarantined > 20, "{quarantined} damaged files were quarantined");
}

#[test]
fn missing_store_files_are_restored_from_the_remote() {
    let sandbox = setup();
    with_remote(&sandbox);
    let expected = snapshot(&sandbox.repo);
    for file in store_files(&sandbox) {
        if file.extension().is_some_and(|extension| extension == "idx")
            || file.parent().unwrap().ends_with("runs")
        {
            continue;
        }
        fs::remove_file(&file).unwrap();
        fsck(&sandbox, "--repair", 0);
        sandbox.ok("pull --all-commits");
        assert_both_commits_restore(&sandbox, &expected, &file.display().to_string());
    }
}

#[test]
fn fsck_repairs_an_object_from_the_workspace() {
    let sandbox = setup();
    let large = fs::read_dir(sandbox.repo.join(".git/mlx/objects")).unwrap().next().unwrap().unwrap().path();
    edit_file(&large, |bytes| bytes[7] ^= 1);
    let found = fsck(&sandbox, "", 10);
    let hits = found["damaged"][0]["hits"].as_array().unwrap();
    assert!(hits.iter().all(|hit| hit["path"] == "data/large"));
    assert_eq!(hits.iter().filter(|hit| hit["commit"] != Value::Null).count(), 2, "{found}");
    let output = sandbox.mlx("fsck");
    assert!(output.out.contains("damaged or lost; needed by\n  data/large\n"), "{}", output.out);
    let repaired = fsck(&sandbox, "--repair", 0);
    assert_eq!(repaired["damaged"][0]["from"], json!({"workspace": "data/large"}));
    assert_eq!(sandbox.mlx("fsck").code, 0);
}

/// A remote has a large file in chunks, whose lengths must add up to the size of the file.
#[test]
fn fsck_repairs_a_large_file_from_the_remote() {
    for name in ["file", "folder/file"] {
        let sandbox = Sandbox::new();
        sandbox.write(name, random_bytes(5_000_000, 1));
        let tracked = name.split('/').next().unwrap();
        sandbox.ok(&format!("add {tracked}"));
        with_remote(&sandbox);
        let expected = snapshot(&sandbox.repo);
        let large =
            fs::read_dir(sandbox.repo.join(".git/mlx/objects")).unwrap().next().unwrap().unwrap().path();
        edit_file(&large, |bytes| bytes[7] ^= 1);
        fs::remove_file(sandbox.repo.join(name)).unwrap();
        let repaired = fsck(&sandbox, "--repair", 0);
        assert_eq!(repaired["damaged"][0]["from"], json!({"remote": "origin"}), "{repaired}");
        sandbox.ok("checkout");
        assert_eq!(snapshot(&sandbox.repo), expected);
    }
}

#[test]
fn an_object_without_an_intact_copy_stays_damaged() {
    let sandbox = setup();
    // The first version of this file is not in a workspace, and no remote is configured.
    let files = store_files(&sandbox).into_iter();
    for pack in files.filter(|path| path.extension().is_some_and(|extension| extension == "pack")) {
        edit_file(&pack, |bytes| bytes[9] ^= 1);
    }
    let found = fsck(&sandbox, "--repair", 10);
    let unrepaired: Vec<_> =
        found["damaged"].as_array().unwrap().iter().filter(|object| object["from"] == Value::Null).collect();
    assert!(!unrepaired.is_empty(), "{found}");
    assert_eq!(fsck(&sandbox, "", 10)["damaged"].as_array().unwrap().len(), unrepaired.len());
}

#[test]
fn an_edited_hard_link_is_reported_and_the_edit_is_kept() {
    let sandbox = Sandbox::new();
    sandbox.ok("config set --local cache.link hardlink,copy");
    sandbox.write("data/large", vec![5_u8; 1_200_000]);
    sandbox.ok("add data");
    with_remote(&sandbox);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    let path = sandbox.repo.join("data/large");
    edit_file(&path, |bytes| bytes[100] ^= 1);
    let edited = fs::read(&path).unwrap();
    let found = fsck(&sandbox, "", 10);
    assert_eq!(found["changed"][0]["path"], "data/large", "{found}");
    let repaired = fsck(&sandbox, "--repair", 0);
    assert_eq!(repaired["damaged"][0]["from"], json!({"remote": "origin"}), "{repaired}");
    assert_eq!(fs::read(&path).unwrap(), edited, "the edit must be kept");
    sandbox.ok("checkout --force");
    assert_eq!(fs::read(&path).unwrap(), vec![5_u8; 1_200_000]);
}

#[test]
fn fsck_of_a_fresh_clone_reports_missing_objects_without_failing() {
    let sandbox = setup();
    with_remote(&sandbox);
    sandbox.commit("remote");
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), clone.display()));
    let output = sandbox.at(&clone).ok("fsck");
    assert!(output.contains("not stored here (`mlx fetch --all-commits` fetches them)"), "{output}");
}

#[test]
fn du_reports_space_used_only_by_a_revision_and_space_saved() {
    let sandbox = Sandbox::new();
    let bytes = |seed: u8| {
        let mut bytes = vec![0; 40_000];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    };
    sandbox.write("data/same", bytes(1));
    sandbox.write("data/again", bytes(1));
    sandbox.write("data/old", bytes(2));
    sandbox.ok("add data");
    sandbox.commit("one");
    fs::remove_file(sandbox.repo.join("data/old")).unwrap();
    sandbox.write("data/text", "text ".repeat(10_000));
    sandbox.ok("add data");
    sandbox.commit("two");
    let du = sandbox.json("du");
    assert_eq!(du["versions"], 3 * 40_000 + 2 * 40_000 + 50_000);
    assert_eq!(du["saved"]["deduplication"], 3 * 40_000);
    assert!(du["saved"]["compression"].as_u64().unwrap() > 45_000, "{du}");
    let only = |at: usize| du["revisions"][at]["only"]["bytes"].as_u64().unwrap();
    let old =
        du["revisions"].as_array().unwrap().iter().position(|revision| revision["summary"] == "one").unwrap();
    assert!((40_000..41_000).contains(&only(old)), "{du}");
    assert_eq!((&du["pointers"][0]["path"], &du["pointers"][0]["versions"]), (&json!("data"), &json!(2)));
    assert_eq!(du["unneeded"]["count"], 0);
    let output = sandbox.ok("du");
    assert!(output.contains("by deduplication"), "{output}");
}

/// Both sides of a conflict are in Git, so nothing is lost.
#[test]
fn a_merge_conflict_is_named_and_is_not_damage() {
    let sandbox = Sandbox::new();
    let add = |text: &str| {
        sandbox.write("d", text);
        sandbox.ok("add d");
        sandbox.commit(text);
    };
    add("base");
    sandbox.git("checkout -q -b other");
    add("two");
    sandbox.git("checkout -q main");
    sandbox.ok("checkout");
    add("three");
    sandbox.command("git", &sandbox.repo).args(["merge", "-q", "other"]).output().unwrap();
    let ran = sandbox.mlx("fsck");
    assert_eq!(ran.code, 0, "{}", ran.out);
    assert!(
        ran.out.contains("d.mlx` is in conflict") && ran.out.contains("git checkout --ours"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("--repair"), "{}", ran.out);
    let row = &sandbox.json("fsck")["unreadable"][0];
    assert_eq!(row["conflict"], true, "{row}");
    // One that was committed cannot be resolved any more, and both sides are kept.
    sandbox.commit("unresolved");
    sandbox.git("checkout -q HEAD~1 -- d.mlx");
    assert_eq!(sandbox.mlx("fsck").code, 0);
}

#[test]
fn an_overwritten_pointer_is_named_whether_or_not_git_knows_it() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "a");
    sandbox.ok("add a");
    sandbox.commit("a");
    sandbox.write("b", "b");
    sandbox.ok("add b");
    for (name, restore) in [("a", "git checkout -- a.mlx"), ("b", "remove it and run `mlx add b`")] {
        let pointer = sandbox.read(&format!("{name}.mlx"));
        sandbox.write(&format!("{name}.mlx"), "not a pointer any more\n");
        let ran = sandbox.mlx("fsck");
        assert_eq!(ran.code, 10, "{}", ran.out);
        assert!(
            ran.out.contains(&format!("{name}.mlx` cannot be read")) && ran.out.contains(restore),
            "{}",
            ran.out
        );
        assert!(!ran.out.contains("--repair"), "{}", ran.out);
        assert_eq!(sandbox.json("fsck")["unreadable"].as_array().unwrap().len(), 1);
        sandbox.write(&format!("{name}.mlx"), pointer);
    }
    sandbox.write("live.mlx", "PK\x03\x04");
    sandbox.ok("fsck");
}
