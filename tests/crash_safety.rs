//! A disk that fails, a process that is killed, a cache that is damaged.

use std::{fs, path::Path, process::Command, thread};

use crate::sandbox::{Sandbox, ended, snapshot};

/// Enough files that a command takes a while, small enough to do it fifty times.
fn world() -> Sandbox {
    let sandbox = Sandbox::new();
    for at in 0..60 {
        sandbox.write(&format!("data/d{}/f{at}", at % 4), format!("content {at} ").repeat(300));
    }
    sandbox.write("data/large", vec![5_u8; 1_500_000]);
    sandbox.write("params.toml", "x = 1\n");
    let text = "[stage.list]\ncmd = 'cat data/d*/f* > all.txt; cp params.toml copy.txt'\ndeps = ['data']\nparams = ['params.toml:x']\nouts = ['all.txt', 'copy.txt']\n";
    sandbox.write("mlx.toml", text);
    let remote = sandbox.root().join("remote");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox
}

/// Keeps a sandbox as it is now, to start from again and again.
pub fn keep(sandbox: &Sandbox) {
    let before = sandbox.root().join("before");
    fs::create_dir(&before).unwrap();
    copy(sandbox, &sandbox.root(), &before);
}

/// Makes a sandbox what it was when it was kept.
pub fn start_again(sandbox: &Sandbox) {
    for name in ["repo", "remote", "clone"] {
        let folder = sandbox.root().join(name);
        if folder.exists() {
            fs::remove_dir_all(folder).unwrap();
        }
    }
    copy(sandbox, &sandbox.root().join("before"), &sandbox.root());
}

fn copy(sandbox: &Sandbox, from: &Path, to: &Path) {
    let mut cp = sandbox.command("cp", from);
    assert!(cp.args(["-a", "repo", "remote"]).arg(to).status().unwrap().success());
}

pub fn command(sandbox: &Sandbox, args: &str) -> Command {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    command.args(args.split_whitespace());
    command
}

/// Everything a user sees, and what the remote can give to a clone.
pub fn outcome(sandbox: &Sandbox) -> Vec<String> {
    // The settings name the remote, which lies elsewhere in each sandbox.
    let files = snapshot(&sandbox.repo).into_iter().filter(|it| !it.0.starts_with(b".mlx/"));
    let files = files.map(|(path, what)| format!("{} {what}", String::from_utf8_lossy(&path)));
    files.chain([sandbox.json("status")["clean"].to_string()]).collect()
}

/// Kills the command at random moments fifty times; run again, it gives what it would have given.
fn survives_kills(prepare: &[&str], args: &str) {
    let sandbox = world();
    prepare.iter().for_each(|it| drop(sandbox.ok(it)));
    keep(&sandbox);
    let start = std::time::Instant::now();
    sandbox.ok(args);
    let whole = start.elapsed();
    let expected = outcome(&sandbox);
    let mut killed = 0;
    for round in 0..50_u32 {
        start_again(&sandbox);
        let mut child = command(&sandbox, args)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the command's whole life, in no order that repeats.
        thread::sleep(whole * ((round * 37) % 50) / 50);
        killed += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        sandbox.ok(args);
        assert_eq!(outcome(&sandbox), expected, "round {round}");
        if args == "push" {
            pulls_whole(&sandbox);
        }
    }
    assert!(killed > 10, "only {killed} of 50 were killed before their end");
}

fn pulls_whole(sandbox: &Sandbox) {
    let clone = sandbox.root().join("clone");
    sandbox.commit("all");
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), clone.display()));
    sandbox.at(&clone).ok("pull");
    assert_eq!(snapshot(&clone.join("data")), snapshot(&sandbox.repo.join("data")));
}

#[test]
fn fifty_kills_of_add_lose_nothing() {
    survives_kills(&[], "add data");
}

#[test]
fn fifty_kills_of_repro_lose_nothing() {
    survives_kills(&["add data"], "repro");
}

#[test]
fn fifty_kills_of_push_lose_nothing() {
    survives_kills(&["add data", "repro"], "push");
}

