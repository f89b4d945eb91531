//! Tests of bases whose trees the store lost or has damaged: a lost base is unknown, a damaged one stops a
//! merge until it is repaired, and neither leaves a command halfway.

use std::{fs, path::Path};

use crate::{
    base::recorded,
    sandbox::{Sandbox, shared_folder},
};

/// Creates a repository whose store has the trees of a recorded version of `d`, with the file `6` of others,
/// but not those of the version that is here, which `harm` damages or removes with their pack. A file is
/// edited, and one is missing.
fn with_harmed_base(harm: impl Fn(&Path)) -> Sandbox {
    let (sandbox, clone) = shared_folder();
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'ls d > o'\ndeps = ['d']\nouts = ['o']\n");
    sandbox.commit("stage");
    let theirs = sandbox.at(&clone);
    theirs.git("pull -q");
    theirs.ok("pull");
    fs::write(clone.join("d/6"), "6").unwrap();
    theirs.ok("add d");
    theirs.git("commit -qam theirs");
    theirs.ok("push");
    for entry in fs::read_dir(sandbox.repo.join(".git/mlx/packs")).unwrap() {
        harm(&entry.unwrap().path());
    }
    sandbox.git(&format!("pull -q {} main", clone.display()));
    sandbox.ok("fetch --trees");
    sandbox.write("d/2", "mine");
    fs::remove_file(sandbox.repo.join("d/4")).unwrap();
    sandbox
}

fn lose(file: &Path) {
    fs::remove_file(file).unwrap();
}

/// Changes every byte of a pack's objects.
fn damage(file: &Path) {
    if file.extension().is_some_and(|extension| extension == "pack") {
        let mut bytes = fs::read(file).unwrap();
        let objects = bytes.len() / 3;
        bytes[8..objects].iter_mut().for_each(|byte| *byte ^= 255);
        fs::remove_file(file).unwrap();
        fs::write(file, bytes).unwrap();
    }
}

#[test]
fn a_base_whose_trees_the_store_lost_is_unknown() {
    for command in ["add d/2", "commit d/2", "add d", "commit"] {
        let sandbox = with_harmed_base(lose);
        sandbox.ok(command);
        assert_eq!(recorded(&sandbox, &sandbox.repo), ["1", "2", "3", "4", "5", "6"], "{command}");
        assert_eq!(fs::read_to_string(sandbox.root().join("fresh/d/2")).unwrap(), "mine");
    }
    let sandbox = with_harmed_base(lose);
    for command in ["repro --dry-run", "repro"] {
        let error = sandbox.fails(command, 3);
        let text = "cannot run the stage `s`: `d` is not here as it is recorded";
        assert!(error.contains(text) && error.contains("`mlx pull d`"), "{command}: {error}");
    }
}

#[test]
fn a_base_whose_trees_are_damaged_stops_a_merge_until_they_are_repaired() {
    let sandbox = with_harmed_base(damage);
    let pointer = sandbox.read("d.mlx");
    for command in ["add d/2", "commit d/2", "add d", "commit", "repro --dry-run"] {
        let error = sandbox.fails(command, 5);
        assert!(error.contains("in the cache is damaged"), "{command}: {error}");
        assert_eq!(sandbox.read("d.mlx"), pointer, "{command}");
    }
    sandbox.mlx("fsck --repair");
    sandbox.ok("add d");
    assert_eq!(recorded(&sandbox, &sandbox.repo), ["1", "2", "3", "5", "6"]);
}

#[test]
fn a_base_that_cannot_be_read_does_not_stop_a_command_halfway() {
    for harm in [lose, damage] {
        let sandbox = with_harmed_base(harm);
        sandbox.ok("move d/2 d/two");
        sandbox.ok("remove d/3");
        assert_eq!(recorded(&sandbox, &sandbox.repo), ["1", "4", "5", "6", "two"]);
        assert!(sandbox.has("d/two") && sandbox.has("d/3"));
    }
}
