//! Tests losses at remotes that no index there tells of: `fsck --remote` and pushes notice them, and send
//! again what is lost.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde_json::json;

use crate::{
    crash_safety::command,
    fake_s3::FakeS3,
    gc_roots::remove_any,
    halting::operations,
    loop_mount::random_bytes,
    remote_repair::{add_remote, clone, files, pushed},
    sandbox::{Sandbox, SandboxFolder, command_result, snapshot},
};

/// Creates a repository with two versions of a large file, pushed one after the other.
fn pushed_versions() -> Sandbox {
    let sandbox = Sandbox::new();
    add_remote(&sandbox, "remote");
    let mut bytes = random_bytes(6_000_000, 1);
    for number in 1..=2 {
        bytes[5_900_000] = number;
        sandbox.write("big", &bytes);
        sandbox.ok("add big");
        sandbox.commit(&number.to_string());
        sandbox.ok("push");
    }
    sandbox
}

fn index_of(pack: &Path) -> PathBuf {
    pack.parent().unwrap().with_file_name("indexes").join(pack.file_name().unwrap())
}

fn largest_pack(sandbox: &Sandbox) -> PathBuf {
    files(sandbox, "packs").into_iter().max_by_key(|file| file.metadata().unwrap().len()).unwrap()
}

/// Forgets what a clone knows of remotes.
fn forget_remotes(folder: &SandboxFolder<'_>) {
    let remotes = folder.folder.join(".git/mlx/remotes");
    remove_any(&remotes);
}

fn assert_pulls(sandbox: &Sandbox, name: &str) {
    let other = clone(sandbox, name);
    other.ok("pull");
    for path in ["big", "d"].iter().filter(|path| sandbox.has(path)) {
        let of = |folder: &Path| snapshot(&folder.join(path));
        assert_eq!(of(&other.folder), of(&sandbox.repo), "{path}");
    }
}

#[test]
fn an_index_that_vanished_is_written_again() {
    for command in ["push", "fsck --remote remote --repair"] {
        let sandbox = pushed_versions();
        let index = index_of(&largest_pack(&sandbox));
        fs::remove_file(&index).unwrap();
        let checked = sandbox.mlx("fsck --remote remote");
        assert!(checked.code == 10 && checked.out.contains("missing or damaged"), "{checked:?}");
        sandbox.ok(command);
        assert!(index.exists(), "{command}");
        sandbox.ok("fsck --remote remote --full");
        assert_pulls(&sandbox, "other");
    }
}

#[test]
fn a_damaged_index_is_found_and_written_again() {
    let sandbox = pushed();
    let index = index_of(&largest_pack(&sandbox));
    let bytes = fs::read(&index).unwrap();
    fs::write(&index, &bytes[..bytes.len() / 2]).unwrap();
    let checked = sandbox.mlx("fsck --remote remote --json");
    let found: serde_json::Value = serde_json::from_str(&checked.out).unwrap();
    let name = format!("b3:{}", index.file_name().unwrap().to_str().unwrap());
    assert_eq!((checked.code, &found["indexes"]), (10, &json!([name])), "{found}");
    sandbox.ok("fsck --remote remote --repair");
    assert!(fs::read(&index).unwrap() == bytes);
    sandbox.ok("fsck --remote remote");
}

#[test]
fn a_pack_that_vanished_with_its_index_is_sent_again() {
    for command in ["push --all-commits", "fsck --remote remote --repair"] {
        for sandbox in [pushed(), pushed_versions()] {
            let pack = largest_pack(&sandbox);
            fs::remove_file(index_of(&pack)).unwrap();
            fs::remove_file(&pack).unwrap();
            let checked = sandbox.mlx("fsck --remote remote");
            assert!(checked.code == 10 && checked.out.contains("lost"), "{checked:?}");
            sandbox.ok(command);
            sandbox.ok("fsck --remote remote --full");
            assert_pulls(&sandbox, "other");
        }
    }
}

/// The list of the chunks of a file is at the remote, and they are not. A clone that has not seen the remote
/// before compares the list.
#[test]
fn a_list_of_chunks_does_not_prove_that_they_are_there() {
    let sandbox = pushed_versions();
    let pack = largest_pack(&sandbox);
    fs::remove_file(index_of(&pack)).unwrap();
    fs::remove_file(&pack).unwrap();
    forget_remotes(&sandbox.at(&sandbox.repo));
    let checked = sandbox.mlx("fsck --remote remote --full");
    assert!(checked.code == 10 && checked.out.contains("list of chunks names it"), "{checked:?}");
    sandbox.ok("push");
    assert_pulls(&sandbox, "other");
    assert_eq!(sandbox.json("push")["objects"], 0);
}

