//! Tests `fsck --repair` of a damaged pack beside another command, and killed between any two of its disk
//! operations.

use std::{
    fs,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    crash_safety::{command, outcome, restore_state, save_state},
    gc_halted::{run_gc_beside, write_data},
    gc_roots::{forget_bases, remove_any},
    halting::{operations, start_halting},
    sandbox::{Sandbox, command_result},
};

/// Returns the pack of the store that has an object of this text, stored as it is.
fn pack_with(sandbox: &Sandbox, text: &[u8]) -> (PathBuf, usize) {
    let packs = fs::read_dir(sandbox.repo.join(".git/mlx/packs")).unwrap().map(|entry| entry.unwrap().path());
    let at = |path: &PathBuf| fs::read(path).unwrap().windows(text.len()).position(|window| window == text);
    packs
        .filter(|path| path.extension().is_some_and(|it| it == "pack"))
        .find_map(|path| Some((path.clone(), at(&path)?)))
        .unwrap()
}

/// Damages the object of this text.
pub fn damage_object(sandbox: &Sandbox, text: &[u8]) {
    let (pack, at) = pack_with(sandbox, text);
    let mut bytes = fs::read(&pack).unwrap();
    bytes[at] ^= 1;
    fs::write(&pack, bytes).unwrap();
}

/// The halted `add` finds its files in a pack of which another object is damaged, and nothing else needs
/// them: a repair, and a gc after it, must leave them to it.
#[test]
fn a_repair_beside_an_add_loses_nothing() {
    let sandbox = Sandbox::new();
    let mut halts = 0;
    for at in operations("add data beside a repair", 4) {
        drop(fs::remove_dir_all(sandbox.repo.join(".git/mlx/packs")));
        write_data(&sandbox);
        sandbox.write("data/damaged", "this is damaged");
        sandbox.ok("add data");
        remove_any(&sandbox.repo.join("data.mlx"));
        remove_any(&sandbox.repo.join("data/damaged"));
        forget_bases(&sandbox);
        damage_object(&sandbox, b"this is damaged");
        let (child, halted) = start_halting(&sandbox, "add data", at);
        if !halted {
            break;
        }
        let mut repair =
            command(&sandbox, "fsck --repair").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It waits if the halted command holds the gate.
        let deadline = Instant::now() + Duration::from_millis(1500);
        while repair.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let (ran, swept) = run_gc_beside(&sandbox, child);
        let repaired = command_result(repair.wait_with_output().unwrap());
        assert_eq!((ran.code, swept.code), (0, 0), "{at}: {}{}", ran.err, swept.err);
        let in_use = repaired.err.contains("stays, since a running command uses it");
        assert_eq!(repaired.code, if in_use { 10 } else { 0 }, "{at}: {}{}", repaired.out, repaired.err);
        remove_any(&sandbox.repo.join("data"));
        sandbox.ok("checkout");
        assert_eq!(sandbox.read("data/f3"), "3 ".repeat(20), "{at}");
        halts += 1;
    }
    assert!(halts > 3, "add passes too few fault points");
}

#[test]
fn a_killed_repair_loses_nothing_and_the_next_one_ends_it() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.root().join("remote")).unwrap();
    write_data(&sandbox);
    sandbox.ok("add data");
    let expected = outcome(&sandbox);
    damage_object(&sandbox, "2 ".repeat(20).as_bytes());
    save_state(&sandbox);
    for at in operations("kill fsck --repair", 4) {
        restore_state(&sandbox);
        let killed =
            command(&sandbox, "fsck --repair").env("MLX_FAULT", format!("kill:{at}")).output().unwrap();
        let again = sandbox.mlx("fsck --repair");
        assert_eq!(again.code, 0, "{at}: {}{}", again.out, again.err);
        assert_eq!(sandbox.mlx("fsck").code, 0, "{at}");
        remove_any(&sandbox.repo.join("data"));
        sandbox.ok("checkout");
        assert_eq!(outcome(&sandbox), expected, "{at}");
        if command_result(killed).code == 0 {
            assert!(at > 10, "a repair passes too few fault points");
            break;
        }
    }
}
