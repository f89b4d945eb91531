//! Tests of pointer files that are missing, damaged, wrong, moved or copied by hand, or another program's.

use std::{collections::BTreeMap, fs};

use crate::sandbox::{Sandbox, shared_folder};

/// Creates a repository with the tracked folder `d` of five files, and a clone that has one of them.
fn partly_here() -> (Sandbox, std::path::PathBuf) {
    let (sandbox, clone) = shared_folder();
    sandbox.at(&clone).ok("pull d/1");
    (sandbox, clone)
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
    let [few, many] = [20, 80].map(single_file_operations);
    for ((args, few), (_, many)) in few.iter().zip(&many) {
        assert_eq!(few["readdir"], many["readdir"], "{args}: {few:?}, {many:?}");
        // Not exactly: files that were written within a tick of the clock are read again.
        let count = |counts: &BTreeMap<String, usize>| counts.values().sum::<usize>();
        assert!(count(many) <= 5 * count(few), "{args}: {few:?}, {many:?}");
    }
}

#[test]
fn a_damaged_pointer_has_one_message_and_a_hint_that_works() {
    let setup = || {
        let sandbox = Sandbox::new();
        let remote = sandbox.root().join("remote");
        sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
        sandbox.write("d/1", "1");
        sandbox.ok("add d");
        sandbox.write("mlx.toml", "[stage.s]\ncmd = 'cp d/1 o'\ndeps = ['d']\nouts = ['o']\n");
        sandbox.ok("repro");
        sandbox.commit("one");
        sandbox
    };
    for text in ["digest = \"b3:zz\"\n", "plain text\n", "digest = \"b3:", ""] {
        let sandbox = setup();
        sandbox.write("d.mlx", text);
        let status = sandbox.json("status");
        let why = status["data"][1]["why"].as_str().unwrap();
        let (message, hint) = why.split_once("; ").unwrap();
        assert!(message.starts_with("`d.mlx` is not a pointer: "), "{status}");
        assert_eq!(status["stages"][0]["why"][0], message, "{text}");
        let commands = ["repro -n", "remove d", "push", "checkout", "checkout d/1", "checkout d.mlx"];
        let commands = commands.iter().chain(&["add d/1", "move d e", "diff", "commit", "lineage d", "gc"]);
        for command in commands {
            let error = sandbox.fails(command, 5);
            assert!(error.contains(message), "{text}, {command}: {error}");
            assert!(error.contains(&format!("hint: {hint}")), "{text}, {command}: {error}");
        }
        let fsck = sandbox.mlx("fsck");
        assert!(fsck.code == 10 && fsck.out.contains(message) && fsck.out.contains(hint), "{}", fsck.out);
        assert_eq!(sandbox.read("d.mlx"), text);
        for fix in [&["checkout -- d.mlx"][..], &[]] {
            sandbox.write("d.mlx", text);
            fix.iter().for_each(|command| drop(sandbox.git(command)));
            if fix.is_empty() {
                fs::remove_file(sandbox.repo.join("d.mlx")).unwrap();
                sandbox.ok("add d");
            }
            assert_eq!(sandbox.json("status")["clean"], true, "{text}, {hint}");
        }
    }
}

#[test]
fn a_file_of_another_program_hinders_no_lineage() {
    let sandbox = Sandbox::new();
    sandbox.write("d", "1");
    sandbox.ok("add d");
    sandbox.write("live.mlx", "PK\x03\x04");
    sandbox.commit("one");
    assert_eq!(sandbox.json("lineage d")["path"], "d");
    assert_eq!(sandbox.json("lineage d --rev HEAD")["path"], "d");
}