#[test]
fn damage_that_a_check_finds_is_repaired_by_the_next_command() {
    for command in ["push", "fsck --remote remote --repair"] {
        let sandbox = pushed();
        let pack = largest_pack(&sandbox);
        let bytes = fs::read(&pack).unwrap();
        let mut damaged = bytes.clone();
        damaged[bytes.len() / 2] ^= 1;
        fs::write(&pack, damaged).unwrap();
        sandbox.fails("fsck --remote remote --full", 10);
        sandbox.ok(command);
        assert!(fs::read(&pack).unwrap() == bytes, "{command}");
    }
}

/// An old pack without an index may be about to be removed by another clone: its objects go to another.
#[test]
fn an_old_pack_whose_index_vanished_is_kept_and_sent_again() {
    let sandbox = pushed_versions();
    let pack = largest_pack(&sandbox);
    fs::remove_file(index_of(&pack)).unwrap();
    let old = SystemTime::now() - Duration::from_hours(24 * 40);
    fs::OpenOptions::new().write(true).open(&pack).unwrap().set_modified(old).unwrap();
    sandbox.ok("remote gc remote");
    assert!(pack.exists(), "this clone knows that its index vanished");
    sandbox.ok("push --all-commits");
    assert_pulls(&sandbox, "other");
}

/// A clone that has nothing of a lost pack cannot repair it, and names it once.
#[test]
fn a_lost_pack_of_which_a_clone_has_nothing_is_named_and_then_forgotten() {
    let sandbox = pushed_versions();
    let other = clone(&sandbox, "other");
    other.ok("fsck --remote remote");
    let pack = largest_pack(&sandbox);
    fs::remove_file(index_of(&pack)).unwrap();
    fs::remove_file(&pack).unwrap();
    for (lost, command) in [(1, "fsck --remote remote --repair --json"), (0, "fsck --remote remote --json")] {
        let checked = other.mlx(command);
        let found: serde_json::Value = serde_json::from_str(&checked.out).unwrap();
        let named = (found["lost"].as_array().unwrap().len(), &found["removed"]);
        assert_eq!((checked.code, named), (10, (lost, &json!([]))), "{found}");
    }
    sandbox.ok("push --all-commits");
    other.ok("fsck --remote remote --full");
}

#[test]
fn an_empty_remote_is_said_to_be_empty() {
    let sandbox = pushed();
    let other = clone(&sandbox, "other");
    remove_any(&sandbox.root().join("remote/v1"));
    assert!(other.ok("fsck --remote remote").contains("the remote is empty"));
    assert_eq!(sandbox.mlx("fsck --remote remote").code, 10, "it had something");
    sandbox.ok("push");
    assert_pulls(&sandbox, "third");
}

/// A clone that pushed or fetched a file knows the list of its chunks.
#[test]
fn nothing_to_push_costs_no_more_requests_with_large_files() {
    let (service, sandbox) = (FakeS3::start(), pushed_versions());
    sandbox.ok(&format!("remote add s3 {}", service.remote_args()));
    sandbox.ok("push");
    sandbox.commit("bucket");
    let other = clone(&sandbox, "other");
    other.ok("remote trust s3");
    other.ok("pull");
    for folder in [&sandbox.at(&sandbox.repo), &other] {
        service.bucket().log.clear();
        assert_eq!(folder.json("push")["objects"], 0);
        let requests = service.bucket().log.clone();
        assert!(requests.len() <= 2, "{requests:?}");
    }
}

#[test]
fn a_file_in_the_place_of_a_remote_folder_is_named() {
    let sandbox = pushed();
    let remote = sandbox.root().join("remote");
    remove_any(&remote);
    fs::write(&remote, "a file").unwrap();
    for command in ["push", "fetch", "fsck --remote remote", "remote gc"] {
        let error = sandbox.fails(command, 4);
        assert!(error.contains("is not a folder") && error.contains("hint"), "{command}: {error}");
    }
}

/// A list that was queued is not known to be at the remote before the push ends.
#[test]
fn a_push_that_fails_before_its_list_is_there_sends_it_again() {
    let sandbox = Sandbox::new();
    add_remote(&sandbox, "remote");
    sandbox.write("big", random_bytes(3_000_000, 1));
    sandbox.ok("add big");
    sandbox.commit("big");
    for at in operations("push", 5) {
        remove_any(&sandbox.root().join("remote/v1"));
        forget_remotes(&sandbox.at(&sandbox.repo));
        let mut push = command(&sandbox, "push");
        let ran = command_result(push.env("MLX_FAULT", format!("fail:{at}")).output().unwrap());
        sandbox.ok("push");
        let other = clone(&sandbox, "other");
        other.ok("pull");
        remove_any(&other.folder);
        if ran.code == 0 {
            return;
        }
    }
}

#[test]
fn a_wrong_size_in_a_pointer_sends_nothing_again() {
    let sandbox = pushed_versions();
    let pointer = sandbox.read("big.mlx").replace("6000000", "6000001");
    sandbox.write("big.mlx", pointer);
    assert_eq!(sandbox.json("push")["objects"], 0);
}
