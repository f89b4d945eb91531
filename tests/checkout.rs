//! Tests that a checkout loses nothing: unsaved edits, files that are saved while it works, and what killed
//! commands leave.

use std::{
    fs,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use crate::sandbox::{CommandResult, Sandbox, command_result, snapshot};

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

/// Starts `mlx checkout`, which halts at its n-th disk operation. Returns false if it ended before.
fn start_halting(sandbox: &Sandbox, at: u64) -> (Child, bool) {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    command.arg("checkout").env("MLX_FAULT", format!("stop:{at}"));
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
        let (child, halted) = start_halting(&sandbox, at);
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
    for command in ["checkout", "add data"] {
        // No process has this id.
        let temp = ".mlx-tmp-4194999-0-0";
        for folder in ["", "data/", "data/unknown/"] {
            sandbox.write(&format!("{folder}{temp}"), "half");
        }
        sandbox.ok(command);
        assert_eq!([sandbox.has(temp), sandbox.has(&format!("data/{temp}"))], [false; 2], "{command}");
        assert!(!sandbox.has(&format!("data/unknown/{temp}")), "{command}");
    }
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
