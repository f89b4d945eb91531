//! Tests of pointer files that are missing, in conflict, moved by hand, or another program's.

use std::{collections::BTreeMap, fs};

use crate::sandbox::{Sandbox, shared_folder};

/// Creates a repository with the tracked folder `d` of five files, and a clone that has one of them.
fn partly_here() -> (Sandbox, std::path::PathBuf) {
    let (sandbox, clone) = shared_folder();
    sandbox.at(&clone).ok("pull d/1");
    (sandbox, clone)
}

/// A second and a third version of the folder `d` on two branches, merged as `attribute` says.
fn merged(attribute: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write(".gitattributes", attribute);
    sandbox.write("d/1", "1");
    sandbox.ok("add d");
    sandbox.commit("one");
    sandbox.git("checkout -q -b other");
    sandbox.write("d/1", "2");
    sandbox.ok("add d");
    sandbox.commit("two");
    sandbox.git("checkout -q main");
    sandbox.ok("checkout");
    sandbox.write("d/1", "3");
    sandbox.write("d/3", "3");
    sandbox.ok("add d");
    sandbox.commit("three");
    sandbox.command("git", &sandbox.repo).args(["merge", "-q", "other"]).output().unwrap();
    sandbox
}

#[test]
fn a_lost_pointer_is_merged_with_the_one_in_git() {
    let damages: [(&str, fn(&std::path::Path)); 3] = [
        ("deleted", |clone| fs::remove_file(clone.join("d.mlx")).unwrap()),
        ("cut off", |clone| fs::write(clone.join("d.mlx"), "digest = \"b3:").unwrap()),
        ("deleted, and the bases lost", |clone| {
            fs::remove_file(clone.join(".git/mlx/base")).unwrap();
            fs::remove_file(clone.join("d.mlx")).unwrap();
        }),
    ];
    for (how, damage) in damages {
        let paths = if how == "cut off" { &["d"][..] } else { &["d", "d/new"] };
        for path in paths {
            let (sandbox, clone) = partly_here();
            damage(&clone);
            fs::write(clone.join("d/new"), "new").unwrap();
            let result = sandbox.at(&clone).mlx(&format!("add {path}"));
            assert_eq!(result.code, 0, "{how}, {path}: {}", result.err);
            let pointer = fs::read_to_string(clone.join("d.mlx")).unwrap();
            assert!(pointer.contains("files = 6"), "{how}, {path}: {pointer}");
        }
    }
}

#[test]
fn a_path_that_is_not_tracked_any_more_is_added_as_it_is() {
    let (sandbox, clone) = partly_here();
    sandbox.at(&clone).ok("remove d");
    sandbox.at(&clone).ok("add d");
    assert!(fs::read_to_string(clone.join("d.mlx")).unwrap().contains("files = 1"));
    // Git was told that the folder has no pointer any more: its parts are added one by one.
    let (sandbox, clone) = partly_here();
    sandbox.at(&clone).git("rm -q d.mlx");
    fs::write(clone.join(".gitignore"), "").unwrap();
    sandbox.at(&clone).ok("add d/1");
    assert!(clone.join("d/1.mlx").exists() && !clone.join("d.mlx").exists());
}

#[test]
fn a_pointer_in_conflict_is_refused_whatever_its_file_holds() {
    for attribute in ["", "*.mlx -merge\n", "*.mlx merge=union\n"] {
        let sandbox = merged(attribute);
        let pointer = sandbox.read("d.mlx");
        let status = sandbox.json("status");
        assert_eq!((&status["clean"], &status["data"][0]["state"]), (&false.into(), &"unknown".into()));
        for command in ["checkout", "add d", "add d/1", "commit", "commit d/1", "remove d/1", "move d/1 e"] {
            // One that only cannot be read is not replaced either.
            let code = if attribute.contains("union") && command != "add d" { 5 } else { 4 };
            let error = sandbox.fails(command, code);
            assert!(error.contains("`d.mlx`"), "{attribute}, {command}: {error}");
        }
        assert_eq!(sandbox.read("d.mlx"), pointer, "{attribute}");
        assert_eq!(sandbox.read("d/1"), "3");
        if !attribute.contains("union") {
            fs::remove_file(sandbox.repo.join("d.mlx")).unwrap();
            assert_eq!(
                sandbox.json("status")["data"][0]["state"],
                "unknown",
                "deleted, but still in conflict"
            );
            sandbox.fails("add d", 4);
            sandbox.git("checkout -q --ours d.mlx");
            sandbox.git("add d.mlx");
            sandbox.ok("checkout");
            sandbox.ok("add d");
        }
    }
}

