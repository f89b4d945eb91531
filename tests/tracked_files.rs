//! Tests of commands on tracked files: remove, move, unprotect, `add --glob`, `.mlxignore`, and checkout of
//! parts and of other revisions.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use serde_json::json;

use crate::sandbox::{Sandbox, identity, snapshot};

/// Creates a repository with the folder `data` of two files, not yet tracked.
fn two_files() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("data/cat/a.txt", "a cat");
    sandbox.write("data/dog/b.txt", "a dog");
    sandbox
}

/// Returns the changes that `status` reports for the first tracked path.
fn changes(sandbox: &Sandbox) -> serde_json::Value {
    sandbox.json("status")["data"][0]["changes"].clone()
}

#[test]
fn remove_undoes_add_and_keeps_the_files() {
    let sandbox = two_files();
    sandbox.write(".gitignore", "/data2\n# /data\n*.log");
    let (ignored, files) = (sandbox.read(".gitignore"), snapshot(&sandbox.repo.join("data")));
    sandbox.ok("add data");
    assert_eq!(sandbox.read(".gitignore"), format!("{ignored}\n/data\n"));
    assert_eq!(sandbox.ok("remove data"), "data: no longer tracked\nnext: git add .gitignore\n");
    assert_eq!(sandbox.read(".gitignore"), format!("{ignored}\n"));
    assert!(!sandbox.has("data.mlx"));
    assert_eq!(snapshot(&sandbox.repo.join("data")), files);
    assert_eq!(sandbox.json("status")["data"], json!([]));
    assert!(sandbox.fails("remove data", 3).contains("mlx does not track `data`"));
}

#[test]
fn remove_deletes_a_gitignore_that_becomes_empty() {
    let sandbox = two_files();
    sandbox.write("side/my file ", "x");
    sandbox.ok("add data 'side/my file '");
    assert_eq!(sandbox.read("side/.gitignore"), "/my file\\ \n");
    sandbox.ok("remove data 'side/my file '");
    assert!(!sandbox.has(".gitignore") && !sandbox.has("side/.gitignore") && sandbox.has("side/my file "));
}

#[test]
fn remove_with_data_refuses_to_delete_unstored_files() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.write("data/new.txt", "new");
    let before = snapshot(&sandbox.repo);
    let error = sandbox.fails("remove --data data", 4);
    assert!(error.contains("not stored anywhere: `data/new.txt`") && error.contains("`--force`"), "{error}");
    assert_eq!(snapshot(&sandbox.repo), before);
    let removed = sandbox.json("remove --data --force data");
    assert_eq!(removed, json!({"removed": [{"path": "data", "pointer": null, "files": 3}]}));
    assert!(!sandbox.has("data") && !sandbox.has("data.mlx") && !sandbox.has(".gitignore"));
    assert_eq!(sandbox.mlx("remove --force data").code, 2);
}

#[test]
fn removing_a_part_updates_the_pointer_of_the_folder() {
    let sandbox = two_files();
    sandbox.write("data/cat/c.txt", "another cat");
    sandbox.ok("add data");
    let ignored = sandbox.read(".gitignore");
    let printed = sandbox.ok("remove data/cat/c.txt");
    let next = "next: git add .gitignore data.mlx\n";
    assert_eq!(printed, format!("data/cat/c.txt: no longer tracked in `data`\n{next}"));
    assert_eq!(changes(&sandbox), json!([{"path": "data/cat/c.txt", "change": "added"}]));
    assert!(sandbox.fails("remove data/cat/c.txt", 3).contains("`data/cat/c.txt` is not tracked in `data`"));
    fs::remove_file(sandbox.repo.join("data/cat/c.txt")).unwrap();
    sandbox.ok("remove --data data/cat/a.txt");
    assert!(sandbox.repo.join("data/cat").is_dir() && !sandbox.has("data/cat/a.txt"));
    assert_eq!(sandbox.json("status")["clean"], true);
    assert_eq!(sandbox.read(".gitignore"), ignored);
    sandbox.ok("remove --data data/cat");
    assert!(!sandbox.has("data/cat"));
    assert_eq!(sandbox.json("status")["clean"], true);
}

