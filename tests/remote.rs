//! Tests of push, fetch and pull between clones, over a remote in a folder and over S3 on loopback.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, SandboxFolder, snapshot};

/// Creates a repository with tracked data, and a stage that has run. Nothing is committed to Git.
fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    for at in 0..50 {
        sandbox.write(&format!("data/{at}.txt"), format!("number {at}"));
    }
    sandbox.write("data/large.bin", random_bytes(6_000_000, 1));
    sandbox.write("params.toml", "x = 1\n");
    let text = "[stage.count]\n\
        cmd = 'cat data/*.txt | wc -c > count.txt; printf \"{\\\"n\\\": 1}\" > m.json'\n\
        deps = ['data']\nparams = ['params.toml:x']\nouts = ['count.txt']\nmetrics = ['m.json']\n";
    sandbox.write("mlx.toml", text);
    sandbox.ok("add data");
    sandbox.ok("repro");
    sandbox
}

/// Returns bytes of a linear congruential generator, which do not compress.
fn random_bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 56) as u8
    };
    (0..length).map(|_| next(&mut state)).collect()
}

fn clone<'s>(sandbox: &'s Sandbox, name: &str) -> SandboxFolder<'s> {
    let folder: PathBuf = sandbox.root().join(name);
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), folder.display()));
    sandbox.at(&folder)
}

/// Pushes here and pulls in a clone, where no stage runs again; then an edit in the clone comes back here.
fn round_trip(sandbox: &Sandbox) {
    let sent = sandbox.json("push");
    assert!(sent["objects"].as_u64().unwrap() > 50, "{sent}");
    assert_eq!(sandbox.json("push")["objects"], 0, "a second push sends nothing");
    sandbox.commit("all");
    let other = clone(sandbox, "clone");
    other.ok("pull");
    assert_eq!(snapshot(&other.folder.join("data")), snapshot(&sandbox.repo.join("data")));
    let again = other.json("repro");
    assert_eq!(again["stages"][0]["outcome"], "unchanged", "{again}");
    assert_eq!(other.json("status")["clean"], true);
    assert_eq!(other.json("pull")["objects"], 0);

    // An edit in the middle of the large file sends little.
    let mut bytes = fs::read(other.folder.join("data/large.bin")).unwrap();
    bytes.splice(3_000_000..3_000_000, *b"inserted");
    fs::write(other.folder.join("data/large.bin"), &bytes).unwrap();
    other.ok("add data");
    other.ok("repro");
    let sent = other.json("push");
    assert!(sent["bytes"].as_u64().unwrap() < 5_000_000, "an edit of 6 MB sends less than all of it: {sent}");
    other.git("add -A");
    other.git("commit -q -m edit");
    sandbox.git(&format!("pull -q {} main", other.folder.display()));
    sandbox.ok("pull");
    assert_eq!(fs::read(sandbox.repo.join("data/large.bin")).unwrap(), bytes);
    assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "unchanged");

    // A run of another clone is restored: push and fetch transfer run records too.
    sandbox.ok("push --all-commits");
    let third = clone(sandbox, "third");
    third.ok("fetch --all-commits");
    third.ok("checkout");
    fs::remove_file(third.folder.join("mlx.lock")).unwrap();
    assert_eq!(third.json("repro")["stages"][0]["outcome"], "restored");
}

#[test]
fn clones_exchange_data_over_a_folder() {
    let sandbox = project();
    let remote = sandbox.root().join("remote");
    let shown = sandbox.json(&format!("remote add origin file://{} --default", remote.display()));
    assert_eq!(shown["remotes"][0]["default"], true);
    round_trip(&sandbox);
    let text = fs::read_to_string(remote.join("mlx-remote.toml")).unwrap();
    assert!(text.contains("format = 1"));
    assert!(fs::read_dir(remote.join("v1/tmp")).unwrap().count() == 0, "no temporary file is left");
}

#[test]
fn clones_exchange_data_over_s3() {
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
    assert!(
        server.requests() < 200,
        "the number of requests grows with bytes, not with files: {}",
        server.requests()
    );
}

#[test]
fn diff_fetches_trees_and_no_data() {
    let sandbox = project();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.ok("push");
    sandbox.commit("one");
    sandbox.write("data/7.txt", "seven");
    sandbox.ok("add data");
    sandbox.ok("push");
    sandbox.commit("two");
    let other = clone(&sandbox, "clone");
    // `diff` fetches the tree pages it lacks, and no data.
    assert_eq!(other.json("diff data HEAD~1 HEAD"), json!([{"path": "data/7.txt", "change": "modified"}]));
    let store = other.folder.join(".git/mlx");
    assert!(!store.join("objects").exists() && !other.folder.join("data").exists());
    other.ok("fetch --trees");
    assert_eq!(other.json("status")["data"][0]["state"], "absent");
}