#[test]
fn a_summary_that_a_merge_by_hand_left_wrong_is_named_and_corrected() {
    let wrong: [(&str, &str, &str); 5] = [
        ("d", "files = 2", "files = 7"),
        ("d", "size = 2", "size = 99"),
        ("d", "kind = \"tree\"", "kind = \"file\""),
        ("f", "kind = \"file\"", "kind = \"tree\""),
        ("f", "size = 1", "size = 5"),
    ];
    for (path, right, wrong) in wrong {
        for command in ["commit", "add d f", &format!("add {}", if path == "d" { "d/1" } else { "f" })] {
            let sandbox = Sandbox::new();
            sandbox.write("d/1", "1");
            sandbox.write("d/2", "2");
            sandbox.write("f", "1");
            sandbox.ok("add d f");
            sandbox.commit("one");
            let file = format!("{path}.mlx");
            let pointer = sandbox.read(&file);
            sandbox.write(&file, pointer.replace(right, wrong));
            let named = format!("says `{wrong}` instead of `{right}`");
            let status = sandbox.ok("status");
            assert!(status.contains(&format!("{path}: ")) && status.contains(&named), "{status}");
            let fsck = sandbox.mlx("fsck");
            assert_eq!(fsck.code, 10, "{}", fsck.out);
            assert!(fsck.out.contains(&named) && fsck.out.contains(&format!("`mlx commit {path}`")));
            // Nothing needs what a wrong kind would mean.
            sandbox.ok("gc --grace 0s --yes");
            sandbox.ok(command);
            assert_eq!(sandbox.read(&file), pointer, "{command}");
            assert_eq!(sandbox.json("status")["clean"], true, "{command}");
            sandbox.ok("fsck");
        }
    }
}

#[test]
fn a_wrong_kind_hinders_neither_checkout_nor_pull() {
    let (sandbox, clone) = shared_folder();
    sandbox.write("f", "f");
    sandbox.write("large", vec![7; 2_000_000]);
    sandbox.ok("add f large");
    sandbox.commit("files");
    sandbox.ok("push");
    sandbox.at(&clone).git("pull -q");
    let paths = ["d.mlx", "f.mlx", "large.mlx"];
    let pointers = paths.map(|path| fs::read_to_string(clone.join(path)).unwrap());
    for (path, pointer) in paths.iter().zip(&pointers) {
        let swapped = if *path == "d.mlx" {
            pointer.replace("kind = \"tree\"", "kind = \"file\"")
        } else {
            pointer.replace("kind = \"file\"", "kind = \"tree\"")
        };
        fs::write(clone.join(path), swapped).unwrap();
    }
    let here = sandbox.at(&clone);
    here.ok("pull");
    let read = |path: &str| fs::read_to_string(clone.join(path)).unwrap();
    assert_eq!((read("d/5"), read("f"), read("large").len()), ("5".into(), "f".into(), 2_000_000));
    for path in ["d", "f", "large"] {
        drop(fs::remove_dir_all(clone.join(path)));
        drop(fs::remove_file(clone.join(path)));
    }
    here.ok("checkout");
    assert_eq!((read("d/5"), read("f"), read("large").len()), ("5".into(), "f".into(), 2_000_000));
    // Also where the data is not here.
    fs::remove_dir_all(clone.join("d")).unwrap();
    here.ok("commit");
    assert_eq!(paths.map(read), pointers);
    assert_eq!(here.mlx("fsck").code, 0);
}

#[test]
fn a_wrong_summary_of_an_output_is_named_and_corrected() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "1");
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'cp a o'\ndeps = ['a']\nouts = ['o']\n");
    sandbox.ok("repro");
    sandbox.commit("one");
    let lock = sandbox.read("mlx.lock");
    let line = lock.lines().find(|line| line.starts_with("out.")).unwrap();
    sandbox.write("mlx.lock", lock.replace(line, &line.replace("size = 1", "size = 9")));
    assert!(sandbox.ok("status").contains("`size = 9` instead of `size = 1`"));
    let fsck = sandbox.mlx("fsck");
    assert!(fsck.code == 10 && fsck.out.contains("`size = 9` instead of `size = 1` of `o`"), "{}", fsck.out);
    sandbox.ok("commit o");
    assert_eq!(sandbox.read("mlx.lock"), lock, "not an edit");
}

