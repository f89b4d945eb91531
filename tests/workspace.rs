//! Tests of the basic commands on data in the workspace: init, add, status, checkout and commit.

use std::{fs, os::unix::ffi::OsStrExt, os::unix::fs::PermissionsExt, path::Path};

use serde_json::json;

use crate::sandbox::{Sandbox, identity, snapshot};

/// Creates a repository with the folder `data` of two files, not yet tracked.
fn two_files() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("data/cat/a.txt", "a cat");
    sandbox.write("data/dog/b.txt", "a dog");
    sandbox
}

#[test]
fn init_needs_a_git_repository_and_keeps_existing_files() {
    let sandbox = Sandbox::empty();
    let error = sandbox.fails("init", 3);
    assert!(
        error.contains("is not in a Git repository") && error.contains("hint: create one with `git init`"),
        "{error}"
    );
    sandbox.git("init -q");
    sandbox.write("params.toml", "mine = 1\n");
    sandbox.ok("init --template pets");
    assert_eq!(sandbox.read("params.toml"), "mine = 1\n");
    assert!(sandbox.has("mlx.toml") && sandbox.has("README.md") && sandbox.has(".github/workflows/mlx.yml"));
    sandbox.write(".mlx/local.toml", "");
    let listed = sandbox.git("status --porcelain -uall");
    assert!(listed.contains(".mlx/config.toml") && !listed.contains("local.toml"), "{listed}");
    sandbox.ok("init");
}

#[test]
fn git_sees_the_pointer_and_not_the_data() {
    let sandbox = two_files();
    sandbox.ok("add data/");
    let digest = "b3:";
    let text = sandbox.read("data.mlx");
    assert!(text.starts_with(&format!("digest = \"{digest}")), "{text}");
    assert!(text.ends_with("files = 2\nformat = 1\nkind = \"tree\"\nsize = 10\n"), "{text}");
    assert_eq!(sandbox.read(".gitignore"), "/data\n");
    assert_eq!(
        sandbox.git("status --porcelain -uall"),
        "?? .gitignore\n?? .mlx/.gitignore\n?? .mlx/config.toml\n?? data.mlx\n"
    );
    sandbox.ok("add data/ --git-add");
    assert_eq!(sandbox.git("diff --cached --name-only"), ".gitignore\ndata.mlx\n");
    assert_eq!(sandbox.read("data.mlx"), text);
}

#[test]
fn the_same_content_gives_the_same_pointer_in_another_repository() {
    let (one, two) = (two_files(), Sandbox::new());
    two.write("data/dog/b.txt", "a dog");
    two.write("data/cat/a.txt", "a cat");
    one.ok("add data");
    two.ok("add data");
    assert_eq!(one.read("data.mlx"), two.read("data.mlx"));
}

#[test]
fn checkout_restores_unusual_names_modes_links_and_empty_folders() {
    let sandbox = Sandbox::new();
    let names: [&[u8]; 8] =
        [b"plain", b"with space", b"new\nline", b"\xff\xfe", b"100%", b"-dash", b"caf\xc3\xa9", b"#x"];
    for (at, name) in names.iter().enumerate() {
        let path =
            sandbox.repo.join("data").join(format!("d{}", at % 3)).join(std::ffi::OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![at as u8; at * 1000]).unwrap();
    }
    sandbox.write("data/run.sh", "#!/bin/sh\n");
    fs::set_permissions(sandbox.repo.join("data/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    sandbox.write("data/large.bin", vec![7_u8; 3_000_000]);
    fs::create_dir_all(sandbox.repo.join("data/empty/inner")).unwrap();
    std::os::unix::fs::symlink("../run.sh", sandbox.repo.join("data/d0/link")).unwrap();
    std::os::unix::fs::symlink("nowhere", sandbox.repo.join("data/broken")).unwrap();
    let before = snapshot(&sandbox.repo.join("data"));
    sandbox.ok("add data");
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo.join("data")), before);
    assert_eq!(sandbox.json("status")["clean"], true);
    let pointer = sandbox.read("data.mlx");
    sandbox.ok("add data");
    assert_eq!(sandbox.read("data.mlx"), pointer);
}

