//! Tests of everyday use: mistyped and repeated paths, paths in every form, status and commits of parts,
//! junk files beside data, changed settings, checkouts of named revisions, reads during a checkout, and the
//! examples of `--help`.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, identity, snapshot};

/// Creates a repository with the folder `data` of two files, not yet tracked.
fn two_files() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("data/cat/a.txt", "a cat");
    sandbox.write("data/dog/b.txt", "a dog");
    sandbox
}

/// Returns the changes that `status` reports for the first tracked path.
fn changes(sandbox: &Sandbox) -> Value {
    sandbox.json("status")["data"][0]["changes"].clone()
}

#[test]
fn a_path_that_does_not_exist_is_named_and_changes_nothing() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.commit("one");
    sandbox.write("data/cat/a.txt", "edited");
    let before = snapshot(&sandbox.repo);
    for command in
        ["status", "checkout", "checkout --rev HEAD", "commit", "unprotect", "remove", "remove --data"]
    {
        for part in ["data/cta", "data/cta/a.txt", "data/cat/a.txt/x"] {
            let error = sandbox.fails(&format!("{command} {part}"), 3);
            let message = format!("`{part}` is not tracked in `data`\nhint: `mlx status data` shows");
            assert!(error.contains(&message), "{command}: {error}");
        }
    }
    assert_eq!(snapshot(&sandbox.repo), before);
    // A path may exist only in the workspace, or only in the pointer.
    sandbox.write("data/new.txt", "new");
    fs::remove_file(sandbox.repo.join("data/dog/b.txt")).unwrap();
    let committed = sandbox.json("commit data/cat/../new.txt");
    assert_eq!(committed["committed"].as_array().unwrap().len(), 1);
    assert_eq!(sandbox.ok("commit data/new.txt"), "nothing to record\n");
    sandbox.ok("checkout data/dog/b.txt");
    assert_eq!(changes(&sandbox), json!([{"path": "data/cat/a.txt", "change": "modified"}]));
}

