//! Tests that data stays out of Git and that what records it does not: ignore lines that work, data that a
//! branch does not track, own files that Git ignores, and remotes in the work tree.

use std::fs;

use crate::sandbox::Sandbox;

/// Creates a repository with the tracked folder `d`, committed.
fn one_folder() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("d/1", "1");
    sandbox.ok("add d");
    sandbox.commit("data");
    sandbox
}

/// Returns what Git would track after `git add .`, but for mlx's own folder and the files that steer Git.
fn in_git(sandbox: &Sandbox) -> Vec<String> {
    sandbox.git("add .");
    let listed = sandbox.git("ls-files");
    let is_own = |name: &&str| name.starts_with(".mlx/") || name.ends_with(".gitignore");
    listed.lines().filter(|name| !is_own(name)).map(str::to_owned).collect()
}

#[test]
fn a_line_that_a_later_one_overrides_is_moved_to_the_end() {
    let sandbox = Sandbox::new();
    sandbox.write(".gitignore", "/a.bin\n!*.bin\n*.log\n");
    sandbox.write("a.bin", "1");
    sandbox.ok("add a.bin");
    assert_eq!(sandbox.read(".gitignore"), "!*.bin\n*.log\n/a.bin\n");
    assert_eq!(in_git(&sandbox), ["a.bin.mlx"]);
    sandbox.write("b.bin", "1");
    sandbox.ok("add b.bin");
    assert_eq!(sandbox.read(".gitignore"), "!*.bin\n*.log\n/a.bin\n/b.bin\n");
}

#[test]
fn lost_and_overridden_lines_are_named_by_status_and_repaired_by_checkout() {
    let sandbox = one_folder();
    for broken in ["", "/d\n!/d\n", "/d\n!d/\n", "# /d\n"] {
        sandbox.write(".gitignore", broken);
        let said = sandbox.ok("status");
        assert!(said.contains("d: Git does not ignore this data"), "{broken:?}: {said}");
        assert_eq!(sandbox.json("status")["git"][0]["path"], "d");
        assert!(sandbox.mlx("checkout").err.contains("`.gitignore` now keeps out of Git: `d`"), "{broken:?}");
        assert_eq!(in_git(&sandbox), ["d.mlx"], "{broken:?}");
        assert_eq!(sandbox.ok("status"), "clean: everything is as recorded\n");
    }
}

#[test]
fn a_line_of_the_user_that_works_is_enough() {
    let sandbox = one_folder();
    for line in ["d/\n", "/d*\n", "*\n!*.mlx\n!.gitignore\n!.mlx/\n!.mlx/*\n"] {
        sandbox.write(".gitignore", line);
        sandbox.ok("checkout");
        assert_eq!(sandbox.read(".gitignore"), line);
        fs::remove_dir_all(sandbox.repo.join("d")).unwrap();
        sandbox.ok("checkout");
        assert_eq!(sandbox.read(".gitignore"), line, "also before the folder exists");
    }
}

#[test]
fn a_pointer_that_was_copied_or_renamed_gets_a_line() {
    let sandbox = one_folder();
    sandbox.write("sub/copy.mlx", sandbox.read("d.mlx"));
    sandbox.git("add sub");
    sandbox.git("mv d.mlx e.mlx");
    sandbox.ok("checkout");
    assert_eq!([sandbox.read("sub/copy/1"), sandbox.read("e/1")], ["1", "1"]);
    assert!(!sandbox.has("d"), "its pointer has another name");
    assert_eq!(sandbox.read(".gitignore"), "/e\n");
    assert!(!in_git(&sandbox).iter().any(|name| name.ends_with("/1")));
}

#[test]
fn a_name_with_a_line_end_hides_no_other_file() {
    let sandbox = Sandbox::new();
    let others = ["axb", "a b", "a\tb", "a\u{b}b", "aäb"];
    for name in others.iter().chain(&["a\nb", "c\r", "c"]) {
        sandbox.write(name, "1");
    }
    sandbox.at(&sandbox.repo).ok("add 'a\nb' 'c\r'");
    sandbox.git("add .");
    let listed = sandbox.git("ls-files -z");
    let names: Vec<&str> = listed.split('\0').collect();
    assert!(others.iter().chain(&["c", "a\nb.mlx", "c\r.mlx"]).all(|name| names.contains(name)), "{names:?}");
    assert!(!names.contains(&"a\nb") && !names.contains(&"c\r"), "{names:?}");
    sandbox.ok("remove 'a\nb' 'c\r'");
    assert!(!sandbox.has(".gitignore"));
}

