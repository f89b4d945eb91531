//! Tests of bases: changes of tracked folders are made against what this worktree last had, and merged into
//! the record. A file that is not here is never dropped; one that both sides changed is a conflict.

use std::{fs, path::Path};

use crate::sandbox::{Sandbox, outcomes, shared_folder};

/// Returns the names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Returns the names that the pointer `d.mlx` of the sandbox's repository records.
pub fn recorded(sandbox: &Sandbox, repo: &Path) -> Vec<String> {
    let folder = sandbox.root().join("fresh");
    drop(fs::remove_dir_all(&folder));
    sandbox.git(&format!("clone -q {} {}", repo.display(), folder.display()));
    fs::copy(repo.join("d.mlx"), folder.join("d.mlx")).unwrap();
    sandbox.at(repo).ok("push");
    sandbox.at(&folder).ok("pull");
    names(&folder.join("d"))
}

#[test]
fn a_file_that_was_never_here_stays_recorded() {
    for command in ["commit", "add d"] {
        let (sandbox, clone) = shared_folder();
        let here = sandbox.at(&clone);
        here.ok("pull d/2");
        fs::write(clone.join("d/2"), "two").unwrap();
        let result = here.mlx(command);
        assert_eq!(result.code, 0, "{}", result.err);
        assert!(
            result.err.contains("`d` stays recorded with 4 files that are not here: `d/1`"),
            "{}",
            result.err
        );
        assert_eq!(recorded(&sandbox, &clone), ["1", "2", "3", "4", "5"], "{command}");
        assert_eq!(fs::read_to_string(sandbox.root().join("fresh/d/2")).unwrap(), "two");
    }
}

#[test]
fn a_deletion_of_what_was_here_is_recorded() {
    let (sandbox, clone) = shared_folder();
    sandbox.at(&clone).ok("pull d/2 d/3");
    fs::remove_file(clone.join("d/2")).unwrap();
    sandbox.at(&clone).ok("commit");
    assert_eq!(recorded(&sandbox, &clone), ["1", "3", "4", "5"]);
    // Named explicitly, too; and a file that was never here is not one that was deleted.
    fs::remove_file(clone.join("d/3")).unwrap();
    sandbox.at(&clone).ok("commit d/3 d/4");
    assert_eq!(recorded(&sandbox, &clone), ["1", "4", "5"]);
}

#[test]
fn files_that_two_clones_add_to_a_folder_are_both_recorded() {
    let (sandbox, clone) = shared_folder();
    sandbox.at(&clone).ok("pull");
    fs::write(clone.join("d/theirs"), "theirs").unwrap();
    fs::remove_file(clone.join("d/5")).unwrap();
    sandbox.at(&clone).ok("add d");
    sandbox.at(&clone).git("commit -qam theirs");
    sandbox.at(&clone).ok("push");
    sandbox.write("d/mine", "mine");
    sandbox.git(&format!("pull -q {} main", clone.display()));
    sandbox.ok("add d");
    assert_eq!(recorded(&sandbox, &sandbox.repo), ["1", "2", "3", "4", "mine", "theirs"]);
    assert!(!sandbox.has("d/theirs") && sandbox.has("d/5"), "`add` changes no file");
    sandbox.ok("pull");
    assert_eq!(names(&sandbox.repo.join("d")), ["1", "2", "3", "4", "mine", "theirs"]);
    // What was pulled is in the base now.
    fs::remove_file(sandbox.repo.join("d/theirs")).unwrap();
    sandbox.ok("commit");
    assert_eq!(recorded(&sandbox, &sandbox.repo), ["1", "2", "3", "4", "mine"]);
}