#[test]
fn a_lockfile_in_conflict_is_refused_whatever_it_holds() {
    let sandbox = Sandbox::new();
    sandbox.write(".gitattributes", "mlx.lock -merge\n");
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'cp a b'\ndeps = ['a']\nouts = ['b']\n");
    let run = |text: &str| {
        sandbox.write("a", text);
        sandbox.ok("repro");
        sandbox.commit(text);
    };
    run("1");
    sandbox.git("checkout -q -b other");
    run("2");
    sandbox.git("checkout -q main");
    sandbox.ok("checkout");
    run("3");
    sandbox.command("git", &sandbox.repo).args(["merge", "-q", "other"]).output().unwrap();
    let lock = sandbox.read("mlx.lock");
    for command in ["status", "checkout", "repro", "commit"] {
        assert!(sandbox.fails(command, 4).contains("`mlx.lock` is in conflict"), "{command}");
    }
    assert_eq!((sandbox.read("mlx.lock"), sandbox.read("b")), (lock, "3".to_owned()));
}

#[test]
fn a_file_of_another_program_stays_as_it_is() {
    for text in ["", "plain", "PK\x03\x04"] {
        let sandbox = Sandbox::new();
        sandbox.write("d/a.mlx", text);
        sandbox.write("d/a", "1");
        sandbox.ok("add d");
        sandbox.commit("one");
        sandbox.write("d/a", "2");
        sandbox.ok("add d/a");
        sandbox.write("e", "e");
        sandbox.write("e.mlx", text);
        let error = sandbox.fails("add e", 4);
        assert!(error.contains("`e.mlx` is not a pointer"), "{text}: {error}");
        assert_eq!((sandbox.read("d/a.mlx"), sandbox.read("e.mlx")), (text.to_owned(), text.to_owned()));
        assert!(sandbox.ok("status").contains("clean"), "{text}");
    }
    // One that Git has a pointer of was cut off.
    let sandbox = Sandbox::new();
    sandbox.write("e", "e");
    sandbox.ok("add e");
    sandbox.commit("one");
    sandbox.write("e.mlx", "");
    sandbox.ok("add e");
}

#[test]
fn a_pointer_in_another_encoding_is_refused_with_the_attribute() {
    let sandbox = Sandbox::new();
    sandbox.write("d", "1");
    sandbox.ok("add d");
    sandbox.write(".gitattributes", "*.mlx working-tree-encoding=UTF-16LE\n");
    let utf16: Vec<u8> = sandbox.read("d.mlx").encode_utf16().flat_map(u16::to_le_bytes).collect();
    sandbox.write("d.mlx", utf16);
    for command in ["checkout", "add d"] {
        let error = sandbox.fails(command, 4);
        assert!(error.contains("Git converts `d.mlx` (`working-tree-encoding=UTF-16LE`)"), "{error}");
    }
}

#[test]
fn a_pointer_that_was_moved_by_hand_takes_its_data_along() {
    for (is_committed, target) in [(true, "e"), (true, "sub/e"), (false, "e")] {
        let sandbox = Sandbox::new();
        sandbox.write("sub/other", "");
        sandbox.write("d/1", "1");
        sandbox.ok("add d");
        if is_committed {
            sandbox.commit("one");
        }
        fs::rename(sandbox.repo.join("d.mlx"), sandbox.repo.join(format!("{target}.mlx"))).unwrap();
        assert!(sandbox.ok("status").contains(&format!("{target}: absent")));
        sandbox.ok("checkout");
        assert_eq!((sandbox.read(&format!("{target}/1")), sandbox.has("d")), ("1".to_owned(), false));
        assert_eq!(sandbox.ok("status"), "clean: everything is as recorded\n");
        assert!(!sandbox.git("status --short -uall").contains("e/1"), "Git ignores it");
    }
}

