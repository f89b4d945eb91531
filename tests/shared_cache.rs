//! Tests a cache that several clones share: each clone publishes a list of the objects it needs, and `gc`
//! refuses while a list is stale or unreadable.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::sandbox::Sandbox;

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
        assert!(sandbox.fails(GC_NOW, 4).contains("older than its refs"), "before `{command}`");
        other_clone.ok(command);
        sandbox.ok(GC_NOW);
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
    assert!(sandbox.fails(GC_NOW, 4).contains("is on another machine, far-away"));
    sandbox.ok("gc --forget 0123456789abcdef --grace 0s --yes");
    fs::remove_file(other.join("data")).unwrap();
    sandbox.at(&other).ok("checkout");
}