/// Fails, then kills, at every disk operation of a command in turn.
fn survives_every_fault(prepare: &dyn Fn(&Sandbox), args: &str) {
    let sandbox = Sandbox::new();
    sandbox.write("data/a/x", "one");
    sandbox.write("data/y", "two");
    sandbox.write("mlx.toml", "[stage.c]\ncmd = 'cat data/a/x > o'\ndeps = ['data']\nouts = ['o']\n");
    let remote = sandbox.root().join("remote");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    prepare(&sandbox);
    keep(&sandbox);
    sandbox.ok(args);
    let expected = outcome(&sandbox);
    for how in ["kill", "fail"] {
        for at in 1.. {
            start_again(&sandbox);
            let ran =
                ended(command(&sandbox, args).env("MLX_FAULT", format!("{how}:{at}")).output().unwrap());
            assert!(ran.code != 101 && !ran.err.contains("panicked"), "{how} {at}: {}", ran.err);
            if how == "kill" {
                is_sound(&sandbox, &format!("{how} {at}"));
            }
            sandbox.ok(args);
            assert_eq!(outcome(&sandbox), expected, "{how} {at}");
            if args == "push" {
                pulls_whole(&sandbox);
            }
            // Past the last operation nothing breaks any more; a few failures are no loss and go unseen.
            if ran.code == 0 && (how == "kill" || at > 150) {
                assert!(at > 10, "{args} passes too few fault points");
                break;
            }
        }
    }
}

/// Whatever happened, nothing that is needed is damaged or lost.
fn is_sound(sandbox: &Sandbox, what: &str) {
    let checked = sandbox.json("fsck");
    for key in ["damaged", "faults", "unreadable"] {
        assert_eq!(checked[key], serde_json::json!([]), "{what}: {key}");
    }
}

#[test]
fn add_survives_every_fault() {
    survives_every_fault(&|_| (), "add data");
}

#[test]
fn commit_survives_every_fault() {
    let edit = |it: &Sandbox| {
        it.ok("add data");
        it.write("data/y", "three");
    };
    survives_every_fault(&edit, "commit");
}

#[test]
fn repro_survives_every_fault() {
    survives_every_fault(&|it| drop(it.ok("add data")), "repro");
}

#[test]
fn push_survives_every_fault() {
    survives_every_fault(&|it| drop(it.ok("add data")), "push");
}

#[test]
fn pull_survives_every_fault() {
    let elsewhere = |it: &Sandbox| {
        it.ok("add data");
        it.ok("repro");
        it.ok("push");
        it.commit("all");
        fs::remove_dir_all(it.repo.join("data")).unwrap();
        fs::remove_file(it.repo.join("o")).unwrap();
        fs::remove_dir_all(it.repo.join(".git/mlx")).unwrap();
    };
    survives_every_fault(&elsewhere, "pull");
}

#[test]
fn checkout_survives_every_fault() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a/x", "one");
    sandbox.ok("add data");
    let expected = snapshot(&sandbox.repo);
    for how in ["kill", "fail"] {
        for at in 1.. {
            fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
            let ran = ended(
                command(&sandbox, "checkout").env("MLX_FAULT", format!("{how}:{at}")).output().unwrap(),
            );
            if how == "kill" {
                is_sound(&sandbox, &format!("{how} {at}"));
            }
            sandbox.ok("checkout");
            assert_eq!(snapshot(&sandbox.repo), expected, "{how} {at}");
            if ran.code == 0 && (how == "kill" || at > 100) {
                break;
            }
        }
    }
}

/// Flips one bit in each file of the cache in turn.
#[test]
fn damage_in_the_cache_is_found_named_and_mended_from_a_remote() {
    let sandbox = world();
    sandbox.ok("add data");
    sandbox.ok("push");
    let expected = snapshot(&sandbox.repo.join("data"));
    let cache = sandbox.repo.join(".git/mlx");
    let mut files = Vec::new();
    for folder in ["packs", "objects"] {
        files.extend(fs::read_dir(cache.join(folder)).unwrap().map(|it| it.unwrap().path()));
    }
    assert!(files.len() >= 5);
    for file in files {
        flip(&file);
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

fn flip(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() / 3;
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// A disk of one megabyte, where the machine lets us mount one.
#[test]
fn a_full_disk_is_named_and_loses_nothing() {
    let sandbox = world();
    let mount = sandbox.root().join("small");
    fs::create_dir(&mount).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=600k", "tmpfs"]).arg(&mount).output();
    if !mounted.is_ok_and(|it| it.status.success()) {
        return crate::sandbox::skip(
            "a_full_disk_is_named_and_loses_nothing",
            "this user cannot mount a small disk",
        );
    }
    sandbox.ok(&format!("config set --local cache.dir {}", mount.join("cache").display()));
    let before = snapshot(&sandbox.repo);
    let ran = sandbox.mlx("add data");
    let left = snapshot(&sandbox.repo);
    Command::new("umount").arg(&mount).status().unwrap();
    assert_eq!(ran.code, 7, "{}", ran.err);
    assert!(ran.err.contains("the disk is full"), "{}", ran.err);
    assert_eq!(left, before);
}