#[test]
fn a_missing_remote_is_named() {
    let sandbox = project();
    let error = sandbox.fails("push", 3);
    assert!(error.contains("no default remote is configured"), "{error}");
    assert!(error.contains("`mlx remote add NAME URL --default`"), "{error}");
    for (name, default) in [("one", "one"), ("two", "NAME")] {
        sandbox.ok(&format!("remote add {name} file:///nowhere/at/all"));
        let error = sandbox.fails("push", 3);
        assert!(error.contains(&format!("`mlx config set core.remote {default}`")), "{error}");
    }
    assert!(sandbox.fails("push", 3).contains("configured remotes: one, two; "));
    sandbox.ok("config set core.remote one");
    assert!(sandbox.fails("push", 3).contains("the folder `/nowhere/at/all` does not exist"));
    sandbox.ok("remote remove one");
    sandbox.ok("remote remove two");
    sandbox.ok("remote add gone file:///nowhere/at/all --default");
    assert!(sandbox.fails("push", 3).contains("the folder `/nowhere/at/all` does not exist"));
    assert!(sandbox.fails("pull", 3).contains("the folder `/nowhere/at/all` does not exist"));
    let empty = sandbox.root().join("empty");
    fs::create_dir(&empty).unwrap();
    sandbox.ok(&format!("remote add empty file://{}", empty.display()));
    assert!(sandbox.fails("fetch --remote empty", 3).contains("no mlx remote found at"));
    assert!(sandbox.fails("push --remote nope", 3).contains("configured remotes: empty, gone"));
    assert!(sandbox.fails("remote add empty file:///x", 4).contains("remote `empty` already exists"));
    assert!(sandbox.fails("remote add odd ftp://x", 2).contains("is not a valid remote URL"));
    sandbox.ok(
        "remote add dead s3://b/x --set endpoint=http://127.0.0.1:9 --set region=r --set skip_signature=true",
    );
    assert!(sandbox.fails("push --remote dead", 7).contains("the remote `dead`"));
    sandbox.ok("remote remove gone");
    assert_eq!(sandbox.json("remote list")["remotes"].as_array().unwrap().len(), 2);
}

#[test]
fn pull_names_the_remote_that_lacks_objects() {
    let sandbox = project();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.ok("push");
    sandbox.commit("all");
    let indexes = fs::read_dir(remote.join("v1/indexes")).unwrap().map(|it| it.unwrap().path());
    let largest = indexes.max_by_key(|it| it.metadata().unwrap().len()).unwrap();
    fs::remove_file(largest).unwrap();
    let other = clone(&sandbox, "clone");
    let error = other.fails("pull", 3);
    assert!(error.contains("the remote `origin` lacks "), "{error}");
}

#[test]
fn an_interrupted_fetch_resumes_where_it_stopped() {
    let sandbox = project();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.ok("push");
    sandbox.commit("all");
    let other = clone(&sandbox, "clone");
    let whole = fs::read(sandbox.repo.join("data/large.bin")).unwrap();
    let digest = blake3::hash(&whole).to_hex().to_string();
    // A killed fetch leaves the start of a large file.
    let incoming = other.folder.join(".git/mlx/incoming");
    fs::create_dir_all(&incoming).unwrap();
    fs::write(incoming.join(digest), &whole[..5_000_000]).unwrap();
    let got = other.json("fetch");
    assert!(got["bytes"].as_u64().unwrap() < 4_500_000, "{got}");
    other.ok("checkout");
    assert_eq!(fs::read(other.folder.join("data/large.bin")).unwrap(), whole);
}

#[test]
fn packs_lost_on_a_remote_are_named_and_pushed_again() {
    let sandbox = project();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.ok("push");
    sandbox.commit("all");
    let packs = fs::read_dir(remote.join("v1/packs")).unwrap().map(|it| it.unwrap().path());
    let largest = packs.max_by_key(|it| it.metadata().unwrap().len()).unwrap();
    fs::remove_file(&largest).unwrap();
    let other = clone(&sandbox, "clone");
    assert!(other.fails("pull", 3).contains("the remote `origin` lacks "));
    let ran = sandbox.mlx("push");
    let name = largest.file_name().unwrap().to_str().unwrap();
    assert!(ran.err.contains("has lost a pack") && ran.err.contains(name), "{}", ran.err);
    other.ok("pull");
    assert_eq!(snapshot(&other.folder.join("data")), snapshot(&sandbox.repo.join("data")));
    assert!(!sandbox.mlx("push").err.contains("lost"));
}

#[test]
fn a_push_after_an_interrupted_one_sends_only_the_rest() {
    let new_project = || {
        let sandbox = project();
        let remote = sandbox.root().join("remote");
        sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
        sandbox
    };
    let total = new_project().json("push")["objects"].as_u64().unwrap();
    let mut partial = 0;
    for at in (1..).step_by(3) {
        let sandbox = new_project();
        let mut push = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        let ended = push.arg("push").env("MLX_FAULT", format!("kill:{at}")).output().unwrap();
        if ended.status.success() {
            break;
        }
        let indexes = fs::read_dir(sandbox.root().join("remote/v1/indexes"));
        let arrived = indexes.map_or(0, Iterator::count);
        let rest = sandbox.json("push")["objects"].as_u64().unwrap();
        // Objects that an arrived index lists are not sent again.
        assert_eq!(rest == total, arrived == 0, "{rest} of {total} with {arrived} packs there, kill {at}");
        partial += u32::from(arrived > 0);
        assert_eq!(sandbox.json("push")["objects"], 0);
    }
    assert!(partial > 0, "no kill came between two packs");
}