#[test]
fn a_file_that_both_sides_changed_is_a_conflict() {
    let (sandbox, clone) = shared_folder();
    sandbox.at(&clone).ok("pull");
    fs::write(clone.join("d/2"), "theirs").unwrap();
    sandbox.at(&clone).ok("add d");
    sandbox.at(&clone).git("commit -qam theirs");
    sandbox.at(&clone).ok("push");
    sandbox.write("d/2", "mine");
    sandbox.write("d/new", "new");
    sandbox.git(&format!("pull -q {} main", clone.display()));
    sandbox.ok("fetch");
    let pointer = sandbox.read("d.mlx");
    for command in ["add d", "commit", "add d/2", "commit d/2", "add --glob d/*"] {
        let error = sandbox.fails(command, 4);
        assert!(error.contains("since your last checkout of `d`: `d/2`\n"), "{command}: {error}");
        assert_eq!(sandbox.read("d.mlx"), pointer, "{command}");
        // What was refused is stored nowhere: it does not count as saved.
        assert!(sandbox.fails("checkout", 4).contains("`d/2`"), "{command}");
        assert_eq!((sandbox.read("d/2"), sandbox.read("d/new")), ("mine".into(), "new".into()), "{command}");
    }
    // The way out that the hint names.
    fs::rename(sandbox.repo.join("d/2"), sandbox.repo.join("mine")).unwrap();
    sandbox.ok("pull d/2");
    assert_eq!(sandbox.read("d/2"), "theirs");
    fs::rename(sandbox.repo.join("mine"), sandbox.repo.join("d/2")).unwrap();
    sandbox.ok("add d");
    assert_eq!(recorded(&sandbox, &sandbox.repo), ["1", "2", "3", "4", "5", "new"]);
}

#[test]
fn a_file_that_was_edited_here_and_removed_by_others_can_be_kept() {
    let (sandbox, clone) = shared_folder();
    sandbox.at(&clone).ok("pull");
    sandbox.at(&clone).ok("remove --data d/2");
    sandbox.at(&clone).git("commit -qam theirs");
    sandbox.at(&clone).ok("push");
    sandbox.write("d/2", "mine");
    sandbox.write("d/new", "new");
    sandbox.git(&format!("pull -q {} main", clone.display()));
    sandbox.ok("fetch");
    for command in ["add d", "commit d/2"] {
        let error = sandbox.fails(command, 4);
        assert!(error.contains("others removed it: move your version aside and run `mlx add d`"), "{error}");
    }
    fs::rename(sandbox.repo.join("d/2"), sandbox.repo.join("mine")).unwrap();
    sandbox.ok("add d");
    assert_eq!(recorded(&sandbox, &sandbox.repo), ["1", "3", "4", "5", "new"]);
    fs::rename(sandbox.repo.join("mine"), sandbox.repo.join("d/2")).unwrap();
    sandbox.ok("add d");
    assert_eq!(recorded(&sandbox, &sandbox.repo), ["1", "2", "3", "4", "5", "new"]);
    assert_eq!(sandbox.read("d/2"), "mine");
}

#[test]
fn a_named_path_that_others_removed_is_not_added_unnoticed() {
    let (sandbox, clone) = shared_folder();
    sandbox.at(&clone).ok("pull");
    sandbox.at(&clone).ok("remove --data d/2");
    sandbox.at(&clone).git("commit -qam theirs");
    sandbox.at(&clone).ok("push");
    sandbox.git(&format!("pull -q {} main", clone.display()));
    sandbox.ok("fetch");
    let pointer = sandbox.read("d.mlx");
    for command in ["add d/2", "add d/1 d/2"] {
        let error = sandbox.fails(command, 4);
        assert!(error.contains("others removed `d/2` since your last checkout of `d`"), "{error}");
        assert!(error.contains("`mlx checkout d/2`"), "{error}");
    }
    for command in ["commit d/2", "add d", "add --glob d/*"] {
        sandbox.ok(command);
    }
    assert_eq!(sandbox.read("d.mlx"), pointer);
    // As the hint says.
    fs::rename(sandbox.repo.join("d/2"), sandbox.repo.join("aside")).unwrap();
    let error = sandbox.fails("add d/2", 3);
    assert!(error.contains("others removed it from `d`") && error.contains("`mlx log d/2`"), "{error}");
    sandbox.ok("checkout d");
    fs::rename(sandbox.repo.join("aside"), sandbox.repo.join("d/2")).unwrap();
    sandbox.ok("add d/2");
    assert_eq!(recorded(&sandbox, &sandbox.repo), ["1", "2", "3", "4", "5"]);
}

