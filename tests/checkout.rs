//! Tests that a checkout loses nothing: unsaved edits, files that are saved while it works, and what killed
//! commands leave. The same for files that are linked again.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::sandbox::{CommandResult, Sandbox, command_result, identity, snapshot};

/// Creates a repository whose second commit changes `data/a`, removes `data/gone` and adds `data/new`; the
/// first one is checked out by Git and mlx, then the second one by Git alone.
fn two_versions() -> Sandbox {
    let sandbox = Sandbox::new();
    for (name, text) in [("a", "1"), ("gone", "1"), ("same", "1")] {
        sandbox.write(&format!("data/{name}"), text);
    }
    sandbox.ok("add data");
    sandbox.commit("one");
    sandbox.write("data/a", "2");
    sandbox.write("data/new", "2");
    fs::remove_file(sandbox.repo.join("data/gone")).unwrap();
    sandbox.ok("add data");
    sandbox.commit("two");
    sandbox.git("checkout -q HEAD~1");
    sandbox.ok("checkout");
    sandbox.git("checkout -q main");
    sandbox
}

/// Starts a command of mlx, which halts at its n-th disk operation. Returns false if it ended before.
fn start_halting(sandbox: &Sandbox, args: &[&str], at: u64) -> (Child, bool) {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    command.args(args).env("MLX_FAULT", format!("stop:{at}"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        assert!(Instant::now() < deadline, "it hangs");
        let text = fs::read_to_string(&stat).unwrap_or_default();
        let halted = text.rsplit(") ").next().unwrap().starts_with('T');
        if halted || child.try_wait().unwrap().is_some() {
            return (child, halted);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn resume(sandbox: &Sandbox, child: Child) -> CommandResult {
    let mut kill = sandbox.command("kill", &sandbox.repo);
    assert!(kill.args(["-CONT", &child.id().to_string()]).status().unwrap().success());
    command_result(child.wait_with_output().unwrap())
}

/// Saves three files while a checkout halts at each of its disk operations in turn; `save` writes one. All
/// must be there afterwards, whatever the checkout had done or planned.
fn save_at_any_moment(save: &dyn Fn(&Sandbox, &str)) {
    let sandbox = two_versions();
    let names = ["data/a", "data/gone", "data/new"];
    let mut refused = 0;
    for at in 1.. {
        sandbox.git("checkout -q HEAD~1");
        sandbox.ok("checkout --force");
        sandbox.git("checkout -q main");
        let (child, halted) = start_halting(&sandbox, &["checkout"], at);
        if halted {
            names.iter().for_each(|name| save(&sandbox, name));
        }
        if !halted {
            assert!(child.wait_with_output().unwrap().status.success());
            break;
        }
        let done = resume(&sandbox, child);
        for name in names {
            assert_eq!(sandbox.read(name), "by hand", "{name}, operation {at}: {}", done.err);
        }
        let names_files = done.err.contains("`data/");
        assert!(done.code == 0 || done.code == 4 && names_files, "operation {at}: {}", done.err);
        refused += u32::from(done.code == 4);
        assert_eq!(fs::read_dir(sandbox.repo.join("data")).unwrap().count(), 4, "operation {at}");
    }
    assert!(refused > 3, "the checkout never met a saved file");
}

#[test]
fn a_file_that_is_replaced_at_any_moment_of_a_checkout_is_kept() {
    save_at_any_moment(&|sandbox, name| {
        sandbox.write("hand", "by hand");
        fs::rename(sandbox.repo.join("hand"), sandbox.repo.join(name)).unwrap();
    });
}

#[test]
fn a_file_that_is_written_in_place_at_any_moment_of_a_checkout_is_kept() {
    save_at_any_moment(&|sandbox, name| sandbox.write(name, "by hand"));
}

#[test]
fn a_file_system_that_cannot_exchange_files_is_named_and_still_works() {
    let sandbox = two_versions();
    let run = |args: &[&str]| {
        let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        command_result(command.args(args).env("MLX_FAULT", "+plain").output().unwrap())
    };
    let said = run(&["doctor"]).out;
    assert!(said.contains("cannot exchange two files in one step"), "{said}");
    assert!(!sandbox.ok("doctor").contains("cannot exchange two files"));
    let done = run(&["checkout"]);
    assert_eq!((done.code, &done.out[..]), (0, "data: 2 files written, 1 removed\n"), "{}", done.err);
    assert_eq!([sandbox.read("data/a"), sandbox.read("data/new")], ["2", "2"]);
    assert!(!sandbox.has("data/gone"));
    sandbox.git("checkout -q HEAD~1");
    sandbox.write("data/new", "by hand");
    assert_eq!(run(&["checkout"]).code, 4);
    assert_eq!(sandbox.read("data/new"), "by hand");
}

#[test]
fn all_unsaved_edits_are_named_before_anything_changes() {
    let sandbox = two_versions();
    for name in ["b", "k/1", "z"] {
        sandbox.write(name, "1");
    }
    sandbox.ok("add b k z");
    for name in ["b", "k/1", "z"] {
        sandbox.write(name, "mine");
    }
    let before = snapshot(&sandbox.repo);
    let error = sandbox.fails("checkout", 4);
    assert!(error.contains("not stored anywhere: `b`, `k/1`, `z`"), "{error}");
    assert_eq!(snapshot(&sandbox.repo), before);
    sandbox.ok("checkout --force");
    assert_eq!([sandbox.read("b"), sandbox.read("k/1"), sandbox.read("data/a")], ["1", "1", "2"]);
}

#[test]
fn missing_content_does_not_hold_up_other_paths() {
    let sandbox = two_versions();
    sandbox.write("alien", "1");
    sandbox.ok("add alien");
    let digest = "0".repeat(64);
    let pointer = format!("digest = \"b3:{digest}\"\nfiles = 1\nformat = 1\nkind = \"file\"\nsize = 1\n");
    sandbox.write("alien.mlx", pointer);
    let error = sandbox.fails("checkout", 3);
    assert!(error.contains("the content of `alien`"), "{error}");
    assert_eq!([sandbox.read("data/a"), sandbox.read("alien")], ["2", "1"]);
}

#[test]
fn temporary_files_of_killed_commands_are_removed_although_nothing_else_is_to_do() {
    let sandbox = two_versions();
    sandbox.ok("checkout");
    let own = format!(".mlx-tmp-{}-0-abc", std::process::id());
    // No process has the first id, and others than the writers have the ids of the others by now.
    let names = [".mlx-tmp-4194999-0-0", ".mlx-tmp-1-0-abc", &own];
    let commands = ["checkout", "add data", "unprotect data", "gc --yes"];
    for (command, temp) in commands.iter().flat_map(|command| names.map(|name| (command, name))) {
        for folder in ["", "data/", "data/unknown/"] {
            sandbox.write(&format!("{folder}{temp}"), "half");
        }
        sandbox.ok(command);
        assert_eq!([sandbox.has(temp), sandbox.has(&format!("data/{temp}"))], [false; 2], "{command}");
        assert!(!sandbox.has(&format!("data/unknown/{temp}")), "{command}");
    }
    // A restored version may be written to any folder.
    sandbox.write("elsewhere/.mlx-tmp-4194999-0-0", "half");
    sandbox.write("elsewhere/.mlx-old-a-1-0-abc", "precious");
    sandbox.ok("gc --yes");
    assert_eq!(snapshot(&sandbox.repo.join("elsewhere")).into_keys().collect::<Vec<_>>(), [b"a.kept-1"]);
}

#[test]
fn a_checked_out_revision_counts_as_an_edit_that_commit_records() {
    let sandbox = two_versions();
    sandbox.ok("checkout");
    let newest = sandbox.read("data.mlx");
    sandbox.ok("checkout --rev HEAD~1 data");
    assert_eq!(sandbox.json("status")["data"][0]["state"], "changed");
    sandbox.ok("commit");
    assert_eq!(sandbox.read("data.mlx"), sandbox.git("show HEAD~1:data.mlx"));
    sandbox.ok("checkout --rev HEAD data");
    sandbox.ok("commit");
    assert_eq!(sandbox.read("data.mlx"), newest);
}

/// Creates a repository with two files that can be linked and one that is too small for it, all copies.
fn linkable() -> Sandbox {
    let sandbox = Sandbox::new();
    for (name, byte) in [("one", 1_u8), ("sub/two", 2)] {
        sandbox.write(&format!("data/{name}"), vec![byte; 1_100_000]);
    }
    sandbox.write("data/small", "small");
    sandbox.ok("add data");
    sandbox
}

/// Returns how a file is placed.
fn kind(sandbox: &Sandbox, path: &str) -> &'static str {
    let meta = sandbox.repo.join(path).symlink_metadata().unwrap();
    match meta.nlink() {
        _ if meta.is_symlink() => "symlink",
        1 if meta.mode() & 0o200 != 0 => "copy",
        2 => "hardlink",
        _ => "other",
    }
}

#[test]
fn files_that_are_here_are_linked_again_as_cache_link_says_now() {
    let sandbox = linkable();
    let bytes = |path: &str| fs::read(sandbox.repo.join(path)).unwrap();
    let before = [bytes("data/one"), bytes("data/sub/two")];
    for link in ["hardlink,copy", "copy", "symlink", "hardlink", "symlink", "copy"] {
        sandbox.ok(&format!("config set --local cache.link {link}"));
        let name = link.split(',').next().unwrap();
        let said = sandbox.ok("checkout --relink");
        assert_eq!(said, format!("data: 2 files linked again (2 {name})\n"));
        let kinds = ["data/one", "data/sub/two", "data/small"].map(|path| kind(&sandbox, path));
        assert_eq!(kinds, [name, name, "copy"]);
        assert_eq!([bytes("data/one"), bytes("data/sub/two")], before, "{link}");
        assert_eq!(sandbox.json("status")["clean"], true, "{link}");
        let placed = ["data/one", "data/sub/two"].map(|path| identity(&sandbox.repo.join(path)));
        assert_eq!(
            sandbox.ok("checkout --relink"),
            "nothing to do: all files that are here are placed as `cache.link` says\n"
        );
        assert_eq!(["data/one", "data/sub/two"].map(|path| identity(&sandbox.repo.join(path))), placed);
    }
    assert_eq!(sandbox.json("fsck")["faults"], json!([]));
}

#[test]
fn linking_again_takes_parts_and_leaves_edited_and_unrecorded_files() {
    let sandbox = linkable();
    sandbox.write("data/three", vec![3_u8; 1_100_000]);
    sandbox.write("data/small", "edited");
    sandbox.ok("config set --local cache.link hardlink");
    let done = sandbox.json("checkout --relink data/sub");
    let row = json!({"path": "data/sub", "files": 1, "kinds": {"hardlink": 1}, "edited": [], "missing": []});
    assert_eq!(done, json!({"relinked": [row]}));
    assert_eq!(["data/one", "data/sub/two"].map(|path| kind(&sandbox, path)), ["copy", "hardlink"]);
    sandbox.write("data/one", vec![9_u8; 1_100_000]);
    assert_eq!(
        sandbox.ok("checkout --relink"),
        "data: 2 files edited, left unchanged: `data/one`, `data/small`\n"
    );
    assert_eq!(["data/one", "data/three"].map(|path| kind(&sandbox, path)), ["copy"; 2]);
    assert_eq!(fs::read(sandbox.repo.join("data/one")).unwrap(), vec![9_u8; 1_100_000]);
    assert!(sandbox.fails("checkout --relink elsewhere", 3).contains("`elsewhere`"));
    assert!(sandbox.fails("checkout --relink --force", 2).contains("cannot be used with"));
}

#[test]
fn linking_again_names_files_that_the_store_lacks_and_makes_other_links_private() {
    let sandbox = linkable();
    let objects = sandbox.repo.join(".git/mlx/objects");
    let digest = blake3::hash(&vec![1; 1_100_000]).to_hex().to_string();
    fs::remove_file(objects.join(&digest)).unwrap();
    // A second name that is not the store's.
    fs::hard_link(sandbox.repo.join("data/sub/two"), sandbox.root().join("two")).unwrap();
    assert_eq!(
        sandbox.ok("checkout --relink"),
        "data: 1 file linked again (1 copy)\n\
         data: 1 file without stored content, left unchanged: `data/one`\n"
    );
    assert_eq!(["data/one", "data/sub/two"].map(|path| kind(&sandbox, path)), ["copy"; 2]);
}

#[test]
fn linking_again_goes_on_beside_a_broken_pointer_and_a_damaged_object() {
    let sandbox = linkable();
    let large = |byte: u8| vec![byte; 1_100_000];
    sandbox.write("other", large(3));
    sandbox.write("broken", "x");
    sandbox.ok("add other broken");
    sandbox.ok("config set --local cache.link hardlink");
    sandbox.write("broken.mlx", "format = 1\nkind = \"tree\"\n");
    let object = sandbox.repo.join(".git/mlx/objects").join(blake3::hash(&large(1)).to_hex().as_str());
    fs::set_permissions(&object, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&object, large(9)).unwrap();
    let done = sandbox.mlx("checkout --relink");
    assert_eq!(done.out, "data: 1 file linked again (1 hardlink)\nother: 1 file linked again (1 hardlink)\n");
    assert_eq!(done.code, 5, "{}", done.err);
    assert!(done.err.contains("broken.mlx") && done.err.contains("cannot link `data/one`"), "{}", done.err);
    assert_eq!(kind(&sandbox, "data/one"), "copy");
}

#[test]
fn a_file_that_is_saved_while_it_is_linked_again_is_kept() {
    let sandbox = linkable();
    let (mut kept, one) = (0, sandbox.repo.join("data/one"));
    for at in 1.. {
        sandbox.ok("config set --local cache.link copy");
        sandbox.ok("checkout --force");
        sandbox.ok("checkout --relink");
        sandbox.ok("config set --local cache.link hardlink");
        let (child, halted) = start_halting(&sandbox, &["checkout", "--relink"], at);
        if !halted {
            assert!(child.wait_with_output().unwrap().status.success());
            break;
        }
        sandbox.write("hand", "by hand");
        fs::rename(sandbox.repo.join("hand"), &one).unwrap();
        let done = resume(&sandbox, child);
        assert_eq!(sandbox.read("data/one"), "by hand", "{at}");
        // Saved while the scan reads the file, it is refused.
        let refused = done.code == 4 && done.err.contains("`data/one` changed while it was read");
        assert!(done.code == 0 || refused, "{at}: {}", done.err);
        kept += u32::from(done.out.contains("data: 1 file edited, left unchanged: `data/one`"));
        assert_eq!(fs::read_dir(sandbox.repo.join("data")).unwrap().count(), 3, "{at}");
    }
    assert!(kept > 3, "no file was saved before it was linked");
    assert_eq!(sandbox.json("fsck")["faults"], json!([]));
}

#[test]
fn parts_of_one_folder_are_planned_together_and_stay_apart() {
    let sandbox = Sandbox::new();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    for (path, text) in [("d/a", "1"), ("d/b", "2"), ("d/c", "3"), ("d/sub/x", "4"), ("d/sub/deep/y", "5")] {
        sandbox.write(path, text);
    }
    sandbox.write("d/.mlxignore", "*.tmp\n");
    sandbox.ok("add d");
    let write = |paths: &[&str], text: &str| paths.iter().for_each(|path| sandbox.write(path, text));
    // Each part has its row, and what is in another part is not checked out twice.
    fs::remove_dir_all(sandbox.repo.join("d/sub")).unwrap();
    fs::remove_file(sandbox.repo.join("d/a")).unwrap();
    let rows = |value: Value| -> Vec<String> {
        let rows = value["checked_out"].as_array().unwrap();
        rows.iter().map(|row| format!("{} {} {}", row["path"], row["written"], row["removed"])).collect()
    };
    let done = sandbox.json("checkout d/sub/x d/sub d/a d/b d/sub/deep/y");
    assert_eq!(rows(done), ["\"d/a\" 1 0", "\"d/b\" 0 0", "\"d/sub\" 2 0"]);
    // Edits in the parts are named together; those beside them are no concern.
    write(&["d/a", "d/b", "d/c", "d/sub/new", "d/t.tmp"], "edited");
    let error = sandbox.fails("checkout d/a d/b d/sub", 4);
    assert!(error.contains("`d/a`, `d/b`, `d/sub/new`") && !error.contains("d/c"), "{error}");
    let done = sandbox.json("checkout --force d/a d/b d/sub");
    assert_eq!(rows(done), ["\"d/a\" 1 0", "\"d/b\" 1 0", "\"d/sub\" 0 1"]);
    assert_eq!((sandbox.read("d/c"), sandbox.read("d/t.tmp")), ("edited".into(), "edited".into()));
    // A file where the parts need a folder is replaced once it is stored.
    sandbox.ok("add d");
    fs::remove_dir_all(sandbox.repo.join("d/sub")).unwrap();
    sandbox.write("d/sub", "4");
    let done = sandbox.json("checkout d/sub/x d/sub/deep/y d/a");
    assert_eq!(rows(done).len(), 3);
    assert_eq!((sandbox.read("d/sub/x"), sandbox.read("d/sub/deep/y")), ("4".into(), "5".into()));
    assert!(sandbox.fails("checkout d/a d/none d/b", 3).contains("`d/none` is not tracked in `d`"));
    // Content that is missing stops its own part alone.
    sandbox.ok("push");
    fs::remove_dir_all(sandbox.repo.join(".git/mlx/packs")).unwrap();
    sandbox.ok("fetch d/a d/sub/x");
    fs::remove_file(sandbox.repo.join("d/a")).unwrap();
    fs::remove_file(sandbox.repo.join("d/b")).unwrap();
    assert!(sandbox.fails("checkout d/a d/b d/sub/x", 3).contains("the content of `d/b`"));
    assert!(sandbox.has("d/a") && !sandbox.has("d/b"));
    let pulled = sandbox.json("pull 'd/**'");
    assert_eq!(rows(pulled).iter().filter(|row| row.ends_with(" 1 0")).count(), 1);
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn a_named_file_that_is_ignored_and_not_recorded_stays_alone_or_with_others() {
    let sandbox = Sandbox::new();
    for file in ["d/a", "d/b", "d/sub/x", "d/sub/y"] {
        sandbox.write(file, file);
    }
    sandbox.write(".mlxignore", "*.log\nsub/\n");
    sandbox.ok("add d");
    for file in ["d/i.log", "d/j.log"] {
        sandbox.write(file, "mine");
    }
    let nothing = "nothing to do: the workspace is as recorded\n";
    for paths in ["d/i.log", "d/i.log d/j.log", "d/i.log d/a", "d/sub/x", "d/sub/x d/sub/y", "d"] {
        assert_eq!(sandbox.ok(&format!("checkout --force {paths}")), nothing, "{paths}");
    }
    assert!(["d/i.log", "d/j.log", "d/sub/x", "d/sub/y"].iter().all(|file| sandbox.has(file)));
}

#[test]
fn a_file_in_the_place_of_a_folder_is_named_once_and_makes_room_for_every_part() {
    let sandbox = Sandbox::new();
    let parts = ["d/e/1", "d/e/2", "d/f/3"];
    parts.iter().for_each(|file| sandbox.write(file, file));
    sandbox.ok("add d");
    fs::remove_dir_all(sandbox.repo.join("d")).unwrap();
    sandbox.write("d", "mine");
    let command = format!("checkout {}", parts.join(" "));
    let error = sandbox.fails(&command, 4);
    assert!(error.contains("not stored anywhere: `d`\n"), "{error}");
    sandbox.ok(&format!("{command} --force"));
    assert!(parts.iter().all(|file| sandbox.read(file) == **file));
}

/// The base may be written only after the files it lists are durable, and one sync makes them so.
#[test]
fn a_checkout_syncs_the_disk_once() {
    let sandbox = two_versions();
    let log = sandbox.root().join("operations");
    let run = |args: &str| {
        let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        let ran = command.args(args.split(' ')).env("MLX_FAULT", format!("tell:{}", log.display())).output();
        assert!(ran.unwrap().status.success(), "{args}");
        let operations = fs::read_to_string(&log).unwrap_or_default();
        fs::write(&log, "").unwrap();
        operations.lines().filter(|operation| *operation == "sync-all").count()
    };
    assert_eq!(run("checkout"), 1);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    assert_eq!(run("checkout"), 1);
}