#[test]
fn status_lists_each_changed_file() {
    let sandbox = two_files();
    sandbox.write("data/gone.txt", "x");
    sandbox.ok("add data");
    assert_eq!(sandbox.json("status")["clean"], true);
    sandbox.write("data/cat/a.txt", "another cat");
    sandbox.write("data/new.txt", "new");
    fs::remove_file(sandbox.repo.join("data/gone.txt")).unwrap();
    let status = sandbox.json("status");
    let changes = json!([
        {"path": "data/cat/a.txt", "change": "modified"},
        {"path": "data/gone.txt", "change": "deleted"},
        {"path": "data/new.txt", "change": "added"},
    ]);
    assert_eq!(status["clean"], false);
    assert_eq!(status["data"][0]["state"], "changed");
    assert_eq!(status["data"][0]["changes"], changes);
    assert_eq!(sandbox.mlx("status --check").code, 10);
    assert_eq!(sandbox.mlx("status").code, 0);
}

#[test]
fn an_edit_of_the_same_size_with_an_old_time_is_detected() {
    let sandbox = two_files();
    for round in 0..20 {
        let (one, two) = (format!("{round:04}a"), format!("{round:04}b"));
        sandbox.write("data/cat/a.txt", &one);
        sandbox.ok("add data");
        sandbox.write("data/cat/a.txt", &two);
        let time = modified_time(&sandbox.repo.join("data/dog/b.txt"));
        fs::File::open(sandbox.repo.join("data/cat/a.txt")).unwrap().set_modified(time).unwrap();
        assert_eq!(sandbox.json("status")["clean"], false, "round {round}");
    }
}

fn modified_time(path: &Path) -> std::time::SystemTime {
    path.metadata().unwrap().modified().unwrap()
}

#[test]
fn checkout_refuses_to_overwrite_unstored_changes() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.write("data/cat/a.txt", "edited");
    sandbox.write("data/extra.txt", "extra");
    let before = snapshot(&sandbox.repo);
    let error = sandbox.fails("checkout", 4);
    assert!(error.contains("`data/cat/a.txt`, `data/extra.txt`"), "{error}");
    assert_eq!(snapshot(&sandbox.repo), before);
    sandbox.ok("checkout --force");
    assert_eq!(sandbox.read("data/cat/a.txt"), "a cat");
    assert!(!sandbox.has("data/extra.txt"));
}

#[test]
fn switching_versions_leaves_unchanged_files_alone() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.commit("one");
    sandbox.write("data/cat/a.txt", "second version");
    sandbox.write("data/cat/b.txt", "more");
    sandbox.ok("add data");
    sandbox.commit("two");
    let before = identity(&sandbox.repo.join("data/dog/b.txt"));
    sandbox.git("checkout -q HEAD~1");
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/cat/a.txt"), "a cat");
    assert!(!sandbox.has("data/cat/b.txt"));
    assert_eq!(identity(&sandbox.repo.join("data/dog/b.txt")), before);
    sandbox.git("checkout -q main");
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/cat/a.txt"), "second version");
}

#[test]
fn checkout_replaces_a_file_by_a_folder_and_back() {
    let sandbox = two_files();
    sandbox.write("data/x", "a file");
    sandbox.ok("add data");
    sandbox.commit("file");
    fs::remove_file(sandbox.repo.join("data/x")).unwrap();
    sandbox.write("data/x/y", "in a folder");
    sandbox.ok("add data");
    sandbox.commit("folder");
    let folder = snapshot(&sandbox.repo.join("data"));
    sandbox.git("checkout -q HEAD~1");
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/x"), "a file");
    sandbox.git("checkout -q main");
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo.join("data")), folder);
}

