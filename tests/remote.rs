//! Between two clones: a folder, and S3 on loopback.

use std::{fs, path::PathBuf};

use serde_json::json;

use crate::sandbox::{Elsewhere, Sandbox, snapshot};

/// A repository with data, a stage and its result, committed.
fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    for at in 0..50 {
        sandbox.write(&format!("data/{at}.txt"), format!("number {at}"));
    }
    sandbox.write("data/large.bin", noise(6_000_000, 1));
    sandbox.write("params.toml", "x = 1\n");
    let text = "[stage.count]\ncmd = 'cat data/*.txt | wc -c > count.txt; printf \"{\\\"n\\\": 1}\" > m.json'\ndeps = ['data']\nparams = ['params.toml:x']\nouts = ['count.txt']\nmetrics = ['m.json']\n";
    sandbox.write("mlx.toml", text);
    sandbox.ok("add data");
    sandbox.ok("repro");
    sandbox
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 56) as u8
    };
    (0..length).map(|_| next(&mut state)).collect()
}

fn clone<'s>(sandbox: &'s Sandbox, name: &str) -> Elsewhere<'s> {
    let folder: PathBuf = sandbox.root().join(name);
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), folder.display()));
    sandbox.at(&folder)
}

/// Push here, pull there, nothing runs; an edit there, pushed, comes back here.
fn round_trip(sandbox: &Sandbox) {
    let sent = sandbox.json("push");
    assert!(sent["objects"].as_u64().unwrap() > 50, "{sent}");
    assert_eq!(sandbox.json("push")["objects"], 0, "a second push sends nothing");
    sandbox.commit("all");
    let there = clone(sandbox, "clone");
    there.ok("pull");
    assert_eq!(snapshot(&there.folder.join("data")), snapshot(&sandbox.repo.join("data")));
    let again = there.json("repro");
    assert_eq!(again["stages"][0]["outcome"], "unchanged", "{again}");
    assert_eq!(there.json("status")["clean"], true);
    assert_eq!(there.json("pull")["objects"], 0);

    // An edit in the middle of the large file sends little.
    let mut bytes = fs::read(there.folder.join("data/large.bin")).unwrap();
    bytes.splice(3_000_000..3_000_000, *b"inserted");
    fs::write(there.folder.join("data/large.bin"), &bytes).unwrap();
    there.ok("add data");
    there.ok("repro");
    let sent = there.json("push");
    assert!(sent["bytes"].as_u64().unwrap() < 5_000_000, "an edit of 6 MB sends less than all of it: {sent}");
    there.git("add -A");
    there.git("commit -q -m edit");
    sandbox.git(&format!("pull -q {} main", there.folder.display()));
    sandbox.ok("pull");
    assert_eq!(fs::read(sandbox.repo.join("data/large.bin")).unwrap(), bytes);
    assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "unchanged");

    // A run made elsewhere is restored here: its record travels too.
    sandbox.ok("push --all-commits");
    let third = clone(sandbox, "third");
    third.ok("fetch --all-commits");
    third.ok("checkout");
    fs::remove_file(third.folder.join("mlx.lock")).unwrap();
    assert_eq!(third.json("repro")["stages"][0]["outcome"], "restored");
}

#[test]
fn two_clones_over_a_folder() {
    let sandbox = project();
    let remote = sandbox.root().join("remote");
    let shown = sandbox.json(&format!("remote add origin file://{} --default", remote.display()));
    assert_eq!(shown["remotes"][0]["default"], true);
    round_trip(&sandbox);
    let text = fs::read_to_string(remote.join("mlx-remote.toml")).unwrap();
    assert!(text.contains("format = 1"));
    assert!(fs::read_dir(remote.join("v1/tmp")).unwrap().count() == 0, "nothing unfinished is left");
}

#[test]
fn two_clones_over_s3() {
    let sandbox = project();
    let server = crate::s3::Server::start(&sandbox.root().join("s3"), "bucket");
    fs::create_dir_all(sandbox.root().join("home/.aws")).unwrap();
    let credentials = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        crate::s3::KEY,
        crate::s3::SECRET
    );
    fs::write(sandbox.root().join("home/.aws/credentials"), credentials).unwrap();
    sandbox.ok(&format!(
        "remote add s3 s3://bucket/park --default --set endpoint={} --set region=us-east-1",
        server.endpoint()
    ));
    round_trip(&sandbox);
    assert!(server.requests() < 200, "requests follow the bytes, not the files: {}", server.requests());
}

#[test]
fn trees_alone_are_enough_to_compare() {
    let sandbox = project();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.ok("push");
    sandbox.commit("one");
    sandbox.write("data/7.txt", "seven");
    sandbox.ok("add data");
    sandbox.ok("push");
    sandbox.commit("two");
    let there = clone(&sandbox, "clone");
    // `diff` fetches the pages it lacks, and no data.
    assert_eq!(there.json("diff data HEAD~1 HEAD"), json!([{"path": "data/7.txt", "change": "modified"}]));
    let store = there.folder.join(".git/mlx");
    assert!(!store.join("objects").exists() && !there.folder.join("data").exists());
    there.ok("fetch --trees");
    assert_eq!(there.json("status")["data"][0]["state"], "absent");
}

