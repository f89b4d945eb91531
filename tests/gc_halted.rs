//! Tests in which `gc` runs while another command is halted between two disk operations, or the other way
//! round, and signals at such points.

use std::{
    cell::Cell,
    fs,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    crash_safety::command,
    gc_roots::{GC_NOW, forget_bases, remove_any},
    halting::{operations, resume, start_halting},
    sandbox::{CommandResult, Sandbox, command_result},
};

/// SIGINT, SIGTERM and SIGHUP end a command at any point with a status that names the signal, and lose
/// nothing; the same command then finishes the work.
#[test]
fn signals_end_a_command_at_any_point_and_lose_nothing() {
    let sandbox = Sandbox::new();
    for (index, (name, number)) in [("INT", 2), ("TERM", 15), ("HUP", 1)].into_iter().enumerate() {
        for at in [5, 25, 45] {
            // Enough to do that the signals arrive before the end.
            for file in 0..200 {
                sandbox.write(&format!("data/{file}"), format!("{name} {at} {index} {file}"));
            }
            let (mut child, halted) = start_halting(&sandbox, "add data", at);
            assert!(halted, "{name} {at}");
            for signal in [name, name, "CONT"] {
                let mut kill = sandbox.command("kill", &sandbox.repo);
                // The process may have ended before the second signal.
                drop(kill.args([&format!("-{signal}"), &child.id().to_string()]).output().unwrap());
            }
            let status = child.wait().unwrap();
            let signal = status.signal().or(status.code().map(|code| code - 128));
            assert_eq!(signal, Some(number), "{name} {at}: {status}");
            let checked = sandbox.json("fsck");
            assert_eq!(
                (&checked["damaged"], &checked["faults"]),
                (&serde_json::json!([]), &serde_json::json!([])),
                "{name} {at}"
            );
            sandbox.ok("add data");
            assert_eq!(sandbox.json("status")["clean"], true, "{name} {at}");
        }
    }
}

/// Runs a gc beside a halted command, which continues once the gc has ended or waits for it. Returns the
/// results of the command and of the gc.
pub fn run_gc_beside(sandbox: &Sandbox, halted: Child) -> (CommandResult, CommandResult) {
    run_beside(sandbox, halted, command(sandbox, GC_NOW))
}

/// Runs another command beside a halted one, as [`run_gc_beside`] does.
pub fn run_beside(sandbox: &Sandbox, halted: Child, mut other: Command) -> (CommandResult, CommandResult) {
    let mut other = other.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // If the halted command holds the store's gate lock, the other one waits for it.
    let deadline = Instant::now() + Duration::from_millis(1500);
    while other.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    let ran = resume(sandbox, halted);
    (ran, command_result(other.wait_with_output().unwrap()))
}

/// Runs `gc` while another command is halted between two disk operations, at every `step`-th of them: the
/// command must end as if it ran alone.
pub fn assert_gc_at_any_point_loses_nothing(
    args: &str,
    step: u64,
    prepare: &dyn Fn(&Sandbox),
    check: &dyn Fn(&Sandbox, &str),
) {
    let sandbox = Sandbox::new();
    let remote = sandbox.root().join("remote");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    let mut halts = 0;
    for at in operations(args, step) {
        prepare(&sandbox);
        let (child, halted) = start_halting(&sandbox, args, at);
        if !halted {
            assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0), "{args}");
            break;
        }
        let (ran, swept) = run_gc_beside(&sandbox, child);
        assert_eq!((ran.code, swept.code), (0, 0), "{args} at {at}: {}{}", ran.err, swept.err);
        check(&sandbox, &format!("{args} at {at}"));
        halts += 1;
    }
    assert!(halts > 0, "{args} passes too few fault points");
}

pub fn write_data(sandbox: &Sandbox) {
    for at in 0..4 {
        sandbox.write(&format!("data/f{at}"), format!("{at} ").repeat(20));
    }
    sandbox.write("data/large", vec![7_u8; 1_100_000]);
}

/// Stores `data` without a pointer, so that nothing needs its objects.
fn store_unneeded_data(sandbox: &Sandbox) {
    write_data(sandbox);
    sandbox.ok("add data");
    remove_any(&sandbox.repo.join("data.mlx"));
    forget_bases(sandbox);
}

/// Asserts that `fsck` finds nothing wrong and that a checkout restores `data`.
fn assert_intact(sandbox: &Sandbox, case: &str) {
    for (key, value) in sandbox.json("fsck").as_object().unwrap() {
        let empty =
            !matches!(key.as_str(), "damaged" | "faults" | "unreadable") || value == &serde_json::json!([]);
        assert!(empty, "{case}: {key} {value}");
    }
    remove_any(&sandbox.repo.join("data"));
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/f3"), "3 ".repeat(20), "{case}");
    assert_eq!(fs::read(sandbox.repo.join("data/large")).unwrap().len(), 1_100_000, "{case}");
}

#[test]
fn gc_at_any_point_of_an_add_loses_nothing() {
    let round = Cell::new(0);
    let prepare = |sandbox: &Sandbox| {
        store_unneeded_data(sandbox);
        // One file that no pack has yet.
        sandbox.write("data/new", format!("{}", round.replace(round.get() + 1)));
    };
    assert_gc_at_any_point_loses_nothing("add data", 3, &prepare, &assert_intact);
}