#[test]
fn adding_inside_a_tracked_folder_updates_its_pointer() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.write("data/cat/new.txt", "new");
    sandbox.ok("add data/cat/new.txt");
    let part = sandbox.read("data.mlx");
    assert!(part.contains("files = 3\n"));
    assert!(!sandbox.has("data/cat/new.txt.mlx") && !sandbox.has("data/cat/.gitignore"));
    sandbox.ok("add data");
    assert_eq!(sandbox.read("data.mlx"), part);
}

#[test]
fn commit_records_edits_and_makes_no_git_commit() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.commit("one");
    sandbox.write("data/cat/a.txt", "edited");
    sandbox.ok("commit data");
    assert_eq!(sandbox.json("status")["clean"], true);
    assert_eq!(sandbox.git("rev-list --count HEAD").trim(), "1");
    assert_eq!(sandbox.git("status --porcelain"), " M data.mlx\n");
}

#[test]
fn a_path_that_cannot_be_tracked_is_named_and_changes_nothing() {
    let sandbox = two_files();
    sandbox.write("code/main.py", "print()");
    sandbox.git("add code");
    sandbox.write("other/x", "x");
    sandbox.ok("add other/x");
    std::os::unix::fs::symlink("/etc/passwd", sandbox.repo.join("data/out")).unwrap();
    let before = snapshot(&sandbox.repo);
    for (args, code, part) in [
        ("add missing", 3, "`missing` not found"),
        ("add ..", 2, "is outside the repository"),
        ("add .", 2, "the whole repository cannot be tracked"),
        ("add code", 4, "Git already tracks `code/main.py`"),
        ("add other", 4, "`other` contains `other/x`, which has a pointer of its own"),
        ("add .git/config", 6, "Git's or mlx's own folder"),
        ("add data", 6, "the link `data/out` leads out of `data`"),
        ("checkout nowhere", 3, "mlx does not track `nowhere`"),
    ] {
        let error = sandbox.fails(args, code);
        assert!(error.contains(part), "{args}: {error}");
    }
    assert_eq!(snapshot(&sandbox.repo), before);
}

#[test]
fn a_fifo_is_refused_by_name_without_waiting() {
    let sandbox = two_files();
    std::process::Command::new("mkfifo").arg(sandbox.repo.join("data/pipe")).status().unwrap();
    let error = sandbox.fails("add data", 2);
    assert!(error.contains("`data/pipe` is a fifo"), "{error}");
}

#[test]
fn conflict_marks_in_a_pointer_are_an_error() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.write("data.mlx", "<<<<<<< HEAD\nformat = 1\n=======\nformat = 1\n>>>>>>> other\n");
    let error = sandbox.fails("checkout", 4);
    assert!(error.contains("`data.mlx` is in conflict"), "{error}");
    assert_eq!(sandbox.read("data/cat/a.txt"), "a cat");
}

#[test]
fn checkout_places_large_files_as_cache_link_says() {
    for link in ["hardlink", "symlink", "copy", "reflink,copy"] {
        let sandbox = Sandbox::new();
        sandbox.write("data/large.bin", vec![3_u8; 2_000_000]);
        sandbox.ok("add data");
        sandbox.ok(&format!("config set cache.link {link}"));
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
        sandbox.ok("checkout");
        assert_eq!(fs::read(sandbox.repo.join("data/large.bin")).unwrap(), vec![3_u8; 2_000_000]);
        let meta = sandbox.repo.join("data/large.bin").symlink_metadata().unwrap();
        assert_eq!(meta.is_symlink(), link == "symlink", "{link}");
        assert_eq!(sandbox.json("status")["clean"], true, "{link}");
        let pointer = sandbox.read("data.mlx");
        sandbox.ok("add data");
        assert_eq!(sandbox.read("data.mlx"), pointer, "{link}");
    }
}

