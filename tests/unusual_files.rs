//! Tests of unusual files and moments: names that are not UTF-8, paths of maximal length, unreadable and
//! special files, huge sparse files, files that change while they are read, and waiting for locks.

use std::{
    ffi::OsStr,
    fs,
    io::{Seek as _, SeekFrom, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt as _,
            fs::{MetadataExt as _, PermissionsExt as _},
            process::CommandExt as _,
        },
    },
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, mkdirat, openat};
use serde_json::{Value, json};

use crate::sandbox::{CommandResult, Sandbox, command_result, skip, snapshot};

/// Runs mlx with arguments that need not be UTF-8.
fn mlx(sandbox: &Sandbox, args: &[&OsStr]) -> CommandResult {
    command_result(sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo).args(args).output().unwrap())
}

#[test]
fn names_that_are_not_text_are_tracked_and_ignored_by_git() {
    let sandbox = Sandbox::new();
    let names: [&[u8]; 6] = [b"new\nline", b"\xff\xfe", b"a*b?[c]", b"!not", b"#no comment", b"back\\slash "];
    for name in names {
        fs::create_dir(sandbox.repo.join(OsStr::from_bytes(name))).unwrap();
        fs::write(sandbox.repo.join(OsStr::from_bytes(name)).join("x"), name).unwrap();
        let ran = mlx(&sandbox, &["add".as_ref(), "--".as_ref(), OsStr::from_bytes(name)]);
        assert_eq!(ran.code, 0, "{name:?}: {}", ran.err);
    }
    let listed = sandbox.git("status --porcelain -uall -z");
    assert!(
        listed
            .split('\0')
            .all(|path| path.is_empty() || path.contains(".mlx") || path.contains(".gitignore")),
        "{listed:?}"
    );
    let before = snapshot(&sandbox.repo);
    for name in names {
        fs::remove_dir_all(sandbox.repo.join(OsStr::from_bytes(name))).unwrap();
    }
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo), before);
    for name in names {
        let new = OsStr::from_bytes(&[b"moved ", name].concat()).to_owned();
        let ran = mlx(&sandbox, &["move".as_ref(), "--".as_ref(), OsStr::from_bytes(name), &new]);
        assert_eq!(ran.code, 0, "{name:?}: {}", ran.err);
        let ran = mlx(&sandbox, &["remove".as_ref(), "--data".as_ref(), &new]);
        assert_eq!(ran.code, 0, "{name:?}: {}", ran.err);
    }
    assert!(snapshot(&sandbox.repo).keys().all(|path| path.starts_with(b".mlx")));
}

/// Creates nested folders and a file in the innermost one. The path may be longer than the system allows.
fn create_nested(root: &Path, folders: &[String], file: &str) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut here: OwnedFd = rustix::fs::open(root, flags, Mode::empty()).unwrap();
    for name in folders {
        let _there = mkdirat(&here, name.as_str(), Mode::from_raw_mode(0o755));
        here = openat(&here, name.as_str(), flags, Mode::empty()).unwrap();
    }
    let flags = OFlags::WRONLY | OFlags::CREATE;
    let file = openat(&here, file, flags, Mode::from_raw_mode(0o644)).unwrap();
    fs::File::from(file).write_all(b"deep").unwrap();
}

/// Deletes `data` with `rm`, which handles paths of any length.
fn delete_data(sandbox: &Sandbox) {
    assert!(Command::new("rm").arg("-rf").arg(sandbox.repo.join("data")).status().unwrap().success());
}

/// Adds, deletes, checks out and adds `data` again, and checks that the pointer stays the same.
fn round_trip(sandbox: &Sandbox) {
    sandbox.ok("add data");
    let pointer = sandbox.read("data.mlx");
    delete_data(sandbox);
    sandbox.ok("checkout");
    assert_eq!(sandbox.json("status")["clean"], true);
    sandbox.ok("add data");
    assert_eq!(sandbox.read("data.mlx"), pointer);
    assert!(pointer.contains("files = 1\n"), "{pointer}");
}

#[test]
fn a_path_of_4096_bytes_is_tracked_and_a_longer_one_is_refused() {
    let sandbox = Sandbox::new();
    let mut folders = vec!["data".to_owned()];
    folders.extend((0..15).map(|at| format!("{at:0255}")));
    create_nested(&sandbox.repo, &folders, &"f".repeat(251));
    round_trip(&sandbox);
    create_nested(&sandbox.repo, &folders, &"g".repeat(252));
    let error = sandbox.fails("add data", 2);
    assert!(error.contains("is too long: more than 4096 bytes or 1000 folders"), "{error}");
    let status = sandbox.json("status");
    assert_eq!((&status["clean"], &status["data"][0]["state"]), (&json!(false), &json!("unknown")));
    delete_data(&sandbox);
}

