//! The record against those who may push: nothing forged counts, nothing taken away goes unnoticed.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use crate::{
    release::{QA, another, approve, colleague, registered, report, share},
    sandbox::{Sandbox, skip},
};

#[test]
fn a_rejection_whose_tag_is_gone_still_stands() {
    let sandbox = registered();
    share(&sandbox);
    approve(&sandbox, "pets@v0.1.0");
    sandbox.ok(&format!("reject pets@v0.1.0 {QA} --why puppies"));
    let tag = "mlx/reject/pets@v0.1.0/production/2";
    sandbox.git(&format!("push -q origin :refs/tags/{tag}"));
    let there = colleague(&sandbox, "fresh");
    let error = there.fails("release pets@v0.1.0 --env production", 5);
    assert!(error.contains(&format!("the tag `{tag}` of event 2 is missing")), "{error}");
    assert_eq!(there.mlx("audit --verify").code, 10);
    // Whoever has it brings it back with the next event, and it says no again.
    sandbox.ok(&format!("reject pets@v0.1.0 {QA} --why again"));
    assert_eq!(there.mlx("release pets@v0.1.0 --env production").code, 10);
}

#[test]
fn a_chain_rewritten_at_the_remote_is_found_by_whoever_saw_it() {
    let sandbox = registered();
    share(&sandbox);
    approve(&sandbox, "pets@v0.1.0");
    let there = colleague(&sandbox, "colleague");
    there.ok("audit");
    sandbox.ok("release pets@v0.1.0 --env production");
    let whole = sandbox.git("rev-parse refs/mlx/audit").trim().to_owned();
    for cut in ["+refs/mlx/audit~1:refs/mlx/audit", ":refs/mlx/audit"] {
        sandbox.git(&format!("push -q -f origin {cut}"));
        for at in ["audit --verify", "rollback --env production"] {
            let ran = sandbox.mlx(at);
            assert!([5, 10].contains(&ran.code), "{cut} {at}: {ran:?}");
            assert!(format!("{}{}", ran.out, ran.err).contains("no longer holds events"), "{cut}: {ran:?}");
        }
        sandbox.git(&format!("push -q -f origin {whole}:refs/mlx/audit"));
        assert_eq!(sandbox.json("audit --verify")["sound"], true, "{cut}");
    }
    // What is no event is taken over by nobody, and when it is gone all is as before.
    let strange = sandbox.git("rev-parse HEAD").trim().to_owned();
    sandbox.git(&format!("push -q -f origin {strange}:refs/mlx/audit"));
    let error = there.fails("release pets@v0.1.0 --env production", 5);
    assert!(error.contains("no longer holds events"), "{error}");
    sandbox.git(&format!("push -q -f origin {whole}:refs/mlx/audit"));
    assert_eq!(there.json("audit --verify")["sound"], true);
}

#[test]
fn what_is_no_event_is_taken_over_by_no_clone() {
    let sandbox = registered();
    share(&sandbox);
    approve(&sandbox, "pets@v0.1.0");
    let whole = sandbox.git("rev-parse refs/mlx/audit").trim().to_owned();
    let broken = sandbox.git(&format!("commit-tree HEAD^{{tree}} -p {whole} -m x")).trim().to_owned();
    sandbox.git(&format!("push -q origin {broken}:refs/mlx/audit"));
    let there = colleague(&sandbox, "fresh");
    let error = there.fails("release pets@v0.1.0 --env production", 5);
    assert!(error.contains("the new part of the audit chain at `origin` is invalid"), "{error}");
    assert_eq!(there.mlx("audit --verify").code, 10);
    // It was never believed, so that nothing is missed when it is gone.
    sandbox.git(&format!("push -q -f origin {whole}:refs/mlx/audit"));
    assert_eq!(there.json("release pets@v0.1.0 --env production")["released"], true);
    assert_eq!(there.json("audit --verify")["sound"], true);
}

