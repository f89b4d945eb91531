//! Tests that commands on many pointers or stages do what they share once: counts disk operations.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use crate::sandbox::Sandbox;

/// Runs mlx and returns how often it did each kind of disk operation.
fn operations(sandbox: &Sandbox, args: &str) -> BTreeMap<String, usize> {
    let log = sandbox.root().join("operations");
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    command.args(args.split(' ')).env("MLX_FAULT", format!("tell:{}", log.display()));
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{args}: {}", String::from_utf8_lossy(&ran.stderr));
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(&log).unwrap().lines() {
        let name = line.split(' ').next().unwrap_or_default();
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    fs::remove_file(log).unwrap();
    counts
}

/// Returns the number of syncs among them.
fn syncs(operations: &BTreeMap<String, usize>) -> usize {
    operations.iter().filter(|(name, _)| name.starts_with("sync")).map(|it| it.1).sum()
}

fn wait_for_clock_tick() {
    std::thread::sleep(std::time::Duration::from_millis(50));
}

#[test]
fn many_pointers_are_synced_together() {
    let counts = [20, 60].map(|files| {
        let sandbox = Sandbox::new();
        (0..files).for_each(|at| sandbox.write(&format!("d{}/{at}", at % 4), at.to_string()));
        let added = operations(&sandbox, "add --glob d*/*");
        assert!(sandbox.has("d3/19.mlx"));
        for at in 0..files {
            fs::remove_file(sandbox.repo.join(format!("d{}/{at}", at % 4))).unwrap();
        }
        let placed = operations(&sandbox, "checkout");
        assert!(sandbox.has("d3/19"));
        let creates = placed["create"];
        (syncs(&added), syncs(&placed), creates - files)
    });
    assert_eq!(counts[0], counts[1]);
}

/// Creates a pipeline of stages that all read a folder of 30 others.
fn stages(count: usize) -> Sandbox {
    let sandbox = Sandbox::new();
    (0..30).for_each(|at| sandbox.write(&format!("in/{at}/x"), "x"));
    let mut text = String::new();
    for at in 0..count {
        writeln!(text, "[stage.s{at}]\ncmd = 'echo {at} >o{at}'\ndeps = ['in']\nouts = ['o{at}']").unwrap();
    }
    sandbox.write("mlx.toml", text);
    wait_for_clock_tick();
    sandbox
}

#[test]
fn an_input_of_many_stages_is_read_once_if_nothing_changed() {
    for args in ["repro", "repro --dry-run"] {
        let counts = [4, 16].map(|count| {
            let sandbox = stages(count);
            sandbox.ok("repro");
            wait_for_clock_tick();
            sandbox.ok("status");
            let again = operations(&sandbox, args);
            (again["readdir"], syncs(&again))
        });
        assert_eq!(counts[0], counts[1], "{args}");
        assert!(counts[0].0 < 200, "{args}: {counts:?}");
    }
}

#[test]
fn an_input_that_changes_between_two_stages_is_seen() {
    let sandbox = Sandbox::new();
    sandbox.write("in/x", "1");
    // The first stage changes nothing that it declares; the second one reads the same folder.
    sandbox.write(
        "mlx.toml",
        "[stage.a]\ncmd = 'cat in/x >a'\ndeps = ['in']\nouts = ['a']\n\
         [stage.b]\ncmd = 'cat in/x >b'\ndeps = ['in', 'a']\nouts = ['b']\n",
    );
    sandbox.ok("repro");
    sandbox.write("in/x", "2");
    let runs = sandbox.json("repro");
    assert_eq!(runs["stages"][1]["outcome"], "ran");
    assert_eq!((sandbox.read("a"), sandbox.read("b")), ("2".to_owned(), "2".to_owned()));
    assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "unchanged");
}

#[test]
fn stages_that_did_not_change_are_looked_at_without_a_lock() {
    let counts = [4, 16].map(|count| {
        let sandbox = stages(count);
        sandbox.ok("repro");
        wait_for_clock_tick();
        sandbox.ok("status");
        let again = operations(&sandbox, "repro");
        let number = |name: &str| again.get(name).copied().unwrap_or_default();
        // The store opens a pack of each stage, and its index.
        (number("folder"), number("create"), number("write"), number("open") - 2 * count)
    });
    assert_eq!(counts[0], counts[1]);
}

#[test]
fn a_stage_that_runs_syncs_what_it_made_and_one_marker() {
    let counts = [4, 16].map(|count| syncs(&operations(&stages(count), "repro")));
    // The name of the marker; a pack, its index, the record of the run and the lockfile with their names.
    assert_eq!(counts[1] - counts[0], 12 * 9);
}