/// A pointer of the output would have a name that is longer than the file system takes.
#[test]
fn an_output_with_a_name_of_255_bytes_is_recorded_and_checked_out() {
    for length in [251, 252, 255] {
        let sandbox = Sandbox::new();
        let name = "z".repeat(length);
        let text = format!(
            "[stage.a]\ncmd = 'echo 1 > {name}'\nouts = ['{name}']\n\n[stage.b]\n\
                            cmd = 'cat {name} > b'\ndeps = ['{name}']\nouts = ['b']\n"
        );
        sandbox.write("mlx.toml", text);
        sandbox.ok("repro");
        fs::remove_file(sandbox.repo.join(&name)).unwrap();
        sandbox.ok("checkout");
        assert_eq!(sandbox.read(&name), "1\n");
        assert_eq!(sandbox.json("status")["clean"], true, "{length}");
        assert_eq!(sandbox.json("repro")["stages"][1]["outcome"], "unchanged");
        let tracked = sandbox.mlx(&format!("add {}x", &name[1..]));
        assert_eq!(tracked.code, 3, "a missing file is not found: {}", tracked.err);
    }
}

#[test]
fn a_thousand_nested_folders_are_tracked_and_more_are_refused() {
    let sandbox = Sandbox::new();
    let mut folders = vec!["data".to_owned()];
    folders.resize(1000, "d".to_owned());
    create_nested(&sandbox.repo, &folders, "x");
    round_trip(&sandbox);
    folders.push("e".to_owned());
    create_nested(&sandbox.repo, &folders, "x");
    let error = sandbox.fails("add data", 2);
    assert!(error.contains("is too long: more than 4096 bytes or 1000 folders"), "{error}");
    delete_data(&sandbox);
}

#[test]
fn a_socket_and_a_nested_repository_hide_no_other_changes() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "a");
    sandbox.ok("add data");
    let pointer = sandbox.read("data.mlx");
    let _socket = std::os::unix::net::UnixListener::bind(sandbox.repo.join("data/socket")).unwrap();
    let error = sandbox.fails("add data", 2);
    assert!(error.contains("`data/socket` is a fifo, a socket or a device"), "{error}");
    assert_eq!(sandbox.read("data.mlx"), pointer);
    sandbox.write("data/a", "edited");
    sandbox.write("data/.git/config", "a repository in the data, which is left out");
    sandbox.write("data/.GIT", "a name that no path may have");
    let item = sandbox.json("status")["data"][0].clone();
    assert_eq!(item["state"], "unknown");
    let unknown =
        |at: usize| (item["unknown"][at]["path"].as_str(), item["unknown"][at]["why"].as_str().unwrap());
    assert!(unknown(0).0 == Some("data") && unknown(0).1.contains("cannot track `data/.GIT`"), "{item}");
    assert_eq!(unknown(1).0, Some("data/socket"));
    assert_eq!(item["changes"], json!([{"path": "data/a", "change": "modified"}]));
}

#[test]
fn names_that_differ_only_in_case_stay_separate() {
    let sandbox = Sandbox::new();
    sandbox.write("data/A/x", "upper");
    sandbox.write("data/a/x", "lower");
    if fs::read_dir(sandbox.repo.join("data")).unwrap().count() == 1 {
        return skip("names_that_differ_only_in_case_stay_separate", "this file system is case-insensitive");
    }
    sandbox.ok("add data");
    delete_data(&sandbox);
    let ran = sandbox.mlx("checkout");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!((sandbox.read("data/A/x"), sandbox.read("data/a/x")), ("upper".into(), "lower".into()));
}

/// Runs mlx as an unprivileged user, even when the tests run as root.
fn as_user(sandbox: &Sandbox, args: &str) -> CommandResult {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    if rustix::process::geteuid().is_root() {
        // The program may be in a folder that other users cannot read.
        let program = sandbox.root().join("mlx");
        if !program.exists() {
            fs::hard_link(env!("CARGO_BIN_EXE_mlx"), &program)
                .or_else(|_| fs::copy(env!("CARGO_BIN_EXE_mlx"), &program).map(drop))
                .unwrap();
        }
        assert!(
            Command::new("chown").args(["-R", "65534:65534"]).arg(sandbox.root()).status().unwrap().success()
        );
        command = sandbox.command(program.to_str().unwrap(), &sandbox.repo);
        command.uid(65534).gid(65534);
    }
    command_result(command.args(args.split(' ')).output().unwrap())
}

