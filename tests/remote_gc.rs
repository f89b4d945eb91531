//! Tests what `mlx remote gc`, and a push, remove from a remote, and that no push uses a pack that may be
//! going.

use std::{fs, path::PathBuf};

use axum::http::Method;
use serde_json::json;

use crate::{
    fake_s3::FakeS3,
    gc_roots::remove_any,
    loop_mount::random_bytes,
    remote_repair::{add_remote, clone, files, push_often, pushed, set_age},
    sandbox::{Sandbox, snapshot},
};

/// Leaves what killed pushes leave, of these ages in days, and returns the paths.
fn leave(sandbox: &Sandbox, ages: [u64; 2]) -> Vec<PathBuf> {
    let folder = sandbox.root().join("remote/v1");
    let left = ["packs", "tmp"].into_iter().flat_map(|kind| ages.map(|days| (kind, days)));
    let left = left.map(|(kind, days)| {
        let file = folder.join(kind).join(blake3::hash(&days.to_le_bytes()).to_string());
        fs::write(&file, "half of it").unwrap();
        set_age(&file, days);
        file
    });
    left.collect()
}

#[test]
fn a_dry_run_lists_what_would_go_and_the_counts_are_exact() {
    let sandbox = pushed();
    let left = leave(&sandbox, [15, 13]);
    let before = snapshot(&sandbox.root().join("remote"));
    let planned = sandbox.json("remote gc --dry-run");
    let amount = |count: u64| json!({"count": count, "bytes": count * 10});
    let freed = json!({"total": amount(2), "packs": amount(1), "temporary": amount(1), "replaced": amount(0),
        "roots": amount(0)});
    assert_eq!((&planned["done"], &planned["freed"]), (&json!(false), &freed));
    let name = |index: usize| left[index].file_name().unwrap().to_str().unwrap();
    let listed = [format!("v1/packs/{}", name(0)), format!("v1/tmp/{}", name(2))];
    assert_eq!(planned["files"], json!(listed));
    assert_eq!(snapshot(&sandbox.root().join("remote")), before);
    let text = sandbox.ok("remote gc --dry-run remote");
    assert!(
        listed.iter().all(|path| text.contains(path)) && text.contains("would free 2 files, 20 bytes, of")
    );
    assert!(text.ends_with("next: mlx remote gc remote\n"), "{text}");
    let done = sandbox.json("remote gc");
    assert_eq!((&done["done"], &done["freed"], &done["files"]), (&json!(true), &freed, &planned["files"]));
    assert_eq!(left.iter().map(|file| file.exists()).collect::<Vec<_>>(), [false, true, false, true]);
    assert!(sandbox.ok("remote gc").starts_with("nothing to free at file://"));
    clone(&sandbox, "other").ok("pull");
}

#[test]
fn remote_gc_creates_no_remote() {
    let sandbox = Sandbox::new();
    sandbox.fails("remote gc", 3);
    sandbox.ok(&format!("remote add origin file://{} --default", sandbox.root().join("none").display()));
    sandbox.fails("remote gc", 3);
    fs::create_dir(sandbox.root().join("none")).unwrap();
    sandbox.fails("remote gc", 3);
    assert_eq!(fs::read_dir(sandbox.root().join("none")).unwrap().count(), 0);
}

/// The names of the lists of roots at the remote, with their ages: each push of `e` adds one.
#[test]
fn old_lists_of_roots_that_newer_ones_contain_are_removed() {
    let sandbox = pushed();
    let list = |names: &[&str]| {
        let mut lines: Vec<_> =
            names.iter().map(|name| format!("b3:{}\n", blake3::hash(name.as_bytes()))).collect();
        lines.sort();
        let file =
            sandbox.root().join("remote/v1/roots").join(blake3::hash(lines.concat().as_bytes()).to_string());
        fs::write(&file, lines.concat()).unwrap();
        file
    };
    // Two newer lists contain the first together; the others are young, in no newer one, or damaged.
    let lists = [
        (list(&["a", "b"]), 40, false),
        (list(&["b", "c"]), 20, true),
        (list(&["a", "d"]), 20, true),
        (list(&["d"]), 15, true),
        (list(&["c"]), 13, true),
        (list(&["a"]), 30, false),
    ];
    let damaged = sandbox.root().join("remote/v1/roots").join(blake3::hash(b"x").to_string());
    fs::write(&damaged, "").unwrap();
    set_age(&damaged, 50);
    lists.iter().for_each(|(file, days, _)| set_age(file, *days));
    let planned = sandbox.json("remote gc --dry-run");
    assert_eq!(planned["freed"]["roots"]["count"], 2, "{planned}");
    // A push clears them, too.
    clone(&sandbox, "other").ok("push");
    for (file, days, stays) in &lists {
        assert_eq!(file.exists(), *stays, "{days} days");
    }
    assert!(damaged.exists());
}

/// Ages count by the clock of the remote: to that of the clone all files here are years old.
#[test]
fn a_bucket_is_cleared_by_its_own_clock() {
    let (service, sandbox) = (FakeS3::start(), Sandbox::new());
    sandbox.write("a", "a");
    sandbox.ok("add a");
    sandbox.ok(&format!("remote add s3 {}", service.remote_args()));
    sandbox.ok("push");
    let key = format!("p/v1/packs/{}", blake3::hash(b"left"));
    service.bucket().objects.insert(key.clone(), "left".into());
    assert_eq!(sandbox.json("remote gc")["freed"]["total"]["count"], 0);
    service.bucket().ages.insert(key.clone(), 15);
    assert_eq!(sandbox.json("remote gc")["freed"]["packs"], json!({"count": 1, "bytes": 4}));
    assert!(!service.bucket().objects.contains_key(&key));
}

