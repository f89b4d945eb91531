//! A cache that several clones share: what their lists say, and who must wait for whom.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::sandbox::Sandbox;

const NOW: &str = "gc --grace 0s --yes";

/// Two clones with one cache; the other one tracks `data`, `o` and `x`, and knows a remote.
fn shared() -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new();
    sandbox.commit("one");
    let [cache, other, remote] = ["cache", "other", "remote"].map(|it| sandbox.root().join(it));
    fs::create_dir(&remote).unwrap();
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), other.display()));
    for folder in [&sandbox.repo, &other] {
        sandbox.at(folder).ok(&format!("config set --local cache.dir {}", cache.display()));
    }
    let elsewhere = sandbox.at(&other);
    elsewhere.ok(&format!("remote add origin file://{} --default", remote.display()));
    for name in ["data", "x"] {
        fs::write(other.join(name), name).unwrap();
        elsewhere.ok(&format!("add {name}"));
    }
    fs::write(other.join("mlx.toml"), "[stage.s]\ncmd = 'cp data o'\ndeps = ['data']\nouts = ['o']\n")
        .unwrap();
    elsewhere.ok("repro");
    elsewhere.ok("push");
    (sandbox, other)
}

fn list(sandbox: &Sandbox, of: &Path) -> String {
    let lists = fs::read_dir(sandbox.root().join("cache/clones")).unwrap().map(|it| it.unwrap().path());
    let texts = lists.map(|it| fs::read_to_string(it).unwrap());
    let path = format!("path = \"{}\"", of.display());
    texts.into_iter().find(|it| it.contains(&path)).unwrap()
}

#[test]
fn a_list_says_where_a_clone_lies_whose_it_is_and_what_it_needs() {
    let (sandbox, other) = shared();
    let list = list(&sandbox, &other);
    let digest = blake3::hash(b"data").to_hex();
    assert!(list.contains("user = ") && list.contains(&format!("\"b3:{digest}\"")), "{list}");
}

#[test]
fn every_command_that_writes_renews_the_list() {
    let (sandbox, other) = shared();
    let elsewhere = sandbox.at(&other);
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
        elsewhere.git("add -A");
        elsewhere.git("commit -q --allow-empty -m more");
        assert!(sandbox.fails(NOW, 4).contains("older than its refs"), "before `{command}`");
        elsewhere.ok(command);
        sandbox.ok(NOW);
    }
}

/// A worktree on a disk that is not here: its clone goes on working, and nobody frees what it may need.
#[test]
fn a_clone_with_a_worktree_that_is_away_works_on_and_nothing_is_freed() {
    let (sandbox, other) = shared();
    let elsewhere = sandbox.at(&other);
    elsewhere.git("add -A");
    elsewhere.git("commit -q -m two");
    let away = sandbox.root().join("away");
    elsewhere.git(&format!("worktree add -q --detach {}", away.display()));
    elsewhere.git(&format!("worktree lock {}", away.display()));
    fs::write(away.join("needed"), "needed").unwrap();
    sandbox.at(&away).ok("add needed");
    let disk = sandbox.root().join("disk");
    fs::rename(&away, &disk).unwrap();
    fs::write(other.join("data"), "new").unwrap();
    elsewhere.ok("add data");
    let error = sandbox.fails(NOW, 4);
    assert!(error.contains("which is not here"), "{error}");
    fs::rename(&disk, &away).unwrap();
    elsewhere.ok("checkout");
    sandbox.ok(NOW);
    fs::remove_file(away.join("needed")).unwrap();
    sandbox.at(&away).ok("checkout needed");
}

#[test]
fn a_list_that_is_garbage_or_of_another_machine_stops_a_gc_until_it_is_forgotten() {
    let (sandbox, other) = shared();
    let clones = sandbox.root().join("cache/clones");
    let sound = list(&sandbox, &other);
    let broken =
        [("garbage", "cannot be understood"), ("", "cannot be understood"), ("format = 7\n", "cannot be")];
    for (text, why) in broken {
        fs::write(clones.join("0123456789abcdef.toml"), text).unwrap();
        assert!(sandbox.fails(NOW, 5).contains(why), "{text:?}");
    }
    let lines = sound.lines().map(|it| if it.starts_with("host = ") { "host = \"far-away\"" } else { it });
    fs::write(clones.join("0123456789abcdef.toml"), lines.collect::<Vec<_>>().join("\n")).unwrap();
    assert!(sandbox.fails(NOW, 4).contains("is on another machine, far-away"));
    sandbox.ok("gc --forget 0123456789abcdef --grace 0s --yes");
    fs::remove_file(other.join("data")).unwrap();
    sandbox.at(&other).ok("checkout");
}
