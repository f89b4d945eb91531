//! `mlx fsck` and `mlx du`: what is damaged, whom that hits, who has it; what takes the room.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, snapshot};

/// Small files, a large one, a run, two commits and a remote.
fn world() -> Sandbox {
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

fn stored(sandbox: &Sandbox) -> Vec<PathBuf> {
    let cache = sandbox.repo.join(".git/mlx");
    let folders = ["packs", "objects", "runs"].map(|it| cache.join(it));
    let mut files: Vec<_> =
        folders.iter().flat_map(|it| fs::read_dir(it).unwrap().map(|it| it.unwrap().path())).collect();
    files.sort();
    files
}

fn change(path: &Path, with: impl FnOnce(&mut Vec<u8>)) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    with(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Runs fsck and expects this exit code.
fn fsck(sandbox: &Sandbox, args: &str, code: i32) -> Value {
    let ran = sandbox.mlx(&format!("fsck {args} --json"));
    assert_eq!(ran.code, code, "{}\n{}", ran.out, ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

/// Everything that both commits name can be put back.
fn is_whole(sandbox: &Sandbox, expected: &std::collections::BTreeMap<Vec<u8>, String>, what: &str) {
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    fs::remove_file(sandbox.repo.join("o")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(&snapshot(&sandbox.repo), expected, "{what}");
    sandbox.git("checkout -q HEAD~1");
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/d0/f0"), "content 0 ".repeat(20), "{what}");
    sandbox.git("checkout -q main");
    sandbox.ok("checkout");
}

#[test]
fn a_sound_store_is_well() {
    let sandbox = world();
    let told = sandbox.ok("fsck");
    assert!(told.ends_with("of 2 commits\nno problems found\n"), "{told}");
    assert_eq!(fsck(&sandbox, "", 0)["damaged"], json!([]));
}

type Damage = (&'static str, fn(&mut Vec<u8>));

const DAMAGES: [Damage; 5] = [
    ("a flipped bit", |it| {
        let at = it.len() / 3;
        it[at] ^= 0x10;
    }),
    ("nothing left", Vec::clear),
    ("one byte left", |it| it.truncate(1)),
    ("a byte less", |it| it.truncate(it.len() - 1)),
    ("something more", |it| it.push(b'x')),
];

/// Damages each file of the store in each way, in turn: it is found, and mended from the remote.
#[test]
fn damage_in_each_kind_of_file_is_found_and_mended() {
    let sandbox = world();
    with_remote(&sandbox);
    let expected = snapshot(&sandbox.repo);
    for (what, with) in DAMAGES {
        for file in stored(&sandbox) {
            let name = format!("{what} in {}", file.display());
            // Only the remote has it.
            let _none = fs::remove_dir_all(sandbox.repo.join("data"));
            let _none = fs::remove_file(sandbox.repo.join("o"));
            change(&file, with);
            let found = fsck(&sandbox, "", 10);
            assert!(!found["faults"].as_array().unwrap().is_empty(), "{name}");
            let mended = fsck(&sandbox, "--repair", 0);
            assert!(
                mended["damaged"].as_array().unwrap().iter().all(|it| it["from"] != Value::Null),
                "{name}"
            );
            assert_eq!(fsck(&sandbox, "", 0)["faults"], json!([]), "{name}");
            sandbox.ok("checkout");
            is_whole(&sandbox, &expected, &name);
        }
    }
    let aside = fs::read_dir(sandbox.repo.join(".git/mlx/quarantine")).unwrap().count();
    assert!(aside > 20, "{aside} damaged files were put aside");
}

#[test]
fn files_that_are_gone_are_found_and_mended() {
    let sandbox = world();
    with_remote(&sandbox);
    let expected = snapshot(&sandbox.repo);
    for file in stored(&sandbox) {
        if file.extension().is_some_and(|it| it == "idx") || file.parent().unwrap().ends_with("runs") {
            continue;
        }
        fs::remove_file(&file).unwrap();
        fsck(&sandbox, "--repair", 0);
        sandbox.ok("pull --all-commits");
        is_whole(&sandbox, &expected, &file.display().to_string());
    }
}

#[test]
fn what_the_workspace_still_has_is_taken_from_there() {
    let sandbox = world();
    let large = fs::read_dir(sandbox.repo.join(".git/mlx/objects")).unwrap().next().unwrap().unwrap().path();
    change(&large, |it| it[7] ^= 1);
    let found = fsck(&sandbox, "", 10);
    let hits = found["damaged"][0]["hits"].as_array().unwrap();
    assert!(hits.iter().all(|it| it["path"] == "data/large"));
    assert_eq!(hits.iter().filter(|it| it["commit"] != Value::Null).count(), 2, "{found}");
    let told = sandbox.mlx("fsck");
    assert!(told.out.contains("damaged or lost; needed by\n  data/large\n"), "{}", told.out);
    let mended = fsck(&sandbox, "--repair", 0);
    assert_eq!(mended["damaged"][0]["from"], json!({"workspace": "data/large"}));
    assert_eq!(sandbox.mlx("fsck").code, 0);
}

#[test]
fn what_nobody_has_is_named_and_stays_damaged() {
    let sandbox = world();
    // The first version of this file is in no workspace, and there is no remote.
    let packs = stored(&sandbox).into_iter().filter(|it| it.extension().is_some_and(|it| it == "pack"));
    for pack in packs {
        change(&pack, |it| it[9] ^= 1);
    }
    let found = fsck(&sandbox, "--repair", 10);
    let left: Vec<_> =
        found["damaged"].as_array().unwrap().iter().filter(|it| it["from"] == Value::Null).collect();
    assert!(!left.is_empty(), "{found}");
    assert_eq!(fsck(&sandbox, "", 10)["damaged"].as_array().unwrap().len(), left.len());
}

#[test]
fn a_hard_link_that_was_changed_all_the_same_is_found_and_kept() {
    let sandbox = Sandbox::new();
    sandbox.ok("config set --local cache.link hardlink,copy");
    sandbox.write("data/large", vec![5_u8; 1_200_000]);
    sandbox.ok("add data");
    with_remote(&sandbox);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    let path = sandbox.repo.join("data/large");
    change(&path, |it| it[100] ^= 1);
    let edited = fs::read(&path).unwrap();
    let found = fsck(&sandbox, "", 10);
    assert_eq!(found["changed"][0]["path"], "data/large", "{found}");
    let mended = fsck(&sandbox, "--repair", 0);
    assert_eq!(mended["damaged"][0]["from"], json!({"remote": "origin"}), "{mended}");
    assert_eq!(fs::read(&path).unwrap(), edited, "the edit is nobody's to take");
    sandbox.ok("checkout --force");
    assert_eq!(fs::read(&path).unwrap(), vec![5_u8; 1_200_000]);
}

#[test]
fn a_fresh_clone_lacks_much_and_is_well() {
    let sandbox = world();
    with_remote(&sandbox);
    sandbox.commit("remote");
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), clone.display()));
    let told = sandbox.at(&clone).ok("fsck");
    assert!(told.contains("not stored here (`mlx fetch --all-commits` fetches them)"), "{told}");
}

#[test]
fn du_tells_what_only_a_revision_needs_and_what_was_saved() {
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
    let old = du["revisions"].as_array().unwrap().iter().position(|it| it["summary"] == "one").unwrap();
    assert!((40_000..41_000).contains(&only(old)), "{du}");
    assert_eq!((&du["pointers"][0]["path"], &du["pointers"][0]["versions"]), (&json!("data"), &json!(2)));
    assert_eq!(du["unneeded"]["count"], 0);
    let told = sandbox.ok("du");
    assert!(told.contains("by deduplication"), "{told}");
}