/// Returns the file of bases as a newer mlx would write it: with a higher format version and a valid digest.
fn newer_base(sandbox: &Sandbox) -> Vec<u8> {
    let bytes = fs::read(sandbox.repo.join(".git/mlx/base")).unwrap();
    let mut body = bytes[..bytes.len() - 32].to_vec();
    assert_eq!(body[..8], *b"mlxbase\x01");
    body[7] = 2;
    let digest = *blake3::hash(&body).as_bytes();
    [&body[..], &digest].concat()
}

/// Creates a branch `other` on which the file `f` and the folder `d` have a second version, with one file
/// more and one less, and goes back to `main` by Git alone.
fn back_on_main() -> Sandbox {
    let sandbox = Sandbox::new();
    for (path, text) in [("f", "1"), ("d/a", "1"), ("d/b", "1"), ("d/gone", "1")] {
        sandbox.write(path, text);
    }
    sandbox.ok("add f d");
    sandbox.commit("one");
    sandbox.git("checkout -q -b other");
    for (path, text) in [("f", "2"), ("d/a", "2"), ("d/b", "2"), ("d/branch", "2")] {
        sandbox.write(path, text);
    }
    fs::remove_file(sandbox.repo.join("d/gone")).unwrap();
    sandbox.ok("add f d");
    sandbox.commit("two");
    sandbox.git("checkout -q main");
    sandbox
}

#[test]
fn an_edit_after_git_alone_went_back_is_an_edit_of_the_older_version() {
    for command in ["add f d/a", "commit f d/a"] {
        let sandbox = back_on_main();
        sandbox.write("f", "3");
        assert!(!sandbox.ok("status").contains("conflict"));
        sandbox.write("d/a", "3");
        sandbox.ok(command);
        sandbox.commit("three");
        sandbox.ok("checkout --force");
        let all = ["f", "d/a", "d/b"].map(|path| sandbox.read(path));
        assert_eq!(all, ["3", "3", "1"], "{command}");
        assert!(!sandbox.has("d/branch"), "{command}: a file of the other branch is not in this one");
    }
    // An older commit without a branch is the same.
    let sandbox = back_on_main();
    sandbox.git("checkout -q other");
    sandbox.git("checkout -q HEAD~1");
    sandbox.write("f", "3");
    sandbox.ok("add f");
}

#[test]
fn files_of_an_older_version_are_added_one_after_the_other() {
    let sandbox = back_on_main();
    // Others changed a file of the folder that is not added here.
    let worktree = sandbox.root().join("worktree");
    sandbox.git(&format!("worktree add -q -b theirs {}", worktree.display()));
    fs::create_dir(worktree.join("d")).unwrap();
    fs::write(worktree.join("d/theirs"), "theirs").unwrap();
    sandbox.at(&worktree).ok("add d/theirs");
    sandbox.at(&worktree).git("commit -qam theirs");
    sandbox.git("merge -q theirs");
    for path in ["d/a", "d/b"] {
        sandbox.write(path, "3");
        sandbox.ok(&format!("add {path}"));
    }
    assert!(!sandbox.ok("status").contains("conflict"));
}

#[test]
fn a_folder_takes_nothing_from_another_branch_unnoticed() {
    let sandbox = back_on_main();
    for path in ["d/branch", "d/a", "d/gone"] {
        sandbox.write(path, "3");
        let error = sandbox.fails("add d", 4);
        assert!(error.contains(&format!("`{path}`")), "{error}");
    }
    sandbox.fails("add d/branch", 4);
    sandbox.fails("add d/gone", 4);
    sandbox.ok("add d/a");
}

/// Returns the pointer of a file that no store has.
fn unknown_pointer() -> String {
    let digest = "0".repeat(64);
    format!("digest = \"b3:{digest}\"\nfiles = 1\nformat = 1\nkind = \"file\"\nsize = 1\n")
}

