//! Tests that old versions of large files take little space after a gc, and that each can still be checked
//! out, pushed, verified and repaired.

use std::{fs, path::PathBuf};

use crate::{
    crash_safety::command,
    gc_halted::assert_gc_at_any_point_loses_nothing,
    gc_roots::{GC_NOW, forget_bases, remove_any},
    halting::operations,
    loop_mount::random_bytes,
    remote_repair::{add_remote, clone},
    sandbox::{Sandbox, command_result},
};

pub const SIZE: usize = 9_000_000;

/// Returns a version of the large file `a`: each differs in a few bytes.
pub fn version(number: usize) -> Vec<u8> {
    let mut bytes = random_bytes(SIZE, 1);
    bytes[number * 2_000_000..][..5].copy_from_slice(b"again");
    bytes
}

/// Creates a repository with three versions of `a`, the last of which is checked out.
pub fn three_versions() -> Sandbox {
    let sandbox = Sandbox::new();
    for number in 1..=3 {
        sandbox.write("a", version(number));
        sandbox.ok("add a");
        sandbox.commit(&number.to_string());
        sandbox.git(&format!("tag v{number}"));
    }
    forget_bases(&sandbox);
    sandbox
}

pub fn store(sandbox: &Sandbox, folder: &str) -> PathBuf {
    sandbox.repo.join(".git/mlx").join(folder)
}

/// Returns the names and the total size of the files in a folder of the store.
pub fn stored(sandbox: &Sandbox, folder: &str) -> (Vec<String>, u64) {
    let Ok(entries) = fs::read_dir(store(sandbox, folder)) else { return Default::default() };
    let files: Vec<_> = entries.map(|entry| entry.unwrap()).collect();
    let names = files.iter().map(|file| file.file_name().into_string().unwrap()).collect();
    (names, files.iter().map(|file| file.metadata().unwrap().len()).sum())
}

fn size_of_store(sandbox: &Sandbox) -> u64 {
    ["objects", "chunks", "packs"].map(|folder| stored(sandbox, folder).1).iter().sum()
}

pub fn name_of(number: usize) -> String {
    blake3::hash(&version(number)).to_string()
}

/// Checks a version out without any help of what is in the workspace.
pub fn assert_version(sandbox: &Sandbox, number: usize, case: &str) {
    sandbox.git(&format!("checkout -q v{number} -- a.mlx"));
    remove_any(&sandbox.repo.join("a"));
    sandbox.ok("checkout --force a");
    assert!(fs::read(sandbox.repo.join("a")).unwrap() == version(number), "{case}: {number}");
}

pub fn assert_all_versions(sandbox: &Sandbox, case: &str) {
    let checked = sandbox.json("fsck");
    assert_eq!(
        (&checked["damaged"], &checked["faults"]),
        (&serde_json::json!([]), &serde_json::json!([])),
        "{case}"
    );
    for number in [1, 2, 3] {
        assert_version(sandbox, number, case);
    }
}

#[test]
fn a_gc_keeps_what_versions_share_once() {
    let sandbox = three_versions();
    let would = sandbox.json("gc");
    assert_eq!((would["not_compared"]["count"].clone(), stored(&sandbox, "chunks").0.len()), (2.into(), 0));
    assert!(sandbox.ok("gc").contains("next: mlx gc --grace 14d --yes"));
    let freed = sandbox.json("gc --yes");
    assert_eq!(freed["freed"]["chunked"]["count"], 2);
    let size = size_of_store(&sandbox);
    assert!(size < SIZE as u64 * 5 / 2, "{size}: a version, and a chunk for each of the others");
    assert_eq!(stored(&sandbox, "objects").0, [name_of(3)], "the one that is checked out");
    assert_eq!(sandbox.json("gc --yes")["freed"]["total"]["count"], 0);
    let usage = sandbox.json("du");
    assert_eq!(usage["classes"]["chunked"]["objects"], 2);
    assert_eq!(usage["unneeded"]["count"], 0);
    assert!(usage["classes"]["chunked"]["stored"].as_u64().unwrap() < SIZE as u64);
    assert_all_versions(&sandbox, "after a gc");
    assert_eq!(sandbox.json("gc --yes")["freed"]["chunked"]["count"], 0, "nothing moves back and forth");
}

