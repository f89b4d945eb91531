//! Tests in which a command that restores, registers or replaces something is halted between two disk
//! operations, while a `gc` runs or the user saves a file.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    crash_safety::command,
    gc_halted::{
        TRANSFORM, assert_gc_at_any_point_loses_nothing, assert_output_intact, run_gc_beside, write_data,
    },
    gc_roots::{forget_bases, remove_any},
    halting::{operations, resume, start_dying, start_halting},
    sandbox::{Sandbox, snapshot},
};

/// A restore takes bytes that nothing refers to until the lockfile names them.
#[test]
fn gc_at_any_point_of_a_restore_loses_nothing() {
    let prepare = |sandbox: &Sandbox| {
        write_data(sandbox);
        sandbox.ok("add data");
        sandbox.write("mlx.toml", TRANSFORM);
        ["o", "mlx.lock"].iter().for_each(|name| remove_any(&sandbox.repo.join(name)));
        for input in ["one", "two"] {
            sandbox.write("i", input);
            sandbox.ok("repro");
        }
        sandbox.write("i", "one");
        // A base would keep the outputs that it names.
        forget_bases(sandbox);
        assert_eq!(sandbox.json("repro --dry-run")["stages"][0]["outcome"], "would restore");
    };
    let check = |sandbox: &Sandbox, case: &str| {
        assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "unchanged", "{case}");
        assert_output_intact(sandbox, "one", case);
    };
    assert_gc_at_any_point_loses_nothing("repro", 11, &prepare, &check);
}

/// Registers a package that only an abandoned commit names, while a `gc` frees it: either the registration
/// fails, or the version has all its bytes.
#[test]
fn gc_at_any_point_of_a_registration_leaves_no_version_without_its_bytes() {
    let digest = format!("b3:{}", "0".repeat(64));
    let description = format!(
        "classes = ['a', 'b']\nformat = 1\noutput = 'p'\n[input]\ncrop = 1\nfilter = 'triangle'\nname = 'x'\n\
        resize = 1\n[made_from]\nbackbone = '{digest}'\ndata = '{digest}'\nhead = '{digest}'\n\
        params = '{digest}'\nsplit = '{digest}'\n[metrics]\n"
    );
    let sandbox = Sandbox::new();
    sandbox.write("mlx.toml", "[model.pets]\npath = 'pets'\n");
    sandbox.commit("start");
    let (mut registered, mut refused) = (0, 0);
    for at in operations("model register", 3) {
        sandbox.write("pets/model.toml", format!("{description}round = {at}\n"));
        sandbox.write("pets/model.onnx", vec![at as u8; 1_100_000 + at as usize]);
        sandbox.ok("add pets");
        sandbox.commit("package");
        let rev = sandbox.git("rev-parse HEAD");
        sandbox.git("reset -q --hard HEAD~1");
        sandbox.git("update-ref -d ORIG_HEAD");
        remove_any(&sandbox.repo.join("pets"));
        forget_bases(&sandbox);
        let args = format!("model register pets --version 0.0.{at} --rev {}", rev.trim());
        let (child, halted) = start_halting(&sandbox, &args, at);
        if !halted {
            assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0), "{args}");
            break;
        }
        let (ran, swept) = run_gc_beside(&sandbox, child);
        assert_eq!(swept.code, 0, "{at}: {}", swept.err);
        if ran.code == 0 {
            registered += 1;
            sandbox.ok(&format!("model get pets@v0.0.{at} --out got"));
            remove_any(&sandbox.repo.join("got"));
        } else {
            refused += 1;
            assert_eq!(ran.code, 3, "{at}: {}", ran.err);
            assert_eq!(sandbox.git(&format!("tag --list pets@v0.0.{at}")), "");
        }
    }
    assert!(registered > 0 && refused > 0, "{registered} {refused}");
}