#[test]
fn a_remote_that_is_not_there_is_named() {
    let sandbox = project();
    assert!(sandbox.fails("push", 3).contains("no default remote is configured"));
    sandbox.ok("remote add gone file:///nowhere/at/all --default");
    assert!(sandbox.fails("push", 3).contains("the folder `/nowhere/at/all` does not exist"));
    assert!(sandbox.fails("pull", 3).contains("the folder `/nowhere/at/all` does not exist"));
    let empty = sandbox.root().join("empty");
    fs::create_dir(&empty).unwrap();
    sandbox.ok(&format!("remote add empty file://{}", empty.display()));
    assert!(sandbox.fails("fetch --remote empty", 3).contains("no mlx remote found at"));
    assert!(sandbox.fails("push --remote nope", 3).contains("configured remotes: empty, gone"));
    assert!(sandbox.fails("remote add empty file:///x", 4).contains("remote `empty` already exists"));
    assert!(sandbox.fails("remote add odd ftp://x", 2).contains("is not a remote URL"));
    sandbox.ok(
        "remote add dead s3://b/x --set endpoint=http://127.0.0.1:9 --set region=r --set skip_signature=true",
    );
    assert!(sandbox.fails("push --remote dead", 7).contains("the remote `dead`"));
    sandbox.ok("remote remove gone");
    assert_eq!(sandbox.json("remote list")["remotes"].as_array().unwrap().len(), 2);
}

#[test]
fn what_a_remote_lacks_is_named_and_the_rest_is_kept() {
    let sandbox = project();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.ok("push");
    sandbox.commit("all");
    let indexes = fs::read_dir(remote.join("v1/indexes")).unwrap().map(|it| it.unwrap().path());
    let largest = indexes.max_by_key(|it| it.metadata().unwrap().len()).unwrap();
    fs::remove_file(largest).unwrap();
    let there = clone(&sandbox, "clone");
    let error = there.fails("pull", 3);
    assert!(error.contains("the remote `origin` lacks "), "{error}");
}

#[test]
fn an_interrupted_fetch_goes_on_where_it_stopped() {
    let sandbox = project();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.ok("push");
    sandbox.commit("all");
    let there = clone(&sandbox, "clone");
    let whole = fs::read(sandbox.repo.join("data/large.bin")).unwrap();
    let digest = blake3::hash(&whole).to_hex().to_string();
    // What a killed fetch leaves: the start of a large file.
    let incoming = there.folder.join(".git/mlx/incoming");
    fs::create_dir_all(&incoming).unwrap();
    fs::write(incoming.join(digest), &whole[..5_000_000]).unwrap();
    let got = there.json("fetch");
    assert!(got["bytes"].as_u64().unwrap() < 4_500_000, "{got}");
    there.ok("checkout");
    assert_eq!(fs::read(there.folder.join("data/large.bin")).unwrap(), whole);
}

#[test]
fn packs_lost_on_a_remote_are_named_and_sent_again() {
    let sandbox = project();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.ok("push");
    sandbox.commit("all");
    let packs = fs::read_dir(remote.join("v1/packs")).unwrap().map(|it| it.unwrap().path());
    let largest = packs.max_by_key(|it| it.metadata().unwrap().len()).unwrap();
    fs::remove_file(&largest).unwrap();
    let there = clone(&sandbox, "clone");
    assert!(there.fails("pull", 3).contains("the remote `origin` lacks "));
    let said = sandbox.mlx("push");
    let name = largest.file_name().unwrap().to_str().unwrap();
    assert!(said.err.contains("has lost a pack") && said.err.contains(name), "{}", said.err);
    there.ok("pull");
    assert_eq!(snapshot(&there.folder.join("data")), snapshot(&sandbox.repo.join("data")));
    assert!(!sandbox.mlx("push").err.contains("lost"));
}

#[test]
fn an_interrupted_push_sends_only_the_rest() {
    let ready = || {
        let sandbox = project();
        let remote = sandbox.root().join("remote");
        sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
        sandbox
    };
    let whole = ready().json("push")["objects"].as_u64().unwrap();
    let mut partly = 0;
    for at in (1..).step_by(3) {
        let sandbox = ready();
        let mut push = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        let ended = push.arg("push").env("MLX_FAULT", format!("kill:{at}")).output().unwrap();
        if ended.status.success() {
            break;
        }
        let indexes = fs::read_dir(sandbox.root().join("remote/v1/indexes"));
        let arrived = indexes.map_or(0, Iterator::count);
        let rest = sandbox.json("push")["objects"].as_u64().unwrap();
        // What an index names is there for good.
        assert_eq!(rest == whole, arrived == 0, "{rest} of {whole} with {arrived} packs there, kill {at}");
        partly += u32::from(arrived > 0);
        assert_eq!(sandbox.json("push")["objects"], 0);
    }
    assert!(partly > 0, "no kill came between two packs");
}