#[test]
fn push_of_all_commits_sends_the_rest_beside_unreadable_ones() {
    let sandbox = Sandbox::new();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    for version in 1..=5 {
        sandbox.write("data", format!("{version}"));
        sandbox.ok("add data");
        match version {
            2 | 3 => sandbox.write("mlx.lock", "format = 9\n"),
            4 => sandbox.write("mlx.lock", "[x\n"),
            _ => drop(fs::remove_file(sandbox.repo.join("mlx.lock"))),
        }
        sandbox.commit(&format!("v{version}"));
    }
    let id = |rev: &str| sandbox.git(&format!("rev-parse {rev}")).trim().to_owned();
    let object = |id: &str| sandbox.repo.join(format!(".git/objects/{}/{}", &id[..2], &id[2..]));
    fs::write(sandbox.repo.join(".git/refs/heads/lost"), format!("{}\n", "ab".repeat(20))).unwrap();
    // A tag of a file has no commits.
    sandbox.git("tag file HEAD:data.mlx");
    let pushed = sandbox.mlx("push --all-commits --json");
    let value: Value = serde_json::from_str(&pushed.out).unwrap();
    assert_eq!((pushed.code, &value["objects"], &value["error"]["kind"]), (5, &json!(5), &json!("corrupt")));
    let named = sandbox.fails("push --all-commits", 5);
    assert_eq!(named.matches("cannot read the commit").count(), 1, "{named}");
    assert_eq!(named.matches("`mlx.lock` was written by a newer mlx").count(), 1, "{named}");
    for text in [
        "cannot read the commit abababab".to_owned(),
        format!("cannot read `mlx.lock` of the commit {}:", &id("HEAD~1")[..10]),
        " and of another: `mlx.lock` was written by a newer mlx".to_owned(),
    ] {
        assert!(named.contains(&text), "{text}: {named}");
    }
    // The parents of the oldest commits of a shallow clone are not missing.
    let shallow = sandbox.root().join("shallow");
    sandbox.git(&format!("clone -q --depth 1 file://{} {}", sandbox.repo.display(), shallow.display()));
    fs::write(shallow.join(".git/refs/heads/lost"), format!("{}\n", "ab".repeat(20))).unwrap();
    let named = sandbox.at(&shallow).fails("push --all-commits", 5);
    assert_eq!(named.matches("cannot read the commit").count(), 1, "{named}");
    // Missing objects: a pointer of one commit, and another commit.
    fs::remove_dir_all(&remote).unwrap();
    fs::create_dir(&remote).unwrap();
    fs::remove_file(object(&id("HEAD~3:data.mlx"))).unwrap();
    fs::remove_file(object(&id("HEAD~4"))).unwrap();
    let pushed = sandbox.mlx("push --all-commits --json");
    let value: Value = serde_json::from_str(&pushed.out).unwrap();
    assert_eq!((pushed.code, &value["objects"]), (5, &json!(3)), "{}", pushed.err);
    let named = sandbox.fails("push --all-commits", 5);
    assert!(named.contains(&format!("`data.mlx` of the commit {}", &id("HEAD~3")[..10])), "{named}");
    assert!(named.contains("git fsck"), "{named}");
}

/// The tip of a branch, or what a tag names, was damaged by a power cut.
#[test]
fn push_of_all_commits_names_tips_that_are_damaged() {
    for refs in ["branch side", "tag -a -m side side"] {
        let sandbox = Sandbox::new();
        sandbox
            .ok(&format!("remote add origin file://{} --default", sandbox.root().join("remote").display()));
        sandbox.write("data", "1");
        sandbox.ok("add data");
        sandbox.commit("one");
        let id = sandbox.git("commit-tree -m side HEAD^{tree}").trim().to_owned();
        sandbox.git(&format!("{refs} {id}"));
        sandbox.ok("push --all-commits");
        let object = sandbox.repo.join(format!(".git/objects/{}/{}", &id[..2], &id[2..]));
        fs::remove_file(&object).unwrap();
        for is_there in [false, true] {
            if is_there {
                fs::write(&object, "").unwrap();
            }
            let named = sandbox.fails("push --all-commits", 5);
            assert!(named.contains("cannot read the commit"), "{refs}: {named}");
        }
    }
}

#[test]
fn a_pull_says_what_it_read() {
    let sandbox = project();
    sandbox.ok(&format!("remote add origin file://{} --default", sandbox.root().join("remote").display()));
    sandbox.commit("data");
    sandbox.ok("push");
    let report = clone(&sandbox, "reader").json("pull");
    let number = |key: &str| report[key].as_u64().unwrap();
    assert!((6_000_000..6_100_000).contains(&number("bytes")), "{report}");
    assert!((51..100).contains(&number("objects")) && (2..20).contains(&number("requests")), "{report}");
}