const STAGE: &str = "[stage.count]\ncmd = 'ls data > out.txt'\ndeps = ['data']\nouts = ['out.txt']\n";

#[test]
fn removing_or_moving_an_output_fails_and_names_its_stage() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.write("mlx.toml", STAGE);
    sandbox.ok("repro");
    let before = snapshot(&sandbox.repo);
    for args in ["remove out.txt", "move out.txt other.txt", "move data out.txt", "remove --data out.txt"] {
        let error = sandbox.fails(args, 4);
        assert!(error.contains("`out.txt` is an output of the stage `count`"), "{args}: {error}");
    }
    assert_eq!(snapshot(&sandbox.repo), before);
    let ran = sandbox.mlx("move data pictures");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("the stage `count` still depends on `data`"), "{}", ran.err);
}

#[test]
fn move_renames_the_pointer_the_gitignore_line_and_the_data() {
    let sandbox = two_files();
    sandbox.write("data/large", vec![1_u8; 1_500_000]);
    sandbox.ok("add data");
    let (pointer, files) = (sandbox.read("data.mlx"), snapshot(&sandbox.repo.join("data")));
    let large = identity(&sandbox.repo.join("data/large"));
    sandbox.git("add data.mlx");
    let next = "next: git add data.mlx deep/.gitignore deep/photos.mlx\n";
    assert_eq!(sandbox.ok("move data deep/photos"), format!("moved data to deep/photos\n{next}"));
    sandbox.git(&next[10..]);
    assert!(sandbox.git("ls-files").lines().all(|it| it != "data.mlx"));
    assert!(!sandbox.has("data") && !sandbox.has("data.mlx") && !sandbox.has(".gitignore"));
    assert_eq!(sandbox.read("deep/photos.mlx"), pointer);
    assert_eq!(sandbox.read("deep/.gitignore"), "/photos\n");
    assert_eq!(snapshot(&sandbox.repo.join("deep/photos")), files);
    assert_eq!(identity(&sandbox.repo.join("deep/photos/large")), large);
    assert_eq!(sandbox.json("status")["clean"], true);
    // An edited file is still modified after the move; an existing target folder gets the path inside it.
    sandbox.write("deep/photos/cat/a.txt", "edited");
    fs::create_dir(sandbox.repo.join("new")).unwrap();
    let moved = sandbox.json("move deep/photos new");
    assert_eq!(moved["to"], "new/photos");
    assert_eq!(changes(&sandbox), json!([{"path": "new/photos/cat/a.txt", "change": "modified"}]));
}

#[test]
fn move_works_for_absent_data() {
    let sandbox = two_files();
    sandbox.ok("add data");
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("move data other");
    assert_eq!(sandbox.json("status")["data"][0]["state"], "absent");
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("other/cat/a.txt"), "a cat");
}

#[test]
fn move_works_into_out_of_and_within_tracked_folders() {
    let sandbox = two_files();
    sandbox.write("data/cat/c.txt", "third");
    sandbox.write("single.bin", "single");
    sandbox.ok("add data single.bin");
    sandbox.ok("move data/cat/c.txt data/dog/");
    assert_eq!(sandbox.read("data/dog/c.txt"), "third");
    assert_eq!(sandbox.json("status")["clean"], true);
    sandbox.ok("move single.bin data/cat/single.bin");
    assert!(!sandbox.has("single.bin.mlx") && sandbox.read(".gitignore") == "/data\n");
    assert_eq!(sandbox.json("status")["clean"], true);
    let moved = sandbox.json("move data/dog dogs");
    assert_eq!(moved["written"], json!(["dogs.mlx", "data.mlx"]));
    assert_eq!(sandbox.read(".gitignore"), "/data\n/dogs\n");
    assert_eq!(sandbox.json("status")["clean"], true);
    assert!(sandbox.read("dogs.mlx").contains("files = 2\n"));
    let before = snapshot(&sandbox.repo);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    fs::remove_dir_all(sandbox.repo.join("dogs")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo), before);
}

