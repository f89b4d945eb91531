//! Tests of pointers and lockfiles that Git could not merge.

use std::fs;

use crate::sandbox::{Sandbox, shared_folder};

/// A folder `d` and a file `f`, changed on two branches and merged as `attribute` says. Both changed `d/1`,
/// and each removed a file of `d` and added one.
fn merged(attribute: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write(".gitattributes", attribute);
    let version = |changed: &str, added: &str, removed: &str| {
        for path in ["d/1", "f", added] {
            sandbox.write(path, changed);
        }
        fs::remove_file(sandbox.repo.join(removed)).unwrap();
        sandbox.ok("add d f");
        sandbox.commit(changed);
    };
    sandbox.write("d/2", "base");
    sandbox.write("d/3", "base");
    sandbox.write("removed", "base");
    version("base", "d/4", "removed");
    sandbox.git("checkout -q -b other");
    version("theirs", "d/theirs", "d/2");
    sandbox.git("checkout -q main");
    sandbox.ok("checkout");
    version("ours", "d/ours", "d/3");
    sandbox.command("git", &sandbox.repo).args(["merge", "-q", "other"]).output().unwrap();
    sandbox
}

/// Returns the names in the folder `d`, sorted.
fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("d")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Returns the first digits of the digest in a version of a pointer that Git's index has.
fn digits(sandbox: &Sandbox, version: &str) -> String {
    sandbox.git(&format!("show {version}"))["digest = \"b3:".len()..][..10].to_owned()
}

#[test]
fn a_pointer_in_conflict_names_both_sides_whichever_command_meets_it() {
    for attribute in ["", "*.mlx -merge\n"] {
        let sandbox = merged(attribute);
        let (pointer, status) = (sandbox.read("d.mlx"), sandbox.json("status"));
        assert_eq!((&status["clean"], &status["data"][0]["state"]), (&false.into(), &"unknown".into()));
        let sides =
            format!("{} (ours) and {} (theirs)", digits(&sandbox, ":2:d.mlx"), digits(&sandbox, ":3:d.mlx"));
        assert!(status["data"][0]["why"].as_str().unwrap().contains(&sides), "{status}");
        let commands = ["checkout", "add d", "commit", "commit d/1", "remove d/1", "move d/1 e", "lineage d"];
        for command in commands.iter().chain(["gc"].iter().filter(|_| attribute.is_empty())) {
            let error = sandbox.fails(command, 4);
            assert!(error.contains(".mlx`") && error.contains("hint: "), "{attribute}, {command}: {error}");
            let is_of_one = ["add d", "gc"].contains(command);
            assert!(error.contains(&sides) || is_of_one, "{attribute}, {command}: {error}");
        }
        assert!(sandbox.ok("fsck").contains(&sides), "both sides are in Git, so nothing is damaged");
        assert_eq!((sandbox.read("d.mlx"), sandbox.read("d/1")), (pointer, "ours".to_owned()));
        fs::remove_file(sandbox.repo.join("d.mlx")).unwrap();
        assert_eq!(sandbox.json("status")["data"][0]["state"], "unknown", "deleted, but still in conflict");
        sandbox.fails("add d", 4);
    }
}

#[test]
fn both_sides_of_a_conflict_are_merged_file_by_file() {
    for (version, text) in [("ours", "ours"), ("theirs", "theirs"), ("both", "combined")] {
        let sandbox = merged("");
        let error = sandbox.fails("add d", 4);
        assert!(error.contains("both sides of `d.mlx` changed `d/1`"), "{error}");
        assert!(error.contains("then run `mlx add d/1`"), "{error}");
        match version {
            "theirs" => {
                let command = error[error.find("restore b3:").unwrap()..].split('`').next().unwrap();
                sandbox.ok(command);
            }
            "both" => sandbox.write("d/1", text),
            _ => {}
        }
        sandbox.ok("add --git-add d/1");
        sandbox.ok("checkout d");
        assert_eq!(names(&sandbox.repo), ["1", "4", "ours", "theirs"], "{version}");
        assert_eq!((sandbox.read("d/1"), sandbox.read("d/theirs")), (text.to_owned(), "theirs".to_owned()));
        assert_eq!(sandbox.json("status")["data"][0]["state"], "same", "{version}");
    }
}

#[test]
fn an_edit_of_what_the_other_side_changed_is_a_conflict_while_both_are_merged() {
    let sandbox = merged("");
    sandbox.write("d/theirs", "mine");
    let pointer = sandbox.read("d.mlx");
    let error = sandbox.fails("add d/1 d/theirs", 4);
    assert!(error.contains("both you and others changed this"), "{error}");
    assert_eq!((sandbox.read("d.mlx"), sandbox.read("d/theirs")), (pointer, "mine".to_owned()));
}