#[test]
fn a_pointer_that_was_deleted_by_hand_is_named_while_its_data_is_here() {
    let sandbox = Sandbox::new();
    sandbox.write("d/1", "1");
    sandbox.write("e/1", "1");
    sandbox.ok("add d e");
    sandbox.commit("one");
    fs::remove_file(sandbox.repo.join("d.mlx")).unwrap();
    let status = sandbox.json("status");
    let row = &status["data"][1];
    assert_eq!(
        (&row["path"], &row["state"], &status["clean"]),
        (&"d".into(), &"unknown".into(), &false.into())
    );
    assert!(row["why"].as_str().unwrap().contains("`git checkout -- d.mlx`"), "{status}");
    for path in ["d", "d/1"] {
        let error = sandbox.fails(&format!("checkout {path}"), 3);
        assert!(error.contains("`d.mlx` is missing") && error.contains("`git rm d.mlx`"), "{error}");
    }
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("d/1"), "1");
    sandbox.git("checkout -q -- d.mlx");
    assert_eq!(sandbox.json("status")["clean"], true);
    sandbox.git("rm -q d.mlx");
    sandbox.ok("checkout");
    assert!(!sandbox.has("d") && sandbox.json("status")["clean"] == true);
}

#[test]
fn a_copy_of_a_pointer_is_checked_out_by_its_name_and_known_from_then_on() {
    for (copy, named) in [("e", "e"), ("e", "e/1"), ("e", "e.mlx"), ("sub/e", "sub")] {
        let sandbox = Sandbox::new();
        sandbox.write("d/1", "1");
        sandbox.write("sub/other", "");
        sandbox.ok("add d");
        sandbox.commit("one");
        fs::copy(sandbox.repo.join("d.mlx"), sandbox.repo.join(format!("{copy}.mlx"))).unwrap();
        sandbox.ok(&format!("checkout {named}"));
        assert_eq!(sandbox.read(&format!("{copy}/1")), "1", "{named}");
        assert_eq!(sandbox.json("status")["data"][1]["path"], copy, "{named}");
        assert!(!sandbox.git("status --short -uall").contains("e/1"), "Git ignores it");
    }
    let sandbox = Sandbox::new();
    sandbox.write("d/e.mlx", "PK\x03\x04");
    sandbox.ok("add d");
    assert!(sandbox.fails("checkout nowhere", 3).contains("does not track `nowhere`"));
    sandbox.ok("checkout d/e.mlx");
}

#[test]
fn data_that_a_moved_pointer_left_is_named_until_force_removes_it() {
    let sandbox = Sandbox::new();
    sandbox.write("d/1", "1");
    sandbox.write("d/2", "2");
    sandbox.ok("add d");
    sandbox.commit("one");
    sandbox.write("d/1", "precious");
    sandbox.git("mv d.mlx e.mlx");
    let is_named = || {
        let status = sandbox.json("status");
        status["clean"] == false && status["git"][0]["path"] == "d"
    };
    assert!(is_named());
    let result = sandbox.mlx("checkout");
    assert!(result.code == 0 && result.err.contains("stay: `d/1` (`mlx checkout --force` removes them)"));
    assert!(is_named() && sandbox.read("d/1") == "precious" && !sandbox.has("d/2"));
    sandbox.ok("checkout --force");
    assert!(!sandbox.has("d") && sandbox.read("e/1") == "1");
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn a_path_that_is_recorded_and_not_here_is_told_from_a_misspelled_one() {
    let (sandbox, clone) = shared_folder();
    let here = sandbox.at(&clone);
    here.ok("pull d/1");
    assert!(here.fails("add d/2", 3).contains("`mlx pull d/2`"));
    assert!(!here.fails("add d/nosuch", 3).contains("hint"));
    fs::remove_dir_all(clone.join("d")).unwrap();
    assert!(here.fails("add d", 3).contains("`mlx remove d`"));
}