#[test]
fn move_overwrites_nothing() {
    let sandbox = two_files();
    sandbox.write("file", "mine");
    sandbox.write("kept/x", "x");
    sandbox.write("code/main.py", "print()");
    sandbox.ok("add data kept/x");
    sandbox.git("add code");
    symlink("../dog/b.txt", sandbox.repo.join("data/cat/link")).unwrap();
    sandbox.ok("add data");
    let before = snapshot(&sandbox.repo);
    for (args, code, part) in [
        ("move data file", 4, "`file` already exists"),
        ("move data/cat/a.txt data/dog/b.txt", 4, "`data/dog/b.txt` already exists"),
        ("move data data/inner", 2, "cannot be moved into itself"),
        ("move data kept/x/y", 4, "`kept/x` is tracked as a file"),
        ("move data ../x", 2, "is outside the repository"),
        ("move data .git/x", 6, "Git's or mlx's own folder"),
        ("move code other", 3, "mlx does not track `code`"),
        ("move data/none other", 3, "`data/none` is not tracked in `data`"),
        ("move data/cat/link other", 2, "only a tracked folder can contain one"),
        ("move data/cat other", 6, "the link `other/link` leads out of `other`"),
    ] {
        let error = sandbox.fails(args, code);
        assert!(error.contains(part), "{args}: {error}");
    }
    assert_eq!(snapshot(&sandbox.repo), before);
}

/// Kills a command at every disk operation in turn, and checks that the same command then finishes.
fn survives_every_kill(args: &str, prepare: impl Fn(&Sandbox), is_complete: impl Fn(&Sandbox) -> bool) {
    for at in 1..400 {
        let sandbox = two_files();
        sandbox.ok("add data");
        prepare(&sandbox);
        let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        let status =
            command.args(args.split(' ')).env("MLX_FAULT", format!("kill:{at}")).output().unwrap().status;
        if status.success() {
            assert!(at > 6, "killed {} times only", at - 1);
            return;
        }
        let again = sandbox.mlx(args);
        // A command that was killed after its last step has nothing left to do.
        let already_done = ["mlx does not track `data`", "is not tracked in `data`"];
        assert!(
            again.code == 0 || already_done.iter().any(|part| again.err.contains(part)),
            "at {at}: {}",
            again.err
        );
        assert!(is_complete(&sandbox), "at {at}");
    }
    panic!("the command never ended by itself");
}

#[test]
fn a_killed_move_is_finished_by_the_same_command() {
    if !cfg!(debug_assertions) {
        return;
    }
    survives_every_kill(
        "move data photos",
        |_| {},
        |sandbox| {
            sandbox.read(".gitignore") == "/photos\n"
                && !sandbox.has("data")
                && !sandbox.has("data.mlx")
                && sandbox.read("photos/cat/a.txt") == "a cat"
                && sandbox.json("status")["data"][0]
                    == json!({"path": "photos", "state": "same", "why": null, "changes": [], "behind": [],
                        "unknown": []})
        },
    );
    survives_every_kill(
        "move data/cat/a.txt data/dog/c.txt",
        |_| {},
        |sandbox| sandbox.read("data/dog/c.txt") == "a cat" && sandbox.json("status")["clean"] == true,
    );
}

#[test]
fn a_killed_remove_is_finished_by_the_same_command() {
    if !cfg!(debug_assertions) {
        return;
    }
    survives_every_kill(
        "remove --data data",
        |_| {},
        |sandbox| !sandbox.has("data") && !sandbox.has("data.mlx") && !sandbox.has(".gitignore"),
    );
}

/// Creates a repository with a large file that `cache.link` shares with the store. Returns the file's path.
fn with_linked_file(link: &str) -> (Sandbox, std::path::PathBuf) {
    let sandbox = Sandbox::new();
    sandbox.write("data/large.bin", vec![3_u8; 2_000_000]);
    sandbox.write("data/small", "small");
    sandbox.ok("add data");
    sandbox.ok(&format!("config set cache.link {link}"));
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    let file = sandbox.repo.join("data/large.bin");
    (sandbox, file)
}