#[test]
fn an_output_that_is_renamed_gives_its_name_back_to_git() {
    let sandbox = Sandbox::new();
    let pipeline = |out: &str| format!("[stage.s]\ncmd = \"echo 1 > {out}\"\nouts = [\"{out}\"]\n");
    sandbox.write("mlx.toml", pipeline("old"));
    sandbox.ok("repro");
    assert_eq!(sandbox.read(".gitignore"), "/old\n");
    sandbox.write("mlx.toml", pipeline("fresh"));
    sandbox.ok("repro");
    assert_eq!((sandbox.read(".gitignore"), sandbox.has("old")), ("/fresh\n".to_owned(), false));
    // Bytes that are stored nowhere stay, and so does the line.
    sandbox.write("fresh", "by hand");
    sandbox.write("mlx.toml", pipeline("third"));
    let said = sandbox.mlx("repro");
    assert!(said.code == 0 && said.err.contains("stored nowhere and stay: `fresh`"), "{}", said.err);
    assert_eq!(sandbox.read("fresh"), "by hand");
}

#[test]
fn own_files_that_git_ignores_are_named() {
    let rules = [("*.lock", "mlx.lock"), ("mlx.toml", "mlx.toml"), ("*.json", "m.json"), ("*.mlx", "d.mlx")];
    for (rule, file) in rules {
        let sandbox = one_folder();
        sandbox.git("rm -q --cached d.mlx");
        sandbox.write(".gitignore", format!("/d\n{rule}\n"));
        sandbox.write(
            "mlx.toml",
            "[stage.s]\ncmd = \"echo '{}' > m.json; echo 1 > o\"\nouts = [\"o\"]\nmetrics = [\"m.json\"]\n",
        );
        let why = format!("by `{rule}` in line 2 of `.gitignore`: other clones will not get it");
        let said = sandbox.mlx("repro").err;
        assert_eq!(said.contains(&format!("Git ignores `{file}`, {why}")), file != "d.mlx", "{said}");
        let said = sandbox.ok("status");
        assert!(said.contains(&format!("{file}: Git ignores it, {why}")), "{said}");
        sandbox.git(&format!("add -f {file}"));
        assert_eq!(sandbox.ok("status"), "clean: everything is as recorded\n", "Git tracks {file} now");
    }
}

#[test]
fn a_remote_that_git_would_track_is_named() {
    let sandbox = one_folder();
    let (inside, outside) = (sandbox.repo.join("inside"), sandbox.root().join("outside"));
    for url in [inside.display().to_string(), format!("file://{}", inside.display())] {
        let said = sandbox.mlx(&format!("remote add inside {url}")).err;
        assert!(said.contains("is in the work tree, and Git would add its objects"), "{said}");
        assert!(sandbox.mlx("push --remote inside").err.contains("ignore `inside`"));
        sandbox.write(".gitignore", "/d\n/inside\n");
        assert!(sandbox.mlx("push --remote inside").err.is_empty());
        sandbox.write(".gitignore", "/d\n");
        sandbox.ok("remote remove inside");
        fs::remove_dir_all(&inside).unwrap();
    }
    let add = sandbox.mlx(&format!("remote add outside {}", outside.display()));
    assert!(add.code == 0 && add.err.is_empty(), "{}", add.err);
}

#[test]
fn data_of_another_branch_is_named_by_status_and_removed_by_checkout() {
    let sandbox = Sandbox::new();
    sandbox.commit("start");
    sandbox.git("checkout -q -b feature");
    sandbox.write("photos/1.jpg", "1");
    sandbox.write("mlx.toml", "[stage.s]\ncmd = \"echo 1 > model.bin\"\nouts = [\"model.bin\"]\n");
    sandbox.ok("add photos");
    sandbox.ok("repro");
    sandbox.commit("photos");
    sandbox.git("checkout -q main");
    let said = sandbox.ok("status");
    for path in ["photos", "model.bin"] {
        assert!(said.contains(&format!("{path}: nothing records this data now")), "{said}");
    }
    let done = sandbox.json("checkout");
    let removed: Vec<_> = done["checked_out"].as_array().unwrap().iter().map(|row| &row["removed"]).collect();
    assert_eq!(removed, [1, 1], "{done}");
    assert!(!sandbox.has("photos") && !sandbox.has("model.bin"));
    assert!(in_git(&sandbox).is_empty());
    assert_eq!(sandbox.ok("status"), "clean: everything is as recorded\n");
    sandbox.git("checkout -q feature");
    sandbox.ok("checkout");
    assert_eq!([sandbox.read("photos/1.jpg"), sandbox.read("model.bin")], ["1", "1\n"]);
}