#[test]
fn a_branch_of_a_fork_has_no_say() {
    let sandbox = registered();
    share(&sandbox);
    let fork = sandbox.root().join("fork.git");
    sandbox.git(&format!("clone -q --bare {} {}", sandbox.root().join("hub.git").display(), fork.display()));
    sandbox.git(&format!("remote add fork {}", fork.display()));
    let policy = sandbox.read(".mlx/policy.toml");
    sandbox.git("checkout -q -b lax");
    sandbox.write(".mlx/policy.toml", policy.replace("approvals = 1", "approvals = 0"));
    sandbox.commit("lax");
    sandbox.git("push -q -u fork lax:main");
    sandbox.git("config remote.pushDefault fork");
    let refused = sandbox.json("release pets@v0.1.0 --env production");
    assert_eq!(refused["released"], false);
    // Which remote keeps the record is said in Git's own settings, or follows from its name.
    sandbox.git("remote rename origin hub");
    assert!(
        sandbox.fails("release pets@v0.1.0 --env production", 2).contains("`git config mlx.remote NAME`")
    );
    sandbox.git("config mlx.remote hub");
    assert_eq!(sandbox.json("release pets@v0.1.0 --env production")["released"], false);
    sandbox.git("config mlx.remote nobody");
    assert!(
        sandbox
            .fails("release pets@v0.1.0 --env production", 2)
            .contains("Git remote `nobody`, set as `mlx.remote`, not found")
    );
}

#[test]
fn any_words_can_be_said_or_are_refused_before_they_are() {
    let sandbox = registered();
    let report = report(&sandbox, "pets@v0.1.0", 0.95);
    let say = |why: &str| {
        let mut words: Vec<&str> = "approve pets@v0.1.0 --report".split(' ').collect();
        words.push(&report);
        words.extend(QA.split(' '));
        words.extend(["--why", why]);
        crate::sandbox::ended(
            sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo).args(words).output().unwrap(),
        )
    };
    let whys = [
        "see -----BEGIN NOTE",
        "a {audit} b",
        "\"\"\"'''\\",
        "x\n-----BEGIN SSH SIGNATURE-----\ny",
        "\u{1b}[31mred",
    ];
    let said = whys.map(|it| say(it).code);
    assert!(said.iter().all(|it| [0, 2].contains(it)) && said[..3] == [0, 0, 0], "{said:?}");
    let released = sandbox.mlx("release pets@v0.1.0 --env production");
    assert_eq!(released.code, 0, "{released:?}");
    let told = sandbox.ok("audit");
    assert!(!told.contains('\u{1b}') && told.contains("a {audit} b"), "{told}");
    assert_eq!(sandbox.json("audit --verify")["sound"], true);
}

#[test]
fn tags_of_others_are_neither_sent_nor_judged() {
    let sandbox = registered();
    share(&sandbox);
    sandbox.git("tag -a -m nightly nightly#latest HEAD");
    sandbox.git("push -q origin nightly#latest");
    sandbox.git("commit -q --allow-empty -m private");
    for tag in ["nightly#latest", "scratch#1", "notes@vacation", "pets@v9.9.9"] {
        sandbox.git(&format!("tag -f -a -m mine {tag} HEAD"));
    }
    // Claims that no event backs.
    sandbox.git("tag -a -m x pets#production#99 HEAD");
    approve(&sandbox, "pets@v0.1.0");
    sandbox.ok("release pets@v0.1.0 --env production");
    let hub = sandbox.root().join("hub.git");
    let there = sandbox.git(&format!("-C {} tag -l", hub.display()));
    let there: Vec<&str> = there.split_whitespace().collect();
    let expected =
        ["mlx/approve/pets@v0.1.0/production/1", "nightly#latest", "pets#production#1", "pets@v0.1.0"];
    assert_eq!(there, expected);
}

