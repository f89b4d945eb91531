//! Tests a cache that several clones share: each clone publishes a list of the objects it needs. `gc`
//! renews the lists of clones that it can read, and is careful with what the others may need.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use mlx::{
    digest::Digest,
    store::{Index, Kind},
};

use crate::sandbox::{Sandbox, SandboxFolder, command_result};

const GC_NOW: &str = "gc --grace 0s --yes";

/// Creates two clones that share a cache; the other one tracks `data`, `o` and `x`, and has a remote.
fn two_clones() -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new();
    sandbox.commit("one");
    let [cache, other, remote] = ["cache", "other", "remote"].map(|name| sandbox.root().join(name));
    fs::create_dir(&remote).unwrap();
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), other.display()));
    for folder in [&sandbox.repo, &other] {
        sandbox.at(folder).ok(&format!("config set --local cache.dir {}", cache.display()));
    }
    let other_clone = sandbox.at(&other);
    other_clone.ok(&format!("remote add origin file://{} --default", remote.display()));
    for name in ["data", "x"] {
        fs::write(other.join(name), name).unwrap();
        other_clone.ok(&format!("add {name}"));
    }
    fs::write(other.join("mlx.toml"), "[stage.s]\ncmd = 'cp data o'\ndeps = ['data']\nouts = ['o']\n")
        .unwrap();
    other_clone.ok("repro");
    other_clone.ok("push");
    (sandbox, other)
}

/// Returns the text of the list that a clone published in the cache.
fn clone_list(sandbox: &Sandbox, clone: &Path) -> String {
    let lists = fs::read_dir(sandbox.root().join("cache/clones")).unwrap().map(|entry| entry.unwrap().path());
    let texts = lists.map(|path| fs::read_to_string(path).unwrap());
    let path = format!("path = \"{}\"", clone.display());
    texts.into_iter().find(|text| text.contains(&path)).unwrap()
}

#[test]
fn a_clone_list_names_path_user_and_needed_digests() {
    let (sandbox, other) = two_clones();
    let list = clone_list(&sandbox, &other);
    let digest = blake3::hash(b"data").to_hex();
    assert!(list.contains("user = ") && list.contains(&format!("\"b3:{digest}\"")), "{list}");
}

#[test]
fn every_writing_command_renews_the_clone_list() {
    let (sandbox, other) = two_clones();
    let other_clone = sandbox.at(&other);
    let commands = [
        "add data",
        "commit",
        "checkout",
        "checkout --rev HEAD",
        "repro",
        "fetch",
        "pull",
        "fsck",
        "gc",
        "move x y",
        "remove y",
    ];
    for command in commands {
        other_clone.git("add -A");
        other_clone.git("commit -q --allow-empty -m more");
        let refs = || {
            clone_list(&sandbox, &other).lines().find(|line| line.starts_with("refs = ")).map(str::to_owned)
        };
        let before = refs();
        other_clone.ok(command);
        assert_ne!(refs(), before, "after `{command}`");
        assert_eq!(
            refs(),
            {
                other_clone.ok("add data");
                refs()
            },
            "after `{command}`"
        );
    }
}

/// Returns true if an object of these bytes is in a pack of the cache.
fn is_stored(sandbox: &Sandbox, bytes: &[u8]) -> bool {
    let digest = Digest::of(bytes);
    let files = fs::read_dir(sandbox.root().join("cache/packs")).unwrap().map(|entry| entry.unwrap().path());
    let mut indexes = files.filter(|path| path.extension().is_some_and(|it| it == "idx"));
    indexes
        .any(|path| Index::parse(fs::read(path).unwrap()).unwrap().find(&digest, &[Kind::Content]).is_some())
}

/// Stores a text in a clone; nothing needs it once the next one is added.
fn add(clone: &SandboxFolder<'_>, text: &str) {
    fs::write(clone.folder.join("data"), text).unwrap();
    clone.ok("add data");
    drop(fs::remove_dir_all(clone.folder.join(".git/mlx/base")));
    drop(fs::remove_file(clone.folder.join(".git/mlx/base")));
}

