//! Old versions that are kept as chunks, while files of the store are damaged or the disk is full.

use std::{fs, path::PathBuf};

use serde_json::json;

use crate::{
    chunked_versions::{
        assert_all_versions, assert_version, drop_the_third, name_of, restore_repo, store, stored,
        three_versions, version,
    },
    crash_safety::command,
    gc_halted::run_beside,
    gc_roots::{GC_NOW, forget_bases, remove_any},
    halting::{operations, start_halting},
    remote_repair::{add_remote, clone},
    sandbox::{Sandbox, command_result},
};

/// Creates a repository with two old versions that are kept as chunks, and the third stored whole.
fn chunked() -> Sandbox {
    let sandbox = three_versions();
    sandbox.ok("gc --yes");
    sandbox
}

fn list_of(sandbox: &Sandbox, number: usize) -> PathBuf {
    store(sandbox, "chunks").join(name_of(number))
}

/// Changes a file of the store.
fn edit(file: &PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    change(&mut bytes);
    remove_any(file);
    fs::write(file, bytes).unwrap();
}

/// Flips a bit of the chunk that only the given version has, in the pack that has it.
fn damage_own_chunk(sandbox: &Sandbox, number: usize) {
    let bytes = &version(number)[number * 2_000_000..][..64];
    let packs = store(sandbox, "packs");
    let mut damaged = 0;
    for entry in fs::read_dir(packs).unwrap() {
        edit(&entry.unwrap().path(), |pack| {
            if let Some(at) = pack.windows(bytes.len()).position(|window| window == bytes) {
                pack[at] ^= 1;
                damaged += 1;
            }
        });
    }
    assert_eq!(damaged, 1, "the chunk is in one pack, not compressed");
}

fn assert_old_versions(sandbox: &Sandbox, case: &str) {
    for number in [1, 2] {
        assert_version(sandbox, number, case);
    }
    sandbox.git("checkout -q HEAD -- a.mlx");
    sandbox.ok("checkout --force");
    forget_bases(sandbox);
}

#[test]
fn a_full_disk_during_a_gc_loses_no_version() {
    let sandbox = chunked();
    drop_the_third(&sandbox);
    sandbox.copy_folders(&["repo"], "saved");
    for at in operations("full disk", 7).take_while(|at| *at < 100) {
        restore_repo(&sandbox);
        let mut gc = command(&sandbox, GC_NOW);
        drop(gc.env("MLX_FAULT", format!("full:{at}")).output().unwrap());
        assert_old_versions(&sandbox, &format!("full at {at}"));
        sandbox.ok(GC_NOW);
        assert_old_versions(&sandbox, &format!("full at {at}, and the next gc"));
        assert_eq!(stored(&sandbox, "objects").0, Vec::<String>::new(), "full at {at}");
    }
}

/// A whole file that nothing needs any more may be the only one with chunks of old versions, even if its list
/// does not say so.
#[test]
fn a_whole_file_with_a_wrong_list_stays_while_others_lack_chunks() {
    let changes: [fn(&mut Vec<u8>); 2] = [|list| list[20] ^= 1, |list| list.truncate(30)];
    for (case, change) in changes.into_iter().enumerate() {
        let sandbox = chunked();
        drop_the_third(&sandbox);
        remove_any(&sandbox.repo.join("a"));
        edit(&list_of(&sandbox, 3), change);
        for _ in 0..2 {
            let ran = sandbox.mlx(GC_NOW);
            assert!(ran.code == 0 && ran.err.contains("lack chunks"), "{case}: {}", ran.err);
        }
        sandbox.ok("fsck --repair");
        assert_old_versions(&sandbox, &case.to_string());
        sandbox.ok(GC_NOW);
        assert_old_versions(&sandbox, &case.to_string());
        assert_eq!(stored(&sandbox, "objects").0, Vec::<String>::new(), "{case}");
    }
}

#[test]
fn a_chunk_that_was_damaged_once_serves_when_it_is_stored_again() {
    let sandbox = chunked();
    damage_own_chunk(&sandbox, 1);
    sandbox.fails("fsck", 10);
    sandbox.git("checkout -q v1 -- a.mlx");
    sandbox.write("a", version(1));
    sandbox.ok("add a");
    sandbox.ok("fsck --repair");
    sandbox.git("checkout -q v3 -- a.mlx");
    sandbox.ok("checkout --force");
    forget_bases(&sandbox);
    assert_eq!(sandbox.json("gc --yes")["freed"]["chunked"]["count"], 1);
    assert_all_versions(&sandbox, "stored again");
}