#[test]
fn linked_worktrees_share_the_store() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.commit("one");
    let other = sandbox.root().join("other");
    sandbox.git(&format!("worktree add -q {} -b side", other.display()));
    let worktree = sandbox.at(&other);
    worktree.ok("checkout");
    assert_eq!(snapshot(&other.join("data")), snapshot(&sandbox.repo.join("data")));
    assert_eq!(worktree.json("status")["clean"], true);
}

#[test]
fn pointers_not_added_to_git_are_found_without_the_index() {
    let sandbox = two_files();
    sandbox.write("deep/in/side.bin", "x");
    sandbox.ok("add data deep/in/side.bin");
    fs::remove_file(sandbox.repo.join(".git/mlx/index")).unwrap();
    for _ in 0..2 {
        let status = sandbox.json("status");
        let paths: Vec<_> = status["data"].as_array().unwrap().iter().map(|it| &it["path"]).collect();
        assert_eq!(paths, ["data", "deep/in/side.bin"]);
    }
    assert!(sandbox.has(".git/mlx/index"));
}

#[test]
fn one_unreadable_pointer_does_not_stop_the_others() {
    let sandbox = two_files();
    sandbox.write("other/x", "x");
    sandbox.ok("add data other");
    sandbox.write("other.mlx", "<<<<<<< HEAD\nsize = 1\n=======\nsize = 2\n>>>>>>> b\n");
    // A file of another program with the same extension is not a pointer.
    sandbox.write("script.mlx", b"PK\x03\x04\x00\x00");
    sandbox.git("add -A");
    let status = sandbox.json("status");
    assert_eq!(status["clean"], false);
    assert_eq!(status["data"][0]["state"], "same");
    assert_eq!(status["data"][1]["state"], "unknown");
    assert_eq!(status["data"].as_array().unwrap().len(), 2, "{status}");
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    assert!(sandbox.fails("checkout", 4).contains("`other.mlx` is in conflict"));
    assert_eq!(sandbox.read("data/cat/a.txt"), "a cat");
    assert!(sandbox.mlx("checkout data").err.starts_with("warning: `other.mlx` is in conflict"));
}

#[test]
fn a_deletion_can_be_committed_alone() {
    let sandbox = two_files();
    sandbox.write("data/cat/b.txt", "edited later");
    sandbox.ok("add data");
    sandbox.write("data/cat/b.txt", "not yet to be recorded");
    fs::remove_file(sandbox.repo.join("data/dog/b.txt")).unwrap();
    sandbox.ok("commit data/dog/b.txt");
    let changes = json!([{"path": "data/cat/b.txt", "change": "modified"}]);
    assert_eq!(sandbox.json("status")["data"][0]["changes"], changes);
}

#[test]
fn a_link_to_the_repository_leads_into_it() {
    let sandbox = two_files();
    let link = sandbox.root().join("link");
    std::os::unix::fs::symlink(&sandbox.repo, &link).unwrap();
    sandbox.ok(&format!("add {}", link.join("data").display()));
    assert_eq!(sandbox.at(&link).json("status")["clean"], true);
    assert!(sandbox.fails("add /etc/passwd", 2).contains("is outside the repository"));
}

#[test]
fn checkout_restores_a_changed_mode_and_counts_the_file() {
    use std::os::unix::fs::PermissionsExt;

    let sandbox = two_files();
    sandbox.ok("add data");
    let file = sandbox.repo.join("data/cat/a.txt");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(sandbox.json("status")["data"][0]["changes"][0]["change"], "modified");
    let done = sandbox.json("checkout");
    assert_eq!(done["checked_out"], json!([{"path": "data", "written": 1, "removed": 0, "folders": 0}]));
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o111, 0);
}