#[test]
fn unprotect_makes_a_private_writable_copy() {
    for link in ["hardlink", "symlink"] {
        let (sandbox, file) = with_linked_file(link);
        let shared = fs::canonicalize(&file).unwrap().metadata().unwrap();
        assert_eq!(shared.permissions().mode() & 0o222, 0, "{link}");
        let done = sandbox.json("unprotect data");
        assert_eq!(
            done,
            json!({"unprotected": [{"path": "data", "files": 1, "bytes": 2_000_000}]}),
            "{link}"
        );
        let now = file.symlink_metadata().unwrap();
        assert!(now.is_file() && now.nlink() == 1 && now.permissions().mode() & 0o200 != 0, "{link}");
        assert_eq!(sandbox.json("status")["clean"], true, "{link}");
        assert_eq!(sandbox.json("unprotect data/large.bin")["unprotected"][0]["files"], 0);
        fs::write(&file, vec![4_u8; 2_000_000]).unwrap();
        assert_eq!(changes(&sandbox), json!([{"path": "data/large.bin", "change": "modified"}]), "{link}");
        // The store still holds the old content.
        sandbox.ok("checkout --force");
        assert_eq!(fs::read(&file).unwrap(), vec![3_u8; 2_000_000], "{link}");
    }
}

/// Writes to a protected file in place, as root or an editor's forced save would.
fn write_through(file: &Path, bytes: &[u8]) {
    let real = fs::canonicalize(file).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o644)).unwrap();
    let mut open = fs::OpenOptions::new().write(true).open(&real).unwrap();
    std::io::Write::write_all(&mut open, bytes).unwrap();
}

#[test]
fn an_edited_linked_file_is_modified_and_is_not_served_from_the_store() {
    for link in ["hardlink", "symlink"] {
        let (sandbox, file) = with_linked_file(link);
        assert_eq!(sandbox.json("status")["clean"], true, "{link}");
        let time = fs::metadata(&file).unwrap().modified().unwrap();
        write_through(&file, b"edited");
        // Restoring the old modification time does not hide the edit.
        fs::File::open(&file).unwrap().set_modified(time).unwrap();
        let changed = json!([{"path": "data/large.bin", "change": "modified"}]);
        assert_eq!(changes(&sandbox), changed, "{link}");
        let pointer = sandbox.read("data.mlx");
        sandbox.ok("add data");
        assert_ne!(sandbox.read("data.mlx"), pointer, "{link}");
        assert_eq!(sandbox.json("status")["clean"], true, "{link}");
        // The edit is stored under its own digest; the old digest never returns the new bytes.
        let mut edited = vec![3_u8; 2_000_000];
        edited[..6].copy_from_slice(b"edited");
        fs::remove_file(&file).unwrap();
        sandbox.ok("checkout");
        assert_eq!(fs::read(&file).unwrap(), edited, "{link}");
        fs::write(sandbox.repo.join("data.mlx"), &pointer).unwrap();
        assert!(sandbox.fails("checkout", 5).contains("is damaged"), "{link}");
        assert_eq!(fs::read(&file).unwrap(), edited, "{link}");
    }
}

#[test]
fn ignored_files_are_neither_added_nor_counted_nor_removed() {
    let sandbox = two_files();
    sandbox.write(".mlxignore", "*.tmp\n");
    sandbox.write("data/.mlxignore", "/cache/\n!keep.tmp\n");
    sandbox.write("data/cat/x.tmp", "ignored");
    sandbox.write("data/keep.tmp", "kept");
    sandbox.write("data/cache/big", "ignored");
    sandbox.ok("add data");
    // The two text files, `data/.mlxignore`, and `keep.tmp`, which that file includes again.
    assert!(sandbox.read("data.mlx").contains("files = 4\n"), "{}", sandbox.read("data.mlx"));
    sandbox.commit("one");
    sandbox.write("data/more.tmp", "ignored");
    sandbox.write("data/cache/inner/y", "ignored");
    assert_eq!(sandbox.json("status")["clean"], true);
    sandbox.write("data/dog/b.txt", "second");
    sandbox.write("data/dog/new.txt", "new");
    sandbox.ok("add data");
    sandbox.commit("two");
    sandbox.git("checkout -q HEAD~1");
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/dog/b.txt"), "a dog");
    sandbox.ok("checkout --force");
    for path in ["data/cat/x.tmp", "data/cache/big", "data/more.tmp", "data/cache/inner/y"] {
        assert!(sandbox.has(path), "{path}");
    }
    let error = sandbox.fails("add data/more.tmp", 2);
    assert!(error.contains("`data/more.tmp` is ignored by a `.mlxignore`"), "{error}");
    sandbox.ok("remove --data data");
    assert!(sandbox.has("data/cat/x.tmp") && !sandbox.has("data/cat/a.txt") && !sandbox.has("data/dog"));
}