#[test]
fn a_damaged_whole_file_takes_no_version_along_that_has_other_chunks() {
    for repair in [false, true] {
        let sandbox = chunked();
        remove_any(&sandbox.repo.join("a"));
        edit(&store(&sandbox, "objects").join(name_of(3)), |bytes| bytes[6_000_001] ^= 1);
        let args = if repair { "fsck --repair --json" } else { "fsck --json" };
        let checked = sandbox.mlx(args);
        assert_eq!(checked.code, 10, "{}", checked.err);
        let checked: serde_json::Value = serde_json::from_str(&checked.out).unwrap();
        assert_eq!(checked["damaged"].as_array().unwrap().len(), 1, "the third: {checked}");
        if repair {
            remove_any(&store(&sandbox, "quarantine"));
        }
        for number in [1, 2] {
            assert_version(&sandbox, number, &format!("repair {repair}"));
        }
    }
}

#[test]
fn a_list_that_cannot_be_read_stops_a_gc() {
    let sandbox = chunked();
    for number in [1, 2] {
        edit(&list_of(&sandbox, number), |list| list[7] = 2);
    }
    let before = stored(&sandbox, "packs");
    let error = sandbox.fails(GC_NOW, 5);
    assert!(error.contains("nothing was freed") && error.contains("newer mlx"), "{error}");
    assert!(sandbox.mlx("fsck --repair").out.contains("upgrade mlx"));
    assert_eq!(stored(&sandbox, "packs"), before);
    for number in [1, 2] {
        edit(&list_of(&sandbox, number), |list| list[7] = 1);
    }
    assert_all_versions(&sandbox, "read by the newer mlx");
}

/// A conversion reads the chunks of the files that it removes, not all old versions.
#[test]
fn a_gc_does_not_read_versions_that_are_chunks_already() {
    let sandbox = chunked();
    sandbox.write("a", version(4));
    sandbox.ok("add a");
    sandbox.commit("4");
    forget_bases(&sandbox);
    damage_own_chunk(&sandbox, 1);
    assert_eq!(sandbox.json("gc --yes")["freed"]["chunked"]["count"], 1);
    assert_version(&sandbox, 3, "converted");
    assert_version(&sandbox, 2, "not converted again");
}

#[test]
fn a_push_names_a_version_with_a_damaged_chunk_and_sends_the_others() {
    let sandbox = chunked();
    add_remote(&sandbox, "remote");
    sandbox.commit("remote");
    damage_own_chunk(&sandbox, 2);
    let error = sandbox.fails("push --all-commits", 5);
    assert!(error.contains(&name_of(2)) && error.contains("damaged") && error.contains("hint"), "{error}");
    sandbox.mlx("push --all-commits");
    let other = clone(&sandbox, "other");
    other.ok("pull");
    assert!(fs::read(other.folder.join("a")).unwrap() == version(3));
}

/// While a gc runs, another clone may link to a version that is to be kept as chunks.
#[test]
fn a_version_that_another_clone_links_to_meanwhile_stays_whole() {
    let sandbox = three_versions();
    add_remote(&sandbox, "remote");
    sandbox.commit("remote");
    sandbox.ok("push --all-commits");
    let other = clone(&sandbox, "other");
    for folder in [&sandbox.repo, &other.folder] {
        let folder = sandbox.at(folder);
        folder.ok(&format!("config set --local cache.dir {}", sandbox.root().join("cache").display()));
        folder.ok("config set --local cache.link symlink");
        folder.ok("fetch --all-commits");
        folder.ok("checkout");
    }
    // What the other clone needs does not change by it.
    for tag in ["v1", "v3"] {
        other.git(&format!("checkout -q {tag} -- a.mlx"));
        other.ok("checkout --force");
    }
    sandbox.copy_folders(&["repo", "other", "cache"], "saved");
    let mut linked = 0;
    for at in operations("gc --yes", 31) {
        for folder in ["repo", "other", "cache"] {
            remove_any(&sandbox.root().join(folder));
            let mut cp = sandbox.command("cp", &sandbox.root());
            assert!(cp.args(["-a", &format!("saved/{folder}"), "."]).status().unwrap().success());
        }
        forget_bases(&sandbox);
        let (gc, is_halted) = start_halting(&sandbox, "gc --yes", at);
        if is_halted {
            other.git("checkout -q v1 -- a.mlx");
            // If the gc holds the gate, it ends first.
            let mut checkout = command(&sandbox, "checkout --force a");
            checkout.current_dir(&other.folder);
            let (swept, ran) = run_beside(&sandbox, gc, checkout);
            assert_eq!((ran.code, swept.code), (0, 0), "{at}: {}{}", ran.err, swept.err);
            assert!(fs::read(other.folder.join("a")).unwrap() == version(1), "halted at {at}");
            linked += 1;
        } else {
            assert_eq!(command_result(gc.wait_with_output().unwrap()).code, 0);
            break;
        }
    }
    assert!(linked > 1, "{linked}");
    assert_eq!(json!([]), sandbox.json("fsck")["faults"]);
}