#[test]
fn data_of_another_branch_that_is_stored_nowhere_stays_and_is_named() {
    let sandbox = Sandbox::new();
    sandbox.commit("start");
    sandbox.git("checkout -q -b feature");
    sandbox.write("photos/1.jpg", "1");
    sandbox.ok("add photos");
    sandbox.commit("photos");
    sandbox.write("photos/mine.jpg", "mine");
    sandbox.git("checkout -q main");
    for _ in 0..2 {
        let said = sandbox.mlx("checkout");
        assert!(
            said.code == 0 && said.err.contains("stored nowhere and stay: `photos/mine.jpg`"),
            "{}",
            said.err
        );
        assert_eq!(
            (sandbox.read("photos/mine.jpg"), sandbox.has("photos/1.jpg")),
            ("mine".to_owned(), false)
        );
    }
    assert!(sandbox.ok("status").contains("photos: nothing records this data now"));
}

#[test]
fn data_whose_pointer_is_not_checked_out_or_that_git_tracks_is_left_alone() {
    let sandbox = one_folder();
    fs::remove_file(sandbox.repo.join("d.mlx")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("d/1"), "1", "Git still tracks the pointer");
    sandbox.git("rm -q --cached d.mlx");
    sandbox.git("add -f d/1");
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("d/1"), "1", "Git tracks the data now");
    sandbox.git("rm -q --cached d/1");
    sandbox.ok("checkout");
    assert!(!sandbox.has("d"));
}

#[test]
fn data_that_is_not_tracked_any_more_by_request_is_left_alone() {
    let sandbox = one_folder();
    sandbox.ok("remove d");
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("d/1"), "1");
}