#[test]
fn tracked_files_stay_tracked_when_a_later_rule_ignores_them() {
    let sandbox = two_files();
    sandbox.write("data/cat/old.tmp", "recorded");
    sandbox.write("data/logs/one", "recorded");
    sandbox.ok("add data");
    sandbox.write(".mlxignore", "*.tmp\nlogs/\n");
    sandbox.write("data/cat/new.tmp", "ignored");
    sandbox.write("data/logs/two", "ignored");
    assert_eq!(sandbox.json("status")["clean"], true);
    let pointer = sandbox.read("data.mlx");
    sandbox.ok("add data");
    assert_eq!(sandbox.read("data.mlx"), pointer);
    sandbox.write("data/cat/old.tmp", "edited");
    assert_eq!(changes(&sandbox), json!([{"path": "data/cat/old.tmp", "change": "modified"}]));
    assert!(sandbox.fails("checkout", 4).contains("`data/cat/old.tmp`"));
    sandbox.ok("checkout --force");
    assert_eq!(sandbox.read("data/cat/old.tmp"), "recorded");
    // Once it is not tracked any more, it is ignored like the others.
    sandbox.ok("remove data/cat/old.tmp");
    assert_eq!(sandbox.json("status")["clean"], true);
    assert!(sandbox.has("data/cat/old.tmp"));
}

#[test]
fn checkout_does_not_replace_a_folder_that_holds_ignored_files() {
    let sandbox = two_files();
    sandbox.write("data/x", "a file");
    sandbox.ok("add data");
    fs::remove_file(sandbox.repo.join("data/x")).unwrap();
    sandbox.write("data/x/mine.tmp", "mine");
    sandbox.write(".mlxignore", "*.tmp\n");
    let error = sandbox.fails("checkout --force", 4);
    assert!(error.contains("the folder `data/x` is in the way"), "{error}");
    assert_eq!(sandbox.read("data/x/mine.tmp"), "mine");
}

#[test]
fn an_invalid_ignore_rule_is_named_with_its_line() {
    let sandbox = two_files();
    sandbox.write("data/.mlxignore", "ok\n[z-a]\n");
    assert!(sandbox.fails("add data", 2).contains("`data/.mlxignore`, line 2: "));
}

#[test]
fn glob_updates_the_tracked_folder_and_tracks_single_files() {
    let sandbox = two_files();
    sandbox.ok("add data");
    for path in ["data/cat/1.jpg", "data/dog/2.jpg", "data/dog/3.png", "data/skip.jpg.tmp", "free/4.jpg"] {
        sandbox.write(path, path);
    }
    sandbox.write("data/cat/a.txt", "edited, and not asked for");
    sandbox.write(".mlxignore", "2.jpg\n");
    // Files that Git tracks and outputs of stages are left out.
    sandbox.write("docs/5.jpg", "Git's");
    sandbox.git("add docs");
    sandbox.write("mlx.toml", "[stage.draw]\ncmd = 'true'\nouts = ['drawn']\n");
    sandbox.write("drawn/6.jpg", "the stage's");
    let added = sandbox.json("add --glob '**/*.jpg'");
    let paths: Vec<_> = added["added"].as_array().unwrap().iter().map(|it| &it["path"]).collect();
    assert_eq!(paths, ["data", "free/4.jpg"]);
    assert_eq!(sandbox.read("free/.gitignore"), "/4.jpg\n");
    let left = json!([
        {"path": "data/cat/a.txt", "change": "modified"},
        {"path": "data/dog/3.png", "change": "added"},
        {"path": "data/skip.jpg.tmp", "change": "added"},
    ]);
    assert_eq!(changes(&sandbox), left);
    assert!(sandbox.fails("add --glob 'data/**/*.gif'", 3).contains("no file matches"));
    assert!(sandbox.fails("add --glob '../*.jpg'", 2).contains("is not a valid file pattern"));
    sandbox.at(&sandbox.repo.join("data")).ok("add --glob 'dog/*.png'");
    assert_eq!(changes(&sandbox).as_array().unwrap().len(), 2);
    assert_eq!(sandbox.mlx("add").code, 2);
}