#[test]
fn a_git_fetch_in_another_clone_does_not_stop_gc() {
    let (sandbox, other) = two_clones();
    let (own, other_clone) = (sandbox.at(&sandbox.repo), sandbox.at(&other));
    add(&own, "fetched");
    sandbox.git("checkout -q -b side");
    sandbox.commit("side");
    sandbox.git("checkout -q main");
    add(&own, "unneeded");
    add(&own, "needed here");
    // From now on only the other clone names it, and no list says so.
    other_clone.git(&format!("fetch -q {} side:side", sandbox.repo.display()));
    sandbox.git("branch -q -D side");
    let before = clone_list(&sandbox, &other);
    sandbox.ok(GC_NOW);
    assert!(is_stored(&sandbox, b"fetched") && is_stored(&sandbox, b"needed here"));
    assert!(!is_stored(&sandbox, b"unneeded"));
    let after = clone_list(&sandbox, &other);
    let digest = Digest::of(b"fetched").to_string();
    assert!(!before.contains(&digest) && after.contains(&digest), "{after}");
    other_clone.git("branch -q -D side");
    sandbox.ok(GC_NOW);
    assert!(!is_stored(&sandbox, b"fetched"));
}

/// Moves the times of all files in the cache into the past.
fn age_cache(sandbox: &Sandbox, days: u64) {
    for entry in walkdir::WalkDir::new(sandbox.root().join("cache")) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let time = entry.metadata().unwrap().modified().unwrap() - Duration::from_hours(24 * days);
            fs::File::open(entry.path()).unwrap().set_modified(time).unwrap();
        }
    }
}

/// Removes an object from all lists, as if none had ever named it.
fn forget(sandbox: &Sandbox, bytes: &[u8]) {
    let digest = Digest::of(bytes).to_string();
    for list in fs::read_dir(sandbox.root().join("cache/clones")).unwrap() {
        let list = list.unwrap().path();
        let text = fs::read_to_string(&list).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| !line.contains(&digest)).collect();
        if lines.len() < text.lines().count() {
            fs::write(&list, lines.join("\n")).unwrap();
        }
    }
}

/// A clone on a disk that is not mounted: what lists named, and what came since, is kept, and the rest is
/// freed.
#[test]
fn gc_beside_a_clone_that_cannot_be_read_keeps_what_it_may_need() {
    let (sandbox, other) = two_clones();
    let own = sandbox.at(&sandbox.repo);
    for text in ["garbage", "named today"] {
        add(&own, text);
    }
    forget(&sandbox, b"garbage");
    sandbox.at(&other).git("commit -q --allow-empty -m more");
    sandbox.at(&other).ok("commit");
    let away = sandbox.root().join("away");
    fs::rename(&other, &away).unwrap();
    add(&own, "came later");
    add(&own, "needed here");
    forget(&sandbox, b"came later");
    let said = sandbox.mlx(GC_NOW);
    assert!(
        said.code == 0 && said.err.contains("cannot be read: everything is kept that any clone needed"),
        "{said:?}"
    );
    for text in ["data", "x", "named today", "came later", "needed here"] {
        assert!(is_stored(&sandbox, text.as_bytes()), "{text}");
    }
    assert!(!is_stored(&sandbox, b"garbage"));
    // Its list counts for thirty days.
    age_cache(&sandbox, 29);
    sandbox.ok(GC_NOW);
    age_cache(&sandbox, 2);
    let error = sandbox.fails(GC_NOW, 4);
    assert!(
        error.contains(&format!("the clone `{}`", other.display())) && error.contains("older than 30 days"),
        "{error}"
    );
    assert!(error.contains("--forget"), "{error}");
    assert!(is_stored(&sandbox, b"data"));
    // Read again, it stops nothing, and only what is needed stays.
    fs::rename(&away, &other).unwrap();
    sandbox.ok(GC_NOW);
    for (text, stays) in [("data", true), ("x", true), ("named today", false), ("came later", false)] {
        assert_eq!(is_stored(&sandbox, text.as_bytes()), stays, "{text}");
    }
    fs::remove_file(other.join("data")).unwrap();
    sandbox.at(&other).ok("checkout");
}

