//! Tests that a command which is killed, or whose disk fails, at any operation loses nothing and succeeds
//! when it is run again. Also holds the helpers that save and restore a sandbox for such tests.

use std::{fs, path::Path, process::Command, thread};

use crate::{
    halting::operations,
    sandbox::{Sandbox, command_result, snapshot},
};

/// Creates enough files that a command takes a while, small enough to run it fifty times.
fn setup() -> Sandbox {
    let sandbox = Sandbox::new();
    for at in 0..60 {
        sandbox.write(&format!("data/d{}/f{at}", at % 4), format!("content {at} ").repeat(300));
    }
    sandbox.write("data/large", vec![5_u8; 1_500_000]);
    sandbox.write("params.toml", "x = 1\n");
    let text = "[stage.list]\ncmd = 'cat data/d*/f* > all.txt; cp params.toml copy.txt'\ndeps = ['data']\n\
        params = ['params.toml:x']\nouts = ['all.txt', 'copy.txt']\n";
    sandbox.write("mlx.toml", text);
    let remote = sandbox.root().join("remote");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox
}

/// Saves the repository and the remote, for `restore_state`.
pub fn save_state(sandbox: &Sandbox) {
    let before = sandbox.root().join("before");
    fs::create_dir(&before).unwrap();
    copy_state(sandbox, &sandbox.root(), &before);
}

/// Restores the repository and the remote as `save_state` saved them, and removes the clone.
pub fn restore_state(sandbox: &Sandbox) {
    for name in ["repo", "remote", "clone"] {
        let folder = sandbox.root().join(name);
        if folder.exists() {
            fs::remove_dir_all(folder).unwrap();
        }
    }
    copy_state(sandbox, &sandbox.root().join("before"), &sandbox.root());
}

fn copy_state(sandbox: &Sandbox, from: &Path, to: &Path) {
    let mut cp = sandbox.command("cp", from);
    assert!(cp.args(["-a", "repo", "remote"]).arg(to).status().unwrap().success());
}

/// Prepares an mlx command in the sandbox's repository.
pub fn command(sandbox: &Sandbox, args: &str) -> Command {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    command.args(args.split_whitespace());
    command
}

/// Returns what a user sees: the workspace's files, without settings, and `clean` of `status`.
pub fn outcome(sandbox: &Sandbox) -> Vec<String> {
    // The settings name the remote, whose path differs between sandboxes.
    let files = snapshot(&sandbox.repo).into_iter().filter(|(path, _)| !path.starts_with(b".mlx/"));
    let files = files.map(|(path, kind)| format!("{} {kind}", String::from_utf8_lossy(&path)));
    files.chain([sandbox.json("status")["clean"].to_string()]).collect()
}

/// Kills the command at fifty different moments; run again, it gives the same result as an undisturbed run.
fn assert_survives_kills(prepare: &[&str], args: &str) {
    let sandbox = setup();
    prepare.iter().for_each(|args| drop(sandbox.ok(args)));
    save_state(&sandbox);
    let start = std::time::Instant::now();
    sandbox.ok(args);
    let duration = start.elapsed();
    let expected = outcome(&sandbox);
    let mut killed = 0;
    for round in 0..50_u32 {
        restore_state(&sandbox);
        let mut child = command(&sandbox, args)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the command's whole duration, in an order that does not correlate with the round.
        thread::sleep(duration * ((round * 37) % 50) / 50);
        killed += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        sandbox.ok(args);
        assert_eq!(outcome(&sandbox), expected, "round {round}");
        if args == "push" {
            assert_clone_pulls_data(&sandbox);
        }
    }
    assert!(killed > 10, "only {killed} of 50 were killed before their end");
}

fn assert_clone_pulls_data(sandbox: &Sandbox) {
    let clone = sandbox.root().join("clone");
    sandbox.commit("all");
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), clone.display()));
    sandbox.at(&clone).ok("pull");
    assert_eq!(snapshot(&clone.join("data")), snapshot(&sandbox.repo.join("data")));
}

#[test]
fn fifty_kills_of_add_lose_nothing() {
    assert_survives_kills(&[], "add data");
}

#[test]
fn fifty_kills_of_repro_lose_nothing() {
    assert_survives_kills(&["add data"], "repro");
}

#[test]
fn fifty_kills_of_push_lose_nothing() {
    assert_survives_kills(&["add data", "repro"], "push");
}

/// Kills the command at each of its disk operations in turn, then makes every third one fail.
fn assert_survives_every_fault(prepare: &dyn Fn(&Sandbox), args: &str) {
    let sandbox = Sandbox::new();
    sandbox.write("data/a/x", "one");
    sandbox.write("data/y", "two");
    sandbox.write("mlx.toml", "[stage.c]\ncmd = 'cat data/a/x > o'\ndeps = ['data']\nouts = ['o']\n");
    let remote = sandbox.root().join("remote");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    prepare(&sandbox);
    save_state(&sandbox);
    sandbox.ok(args);
    let expected = outcome(&sandbox);
    for (fault, step) in [("kill", 1), ("fail", 3)] {
        for at in operations(&format!("{fault} {args}"), step) {
            restore_state(&sandbox);
            let ran = command_result(
                command(&sandbox, args).env("MLX_FAULT", format!("{fault}:{at}")).output().unwrap(),
            );
            assert!(ran.code != 101 && !ran.err.contains("panicked"), "{fault} {at}: {}", ran.err);
            if fault == "kill" {
                assert_intact(&sandbox, &format!("{fault} {at}"));
            }
            sandbox.ok(args);
            assert_eq!(outcome(&sandbox), expected, "{fault} {at}");
            if args == "push" {
                assert_clone_pulls_data(&sandbox);
            }
            // Past the last operation nothing is broken any more. Some failed operations are harmless, so one
            // success is not proof that the end is reached.
            if ran.code == 0 && (fault == "kill" || at > 150) {
                assert!(at > 10, "{args} passes too few fault points");
                break;
            }
        }
    }
}