#[test]
fn with_core_filemode_false_recorded_modes_are_kept() {
    let sandbox = two_files();
    sandbox.write("data/run.sh", "#!/bin/sh\n");
    fs::set_permissions(sandbox.repo.join("data/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    sandbox.ok("add data");
    let pointer = sandbox.read("data.mlx");
    sandbox.git("config core.fileMode false");
    for mode in [0o777, 0o666] {
        for name in ["data/run.sh", "data/cat/a.txt", "data/dog/b.txt"] {
            fs::set_permissions(sandbox.repo.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        assert_eq!(sandbox.json("status")["clean"], true, "{mode:o}");
        sandbox.ok("add data data/run.sh");
        assert_eq!(sandbox.read("data.mlx"), pointer, "{mode:o}");
    }
    sandbox.write("data/new.txt", "new");
    fs::set_permissions(sandbox.repo.join("data/new.txt"), fs::Permissions::from_mode(0o777)).unwrap();
    sandbox.ok("add data");
    sandbox.git("config core.fileMode true");
    sandbox.ok("checkout --force");
    let mode = |name: &str| sandbox.repo.join(name).metadata().unwrap().permissions().mode() & 0o111;
    assert_eq!((mode("data/new.txt"), mode("data/cat/a.txt")), (0, 0));
    assert_ne!(mode("data/run.sh"), 0);
}

#[test]
fn add_prints_the_git_add_command_for_its_files() {
    let sandbox = two_files();
    sandbox.write("my photos/x", "x");
    let printed = sandbox.at(&sandbox.repo.join("data")).ok("add ../data");
    assert!(printed.contains("next: git add :/.gitignore :/data.mlx"), "{printed}");
    let printed = sandbox.ok("add 'my photos/x'");
    assert!(printed.contains("next: git add 'my photos/.gitignore' 'my photos/x.mlx'"), "{printed}");
}

#[test]
fn a_folder_that_is_recorded_as_empty_stays() {
    let sandbox = Sandbox::new();
    sandbox.write("top/data/inner/file", "1");
    sandbox.ok("add top/data");
    sandbox.commit("one");
    fs::remove_dir_all(sandbox.repo.join("top/data/inner")).unwrap();
    sandbox.ok("add top/data");
    sandbox.commit("empty");
    sandbox.git("checkout -q HEAD~1");
    sandbox.ok("checkout");
    assert!(sandbox.has("top/data/inner/file"));
    sandbox.git("checkout -q main");
    sandbox.ok("checkout");
    assert!(sandbox.has("top/data") && !sandbox.has("top/data/inner"));
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn a_file_of_rules_has_a_largest_size() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "1");
    sandbox.write("data/b.tmp", "2");
    let rules = |size: usize| format!("*.tmp\n#{}\n", "x".repeat(size - 8));
    for file in ["data/.mlxignore", ".mlxignore"] {
        sandbox.write(file, rules((1 << 20) + 1));
        let error = sandbox.fails("add data", 5);
        assert!(error.contains(&format!("`{file}` is larger than 1 MiB")), "{error}");
        sandbox.write(file, rules(1 << 20));
        sandbox.ok("add data");
        fs::rename(sandbox.repo.join("data/b.tmp"), sandbox.root().join("b.tmp")).unwrap();
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
        sandbox.ok("checkout");
        assert!(sandbox.has("data/a") && !sandbox.has("data/b.tmp"), "{file}");
        fs::rename(sandbox.root().join("b.tmp"), sandbox.repo.join("data/b.tmp")).unwrap();
    }
}

#[test]
fn a_file_in_an_ignored_folder_is_refused_by_name() {
    let sandbox = two_files();
    sandbox.write("data/cache/x", "1");
    sandbox.write("data/.mlxignore", "cache/\n");
    sandbox.ok("add data");
    let pointer = sandbox.read("data.mlx");
    assert!(sandbox.fails("add data/cache/x", 2).contains("`data/cache/x` is ignored"));
    assert_eq!(sandbox.read("data.mlx"), pointer);
}