#[test]
fn what_others_changed_stays_a_conflict_whatever_this_worktree_had_before() {
    let others: [(&str, fn(&Sandbox)); 8] = [
        ("a history that was rewritten", |sandbox| {
            sandbox.git("checkout -q --orphan squashed");
            sandbox.write("f.mlx", unknown_pointer());
            sandbox.git("add f.mlx");
            sandbox.git("commit -q -m squashed");
        }),
        ("a revert that was pulled", |sandbox| {
            sandbox.git("merge -q other");
            let newest = sandbox.read("f.mlx");
            sandbox.git("checkout -q main~1 -- f.mlx");
            assert_ne!(sandbox.read("f.mlx"), newest);
            sandbox.git("commit -q -m revert");
        }),
        ("a change that was reverted on this branch since it parted", |sandbox| {
            let pointer = sandbox.read("f.mlx");
            sandbox.write("f.mlx", unknown_pointer());
            sandbox.git("commit -q -a -m changed");
            sandbox.write("f.mlx", pointer);
            sandbox.git("commit -q -a -m reverted");
        }),
        ("a version that was never here", |sandbox| {
            let clone = sandbox.root().join("clone");
            sandbox.git(&format!("clone -q -b main . {}", clone.display()));
            fs::write(clone.join("f"), "theirs").unwrap();
            sandbox.at(&clone).ok("add f");
            sandbox.at(&clone).git("commit -q -a -m theirs");
            sandbox.git(&format!("pull -q {} main", clone.display()));
        }),
        ("no reflog", |sandbox| fs::remove_file(sandbox.repo.join(".git/logs/HEAD")).unwrap()),
        ("a pointer that no commit has", |sandbox| sandbox.write("f.mlx", unknown_pointer())),
        ("a shallow clone", |sandbox| {
            let head = sandbox.git("rev-parse HEAD");
            fs::write(sandbox.repo.join(".git/shallow"), head).unwrap();
        }),
        ("a partial clone", |sandbox| {
            sandbox.git("config remote.origin.url .");
            sandbox.git("config remote.origin.promisor true");
        }),
    ];
    for (what, change) in others {
        let sandbox = back_on_main();
        change(&sandbox);
        let pointer = sandbox.read("f.mlx");
        sandbox.write("f", "3");
        let error = sandbox.fails("add f", 4);
        assert!(error.contains("since your last checkout of `f`: `f`\n"), "{what}: {error}");
        assert_eq!(sandbox.read("f.mlx"), pointer, "{what}");
    }
}

#[test]
fn without_a_base_nothing_counts_as_deleted() {
    let (sandbox, _) = shared_folder();
    let newer = newer_base(&sandbox);
    for bytes in [None, Some(&b"damaged"[..]), Some(&newer)] {
        let base = sandbox.repo.join(".git/mlx/base");
        fs::remove_file(&base).unwrap();
        if let Some(bytes) = bytes {
            fs::write(&base, bytes).unwrap();
        }
        fs::remove_file(sandbox.repo.join("d/4")).unwrap();
        sandbox.write("d/2", "edited");
        let result = sandbox.mlx("commit");
        assert!(
            result
                .err
                .contains("`d/4` (get them with `mlx pull d`, or stop tracking one with `mlx remove PATH`"),
            "{}",
            result.err
        );
        assert_eq!(recorded(&sandbox, &sandbox.repo), ["1", "2", "3", "4", "5"]);
        assert_eq!(fs::read_to_string(sandbox.root().join("fresh/d/2")).unwrap(), "edited");
        sandbox.ok("checkout");
    }
    fs::remove_file(sandbox.repo.join("d/4")).unwrap();
    sandbox.ok("remove d/4");
    assert_eq!(recorded(&sandbox, &sandbox.repo), ["1", "2", "3", "5"]);
}