#[test]
fn sides_that_are_not_stored_here_are_fetched_to_be_merged() {
    for is_here in [true, false] {
        let (sandbox, clone) = shared_folder();
        sandbox.at(&clone).ok("pull");
        fs::write(clone.join("d/clone"), "clone").unwrap();
        fs::remove_file(clone.join("d/1")).unwrap();
        sandbox.at(&clone).ok("add d");
        sandbox.at(&clone).git("commit -qam clone");
        sandbox.at(&clone).ok("push");
        sandbox.write("d/repo", "repo");
        sandbox.ok("add d");
        sandbox.commit("repo");
        let mut pull = sandbox.command("git", &sandbox.repo);
        pull.args(["pull", "-q", "--no-rebase"]).arg(&clone).arg("main").output().unwrap();
        if !is_here {
            fs::remove_dir_all(sandbox.repo.join("d")).unwrap();
        }
        sandbox.ok("add --git-add d");
        sandbox.ok("pull");
        assert_eq!(names(&sandbox.repo), ["2", "3", "4", "5", "clone", "repo"], "{is_here}");
    }
}

#[test]
fn a_file_in_conflict_is_chosen_and_the_other_version_can_be_had_beside_it() {
    let sandbox = merged("");
    let error = sandbox.fails("add f", 4);
    let start = error.find("restore b3:").unwrap();
    let command = error[start..].split('`').next().unwrap().replace("PATH", "f.theirs");
    sandbox.git("checkout -q --ours f.mlx");
    sandbox.git("add f.mlx");
    sandbox.ok(&command);
    assert_eq!((sandbox.read("f"), sandbox.read("f.theirs")), ("ours".to_owned(), "theirs".to_owned()));
    sandbox.write("f", "combined");
    sandbox.ok("add f");
}

#[test]
fn marks_that_were_added_to_git_can_be_brought_back_and_merged() {
    let sandbox = merged("");
    sandbox.git("add d.mlx");
    let error = sandbox.fails("add d", 4);
    assert!(error.contains(&digits(&sandbox, "HEAD:d.mlx")), "{error}");
    assert!(error.contains(&digits(&sandbox, "MERGE_HEAD:d.mlx")), "{error}");
    assert!(error.contains("`git checkout -m d.mlx`"), "{error}");
    sandbox.git("checkout -q -m d.mlx");
    sandbox.ok("add --git-add d/1");
    sandbox.ok("checkout d");
    assert_eq!(names(&sandbox.repo), ["1", "4", "ours", "theirs"]);
}

#[test]
fn a_pointer_that_one_side_removed_is_kept_or_removed() {
    for (remover, decision) in [("main", "add"), ("other", "add"), ("main", "rm -q"), ("other", "rm -q")] {
        let sandbox = Sandbox::new();
        sandbox.write("d/1", "base");
        sandbox.ok("add d");
        sandbox.commit("base");
        sandbox.git("branch other");
        for branch in ["other", "main"] {
            sandbox.git(&format!("checkout -q {branch}"));
            sandbox.ok("checkout");
            if branch == remover {
                sandbox.git("rm -q d.mlx");
            } else {
                sandbox.write("d/2", "2");
                sandbox.ok("add d");
            }
            sandbox.commit(branch);
        }
        sandbox.command("git", &sandbox.repo).args(["merge", "-q", "other"]).output().unwrap();
        for command in ["checkout", "add d"] {
            let error = sandbox.fails(command, 4);
            assert!(error.contains("no pointer") && error.contains("`git rm d.mlx`"), "{error}");
        }
        sandbox.git(&format!("{decision} d.mlx"));
        sandbox.ok("checkout");
        assert_eq!(sandbox.has("d/2"), decision == "add", "{remover}");
        assert_eq!(sandbox.json("status")["clean"], true, "{remover}, {decision}");
    }
}

#[test]
fn the_lines_of_two_pointers_are_a_conflict_for_every_command() {
    let sandbox = merged("*.mlx merge=union\n");
    let pointer = sandbox.read("d.mlx");
    assert_eq!(sandbox.json("status")["data"][0]["state"], "unknown");
    for command in ["checkout d", "add d", "add d/1", "commit d", "remove d", "move d e"] {
        let error = sandbox.fails(command, 4);
        assert!(error.contains("`d.mlx` holds the lines of two pointers"), "{command}: {error}");
        assert!(error.contains(&digits(&sandbox, "ORIG_HEAD:d.mlx")), "{command}: {error}");
    }
    assert_eq!(sandbox.read("d.mlx"), pointer);
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