#[test]
fn an_unreadable_folder_is_unknown_and_hides_no_other_changes() {
    let sandbox = Sandbox::new();
    for path in ["data/open/a", "data/shut/b", "data/shut/deep/c", "data/sealed", "other/x", "closed/y"] {
        sandbox.write(path, path);
    }
    fs::write(sandbox.repo.join("data/large"), vec![1_u8; 2_000_000]).unwrap();
    sandbox.ok("add data other closed/y");
    sandbox.write("data/open/a", "edited");
    fs::remove_file(sandbox.repo.join("data/large")).unwrap();
    for path in ["data/shut", "data/sealed", "closed"] {
        fs::set_permissions(sandbox.repo.join(path), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let ran = as_user(&sandbox, "status --json");
    let status: Value = serde_json::from_str(&ran.out).unwrap();
    let states = status["data"].as_array().unwrap().iter();
    let states: Vec<_> =
        states.map(|item| (item["path"].as_str().unwrap(), item["state"].as_str().unwrap())).collect();
    assert_eq!(states, [("data", "unknown"), ("other", "same"), ("closed/y", "unknown")]);
    let item = &status["data"][0];
    assert_eq!((ran.code, &status["clean"], &item["state"]), (0, &json!(false), &json!("unknown")));
    let changes = json!([
        {"path": "data/large", "change": "deleted"},
        {"path": "data/open/a", "change": "modified"},
    ]);
    assert_eq!(item["changes"], changes);
    let unknown: Vec<_> =
        item["unknown"].as_array().unwrap().iter().map(|it| it["path"].as_str().unwrap()).collect();
    assert_eq!(unknown, ["data/shut", "data/sealed"]);
    assert!(item["unknown"][0]["why"].as_str().unwrap().contains("Permission denied"), "{item}");
    assert_eq!(as_user(&sandbox, "status --check").code, 10);
    let ran = as_user(&sandbox, "add data");
    assert!(ran.code == 6 && ran.err.contains("`data/shut`"), "{}", ran.err);
    for path in ["data/shut", "closed"] {
        fs::set_permissions(sandbox.repo.join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn an_edited_folder_with_a_missing_tree_is_unknown() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "a");
    sandbox.ok("add data");
    for entry in fs::read_dir(sandbox.repo.join(".git/mlx/packs")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(sandbox.json("status")["clean"], true);
    sandbox.write("data/a", "edited");
    let status = sandbox.json("status");
    assert_eq!((&status["clean"], &status["data"][0]["state"]), (&json!(false), &json!("unknown")));
}

#[test]
fn an_edit_in_place_right_after_a_command_is_detected() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "0000");
    sandbox.write("data/b", "same");
    sandbox.ok("add data");
    let path = sandbox.repo.join("data/a");
    for round in 0..10 {
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all(format!("{round:03}x").as_bytes()).unwrap();
        sandbox.ok(if round % 2 == 0 { "add data" } else { "commit data" });
        assert_eq!(sandbox.json("status")["clean"], true, "round {round}");
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(format!("{round:03}y").as_bytes()).unwrap();
        assert_eq!(sandbox.json("status")["clean"], false, "round {round}");
    }
}

/// Runs `mlx add data` while another thread keeps changing `data/file`, and checks that nothing is stored.
fn add_during_changes(change: impl Fn(&mut fs::File, u64) + Sync) {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.repo.join("data")).unwrap();
    let path = sandbox.repo.join("data/file");
    fs::write(&path, vec![1_u8; 32 << 20]).unwrap();
    let (before, stop) = (snapshot(&sandbox.repo), AtomicBool::new(false));
    let ran = thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            let mut round = 0;
            while !stop.load(Ordering::SeqCst) {
                change(&mut file, round);
                round += 1;
            }
        });
        let ran = sandbox.mlx("add data");
        stop.store(true, Ordering::SeqCst);
        ran
    });
    assert_eq!(ran.code, 4, "{}", ran.err);
    assert!(ran.err.contains("`data/file` changed while it was read"), "{}", ran.err);
    assert_eq!(snapshot(&sandbox.repo).keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    for folder in ["objects", "packs"] {
        let folder = sandbox.repo.join(".git/mlx").join(folder);
        assert_eq!(fs::read_dir(&folder).map_or(0, Iterator::count), 0, "{}", folder.display());
    }
    // Once the changes stop, the file is added.
    sandbox.ok("add data");
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn a_file_that_grows_while_it_is_read_is_not_stored() {
    add_during_changes(|file, _| {
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b"more").unwrap();
    });
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_not_stored() {
    add_during_changes(|file, round| file.set_len((32 << 20) - 1 - round % 1000).unwrap());
}

/// Returns the peak memory of a process in bytes, sampled until it ends.
fn peak_memory(child: &mut std::process::Child) -> u64 {
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        peak = peak.max(kilobytes * 1024);
        thread::sleep(Duration::from_millis(10));
    }
    peak
}