pub fn forget_history(sandbox: &Sandbox) {
    sandbox.git("reflog expire --expire=now --all");
    remove_any(&sandbox.repo.join(".git/ORIG_HEAD"));
}

/// Makes the version that is stored whole one that nothing needs.
pub fn drop_the_third(sandbox: &Sandbox) {
    sandbox.git("tag -d v3");
    sandbox.git("reset -q --hard v2");
    sandbox.ok("checkout --force");
    forget_history(sandbox);
    forget_bases(sandbox);
}

/// Chunks that all versions share go to packs when the file that has them whole is not needed any more.
#[test]
fn the_whole_file_may_be_the_first_to_go() {
    let sandbox = three_versions();
    sandbox.ok("gc --yes");
    drop_the_third(&sandbox);
    let before = size_of_store(&sandbox);
    let freed = sandbox.json(GC_NOW)["freed"]["total"]["bytes"].as_u64().unwrap();
    let really = before - size_of_store(&sandbox);
    assert!(freed.abs_diff(really) < 100_000, "{freed} instead of {really}: chunks were copied");
    assert_eq!(stored(&sandbox, "objects").0, Vec::<String>::new());
    assert_version(&sandbox, 1, "from packs");
    assert_version(&sandbox, 2, "from packs");
    assert_eq!(sandbox.json("fsck")["faults"], serde_json::json!([]));
    // The last one that needs its chunks takes them with it.
    sandbox.git("checkout -q --orphan other");
    sandbox.git("rm -q --cached a.mlx");
    remove_any(&sandbox.repo.join("a.mlx"));
    sandbox.commit("none");
    sandbox.git("tag -d v1 v2");
    sandbox.git("branch -D main");
    forget_history(&sandbox);
    forget_bases(&sandbox);
    sandbox.ok(GC_NOW);
    let left = ["objects", "chunks", "packs"].map(|folder| stored(&sandbox, folder).0.len());
    assert_eq!(left, [0, 0, 0]);
}

#[test]
fn files_that_share_little_stay_whole() {
    let sandbox = Sandbox::new();
    for number in 1..=2 {
        sandbox.write("a", random_bytes(SIZE, number));
        sandbox.ok("add a");
        sandbox.commit(&number.to_string());
    }
    forget_bases(&sandbox);
    assert_eq!(sandbox.json("gc --yes")["freed"]["chunked"]["count"], 0);
    assert_eq!(stored(&sandbox, "objects").0.len(), 2);
}

#[test]
fn old_versions_are_pushed_from_their_chunks_and_pulled_whole() {
    let sandbox = three_versions();
    add_remote(&sandbox, "remote");
    sandbox.commit("remote");
    sandbox.ok("gc --yes");
    sandbox.ok("push --all-commits");
    let clone = clone(&sandbox, "clone");
    clone.ok("fetch --all-commits");
    for number in [1, 2, 3] {
        let file = clone.folder.join(".git/mlx/objects").join(name_of(number));
        assert!(fs::read(file).unwrap() == version(number), "{number}");
    }
    assert_eq!(sandbox.json("push --all-commits")["objects"], 0);
}

#[test]
fn a_damaged_whole_file_is_repaired_and_with_it_all_versions() {
    let sandbox = three_versions();
    sandbox.ok("gc --yes");
    let file = store(&sandbox, "objects").join(name_of(3));
    remove_any(&file);
    let mut bytes = version(3);
    bytes[100] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let checked = sandbox.json("fsck");
    assert_eq!(checked["damaged"].as_array().unwrap().len(), 3, "{checked}");
    let repaired = sandbox.json("fsck --repair");
    assert_eq!(repaired["damaged"].as_array().unwrap().len(), 3, "{repaired}");
    assert_all_versions(&sandbox, "after the repair");
}