/// While one `add` is halted, another of a different folder runs to its end: a lock is held only for the
/// moment in which a pointer is written.
#[test]
fn an_add_runs_beside_one_that_is_halted() {
    let (mut free, mut held) = (0, 0);
    for at in operations("add cats", 3) {
        let sandbox = Sandbox::new();
        for name in ["cats", "dogs"] {
            for number in 0..8 {
                sandbox.write(&format!("{name}/{number}"), format!("{name} {number} {at}"));
            }
        }
        let (child, halted) = start_halting(&sandbox, "add cats", at);
        if !halted {
            break;
        }
        let mut other =
            command(&sandbox, "add dogs").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let is_done = loop {
            let is_done = other.try_wait().unwrap().is_some();
            if is_done || Instant::now() > deadline {
                break is_done;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        (free, held) = if is_done { (free + 1, held) } else { (free, held + 1) };
        assert_eq!((resume(&sandbox, child).code, other.wait().unwrap().code()), (0, Some(0)), "{at}");
        assert_eq!(sandbox.json("status")["clean"], true, "{at}");
        let ignored: BTreeSet<_> = sandbox.read(".gitignore").lines().map(str::to_owned).collect();
        assert!(["/cats", "/dogs"].iter().all(|line| ignored.contains(*line)), "{at}: {ignored:?}");
    }
    assert!(free > 2 * held, "{free} times free, {held} times held");
}

/// The user saves an output at any point before `repro` replaces it: the file is kept, moved away and named,
/// or still there. A save while it is read is refused (exit 4), and the next `repro` takes it as saved.
#[test]
fn a_save_at_any_point_of_a_repro_is_not_lost() {
    let mut saved = 0;
    for at in operations("repro", 7) {
        let sandbox = Sandbox::new();
        sandbox.write("mlx.toml", "[stage.s]\ncmd = 'cp i o'\ndeps = ['i']\nouts = ['o']\n");
        sandbox.write("i", "0");
        sandbox.ok("repro");
        sandbox.write("i", format!("{at}"));
        sandbox.write("o", format!("precious {at}"));
        let (child, halted) = start_halting(&sandbox, "repro", at);
        if !halted {
            assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
            break;
        }
        let newer = format!("newer than {at}");
        let before = fs::read_to_string(sandbox.repo.join("o")).unwrap_or_default();
        if before == format!("precious {at}") {
            sandbox.write("o.new", &newer);
            fs::rename(sandbox.repo.join("o.new"), sandbox.repo.join("o")).unwrap();
            saved += 1;
        }
        let mut ran = resume(&sandbox, child);
        if ran.code == 4 && ran.err.contains("`o` changed while it was read") {
            assert_eq!(sandbox.read("o"), newer, "{at}: {}", ran.err);
            ran = sandbox.mlx("repro");
        }
        assert_eq!(ran.code, 0, "{at}: {}", ran.err);
        if before == format!("precious {at}") {
            let digest = format!("b3:{}", blake3::hash(newer.as_bytes()));
            let kept = sandbox.json("du")["kept"].as_array().unwrap().iter().any(|it| it["digest"] == digest);
            let moved = walkdir::WalkDir::new(sandbox.repo.join(".git/mlx/failed")).into_iter().flatten();
            let moved = moved.filter(|entry| entry.file_type().is_file());
            let moved = moved.into_iter().any(|entry| fs::read_to_string(entry.path()).unwrap() == newer);
            assert!(kept || moved, "{at}: {}", ran.err);
            assert!(!moved || ran.err.contains("was saved just before"), "{at}: {}", ran.err);
        }
    }
    assert!(saved > 5, "{saved}");
}

/// The user saves files while a checkout is about to replace one and remove the other, and the checkout is
/// killed right after that: the next command finds every saved file, or gives it a name that the user sees.
#[test]
fn a_save_just_before_a_checkout_is_killed_is_not_lost() {
    for next in ["checkout", "add data"] {
        let mut saved = 0;
        for at in operations("checkout", 1) {
            let sandbox = Sandbox::new();
            ["data/replaced", "data/removed"].iter().for_each(|file| sandbox.write(file, "old"));
            sandbox.ok("add data");
            sandbox.commit("old");
            sandbox.write("data/replaced", "new");
            fs::remove_file(sandbox.repo.join("data/removed")).unwrap();
            sandbox.ok("add data");
            sandbox.commit("new");
            sandbox.ok("checkout --rev HEAD~1");
            let (child, halted) = start_dying(&sandbox, "checkout", at);
            if !halted {
                // Another thread may be at the next operation already.
                if child.wait_with_output().unwrap().status.code() == Some(0) {
                    break;
                }
                continue;
            }
            let present = |file: &&str| fs::read(sandbox.repo.join(file)).is_ok_and(|bytes| bytes == b"old");
            let files: Vec<_> = ["data/replaced", "data/removed"].into_iter().filter(present).collect();
            for file in &files {
                sandbox.write("saving", format!("precious {file}"));
                fs::rename(sandbox.repo.join("saving"), sandbox.repo.join(file)).unwrap();
            }
            saved += files.len();
            resume(&sandbox, child);
            let ran = sandbox.mlx(next);
            assert!([0, 4].contains(&ran.code), "{at}: {}", ran.err);
            for file in files {
                let kept = format!("{file}.kept-1");
                let found = [file, &kept].map(|name| fs::read_to_string(sandbox.repo.join(name)));
                let is_saved =
                    |text: &Result<String, _>| text.as_ref().is_ok_and(|text| text.contains("precious"));
                assert!(found.iter().any(is_saved), "{next} {at} {file}: {}", ran.err);
                assert_eq!(is_saved(&found[1]), ran.err.contains(&kept), "{next} {at}: {}", ran.err);
            }
        }
        assert!(saved > 5, "{saved}");
    }
}

/// The user saves a file at any point before `unprotect` replaces it by a copy: the saved one stays.
#[test]
fn a_save_at_any_point_of_an_unprotect_is_not_lost() {
    let sandbox = Sandbox::new();
    sandbox.ok("config set --local cache.link hardlink");
    sandbox.write("big", vec![1; 1_100_000]);
    sandbox.ok("add big");
    let mut refused = 0;
    for at in operations("unprotect big", 1) {
        sandbox.ok("checkout --force");
        sandbox.ok("checkout --relink");
        let before = fs::metadata(sandbox.repo.join("big")).unwrap().ino();
        let (child, halted) = start_halting(&sandbox, "unprotect big", at);
        if !halted {
            assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
            break;
        }
        let is_linked = fs::metadata(sandbox.repo.join("big")).unwrap().ino() == before;
        if is_linked {
            sandbox.write("saving", "precious");
            fs::rename(sandbox.repo.join("saving"), sandbox.repo.join("big")).unwrap();
        }
        let ran = resume(&sandbox, child);
        if is_linked {
            assert_eq!(sandbox.read("big"), "precious", "{at}: {}", ran.err);
        }
        assert!([0, 4].contains(&ran.code), "{at}: {}", ran.err);
        refused += u32::from(ran.code == 4);
        let leftovers = snapshot(&sandbox.repo).into_keys().filter(|path| path.starts_with(b".mlx-"));
        assert_eq!(leftovers.count(), 0, "{at}");
    }
    assert!(refused > 2, "{refused}");
}