#[test]
fn gc_at_any_point_of_a_commit_loses_nothing() {
    let round = Cell::new(0);
    let prepare = |sandbox: &Sandbox| {
        sandbox.write(
            "mlx.toml",
            "[stage.s]\ncmd = 'cp params.toml o'\nparams = ['params.toml:x']\nouts = ['o']\n",
        );
        sandbox.write("params.toml", "x = 1\n");
        sandbox.ok("repro");
        write_data(sandbox);
        sandbox.ok("add data");
        // What no pack has yet.
        sandbox.write("data/f0", format!("new {}", round.get()));
        sandbox.write("o", format!("by hand {}", round.replace(round.get() + 1)));
    };
    assert_gc_at_any_point_loses_nothing("commit", 7, &prepare, &assert_intact);
}

#[test]
fn gc_at_any_point_of_a_checkout_loses_nothing() {
    let prepare = |sandbox: &Sandbox| {
        remove_any(&sandbox.repo.join(".git/mlx/packs"));
        write_data(sandbox);
        // The gc rewrites a pack that is mostly unneeded, while the checkout reads it.
        let extra: Vec<_> = (0..40).map(|at| format!("data/extra{at}")).collect();
        extra.iter().for_each(|file| sandbox.write(file, file.repeat(20)));
        sandbox.ok("add data");
        extra.iter().for_each(|file| fs::remove_file(sandbox.repo.join(file)).unwrap());
        sandbox.ok("add data");
        remove_any(&sandbox.repo.join("data"));
        forget_bases(sandbox);
    };
    assert_gc_at_any_point_loses_nothing("checkout", 7, &prepare, &assert_intact);
}

#[test]
fn gc_at_any_point_of_a_pull_loses_nothing() {
    let prepare = |sandbox: &Sandbox| {
        write_data(sandbox);
        sandbox.ok("add data");
        sandbox.ok("push");
        for folder in ["data", ".git/mlx/packs", ".git/mlx/objects"] {
            remove_any(&sandbox.repo.join(folder));
        }
        forget_bases(sandbox);
    };
    assert_gc_at_any_point_loses_nothing("pull", 23, &prepare, &assert_intact);
}

/// Makes a folder with a large file, none of whose bytes are in `data` or in an output for another input.
pub const TRANSFORM: &str = "[stage.s]\ncmd = 'mkdir o; for n in 0 1 2 3; do cat i data/f$n > o/f$n; done; \
    cat i data/large > o/large'\ndeps = ['data', 'i']\nouts = ['o']\n";

/// Asserts that the output in the lockfile, for the input `i`, can be checked out.
pub fn assert_output_intact(sandbox: &Sandbox, input: &str, case: &str) {
    assert_intact(sandbox, case);
    remove_any(&sandbox.repo.join("o"));
    sandbox.ok("checkout o");
    assert_eq!(sandbox.read("o/f3"), format!("{input}{}", "3 ".repeat(20)), "{case}");
    let large = fs::read(sandbox.repo.join("o/large")).unwrap();
    assert_eq!(large.len(), input.len() + 1_100_000, "{case}");
}

/// A `gc` beside a run that starts stages, whose timing is random.
#[test]
fn gc_during_repro_loses_nothing() {
    let sandbox = Sandbox::new();
    sandbox.write("mlx.toml", TRANSFORM);
    for round in 0..6 {
        store_unneeded_data(&sandbox);
        sandbox.ok("add data");
        // In odd rounds, the outputs of the round before are restored.
        let input = format!("{}", round / 2);
        sandbox.write("i", &input);
        for name in ["o", "mlx.lock"] {
            remove_any(&sandbox.repo.join(name));
        }
        let spawn = |args: &str| {
            command(&sandbox, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        for child in [spawn("repro"), spawn(GC_NOW), spawn("fsck --json"), spawn(GC_NOW)] {
            let ran = command_result(child.wait_with_output().unwrap());
            assert_eq!(ran.code, 0, "{round}: {}{}", ran.out, ran.err);
        }
        assert_output_intact(&sandbox, &input, &format!("repro {round}"));
    }
}

/// Runs `add` while a `gc` is halted: everything added is kept.
#[test]
fn add_at_any_point_of_a_gc_loses_nothing() {
    let sandbox = Sandbox::new();
    let mut halts = 0;
    for at in operations("gc", 17) {
        store_unneeded_data(&sandbox);
        let (child, halted) = start_halting(&sandbox, GC_NOW, at);
        if !halted {
            assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
            break;
        }
        let add = command(&sandbox, "add data").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut add = add.unwrap();
        // If the gc holds the store's gate lock, the add waits for it.
        let deadline = Instant::now() + Duration::from_millis(1500);
        while add.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let swept = resume(&sandbox, child);
        let ran = command_result(add.wait_with_output().unwrap());
        assert_eq!((ran.code, swept.code), (0, 0), "{at}: {}{}", ran.err, swept.err);
        assert_intact(&sandbox, &format!("gc at {at}"));
        halts += 1;
    }
    assert!(halts > 0, "gc passes too few fault points");
}