#[test]
fn a_file_of_git_in_the_data_of_another_branch_stays_alone() {
    let sandbox = Sandbox::new();
    sandbox.commit("start");
    sandbox.git("checkout -q -b feature");
    sandbox.write("d/1", "1");
    sandbox.write("d/2", "2");
    sandbox.ok("add d");
    sandbox.write("d/README", "read me");
    sandbox.git("add -f d/README");
    sandbox.commit("data");
    sandbox.git("checkout -q main");
    sandbox.write("d/README", "read me");
    sandbox.git("add -f d/README");
    sandbox.git("commit -q -m readme");
    assert!(sandbox.ok("status").contains("d: nothing records this data now"));
    sandbox.write("d/2", "mine");
    assert!(sandbox.mlx("checkout").err.contains("stored nowhere and stay: `d/2`"));
    assert_eq!((sandbox.read("d/README"), sandbox.has("d/1")), ("read me".to_owned(), false));
    fs::remove_file(sandbox.repo.join("d/2")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(sandbox.ok("status"), "clean: everything is as recorded\n");
    sandbox.git("checkout -q feature");
    sandbox.ok("checkout");
    let all = ["d/1", "d/2", "d/README"].map(|path| sandbox.read(path));
    assert_eq!(all, ["1", "2", "read me"], "a checkout of the data keeps it, too");
    sandbox.write(".gitignore", "/d/1\n");
    assert!(sandbox.ok("status").contains("d: Git does not ignore this data"));
    sandbox.write(".gitignore", "/d/*\n");
    assert!(!sandbox.ok("status").contains("does not ignore"), "each of its other files is ignored");
}

#[test]
fn data_of_another_branch_is_named_in_a_copied_clone_and_stays() {
    let sandbox = Sandbox::new();
    sandbox.commit("start");
    sandbox.git("checkout -q -b feature");
    sandbox.write("d/1", "1");
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'echo 1 > o'\nouts = ['o']\n");
    sandbox.ok("add d");
    sandbox.ok("repro");
    sandbox.commit("data");
    sandbox.git("checkout -q main");
    fs::remove_file(sandbox.repo.join(".git/mlx/base")).unwrap();
    for _ in 0..2 {
        let said = sandbox.ok("status");
        for path in ["d", "o"] {
            assert!(said.contains(&format!("{path}: nothing records this data now")), "{said}");
        }
        sandbox.ok("checkout");
        assert!(sandbox.has("d/1") && sandbox.has("o"));
    }
    sandbox.git("checkout -q feature");
    assert_eq!(sandbox.ok("status"), "clean: everything is as recorded\n");
}

#[test]
fn each_change_of_a_folder_repairs_its_line() {
    for command in ["add d/1", "remove d/1", "move d/1 d/2", "commit"] {
        let sandbox = one_folder();
        sandbox.write(".gitignore", "");
        sandbox.write("d/1", "2");
        let said = sandbox.mlx(command);
        assert_eq!(
            (said.code, sandbox.read(".gitignore")),
            (0, "/d\n".to_owned()),
            "{command}: {}",
            said.err
        );
    }
}

#[test]
fn data_that_git_tracks_as_well_is_named_with_the_way_out() {
    let sandbox = one_folder();
    sandbox.write("f", "f");
    sandbox.ok("add f");
    sandbox.git("add -f d/1 f");
    for message in ["staged", "committed"] {
        let said = sandbox.ok("status");
        assert!(said.contains("take it out with `git rm --cached d/1`"), "{said}");
        assert!(said.contains("take it out with `git rm --cached f`"), "{said}");
        sandbox.git(&format!("commit -q --allow-empty -m {message}"));
    }
}

#[test]
fn a_linked_ignore_file_is_named_before_anything_runs() {
    let sandbox = Sandbox::new();
    sandbox.write("rules", "x\n");
    std::os::unix::fs::symlink("rules", sandbox.repo.join(".gitignore")).unwrap();
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'echo 1 > o'\nouts = ['o']\n");
    sandbox.write("d/1", "1");
    for command in ["repro --dry-run", "repro", "add d"] {
        assert!(sandbox.fails(command, 6).contains("`.gitignore` is a symlink"), "{command}");
    }
    assert!(sandbox.ok("status").contains("stage s: blocked"));
    assert!(!sandbox.has("o") && !sandbox.has("d.mlx"));
    let sandbox = one_folder();
    fs::rename(sandbox.repo.join(".gitignore"), sandbox.repo.join("rules")).unwrap();
    std::os::unix::fs::symlink("rules", sandbox.repo.join(".gitignore")).unwrap();
    assert!(sandbox.ok("status").contains("d: Git does not ignore this data: `.gitignore` is a symlink"));
    for command in ["checkout", "remove --data d", "remove --data d/1"] {
        assert!(sandbox.fails(command, 6).contains("`.gitignore` is a symlink"), "{command}");
        assert_eq!(sandbox.read("d/1"), "1", "{command}");
    }
}

#[test]
fn a_remote_in_tracked_data_or_another_worktree_is_named() {
    let sandbox = one_folder();
    let worktree = sandbox.root().join("worktree");
    sandbox.git(&format!("worktree add -q {}", worktree.display()));
    let cases = [
        (sandbox.repo.join(".mlx/r"), "is in mlx's own folder `.mlx` of the work tree, and Git would add"),
        (sandbox.repo.join("d/r"), "is in the tracked data `d`, and `mlx add d` would store"),
        (worktree.join("r"), "is in the worktree `"),
        (worktree.join("d/r"), "is in the tracked data `d`, and `mlx add d` would store"),
    ];
    for (folder, text) in cases {
        let said = sandbox.mlx(&format!("remote add --local x file://{}", folder.display())).err;
        assert!(said.contains(text), "{}: {said}", folder.display());
        sandbox.ok("remote remove x");
        let said = sandbox.at(&worktree).mlx(&format!("remote add --local y {}", folder.display())).err;
        assert!(said.contains("choose a folder elsewhere"), "{}: {said}", folder.display());
        sandbox.at(&worktree).ok("remote remove y");
    }
}

#[test]
fn a_broken_pointer_holds_up_the_removal_of_no_other_data() {
    let sandbox = Sandbox::new();
    sandbox.write("kept", "1");
    sandbox.ok("add kept");
    sandbox.commit("start");
    sandbox.git("checkout -q -b feature");
    sandbox.write("photos/1.jpg", "1");
    sandbox.ok("add photos");
    sandbox.commit("photos");
    sandbox.git("checkout -q main");
    sandbox.write("kept.mlx", "<<<<<<< HEAD\n");
    assert!(sandbox.fails("checkout", 5).contains("`kept.mlx`"));
    assert!(sandbox.has("kept") && !sandbox.has("photos"));
}