#[test]
fn the_base_of_a_copied_clone_is_not_used() {
    let (sandbox, _) = shared_folder();
    let copy = sandbox.root().join("copy");
    let copied = sandbox.command("cp", &sandbox.repo).args(["-r", "."]).arg(&copy).status().unwrap();
    assert!(copied.success());
    fs::remove_file(copy.join("d/4")).unwrap();
    sandbox.at(&copy).ok("add d");
    assert_eq!(recorded(&sandbox, &copy), ["1", "2", "3", "4", "5"]);
    // A moved clone is still the same.
    let moved = sandbox.root().join("moved");
    fs::rename(&sandbox.repo, &moved).unwrap();
    fs::remove_file(moved.join("d/4")).unwrap();
    sandbox.at(&moved).ok("add d");
    assert!(fs::read_to_string(moved.join("d.mlx")).unwrap().contains("files = 4\n"));
}

#[test]
fn add_refuses_conflict_marks_in_a_pointer() {
    let sandbox = Sandbox::new();
    sandbox.write("d/1", "1");
    sandbox.write("f", "1");
    sandbox.ok("add d f");
    let marked = |path: &str| {
        let ours = sandbox.read(path);
        format!("<<<<<<< HEAD\n{ours}=======\n{}>>>>>>> other\n", ours.replace("size = 1", "size = 2"))
    };
    let (folder, file) = (marked("d.mlx"), marked("f.mlx"));
    sandbox.write("d.mlx", &folder);
    sandbox.write("f.mlx", &file);
    for (command, pointer) in
        [("add d", "d.mlx"), ("add f", "f.mlx"), ("add d/1", "d.mlx"), ("add --glob d/*", "d.mlx")]
    {
        let error = sandbox.fails(command, 4);
        assert!(error.contains(&format!("`{pointer}` is in conflict")), "{command}: {error}");
    }
    assert_eq!((sandbox.read("d.mlx"), sandbox.read("f.mlx")), (folder, file));
}

#[test]
fn repro_records_edits_of_its_tracked_inputs() {
    let (sandbox, _) = shared_folder();
    sandbox.write("src/w/weights", "1");
    sandbox.write("src/train.py", "");
    sandbox.ok("add src/w");
    sandbox.write(
        "mlx.toml",
        "[stage.a]\ncmd = 'ls d | wc -l > o'\ndeps = ['d/2', 'd/3']\nouts = ['o']\n\
         [stage.b]\ncmd = 'cat src/w/weights > p'\ndeps = ['src']\nouts = ['p']\n",
    );
    sandbox.commit("pipeline");
    sandbox.write("d/2", "two");
    sandbox.write("d/4", "not an input");
    sandbox.write("src/w/weights", "2");
    let result = sandbox.mlx("repro");
    assert_eq!(result.code, 0, "{}", result.err);
    let edited =
        ["`d/2`, an input of the stage `a`, was edited: `d.mlx` now records it (", "`src/w.mlx` now"];
    for line in edited {
        assert_eq!(result.err.matches(line).count(), 1, "{}", result.err);
    }
    let status = sandbox.json("status");
    assert_eq!(status["data"][0]["changes"], serde_json::json!([{"path": "d/4", "change": "modified"}]));
    assert_eq!(status["data"][1]["state"], "same");
    assert!(!sandbox.mlx("repro").err.contains("edited"), "recorded once");
}

#[test]
fn a_stage_never_runs_on_a_part_of_its_input() {
    let (sandbox, clone) = shared_folder();
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'ls d | wc -l > o'\ndeps = ['d']\nouts = ['o']\n");
    sandbox.ok("repro");
    sandbox.commit("stage");
    let here = sandbox.at(&clone);
    here.git("pull -q");
    here.ok("pull d/2");
    // Nothing changed: the parts that are not here are as they were when it ran.
    assert_eq!(here.json("status")["stages"][0]["outcome"], "unchanged");
    fs::write(clone.join("d/2"), "two").unwrap();
    let error = here.fails("repro", 3);
    assert!(error.contains("`d` is not here as it is recorded") && error.contains("`mlx pull d`"), "{error}");
    assert!(!clone.join("o").exists());
    // The edit is recorded, and with all of the folder the stage runs.
    here.ok("pull d");
    here.ok("repro");
    assert_eq!(fs::read_to_string(clone.join("o")).unwrap().trim(), "5");
    assert_eq!(recorded(&sandbox, &clone), ["1", "2", "3", "4", "5"]);
}