/// All bytes of the other versions are there: no remote is needed.
#[test]
fn a_wrong_list_of_the_whole_file_is_written_again() {
    let sandbox = three_versions();
    sandbox.ok("gc --yes");
    let list = |number| store(&sandbox, "chunks").join(name_of(number));
    fs::copy(list(2), list(3)).unwrap();
    sandbox.fails("fsck", 10);
    sandbox.ok("fsck --repair");
    assert_all_versions(&sandbox, "after the repair");
}

#[test]
fn a_lost_chunk_and_a_wrong_list_are_found_and_the_version_is_fetched_again() {
    for change in ["packs", "wrong", "broken"] {
        let sandbox = three_versions();
        add_remote(&sandbox, "remote");
        sandbox.ok("push --all-commits");
        sandbox.ok("gc --yes");
        let list = |number| store(&sandbox, "chunks").join(name_of(number));
        match change {
            "packs" => remove_any(&store(&sandbox, "packs")),
            "wrong" => drop(fs::copy(list(2), list(1)).unwrap()),
            _ => fs::write(list(1), b"mlxchnk\x01broken").unwrap(),
        }
        let checked = sandbox.mlx("fsck");
        assert_eq!(checked.code, 10, "{change}: {}{}", checked.out, checked.err);
        sandbox.ok("fsck --repair");
        assert_all_versions(&sandbox, change);
        sandbox.ok("gc --yes");
        assert_all_versions(&sandbox, change);
        assert_eq!(stored(&sandbox, "objects").0.len(), 1, "{change}");
    }
}

/// A file that a workspace links to stays whole, and no other version relies on it: who writes through the
/// link damages that one only.
#[test]
fn linked_files_stay_whole_and_hold_no_chunks_of_others() {
    for link in ["hardlink", "symlink"] {
        let sandbox = three_versions();
        sandbox.ok(&format!("config set cache.link {link}"));
        sandbox.ok("checkout --relink");
        sandbox.ok("gc --yes");
        assert!(stored(&sandbox, "objects").0.contains(&name_of(3)), "{link}");
        assert_eq!(stored(&sandbox, "objects").0.len(), 2, "{link}: one of the other two holds the chunks");
        assert_version(&sandbox, 1, link);
        let linked = store(&sandbox, "objects").join(name_of(1));
        assert!(linked.exists(), "{link}: it is linked, thus stored whole again");
        if link == "symlink" {
            assert_eq!(fs::read_link(sandbox.repo.join("a")).unwrap(), linked.canonicalize().unwrap());
        }
        forget_bases(&sandbox);
        sandbox.ok("gc --yes");
        assert!(linked.exists(), "{link}");
        assert_all_versions(&sandbox, link);
    }
}

#[test]
fn what_another_clone_has_checked_out_stays_whole() {
    assert_eq!(whole_beside_another_clone("copy"), [true, false, true]);
}

#[test]
fn what_another_clone_links_to_holds_no_chunks_of_others() {
    assert_eq!(whole_beside_another_clone("symlink"), [true, true, true], "each of two is linked");
}

/// Runs `gc` in a clone that has the third version, while another one has the first. Returns which versions
/// are stored whole then.
fn whole_beside_another_clone(link: &str) -> [bool; 3] {
    let sandbox = three_versions();
    let cache = sandbox.root().join("cache");
    let other = clone(&sandbox, "other");
    add_remote(&sandbox, "remote");
    sandbox.ok("push --all-commits");
    for (at, folder) in [&sandbox.repo, &other.folder].into_iter().enumerate() {
        let folder = sandbox.at(folder);
        folder.ok(&format!("config set --local cache.dir {}", cache.display()));
        folder.ok(&format!(
            "config set --local remote.r.url file://{}",
            sandbox.root().join("remote").display()
        ));
        folder.ok(&format!("config set --local cache.link {link}"));
        if at == 1 {
            folder.git("checkout -q v1");
        }
        folder.ok("fetch --all-commits --remote r");
        folder.ok("checkout");
        folder.ok("checkout --relink");
    }
    forget_bases(&sandbox);
    sandbox.ok("gc --yes");
    [1, 2, 3].map(|number| cache.join("objects").join(name_of(number)).exists())
}