#[test]
fn a_huge_sparse_file_needs_little_memory_and_disk_space() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.repo.join("data")).unwrap();
    let path = sandbox.repo.join("data/huge");
    let mut file = fs::File::create(&path).unwrap();
    file.set_len(SPARSE_SIZE).unwrap();
    file.seek(SeekFrom::Start(SPARSE_SIZE / 2)).unwrap();
    file.write_all(b"an island").unwrap();
    drop(file);
    let mut add = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    let mut child = add.args(["add", "data"]).stdout(Stdio::null()).spawn().unwrap();
    let peak = peak_memory(&mut child);
    assert!(child.wait().unwrap().success());
    assert!(peak > 0 && peak < 150_000_000, "{peak} bytes of memory");
    assert!(sandbox.read("data.mlx").contains(&format!("size = {SPARSE_SIZE}\n")));
    let stored = fs::read_dir(sandbox.repo.join(".git/mlx/objects")).unwrap().next().unwrap().unwrap();
    let stored = stored.metadata().unwrap();
    assert_eq!(stored.len(), SPARSE_SIZE);
    assert!(stored.blocks() * 512 < 20_000_000, "{} bytes on disk", stored.blocks() * 512);
}

/// Size of a sparse file, in bytes. Its zeros are hashed like any bytes: about 25 seconds on one core.
const SPARSE_SIZE: u64 = 100_000_000_000;

/// Takes the lock on index and pointers, as another mlx process would.
fn take_lock(sandbox: &Sandbox) -> fs::File {
    let path = sandbox.repo.join(".git/mlx/lock");
    let file = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    file.set_len(0).unwrap();
    (&file).write_all(b"process 77 on park, `mlx add cats`, since 2026-03-01T00:00:00Z\n").unwrap();
    file
}

#[test]
fn reading_commands_never_wait_and_save_the_index_only_if_unlocked() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "a");
    sandbox.ok("add data");
    sandbox.commit("one");
    sandbox.write("data/a", "edited");
    let index = sandbox.repo.join(".git/mlx/index");
    fs::remove_file(&index).unwrap();
    let held = take_lock(&sandbox);
    let start = Instant::now();
    assert_eq!(sandbox.json("status")["clean"], false);
    assert_eq!(sandbox.json("diff data")[0]["change"], "modified");
    assert!(sandbox.ok("log data").contains("one"));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(!index.exists());
    drop(held);
    sandbox.ok("status");
    assert!(index.exists());
}

#[test]
fn add_stores_the_data_before_it_waits_for_the_lock() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "a");
    let held = take_lock(&sandbox);
    let mut add = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    let mut child = add.args(["add", "data"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let packs = sandbox.repo.join(".git/mlx/packs");
    let start = Instant::now();
    while fs::read_dir(&packs).map_or(0, Iterator::count) < 4 {
        assert!(start.elapsed() < Duration::from_secs(20), "nothing was stored");
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(1500));
    assert!(child.try_wait().unwrap().is_none() && !sandbox.has("data.mlx"));
    drop(held);
    let ran = command_result(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.err);
    let message = "waiting for another mlx: process 77 on park, `mlx add cats`, since 2026-03-01T00:00:00Z";
    assert!(ran.err.contains(message), "{}", ran.err);
    assert!(sandbox.has("data.mlx"));
}

#[test]
fn the_lock_of_a_killed_process_is_free() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "a");
    drop(take_lock(&sandbox));
    let lock = sandbox.repo.join(".git/mlx/lock");
    let holder = Command::new("flock").arg("--no-fork").arg(&lock).args(["sleep", "100"]).spawn();
    let Ok(mut holder) = holder else {
        return skip("the_lock_of_a_killed_process_is_free", "`flock` is not installed");
    };
    let probe = fs::File::open(&lock).unwrap();
    while flock(&probe, FlockOperation::NonBlockingLockExclusive).is_ok() {
        flock(&probe, FlockOperation::Unlock).unwrap();
        thread::sleep(Duration::from_millis(5));
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    let start = Instant::now();
    sandbox.ok("add data");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let text = fs::read_to_string(&lock).unwrap();
    assert!(text.contains("`mlx add data`") && !text.contains("process 77 "), "{text}");
}

#[test]
fn two_adds_at_once_record_both_folders() {
    let sandbox = Sandbox::new();
    for round in 0..8 {
        for name in ["cats", "dogs"] {
            for at in 0..40 {
                sandbox.write(&format!("{name}/{at}"), format!("{name} {at} {round}"));
            }
        }
        let children = ["cats", "dogs"].map(|name| {
            let mut add = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
            add.args(["add", name]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        });
        for child in children {
            let ran = command_result(child.wait_with_output().unwrap());
            assert_eq!((ran.code, ran.err.as_str()), (0, ""), "round {round}");
        }
        assert_eq!(sandbox.json("status")["clean"], true, "round {round}");
        let mut ignored: Vec<_> = sandbox.read(".gitignore").lines().map(str::to_owned).collect();
        ignored.sort();
        assert_eq!(ignored, ["/cats", "/dogs"]);
    }
}