#[test]
fn a_stage_never_runs_on_a_part_of_an_output() {
    let (sandbox, clone) = shared_folder();
    let first = "[stage.first]\ncmd = 'mkdir m; cp d/* m'\ndeps = ['d']\nouts = ['m']\n";
    let count = "[stage.count]\ncmd = 'ls m | wc -l > o'\ndeps = ['m']\nouts = ['o']\n";
    sandbox.write("mlx.toml", format!("{first}{count}"));
    sandbox.ok("repro");
    sandbox.commit("stages");
    sandbox.ok("push");
    let here = sandbox.at(&clone);
    here.git("pull -q");
    here.ok("pull m/1");
    let plan = outcomes(&here.json("status"));
    assert_eq!(plan, "first unchanged, count unchanged", "nothing changed, and what is not here counts");
    fs::write(clone.join("mlx.toml"), format!("{first}{}", count.replace("ls m", "ls  m"))).unwrap();
    let error = here.fails("repro", 3);
    assert!(error.contains("`m` is not here as it is recorded") && error.contains("`mlx pull m`"), "{error}");
    assert!(!clone.join("o").exists());
    here.ok("pull m");
    here.ok("repro");
    assert_eq!(fs::read_to_string(clone.join("o")).unwrap().trim(), "5");
}

#[test]
fn a_stage_never_runs_on_the_version_before_the_last_git_pull() {
    let (sandbox, clone) = shared_folder();
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'cat d/* > o'\ndeps = ['d']\nouts = ['o']\n");
    sandbox.commit("stage");
    let theirs = sandbox.at(&clone);
    theirs.git("pull -q");
    theirs.ok("pull");
    fs::write(clone.join("d/2"), "two").unwrap();
    theirs.ok("add d");
    theirs.git("commit -qam two");
    theirs.ok("push");
    sandbox.git(&format!("pull -q {} main", clone.display()));
    sandbox.ok("fetch --trees");
    let error = sandbox.fails("repro", 3);
    assert!(error.contains("`d` is not here as it is recorded"), "{error}");
    sandbox.ok("pull");
    sandbox.ok("repro");
    assert_eq!(sandbox.read("o"), "1two345");
}

#[test]
fn inputs_that_nothing_tracks_are_named_by_repro_and_push() {
    let (sandbox, _) = shared_folder();
    sandbox.write("src/train.py", "");
    sandbox.write("p.toml", "a = 1\n");
    sandbox.write(
        "mlx.toml",
        "[stage.s]\ncmd = 'true > o'\ndeps = ['d', 'src', 'raw', 'one']\nparams = ['p.toml:a']\n\
         outs = ['o']\n",
    );
    sandbox.write(".gitignore", "/d\n*.pyc\n/raw\n");
    sandbox.commit("stage");
    for file in ["src/new.py", "src/a.pyc", "raw/1", "one"] {
        sandbox.write(file, "");
    }
    let named = "neither Git nor mlx tracks: `one`, `raw`, `src/new.py`; other clones will lack it";
    for command in ["repro", "push"] {
        let result = sandbox.mlx(command);
        assert!(result.code == 0 && result.err.contains(named), "{command}: {}", result.err);
    }
    assert!(!sandbox.mlx("repro").err.contains("neither"), "nothing ran");
    sandbox.git("add -f src one raw");
    assert!(!sandbox.mlx("push").err.contains("neither"));
}