/// A chunk that both a pack and a whole file have stays in the pack: the whole file may be damaged by now.
#[test]
fn a_whole_file_that_was_damaged_since_its_chunks_were_listed_takes_none_along() {
    let sandbox = three_versions();
    sandbox.ok("gc --yes");
    let mut bytes = version(3);
    for at in [2_000_000, 4_000_000] {
        bytes[at..][..5].copy_from_slice(b"again");
    }
    sandbox.write("a", &bytes);
    sandbox.ok("add a");
    sandbox.commit("shared");
    forget_bases(&sandbox);
    // It lists the chunks of the new version; the packs are too young to be rewritten.
    sandbox.ok("gc --yes");
    let file = store(&sandbox, "objects").join(blake3::hash(&bytes).to_string());
    bytes[2_000_001] ^= 1;
    bytes[4_000_001] ^= 1;
    remove_any(&file);
    fs::write(&file, &bytes).unwrap();
    sandbox.ok(GC_NOW);
    for number in [1, 2] {
        assert_version(&sandbox, number, "its own chunk is in a pack");
    }
}

/// Brings back the repository from the folder `saved`.
pub fn restore_repo(sandbox: &Sandbox) {
    remove_any(&sandbox.repo);
    let mut cp = sandbox.command("cp", &sandbox.root());
    assert!(cp.arg("-a").arg("saved/repo").arg(&sandbox.repo).status().unwrap().success());
}

/// A kill at any disk operation of a gc leaves all versions readable, and the next gc ends the work.
#[test]
fn a_gc_may_be_killed_anywhere() {
    let sandbox = three_versions();
    sandbox.copy_folders(&["repo"], "saved");
    for (kills, at) in operations("gc --yes", 23).enumerate() {
        restore_repo(&sandbox);
        let mut gc = command(&sandbox, "gc --yes");
        let ran = command_result(gc.env("MLX_FAULT", format!("kill:{at}")).output().unwrap());
        let done = ran.code == 0;
        assert_all_versions(&sandbox, &format!("killed at {at}"));
        sandbox.git("checkout -q v3 -- a.mlx");
        sandbox.ok("checkout --force");
        forget_bases(&sandbox);
        sandbox.ok("gc --yes");
        assert_eq!(stored(&sandbox, "objects").0.len(), 1, "killed at {at}");
        if done {
            assert!(kills > 1, "{kills}");
            return;
        }
    }
}

#[test]
fn gc_at_any_point_of_reading_an_old_version_loses_nothing() {
    let args = format!("restore b3:{} --to old", &name_of(1)[..10]);
    let prepare = |sandbox: &Sandbox| {
        for folder in ["objects", "packs", "chunks"] {
            remove_any(&store(sandbox, folder));
        }
        remove_any(&sandbox.repo.join("old"));
        for number in [1, 3] {
            sandbox.write("a", version(number));
            sandbox.ok("add a");
            sandbox.git("add a.mlx");
            sandbox.git("commit -q --allow-empty -m version");
            sandbox.git(&format!("tag -f v{number}"));
        }
        forget_bases(sandbox);
    };
    let check = |sandbox: &Sandbox, case: &str| {
        assert!(fs::read(sandbox.repo.join("old")).unwrap() == version(1), "{case}");
        assert_eq!(stored(sandbox, "chunks").0.len(), 2, "{case}: the gc kept it as chunks");
        assert_version(sandbox, 1, case);
        assert_version(sandbox, 3, case);
        sandbox.git("checkout -q v3 -- a.mlx");
    };
    assert_gc_at_any_point_loses_nothing(&args, 5, &prepare, &check);
}