#[test]
fn the_null_device_as_a_file_of_rules_switches_no_check_off() {
    let sandbox = Sandbox::new();
    sandbox.git("config core.attributesFile /dev/null");
    sandbox.git("config core.excludesFile /dev/null");
    sandbox.write("data/a", "a");
    sandbox.write(".gitattributes", "*.mlx filter=lfs\n");
    assert!(sandbox.fails("add data", 4).contains("`data.mlx`"));
    sandbox.write(".gitattributes", "");
    sandbox.ok("add data");
    sandbox.commit("data");
    sandbox.write(".gitignore", "");
    assert!(sandbox.ok("status").contains("data: "));
    sandbox.ok("checkout");
    assert_eq!(sandbox.git("status --short data"), "");
}

#[test]
fn a_pointer_that_was_removed_with_git_stays_removed() {
    let (sandbox, clone) = partly_here();
    sandbox.at(&clone).git("rm -q d.mlx");
    fs::remove_dir_all(clone.join("d")).unwrap();
    fs::create_dir(clone.join("d")).unwrap();
    fs::write(clone.join("d/new"), "new").unwrap();
    sandbox.at(&clone).ok("add d");
    assert!(fs::read_to_string(clone.join("d.mlx")).unwrap().contains("files = 1"));
}

/// Runs a command, and returns how often it did each disk operation.
fn operations(sandbox: &Sandbox, args: &str) -> BTreeMap<String, usize> {
    let log = sandbox.root().join("operations");
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    command.args(args.split(' ')).env("MLX_FAULT", format!("tell:{}", log.display()));
    assert!(command.output().unwrap().status.success(), "{args}");
    let text = fs::read_to_string(&log).unwrap();
    fs::remove_file(log).unwrap();
    let mut counts = BTreeMap::new();
    text.lines().for_each(|line| *counts.entry(line.to_owned()).or_default() += 1);
    counts
}

#[test]
fn the_work_tree_is_searched_once_for_a_pointer_file_that_is_missing() {
    const FOLDERS: usize = 20;
    let sandbox = Sandbox::new();
    (0..FOLDERS).for_each(|number| sandbox.write(&format!("code{number}/file"), ""));
    for name in ["a", "b", "c"] {
        sandbox.write(name, name);
    }
    sandbox.ok("add a b c");
    sandbox.commit("data");
    for args in ["status", "commit", "checkout", "diff"] {
        let before = operations(&sandbox, args)["readdir"];
        let pointer = sandbox.read("a.mlx");
        fs::remove_file(sandbox.repo.join("a.mlx")).unwrap();
        let after = operations(&sandbox, args)["readdir"];
        assert!((before..=before + FOLDERS + 5).contains(&after), "{args}: {before}, then {after}");
        sandbox.write("a.mlx", pointer);
        sandbox.ok("checkout");
    }
}

/// Returns the number of disk operations of each command on `files` files with a pointer each, all in one
/// folder.
fn single_file_operations(files: usize) -> Vec<(&'static str, BTreeMap<String, usize>)> {
    let sandbox = Sandbox::new();
    (0..files).for_each(|number| sandbox.write(&format!("d/{number}.bin"), number.to_string()));
    let mut measured = Vec::new();
    for args in ["add --glob d/*.bin", "add --glob d/*.bin", "status", "checkout", "checkout", "status"] {
        if measured.len() == 3 {
            (0..files).for_each(|number| {
                fs::remove_file(sandbox.repo.join(format!("d/{number}.bin"))).unwrap();
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        measured.push((args, operations(&sandbox, args)));
    }
    measured
}

#[test]
fn many_single_files_of_one_folder_cost_as_many_operations_each() {
    let [few, some, many] = [20, 40, 80].map(single_file_operations);
    for (at, (args, many)) in many.iter().enumerate() {
        for (operation, count) in many {
            let of = |counts: &BTreeMap<String, usize>| counts.get(operation).copied().unwrap_or_default();
            let (few, some, many) = (of(&few[at].1), of(&some[at].1), *count);
            assert_eq!(many - some, 2 * (some - few), "{args}: {operation} {few}, {some}, {many}");
        }
        assert!(many["readdir"] < 20, "{args}: {many:?}");
    }
}