/// Asserts that `fsck` finds nothing damaged, lost or unreadable.
fn assert_intact(sandbox: &Sandbox, case: &str) {
    let checked = sandbox.json("fsck");
    for key in ["damaged", "faults", "unreadable"] {
        assert_eq!(checked[key], serde_json::json!([]), "{case}: {key}");
    }
}

#[test]
fn add_survives_every_fault() {
    assert_survives_every_fault(&|_| (), "add data");
}

#[test]
fn commit_survives_every_fault() {
    let edit = |sandbox: &Sandbox| {
        sandbox.ok("add data");
        sandbox.write("data/y", "three");
    };
    assert_survives_every_fault(&edit, "commit");
}

#[test]
fn repro_survives_every_fault() {
    assert_survives_every_fault(&|sandbox| drop(sandbox.ok("add data")), "repro");
}

/// The run is restored from the run cache, after another run has replaced its output and its record.
#[test]
fn a_restoring_repro_survives_every_fault() {
    let run_twice_and_return = |sandbox: &Sandbox| {
        for text in ["one", "three", "one"] {
            sandbox.write("data/a/x", text);
            sandbox.ok("add data");
            if text == "one" && sandbox.has("mlx.lock") {
                let plan = sandbox.json("repro --dry-run");
                assert_eq!(plan["stages"][0]["outcome"], "would restore", "{plan}");
            } else {
                sandbox.ok("repro");
            }
        }
    };
    assert_survives_every_fault(&run_twice_and_return, "repro");
}

#[test]
fn push_survives_every_fault() {
    assert_survives_every_fault(&|sandbox| drop(sandbox.ok("add data")), "push");
}

#[test]
fn pull_survives_every_fault() {
    let push_and_remove = |sandbox: &Sandbox| {
        sandbox.ok("add data");
        sandbox.ok("repro");
        sandbox.ok("push");
        sandbox.commit("all");
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
        fs::remove_file(sandbox.repo.join("o")).unwrap();
        fs::remove_dir_all(sandbox.repo.join(".git/mlx")).unwrap();
    };
    assert_survives_every_fault(&push_and_remove, "pull");
}

#[test]
fn checkout_survives_every_fault() {
    let add_and_remove = |sandbox: &Sandbox| {
        sandbox.ok("add data");
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    };
    assert_survives_every_fault(&add_and_remove, "checkout");
}

/// Flips one bit in each file of the cache in turn.
#[test]
fn a_flipped_bit_in_the_cache_is_repaired_by_pull() {
    let sandbox = setup();
    sandbox.ok("add data");
    sandbox.ok("push");
    let expected = snapshot(&sandbox.repo.join("data"));
    let cache = sandbox.repo.join(".git/mlx");
    let mut files = Vec::new();
    for folder in ["packs", "objects"] {
        files.extend(fs::read_dir(cache.join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    assert!(files.len() >= 5);
    for file in files {
        flip_bit(&file);
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
        let ran = sandbox.mlx("checkout");
        if ran.code != 0 {
            assert!(ran.code == 5 || ran.code == 3, "{}: {}", file.display(), ran.err);
            assert!(ran.err.contains("hint: "), "{}", ran.err);
        }
        let pulled = sandbox.mlx("pull --force");
        assert_eq!(pulled.code, 0, "{}: {}\nafter {}", file.display(), pulled.err, ran.err);
        assert_eq!(snapshot(&sandbox.repo.join("data")), expected, "{}", file.display());
    }
}

fn flip_bit(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() / 3;
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Uses a tmpfs of 600 kB; skipped where the user cannot mount one.
#[test]
fn a_full_disk_is_reported_and_loses_nothing() {
    let sandbox = setup();
    let mount = sandbox.root().join("small");
    fs::create_dir(&mount).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=600k", "tmpfs"]).arg(&mount).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return crate::sandbox::skip(
            "a_full_disk_is_reported_and_loses_nothing",
            "this user cannot mount a small disk",
        );
    }
    sandbox.ok(&format!("config set --local cache.dir {}", mount.join("cache").display()));
    let before = snapshot(&sandbox.repo);
    let ran = sandbox.mlx("add data");
    let after = snapshot(&sandbox.repo);
    Command::new("umount").arg(&mount).status().unwrap();
    assert_eq!(ran.code, 7, "{}", ran.err);
    assert!(ran.err.contains("the disk is full"), "{}", ran.err);
    assert_eq!(after, before);
}