#[test]
fn merged_packs_go_index_first_and_their_list_last() {
    let (service, sandbox) = (FakeS3::start(), pushed());
    sandbox.ok(&format!("remote add s3 {}", service.remote_args()));
    push_often(&sandbox);
    let count = |folder: &str| {
        service.bucket().objects.keys().filter(|key| key.starts_with(&format!("p/v1/{folder}/"))).count()
    };
    let packs = count("packs");
    let list = service.bucket().objects.keys().find(|key| key.starts_with("p/v1/replaced/")).unwrap().clone();
    service.bucket().ages.insert(list.clone(), 13);
    assert_eq!(sandbox.json("remote gc s3")["freed"]["total"]["count"], 0);
    service.bucket().ages.insert(list.clone(), 15);
    // Stopped after some indexes and before all packs, it goes on the next time.
    let freed = sandbox.json("remote gc s3 --dry-run")["freed"]["replaced"]["count"].as_u64().unwrap();
    service.bucket().log.clear();
    assert_eq!(sandbox.json("remote gc s3")["freed"]["replaced"]["count"], freed);
    let log = std::mem::take(&mut service.bucket().log);
    let gone = log.iter().filter(|(method, key)| method == Method::DELETE && !key.contains("/tmp/"));
    let kinds: Vec<_> = gone.map(|(_, key)| key.split('/').nth(2).unwrap()).collect();
    let half = (kinds.len() - 1) / 2;
    let expected = [vec!["indexes"; half], vec!["packs"; half], vec!["replaced"]].concat();
    assert_eq!((kinds, half > 50), (expected, true));
    assert_eq!((count("packs"), count("indexes"), count("replaced")), (packs - half, packs - half, 0));
    let other = clone(&sandbox, "other");
    other.ok("remote trust s3");
    other.ok("pull");
    assert_eq!(snapshot(&other.folder.join("d")), snapshot(&sandbox.repo.join("d")));
}

/// The old packs may be the only intact copies.
#[test]
fn merged_packs_stay_while_the_new_one_is_known_to_be_damaged() {
    let sandbox = pushed();
    push_often(&sandbox);
    let [list] = &files(&sandbox, "replaced")[..] else { panic!("they are merged once") };
    set_age(list, 15);
    let text = fs::read_to_string(list).unwrap();
    let merged = text.lines().find_map(|line| line.strip_prefix("by b3:")).unwrap();
    let note = sandbox.root().join("remote/v1/damaged");
    fs::create_dir_all(&note).unwrap();
    fs::write(note.join(merged), "").unwrap();
    assert_eq!(sandbox.json("remote gc")["freed"]["total"]["count"], 0);
    fs::remove_file(note.join(merged)).unwrap();
    assert!(sandbox.json("remote gc")["freed"]["replaced"]["count"].as_u64().unwrap() > 100);
}

/// Creates a repository whose push was killed before the last index of its only pack was written. Returns
/// it with the pack and the index.
fn killed_push() -> (Sandbox, PathBuf, PathBuf) {
    let sandbox = Sandbox::new();
    sandbox.write("a", random_bytes(300_000, 1));
    sandbox.ok("add a");
    add_remote(&sandbox, "remote");
    sandbox.commit("a");
    sandbox.ok("push");
    let ([pack], [index]) = (&files(&sandbox, "packs")[..], &files(&sandbox, "indexes")[..]) else {
        panic!("a file is in one pack")
    };
    fs::remove_file(index).unwrap();
    forget_remotes(&sandbox);
    (sandbox, pack.clone(), index.clone())
}

/// A push that was killed knows nothing of indexes that it did not write.
fn forget_remotes(sandbox: &Sandbox) {
    remove_any(&sandbox.repo.join(".git/mlx/remotes"));
}

fn modified(file: &PathBuf) -> std::time::SystemTime {
    fs::metadata(file).unwrap().modified().unwrap()
}

#[test]
fn a_young_pack_without_an_index_is_used_again_if_it_is_intact() {
    let (sandbox, pack, index) = killed_push();
    set_age(&pack, 6);
    let before = modified(&pack);
    let sent = sandbox.json("push");
    assert!(index.exists() && sent["bytes"].as_u64().unwrap() < 1000, "{sent}");
    assert_eq!(modified(&pack), before, "it is not sent again");
    // One with other bytes is not what its name says.
    fs::remove_file(&index).unwrap();
    forget_remotes(&sandbox);
    let bytes = fs::read(&pack).unwrap();
    fs::write(&pack, [&bytes[..9], b"damage", &bytes[15..]].concat()).unwrap();
    assert!(sandbox.json("push")["bytes"].as_u64().unwrap() > 300_000);
    assert_eq!((fs::read(&pack).unwrap() == bytes, index.exists()), (true, true));
    clone(&sandbox, "other").ok("pull");
}

/// Another command may remove the old pack at any moment, even after the push has ended.
#[test]
fn the_objects_of_an_old_pack_without_an_index_are_sent_in_another_pack() {
    let (sandbox, pack, index) = killed_push();
    set_age(&pack, 8);
    assert!(sandbox.json("push")["bytes"].as_u64().unwrap() > 300_000);
    assert!(!index.exists() && files(&sandbox, "packs").len() == 2);
    fs::remove_file(&pack).unwrap();
    clone(&sandbox, "other").ok("pull");
    assert_eq!(sandbox.mlx("fsck --remote --full").code, 0);
}