#[test]
fn one_commit_records_added_and_deleted_parts() {
    let sandbox = two_files();
    sandbox.write("single", "1");
    sandbox.ok("add data single");
    sandbox.write("data/cat/new.txt", "new");
    sandbox.write("data/cat/a.txt", "not asked for");
    fs::remove_file(sandbox.repo.join("data/dog/b.txt")).unwrap();
    sandbox.write("single", "2");
    let done = sandbox.json("commit data/dog/b.txt data/cat/new.txt single");
    let paths: Vec<_> =
        done["committed"].as_array().unwrap().iter().map(|it| it["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["data", "single"]);
    assert_eq!(changes(&sandbox), json!([{"path": "data/cat/a.txt", "change": "modified"}]));
}

#[test]
fn status_of_a_part_covers_only_that_part() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.write("data/cat/a.txt", "edited");
    sandbox.write("data/cat/new.txt", "new");
    let status = |path: &str| sandbox.json(&format!("status {path}"));
    assert_eq!(
        (&status("data/dog")["clean"], &status("data/dog")["data"][0]["state"]),
        (&json!(true), &json!("same"))
    );
    assert_eq!(sandbox.mlx("status --check data/dog").code, 0);
    assert_eq!(sandbox.mlx("status --check data/cat").code, 10);
    let one = json!([{"path": "data/cat/new.txt", "change": "added"}]);
    assert_eq!(status("data/cat/new.txt")["data"][0]["changes"], one);
    assert_eq!(status("data/cat data/dog")["data"][0]["changes"].as_array().unwrap().len(), 2);
    assert_eq!(status(".")["data"][0]["changes"].as_array().unwrap().len(), 2);
    // A file that cannot be compared does not make other parts unknown.
    let _socket = std::os::unix::net::UnixListener::bind(sandbox.repo.join("data/cat/socket")).unwrap();
    assert_eq!(status("data/dog")["data"][0]["state"], "same");
    let cat = &status("data/cat")["data"][0];
    assert_eq!((&cat["state"], &cat["why"]), (&json!("unknown"), &json!("1 of its entries cannot be read")));
    assert_eq!(status("data/cat/new.txt")["data"][0]["state"], "changed");
}

/// The states `same`, `changed` and `unknown` describe data in the workspace. `absent` means that there are
/// no files at all: not clean, but without changes and with nothing to record.
#[test]
fn absent_data_is_neither_clean_nor_changed() {
    let sandbox = two_files();
    sandbox.ok("add data");
    let pointer = sandbox.read("data.mlx");
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    let status = sandbox.json("status");
    let item =
        json!({"path": "data", "state": "absent", "why": null, "changes": [], "behind": [], "unknown": []});
    assert_eq!((&status["clean"], &status["data"][0]), (&json!(false), &item));
    assert_eq!((sandbox.mlx("status").code, sandbox.mlx("status --check").code), (0, 10));
    assert_eq!(sandbox.ok("status"), "data: absent (run `mlx pull` or `mlx checkout` to get it)\n");
    assert_eq!(sandbox.json("commit")["committed"], json!([]));
    assert_eq!(sandbox.read("data.mlx"), pointer);
    // An empty folder counts as one from which everything was deleted.
    fs::create_dir(sandbox.repo.join("data")).unwrap();
    assert_eq!(sandbox.json("status")["data"][0]["state"], "changed");
    fs::remove_dir(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn a_folder_that_holds_only_ignored_files_is_ignored() {
    let sandbox = two_files();
    sandbox.write(".mlxignore", ".DS_Store\n");
    sandbox.ok("add data");
    sandbox.commit("one");
    sandbox.write("data/bird/c.txt", "a bird");
    sandbox.ok("add data");
    sandbox.commit("two");
    sandbox.write("data/bird/.DS_Store", "junk");
    sandbox.git("checkout -q HEAD~1");
    sandbox.ok("checkout");
    assert!(sandbox.has("data/bird/.DS_Store") && !sandbox.has("data/bird/c.txt"));
    assert_eq!(sandbox.json("status")["clean"], true);
    assert_eq!(sandbox.ok("checkout"), "nothing to do: the workspace is as recorded\n");
    let pointer = sandbox.read("data.mlx");
    sandbox.write("data/more/deep/.DS_Store", "junk");
    sandbox.ok("add data");
    assert_eq!(sandbox.read("data.mlx"), pointer);
    // An empty folder is recorded, and stays recorded when an ignored file is put into it.
    fs::create_dir(sandbox.repo.join("data/empty")).unwrap();
    assert_eq!(changes(&sandbox), json!([{"path": "data/empty", "change": "added"}]));
    sandbox.ok("commit");
    sandbox.write("data/empty/.DS_Store", "junk");
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn a_filled_or_emptied_folder_is_reported_as_changes_of_its_files() {
    let sandbox = two_files();
    fs::create_dir(sandbox.repo.join("data/empty")).unwrap();
    sandbox.ok("add data");
    sandbox.commit("one");
    sandbox.write("data/empty/x", "x");
    fs::remove_file(sandbox.repo.join("data/dog/b.txt")).unwrap();
    let expected =
        json!([{"path": "data/dog/b.txt", "change": "deleted"}, {"path": "data/empty/x", "change": "added"}]);
    assert_eq!(changes(&sandbox), expected);
    assert_eq!(sandbox.json("diff data"), expected);
    sandbox.ok("commit");
    sandbox.commit("two");
    assert_eq!(sandbox.json("diff data HEAD~1 HEAD"), expected);
}

#[test]
fn checkout_counts_empty_folders_created_and_removed() {
    let sandbox = two_files();
    fs::create_dir(sandbox.repo.join("data/empty")).unwrap();
    sandbox.ok("add data");
    fs::remove_dir(sandbox.repo.join("data/empty")).unwrap();
    fs::create_dir(sandbox.repo.join("data/other")).unwrap();
    let expected = "data: 0 files written, 0 removed, 2 empty folders created or removed\n";
    assert_eq!(sandbox.ok("checkout"), expected);
    assert!(sandbox.has("data/empty") && !sandbox.has("data/other"));
}

/// A shell expands `data*` and `*.jpg` to many paths, pointers included.
#[test]
fn many_paths_are_added_at_once_and_each_path_once() {
    let sandbox = two_files();
    sandbox.ok("add data");
    for at in 0..40 {
        sandbox.write(&format!("data/cat/{at}"), format!("in {at}"));
        sandbox.write(&format!("loose/{at}"), format!("out {at}"));
    }
    let names = |folder: &str| (0..40).map(|at| format!(" {folder}/{at}")).collect::<String>();
    let added = sandbox.json(&format!("add data.mlx data/cat/0{}{}", names("data/cat"), names("loose")));
    let paths: Vec<_> =
        added["added"].as_array().unwrap().iter().map(|it| it["path"].as_str().unwrap()).collect();
    assert_eq!((paths.len(), paths[0], paths[1], paths[40]), (41, "data", "loose/0", "loose/39"));
    assert!(sandbox.read("data.mlx").contains("files = 42\n"));
    assert_eq!(sandbox.read("loose/.gitignore").lines().count(), 40);
    assert_eq!(sandbox.json("status")["clean"], true);
    // Parts of one folder update its pointer in one go, and fill few packs.
    for at in 0..40 {
        sandbox.write(&format!("data/cat/{at}"), format!("edited {at}"));
    }
    sandbox.write("data/dog/b.txt", "not asked for");
    let packs = || fs::read_dir(sandbox.repo.join(".git/mlx/packs")).unwrap().count();
    let before = packs();
    sandbox.ok(&format!("add{}", names("data/cat")));
    assert!(packs() - before <= 4, "{} files", packs() - before);
    assert_eq!(changes(&sandbox), json!([{"path": "data/dog/b.txt", "change": "modified"}]));
    // If one path cannot be added, none is.
    sandbox.write("loose/0", "edited");
    let (pointer, before) = (sandbox.read("loose/0.mlx"), snapshot(&sandbox.repo));
    assert!(sandbox.fails("add loose/0 loose/none", 3).contains("`loose/none` not found"));
    assert_eq!((sandbox.read("loose/0.mlx"), snapshot(&sandbox.repo)), (pointer, before));
    sandbox.ok("remove --data --force loose/0 loose/0.mlx loose/1.mlx loose/1");
    assert!(!sandbox.has("loose/0") && !sandbox.has("loose/1.mlx"));
}

#[test]
fn paths_are_accepted_in_every_form() {
    let sandbox = two_files();
    sandbox.write("data/cat/-x", "dash");
    let inside = sandbox.at(&sandbox.repo.join("data/cat"));
    for typed in ["../cat", "./../cat/", ".", "../dog/../cat//"] {
        assert_eq!(inside.json(&format!("add {typed}"))["added"][0]["path"], "data/cat", "{typed}");
    }
    let whole = format!("add {}/data/cat/", sandbox.repo.display());
    assert_eq!(sandbox.json(&whole)["added"][0]["path"], "data/cat");
    assert_eq!(sandbox.ok("add -- data/cat/-x"), sandbox.ok("add data/cat.mlx"));
    assert_eq!(inside.ok("status -- -x"), "clean: everything is as recorded\n");
    assert!(inside.fails("add -- -y", 3).contains("`data/cat/-y` not found"));
    // Paths through a link are refused, even if the link leads to a place in the repository.
    symlink("data", sandbox.repo.join("link")).unwrap();
    assert!(
        sandbox.fails("add link/dog", 6).contains("`link` is a symlink, and mlx does not follow symlinks")
    );
    assert!(sandbox.fails("add link", 2).contains("`link` is a symlink"));
    // The top folder of the repository cannot be tracked: its pointer would be outside.
    sandbox.commit("one");
    for (args, code, part) in [
        ("remove .", 3, "mlx does not track `.`"),
        ("log .", 3, "`.` has no versions: no commit tracks it"),
        ("add .", 2, "the whole repository cannot be tracked"),
        ("move . x", 2, "`.` cannot be moved into itself"),
    ] {
        let error = sandbox.fails(args, code);
        assert!(error.contains(part), "{args}: {error}");
    }
}

/// The same rules in a `.gitignore` and in a `.mlxignore` ignore the same files.
#[test]
fn mlxignore_ignores_the_same_files_as_gitignore() {
    let names = ["a", "b.tmp", "keep.tmp", "#x", "!y", "sp ", "{a,b}", "x.y", "é", "a\\b"];
    let rules = [
        ("", "*.tmp\n!keep.tmp\n/top/\n**/deep/*\n!**/deep/a\n\\#x\n# x.y\n"),
        ("one/", "\u{feff}/a\r\n\\!y\r\nsp \r\n  \r\n"),
        ("two/", "sp\\ \n{a,b}\nx.?\n[!a-z]"),
        ("three/", "*\n!a\n!*/\n"),
        ("three/in/", "!b.tmp\n/deep/../a\n"),
        ("four/", "a/\n/in/**/a\na\\\\b\n"),
    ];
    let (mlx, git) = (Sandbox::new(), Sandbox::empty());
    git.git("init -q");
    for folder in
        ["", "one/", "two/", "three/", "three/in/", "four/", "four/in/", "top/", "one/deep/", "four/in/a/"]
    {
        for name in names.iter().filter(|name| !(**name == "a" && folder == "four/in/")) {
            mlx.write(&format!("data/{folder}{name}"), folder);
            git.write(&format!("data/{folder}{name}"), folder);
        }
    }
    for (folder, text) in rules {
        mlx.write(&format!("data/{folder}.mlxignore"), text);
        git.write(&format!("data/{folder}.gitignore"), text);
    }
    mlx.ok("add data");
    fs::remove_dir_all(mlx.repo.join("data")).unwrap();
    mlx.ok("checkout");
    let mut kept: Vec<String> = snapshot(&mlx.repo.join("data"))
        .into_iter()
        .filter(|(_, description)| description != "folder")
        .map(|(path, _)| format!("data/{}", String::from_utf8(path).unwrap()))
        .collect();
    let listed = git.git("ls-files -z -o --exclude-standard data").replace(".gitignore", ".mlxignore");
    let mut expected: Vec<_> = listed.split_terminator('\0').map(str::to_owned).collect();
    kept.sort();
    expected.sort();
    assert_eq!(kept, expected);
    assert!(kept.len() > 20 && kept.len() < 100, "{}", kept.len());
}

#[test]
fn a_pointer_that_git_ignores_causes_a_warning() {
    let sandbox = two_files();
    sandbox.write(".gitignore", "# mine\ndata*\n");
    let ran = sandbox.mlx("add data");
    let warning = "warning: Git ignores `data.mlx`, by `data*` in line 2 of `.gitignore`: \
        other clones will not get it\n";
    assert_eq!((ran.code, ran.err.as_str()), (0, warning));
    let ran = sandbox.mlx("move data data2");
    assert!(ran.err.contains("Git ignores `data2.mlx`"), "{}", ran.err);
    // A pointer that Git tracks, or that a later line includes again, causes no warning.
    sandbox.git("add -f data2.mlx");
    assert_eq!(sandbox.mlx("add data2").err, "");
    sandbox.write(".gitignore", "*\n!*.mlx\n!.gitignore\n");
    sandbox.write("w", "w");
    assert_eq!(sandbox.mlx("add w").err, "");
    fs::remove_file(sandbox.repo.join(".gitignore")).unwrap();
    symlink("elsewhere", sandbox.repo.join(".gitignore")).unwrap();
    sandbox.write("v", "v");
    let error = sandbox.fails("add v", 6);
    assert!(error.contains("`.gitignore` is a symlink, and mlx does not follow symlinks\nhint: "), "{error}");
    assert!(!sandbox.has("v.mlx"));
}

#[test]
fn add_and_remove_keep_the_users_lines_of_a_gitignore() {
    let sandbox = two_files();
    for (own, expected) in [
        ("# crlf\r\n*.log\r\n", "# crlf\r\n*.log\r\n/data\n"),
        ("no end", "no end\n/data\n"),
        ("data/\n!/data\n", "data/\n!/data\n/data\n"),
    ] {
        sandbox.write(".gitignore", own);
        sandbox.ok("add data");
        assert_eq!(sandbox.read(".gitignore"), expected);
        assert!(!sandbox.git("status --porcelain -uall").contains("data/"));
        sandbox.ok("remove data");
        assert_eq!(sandbox.read(".gitignore").trim_end(), own.trim_end());
    }
}

/// MATLAB saves its live scripts, which are zip files, with the same extension.
#[test]
fn an_mlx_file_of_another_program_is_not_taken_for_a_pointer() {
    let sandbox = two_files();
    sandbox.ok("add data");
    sandbox.write("script.mlx", b"PK\x03\x04\x00\x00");
    sandbox.commit("one");
    sandbox.write("data/cat/a.txt", "second");
    sandbox.ok("commit");
    sandbox.commit("two");
    assert_eq!(
        sandbox.json("diff data HEAD~1 HEAD"),
        json!([{"path": "data/cat/a.txt", "change": "modified"}])
    );
    sandbox.ok("checkout --rev HEAD~1");
    assert_eq!(sandbox.read("data/cat/a.txt"), "a cat");
    assert_eq!(sandbox.json("log data")["versions"].as_array().unwrap().len(), 2);
    sandbox.ok("gc");
}

#[test]
fn a_linked_file_keeps_its_mode_when_a_revision_has_another() {
    for link in ["hardlink", "symlink"] {
        let sandbox = Sandbox::new();
        sandbox.write("data/tool", vec![7_u8; 1_100_000]);
        sandbox.ok("add data");
        sandbox.commit("plain");
        let file = sandbox.repo.join("data/tool");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        sandbox.ok("add data");
        sandbox.commit("executable");
        sandbox.ok(&format!("config set --local cache.link {link}"));
        fs::remove_file(&file).unwrap();
        sandbox.ok("checkout --rev HEAD~1");
        let stored = fs::canonicalize(&file).unwrap().metadata().unwrap();
        assert_eq!(
            (stored.mode() & 0o777, file.is_symlink() || stored.nlink() == 2),
            (0o444, true),
            "{link}"
        );
        // Under `copy`, checkout makes a private executable file, and the stored object keeps its mode.
        sandbox.ok("config set --local cache.link copy");
        sandbox.ok("checkout");
        let now = file.symlink_metadata().unwrap();
        assert!(now.is_file() && now.nlink() == 1 && now.mode() & 0o100 != 0, "{link}");
        let object = fs::read_dir(sandbox.repo.join(".git/mlx/objects")).unwrap().next().unwrap().unwrap();
        assert_eq!(object.metadata().unwrap().mode() & 0o777, 0o444, "{link}");
        assert_eq!(sandbox.json("status")["clean"], true, "{link}");
    }
}

#[test]
fn links_into_the_store_are_recreated_after_the_repository_moved() {
    let mut sandbox = Sandbox::new();
    sandbox.write("data/large", vec![7_u8; 1_100_000]);
    sandbox.ok("add data");
    sandbox.ok("config set --local cache.link symlink");
    fs::remove_file(sandbox.repo.join("data/large")).unwrap();
    sandbox.ok("checkout");
    let moved = sandbox.root().join("moved");
    fs::rename(&sandbox.repo, &moved).unwrap();
    sandbox.repo = moved;
    assert_eq!(sandbox.json("status")["clean"], false);
    sandbox.ok("checkout");
    assert_eq!(fs::read(sandbox.repo.join("data/large")).unwrap().len(), 1_100_000);
    assert_eq!(sandbox.json("status")["clean"], true);
    // A link that the user made is kept.
    fs::remove_file(sandbox.repo.join("data/large")).unwrap();
    symlink("objects/mine", sandbox.repo.join("data/large")).unwrap();
    assert!(sandbox.fails("checkout", 4).contains("not stored anywhere: `data/large`"));
}

/// Creates three commits of a folder of 51 files; each commit changes one of them.
fn history() -> Sandbox {
    let sandbox = Sandbox::new();
    for at in 0..50 {
        sandbox.write(&format!("data/d{}/{at}", at % 5), format!("{at}"));
    }
    sandbox.write("data/large", vec![1_u8; 1_100_000]);
    for round in 1..4 {
        sandbox.write("data/d0/0", format!("round {round}"));
        sandbox.ok("add data");
        sandbox.commit(&format!("round{round}"));
    }
    sandbox
}

#[test]
fn checkout_takes_any_name_of_a_revision_and_keeps_unchanged_files() {
    let sandbox = history();
    sandbox.git("tag light HEAD~2");
    sandbox.git("tag -a -m heavy heavy HEAD~1");
    sandbox.git("branch topic HEAD~2");
    let hash = sandbox.git("rev-parse HEAD~1").trim().to_owned();
    let short = &hash[..8];
    let identities = || -> BTreeMap<_, _> {
        let files =
            snapshot(&sandbox.repo.join("data")).into_iter().filter(|file| file.1.starts_with("file"));
        let paths = files.map(|file| String::from_utf8(file.0).unwrap()).filter(|path| path != "d0/0");
        paths.map(|path| (path.clone(), identity(&sandbox.repo.join("data").join(path)))).collect()
    };
    let before = identities();
    let names =
        [("light", 1), ("heavy", 2), ("topic", 1), ("HEAD", 3), ("HEAD~2", 1), ("main^", 2), ("main", 3)];
    for (rev, round) in names.into_iter().chain([("topic", 1), (short, 2), ("@", 3), (&hash, 2)]) {
        let done = sandbox.json(&format!("checkout --rev {rev} data"));
        assert_eq!(
            done["checked_out"][0],
            json!({"path": "data", "written": 1, "removed": 0, "folders": 0}),
            "{rev}"
        );
        assert_eq!(sandbox.read("data/d0/0"), format!("round {round}"), "{rev}");
    }
    assert_eq!((before.len(), identities()), (50, before));
    for rev in ["nowhere", "HEAD~9", "deadbeef", "HEAD:data.mlx", "main..topic"] {
        let error = sandbox.fails(&format!("checkout --rev {rev}"), 3);
        assert!(error.contains(&format!("revision `{rev}` not found\nhint: ")), "{error}");
    }
}

#[test]
fn a_reader_never_sees_a_partly_written_file() {
    let sandbox = Sandbox::new();
    let sizes = [("small", 30_000), ("large", 1_500_000)];
    for letter in [b'a', b'b'] {
        sizes.iter().for_each(|(name, size)| sandbox.write(&format!("data/{name}"), vec![letter; *size]));
        sandbox.ok("add data");
        sandbox.commit("version");
    }
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for (name, size) in sizes {
            let (path, stop, reads) = (sandbox.repo.join("data").join(name), &stop, &reads);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let bytes = fs::read(&path).unwrap();
                    assert!(bytes.len() == size && bytes.iter().all(|byte| *byte == bytes[0]), "{name}");
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let switch = |link: &str| {
            let set = sandbox.mlx(&format!("config set --local cache.link {link}"));
            let done = ["HEAD~1", "HEAD"].map(|rev| sandbox.mlx(&format!("checkout --rev {rev}")));
            set.code == 0 && done.iter().all(|ran| ran.code == 0)
        };
        let succeeded = ["copy", "hardlink", "symlink", "reflink,copy"].map(switch);
        // Set before anything is asserted, because the readers run until it is set.
        stop.store(true, Ordering::SeqCst);
        assert_eq!(succeeded, [true; 4]);
    });
    assert!(reads.load(Ordering::SeqCst) > 20);
}

/// Runs every example of these commands in a shell, in a repository that has the files they name.
#[test]
fn the_examples_in_help_work() {
    for command in
        ["init", "add", "status", "diff", "commit", "checkout", "remove", "move", "unprotect", "du", "log"]
    {
        let help = Sandbox::empty().ok(&format!("{command} --help"));
        let examples =
            help.split("Examples:\n").nth(1).unwrap().lines().take_while(|line| line.starts_with("  "));
        for example in examples.map(str::trim) {
            let sandbox = if command == "init" { Sandbox::empty() } else { repository_for_examples(command) };
            if command == "init" && !example.starts_with("git init") {
                sandbox.git("init -q");
            }
            run_in_shell(&sandbox, example);
        }
    }
}

/// Creates a repository that has the files and versions which the examples of a command name.
fn repository_for_examples(command: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let data = ["cat/a.jpg", "cat/blurred.jpg", "cats/c.jpg", "dog/d.jpg"];
    data.iter().for_each(|name| sandbox.write(&format!("data/{name}"), *name));
    sandbox.ok("add data");
    if command != "add" {
        sandbox.write("models/backbone.onnx", "model");
        sandbox.write("models/pets/model.onnx", "model");
        sandbox.ok("add models/backbone.onnx models/pets");
    }
    sandbox.commit("one");
    sandbox.git("tag v1");
    sandbox.write("data/cat/new.jpg", "new");
    if command != "add" && command != "checkout" {
        sandbox.ok("commit");
    }
    if command == "checkout" {
        fs::remove_file(sandbox.repo.join("data/cat/new.jpg")).unwrap();
    }
    if command == "commit" {
        sandbox.write("mlx.toml", "[stage.train]\ncmd = 'echo model > model'\nouts = ['model']\n");
        sandbox.write("model", "model");
    }
    sandbox.git("commit -q -a --allow-empty -m two");
    if command == "add" {
        sandbox.write("models/backbone.onnx", "model");
    }
    sandbox
}

/// Runs an example in a shell that finds mlx on its path, and expects success.
fn run_in_shell(sandbox: &Sandbox, example: &str) {
    let mlx = Path::new(env!("CARGO_BIN_EXE_mlx")).parent().unwrap().display();
    let path = format!("{mlx}:{}", std::env::var("PATH").unwrap());
    let output =
        sandbox.command("sh", &sandbox.repo).env("PATH", path).args(["-ec", example]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{example}: {stderr}");
}