#[test]
fn status_tells_edits_from_what_is_not_checked_out() {
    let sandbox = Sandbox::new();
    for name in ["same", "edited", "switched", "both"] {
        sandbox.write(&format!("d/{name}"), "1");
    }
    sandbox.ok("add d");
    sandbox.commit("one");
    sandbox.git("checkout -q -b feature");
    for name in ["switched", "both", "of-branch"] {
        sandbox.write(&format!("d/{name}"), "two");
    }
    sandbox.ok("add d");
    sandbox.commit("two");
    sandbox.git("checkout -q main");
    assert_eq!(sandbox.json("status")["data"][0]["state"], "behind");
    sandbox.write("d/of-mine", "mine");
    sandbox.write("d/edited", "mine");
    sandbox.write("d/both", "mine");
    let item = sandbox.json("status")["data"][0].clone();
    assert_eq!(item["state"], "changed");
    assert_eq!(
        item["changes"],
        serde_json::json!([
            {"path": "d/both", "change": "conflict"},
            {"path": "d/edited", "change": "modified"},
            {"path": "d/of-mine", "change": "added"},
        ])
    );
    assert_eq!(
        item["behind"],
        serde_json::json!([
            {"path": "d/of-branch", "change": "removed"},
            {"path": "d/switched", "change": "older"},
        ])
    );
    let text = sandbox.ok("status d/switched d/of-branch");
    assert_eq!(
        text,
        "d: 2 files not as recorded now (run `mlx checkout` or `mlx pull`)\n  removed   d/of-branch\n  \
         older     d/switched\n"
    );
}

#[test]
fn pull_brings_what_is_asked_for() {
    let (sandbox, clone) = shared_folder();
    sandbox.write("e/a.jpg", "a");
    sandbox.write("e/sub/b.jpg", "b");
    sandbox.write("e/sub/c.txt", "c");
    // The same folder again: its trees are stored once, and each place counts.
    sandbox.write("e/again/b.jpg", "b");
    sandbox.write("e/again/c.txt", "c");
    sandbox.write("large", vec![1; 2_000_000]);
    sandbox.ok("add e large");
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'echo made > o'\nouts = ['o']\n");
    sandbox.ok("repro");
    sandbox.commit("more");
    sandbox.ok("push");
    let here = sandbox.at(&clone);
    here.git("pull -q");
    let list = |folder: &str| names(&clone.join(folder));
    assert_eq!(here.json("pull d/2")["objects"], 2, "a tree and a file");
    assert_eq!(list("d"), ["2"]);
    here.ok("pull e/**/*.jpg");
    assert_eq!(
        (list("e"), list("e/sub"), list("e/again")),
        (vec!["a.jpg".into(), "again".into(), "sub".into()], vec!["b.jpg".into()], vec!["b.jpg".into()])
    );
    here.ok("pull e/sub");
    assert_eq!((list("e/sub").len(), list("e/again").len()), (2, 1));
    here.ok("pull o d/[34]");
    assert_eq!(list("d"), ["2", "3", "4"]);
    assert_eq!(fs::read_to_string(clone.join("o")).unwrap(), "made\n");
    assert!(!clone.join("large").exists());
    let status = here.json("status d e");
    assert_eq!(status["data"][0]["behind"].as_array().unwrap().len(), 2, "{status}");
    assert_eq!(status["data"][0]["state"], "behind");
    // What was pulled in parts can be deleted in parts.
    fs::remove_file(clone.join("d/3")).unwrap();
    fs::remove_file(clone.join("e/sub/b.jpg")).unwrap();
    here.ok("commit");
    assert_eq!(recorded(&sandbox, &clone), ["1", "2", "4", "5"]);
    assert!(fs::read_to_string(clone.join("e.mlx")).unwrap().contains("files = 4\n"));
    assert!(here.fails("pull d/*.jpg", 3).contains("no recorded file matches `d/*.jpg`"));
    assert!(here.fails("pull d/none", 3).contains("`d/none` is not tracked in `d`"));
}

#[test]
fn a_moved_file_is_in_the_base_under_its_new_name() {
    let (sandbox, clone) = shared_folder();
    let here = sandbox.at(&clone);
    here.ok("pull d/2 d/3 d/4");
    here.ok("move d/2 d/two");
    here.ok("move d/3 three");
    fs::remove_file(clone.join("d/two")).unwrap();
    here.ok("commit");
    assert_eq!(recorded(&sandbox, &clone), ["1", "4", "5"]);
    here.ok("move d e");
    fs::remove_file(clone.join("e/4")).unwrap();
    here.ok("commit");
    assert!(fs::read_to_string(clone.join("e.mlx")).unwrap().contains("files = 2\n"));
    assert_eq!(here.json("status three")["data"][0]["state"], "same");
}