#[test]
fn checkout_of_a_revision_leaves_head_and_pointers_alone() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.commit("one");
    sandbox.write("data/cat/a.txt", "second");
    sandbox.write("data/dog/new.txt", "new");
    sandbox.ok("add data");
    sandbox.commit("two");
    let (head, pointer) = (sandbox.git("rev-parse HEAD"), sandbox.read("data.mlx"));
    let untouched = identity(&sandbox.repo.join("data/dog/b.txt"));
    sandbox.ok("checkout --rev HEAD~1 data/cat");
    assert_eq!(sandbox.read("data/cat/a.txt"), "a cat");
    assert!(sandbox.has("data/dog/new.txt"));
    sandbox.ok("checkout --rev HEAD~1");
    assert!(!sandbox.has("data/dog/new.txt"));
    assert_eq!(identity(&sandbox.repo.join("data/dog/b.txt")), untouched);
    assert_eq!((sandbox.git("rev-parse HEAD"), sandbox.read("data.mlx")), (head, pointer));
    assert_eq!(sandbox.git("status --porcelain"), "");
    sandbox.write("data/cat/a.txt", "stored nowhere");
    assert!(sandbox.fails("checkout --rev HEAD data", 4).contains("`data/cat/a.txt`"));
    assert!(sandbox.fails("checkout --rev nowhere", 3).contains("revision `nowhere` not found"));
    assert!(sandbox.fails("checkout --rev HEAD other", 3).contains("mlx does not track `other`"));
}

#[test]
fn a_part_of_a_folder_is_checked_out_alone() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.write("data/cat/a.txt", "edited");
    sandbox.write("data/dog/b.txt", "edited");
    fs::remove_file(sandbox.repo.join("data/cat/a.txt")).unwrap();
    sandbox.ok("checkout data/cat/");
    assert_eq!(sandbox.read("data/cat/a.txt"), "a cat");
    assert_eq!(sandbox.read("data/dog/b.txt"), "edited");
    // A file in place of the folder, which is not stored anywhere, is not overwritten.
    fs::remove_dir_all(sandbox.repo.join("data/cat")).unwrap();
    sandbox.write("data/cat", "mine");
    assert!(sandbox.fails("checkout data/cat/a.txt", 4).contains("not stored anywhere: `data/cat`"));
    assert_eq!(sandbox.read("data/cat"), "mine");
    sandbox.ok("checkout --force data/cat/a.txt");
    assert_eq!(sandbox.read("data/cat/a.txt"), "a cat");
}

#[test]
fn files_are_deleted_only_if_the_store_has_them() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.commit("one");
    let packs = || -> BTreeSet<_> {
        fs::read_dir(sandbox.repo.join(".git/mlx/packs")).unwrap().map(|it| it.unwrap().path()).collect()
    };
    let first = packs();
    sandbox.write("data/cat/new.txt", "new");
    sandbox.ok("add data");
    sandbox.commit("two");
    // The store loses the content of `new.txt`, so that the workspace has the last copy.
    packs().difference(&first).for_each(|it| fs::remove_file(it).unwrap());
    sandbox.git("checkout -q HEAD~1");
    assert!(sandbox.fails("checkout", 4).contains("not stored anywhere: `data/cat/new.txt`"));
    assert!(sandbox.fails("remove --data data", 4).contains("not stored anywhere: `data/cat/new.txt`"));
    assert_eq!(sandbox.read("data/cat/new.txt"), "new");
}