/// The push arrives and its answer does not: the event is in force, once.
#[test]
fn an_answer_that_is_lost_makes_no_second_event() {
    let sandbox = registered();
    share(&sandbox);
    for (version, strength) in [("pets@v0.1.0", ""), ("pets@v0.2.0", "0.5"), ("pets@v0.3.0", "0.4")] {
        if !strength.is_empty() {
            another(&sandbox, strength);
        }
        approve(&sandbox, version);
        sandbox.ok(&format!("release {version} --env production"));
    }
    let hook = sandbox.root().join("hub.git/hooks/reference-transaction");
    fs::write(&hook, "#!/bin/sh\n[ \"$1\" = committed ] && kill -9 $PPID\nexit 0\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let back = sandbox.json("rollback --env production");
    assert_eq!(back["version"], "pets@v0.2.0", "{back}");
    fs::remove_file(hook).unwrap();
    let rows = sandbox.json("audit");
    let count = |what: &str| rows["rows"].as_array().unwrap().iter().filter(|it| it["what"] == what).count();
    assert_eq!((count("released"), count("rolled back")), (3, 1));
    assert_eq!(sandbox.json("audit --verify")["sound"], true);
}

#[test]
fn a_version_made_anew_under_its_old_name_is_found() {
    let sandbox = registered();
    approve(&sandbox, "pets@v0.1.0");
    another(&sandbox, "0.5");
    let message = sandbox.git("tag -l --format=%(contents) pets@v0.2.0");
    fs::write(sandbox.root().join("message"), message).unwrap();
    let file = sandbox.root().join("message");
    sandbox.git(&format!("tag -f -a -F {} pets@v0.1.0 pets@v0.2.0^{{}}", file.display()));
    let found = sandbox.mlx("audit --verify");
    assert!(
        found.code == 10
            && found.out.contains("the version `pets@v0.1.0` has another package or commit than the tag"),
        "{found:?}"
    );
    sandbox.git("tag -d pets@v0.1.0");
    assert!(sandbox.mlx("audit --verify").out.contains("the version `pets@v0.1.0` is missing"));
}

#[test]
fn a_gpg_signature_counts_where_the_policy_lists_its_key() {
    let sandbox = registered();
    let gpg = |args: &[&str]| {
        let ran = sandbox.command("gpg", &sandbox.repo).args(["--batch", "--quiet"]).args(args).output();
        ran.map(|it| String::from_utf8_lossy(&it.stdout).into_owned()).ok()
    };
    if gpg(&["--version"]).is_none() {
        return skip("a_gpg_signature_counts_where_the_policy_lists_its_key", "there is no `gpg`");
    }
    let made = ["--passphrase", "", "--quick-gen-key"];
    for who in ["qa@park.example", "eve@park.example"] {
        gpg(&[&made[..], &[who, "ed25519", "sign", "never"]].concat()).unwrap();
    }
    let print = |who: &str| {
        let listed = gpg(&["--with-colons", "--list-keys", who]).unwrap();
        let line = listed.lines().find(|it| it.starts_with("fpr:")).unwrap_or_else(|| panic!("{listed}"));
        line.split(':').nth(9).unwrap().to_owned()
    };
    let policy = sandbox.read(".mlx/policy.toml").replacen(
        "keys = []",
        &format!("keys = [\"gpg {}\"]", print("qa@park.example")),
        1,
    );
    sandbox.write(".mlx/policy.toml", policy.replace("signed = false", "signed = true"));
    sandbox.commit("signed");
    let args = format!("approve pets@v0.1.0 --report {} {QA}", report(&sandbox, "pets@v0.1.0", 0.95));
    sandbox.git(&format!("config user.signingKey {}", print("eve@park.example")));
    let refused = sandbox.fails(&args, 6);
    assert!(refused.contains("not signed by a key that the policy lists"), "{refused}");
    sandbox.git(&format!("config user.signingKey {}", print("qa@park.example")));
    assert_eq!(sandbox.json(&args)["signed"], true);
    sandbox.git("verify-tag mlx/approve/pets@v0.1.0/production/1");
    assert_eq!(sandbox.json("release pets@v0.1.0 --env production")["released"], true);
    // The key is taken off the list: what it signed counts no longer.
    let policy =
        sandbox.read(".mlx/policy.toml").replace(&print("qa@park.example"), &print("eve@park.example"));
    sandbox.write(".mlx/policy.toml", policy);
    sandbox.commit("rotated");
    let gates = sandbox.mlx("release pets@v0.1.0 --env production");
    assert!(gates.code == 10 && gates.out.contains("did not sign with a key"), "{gates:?}");
    stop_agent(&sandbox);
}

/// The agent that `gpg` started ends with the test.
fn stop_agent(sandbox: &Sandbox) {
    let _none = sandbox.command("gpgconf", Path::new(&sandbox.repo)).args(["--kill", "all"]).status();
}