/// After thirty days an object that no list names any more is freed, also beside such a clone.
#[test]
fn lists_forget_what_earlier_ones_named_after_thirty_days() {
    let (sandbox, other) = two_clones();
    let own = sandbox.at(&sandbox.repo);
    add(&own, "dropped");
    add(&own, "needed here");
    let on_day = |clone: &Path, days: u64, args: &str| {
        let mut mlx = sandbox.command(env!("CARGO_BIN_EXE_mlx"), clone);
        let time = 1_700_000_000 + days * 86_400;
        let ran = command_result(
            mlx.args(args.split(' ')).env("MLX_TIMESTAMP", time.to_string()).output().unwrap(),
        );
        assert_eq!(ran.code, 0, "{days}: {}", ran.err);
    };
    for (days, stays) in [(20, true), (40, false)] {
        // A command that writes: the list of the clone is young.
        age_cache(&sandbox, 20);
        on_day(&other, days, "commit");
        let away = sandbox.root().join("away");
        fs::rename(&other, &away).unwrap();
        on_day(&sandbox.repo, days, GC_NOW);
        assert_eq!(is_stored(&sandbox, b"dropped"), stays, "{days}");
        assert!(is_stored(&sandbox, b"needed here") && is_stored(&sandbox, b"data"), "{days}");
        fs::rename(&away, &other).unwrap();
    }
}

/// A worktree on a disk that is not mounted may need objects, so `gc` refuses; its clone keeps working.
#[test]
fn a_missing_worktree_of_a_clone_stops_gc_but_not_the_clone() {
    let (sandbox, other) = two_clones();
    let other_clone = sandbox.at(&other);
    other_clone.git("add -A");
    other_clone.git("commit -q -m two");
    let away = sandbox.root().join("away");
    other_clone.git(&format!("worktree add -q --detach {}", away.display()));
    other_clone.git(&format!("worktree lock {}", away.display()));
    fs::write(away.join("needed"), "needed").unwrap();
    sandbox.at(&away).ok("add needed");
    let disk = sandbox.root().join("disk");
    fs::rename(&away, &disk).unwrap();
    fs::write(other.join("data"), "new").unwrap();
    other_clone.ok("add data");
    let error = sandbox.fails(GC_NOW, 4);
    assert!(error.contains("which is not here"), "{error}");
    fs::rename(&disk, &away).unwrap();
    other_clone.ok("checkout");
    sandbox.ok(GC_NOW);
    fs::remove_file(away.join("needed")).unwrap();
    sandbox.at(&away).ok("checkout needed");
}

#[test]
fn an_invalid_or_another_machines_clone_list_stops_gc_until_forgotten() {
    let (sandbox, other) = two_clones();
    let clones = sandbox.root().join("cache/clones");
    let valid = clone_list(&sandbox, &other);
    let invalid = [("garbage", "cannot be read"), ("", "cannot be read"), ("format = 7\n", "cannot be")];
    for (text, why) in invalid {
        fs::write(clones.join("0123456789abcdef.toml"), text).unwrap();
        assert!(sandbox.fails(GC_NOW, 5).contains(why), "{text:?}");
    }
    let lines = valid.lines();
    let lines = lines.map(|line| if line.starts_with("host = ") { "host = \"far-away\"" } else { line });
    fs::write(clones.join("0123456789abcdef.toml"), lines.collect::<Vec<_>>().join("\n")).unwrap();
    let said = sandbox.mlx(GC_NOW);
    assert!(said.code == 0 && said.err.contains("is on another machine, far-away"), "{said:?}");
    age_cache(&sandbox, 31);
    let error = sandbox.fails(GC_NOW, 4);
    assert!(error.contains("is on another machine, far-away, and its list is older than 30 days"), "{error}");
    sandbox.ok("gc --forget 0123456789abcdef --grace 0s --yes");
    fs::remove_file(other.join("data")).unwrap();
    sandbox.at(&other).ok("checkout");
}