#[test]
fn checkout_restores_modes_and_empty_folders_of_each_revision() {
    let sandbox = two_files();
    fs::create_dir_all(sandbox.repo.join("data/empty/inner")).unwrap();
    sandbox.ok("add data");
    sandbox.commit("one");
    let one = snapshot(&sandbox.repo.join("data"));
    fs::remove_dir_all(sandbox.repo.join("data/empty")).unwrap();
    let tool = sandbox.repo.join("data/cat/a.txt");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(sandbox.repo.join("data/other")).unwrap();
    sandbox.ok("add data");
    sandbox.commit("two");
    let two = snapshot(&sandbox.repo.join("data"));
    let unchanged = identity(&sandbox.repo.join("data/dog/b.txt"));
    for (rev, files) in [("HEAD~1", &one), ("main", &two), ("HEAD~1", &one)] {
        sandbox.git(&format!("checkout -q {rev}"));
        sandbox.ok("checkout");
        assert_eq!(&snapshot(&sandbox.repo.join("data")), files, "{rev}");
        assert_eq!(identity(&sandbox.repo.join("data/dog/b.txt")), unchanged, "{rev}");
    }
}

#[test]
fn a_file_of_another_program_with_the_suffix_of_a_pointer_is_kept() {
    let sandbox = two_files();
    let script = b"PK\x03\x04 live script";
    sandbox.ok("add data");
    for name in ["data2.mlx", "copy.mlx"] {
        sandbox.write(name, script);
    }
    sandbox.write("data2", "1");
    for command in ["add data2", "add --glob data2", "move data data2", "move data copy"] {
        let before = snapshot(&sandbox.repo);
        let error = sandbox.fails(command, 4);
        assert!(error.contains(".mlx` is not a pointer") || error.contains("already exists"), "{error}");
        assert_eq!(snapshot(&sandbox.repo), before, "{command}");
    }
    assert_eq!(sandbox.json("status")["data"].as_array().unwrap().len(), 1);
}

#[test]
fn a_tracked_folder_may_hold_files_with_the_suffix_of_a_pointer() {
    let sandbox = two_files();
    sandbox.write("data/cat.mlx", "% live script");
    sandbox.ok("add data");
    sandbox.ok("add data");
    sandbox.ok("add data/cat.mlx");
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/cat.mlx"), "% live script");
}

#[test]
fn files_that_steer_git_or_mlx_are_not_data() {
    let sandbox = two_files();
    let names = [".gitattributes", ".gitignore", ".mlxignore", "mlx.toml", "mlx.lock", "sub/mlx.toml"];
    for name in names {
        sandbox.write(name, "");
        let error = sandbox.fails(&format!("add data {name}"), 2);
        assert!(error.contains(&format!("`{name}` steers Git or mlx")), "{error}");
    }
    sandbox.ok("add --glob '**/*'");
    let pointers: Vec<_> = ["data/cat/a.txt.mlx", "mlx.toml.mlx"].map(|file| sandbox.has(file)).into();
    assert_eq!(pointers, [true, false]);
    assert_eq!(sandbox.read(".gitignore"), "");
    assert!(sandbox.fails("move data/cat/a.txt .mailmap", 2).contains("`.mailmap` steers Git or mlx"));
    sandbox.ok("remove data/cat/a.txt data/dog/b.txt");
    sandbox.write("data/.gitignore", "in a tracked folder, it is content\n");
    sandbox.ok("add data");
    sandbox.ok("add data/.gitignore");
    // A pipeline is not content: as data, it would leave Git.
    sandbox.write("data/mlx.toml", "");
    for path in ["data", "data/mlx.toml"] {
        let error = sandbox.fails(&format!("add {path}"), 2);
        assert!(error.contains("`data/mlx.toml` steers Git or mlx"), "{error}");
    }
}
