//! Tests of the audit chain against users who may push: forged events and tags have no effect, and deleted
//! or rewritten ones are detected.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use crate::{
    release::{QA, approve, clone_hub, push_to_hub, register_another, registered, write_report},
    sandbox::{Sandbox, skip},
};

#[test]
fn a_rejection_with_a_deleted_tag_still_blocks_releases() {
    let sandbox = registered();
    push_to_hub(&sandbox);
    approve(&sandbox, "pets@v0.1.0");
    sandbox.ok(&format!("reject pets@v0.1.0 {QA} --why puppies"));
    let tag = "mlx/reject/pets@v0.1.0/production/2";
    sandbox.git(&format!("push -q origin :refs/tags/{tag}"));
    let other = clone_hub(&sandbox, "fresh");
    let error = other.fails("release pets@v0.1.0 --env production", 5);
    assert!(error.contains(&format!("the tag `{tag}` of event 2 is missing")), "{error}");
    assert_eq!(other.mlx("audit --verify").code, 10);
    // A clone that has the tag pushes it again with its next event, and the rejection counts.
    sandbox.ok(&format!("reject pets@v0.1.0 {QA} --why again"));
    assert_eq!(other.mlx("release pets@v0.1.0 --env production").code, 10);
}

#[test]
fn a_rewritten_remote_chain_is_detected_by_clones_that_saw_it() {
    let sandbox = registered();
    push_to_hub(&sandbox);
    approve(&sandbox, "pets@v0.1.0");
    let other = clone_hub(&sandbox, "colleague");
    other.ok("audit");
    sandbox.ok("release pets@v0.1.0 --env production");
    let tip = sandbox.git("rev-parse refs/mlx/audit").trim().to_owned();
    for cut in ["+refs/mlx/audit~1:refs/mlx/audit", ":refs/mlx/audit"] {
        sandbox.git(&format!("push -q -f origin {cut}"));
        for args in ["audit --verify", "rollback --env production"] {
            let ran = sandbox.mlx(args);
            assert!([5, 10].contains(&ran.code), "{cut} {args}: {ran:?}");
            assert!(format!("{}{}", ran.out, ran.err).contains("no longer holds events"), "{cut}: {ran:?}");
        }
        sandbox.git(&format!("push -q -f origin {tip}:refs/mlx/audit"));
        assert_eq!(sandbox.json("audit --verify")["sound"], true, "{cut}");
    }
    // A commit that is not an event is not accepted; once it is removed, everything is as before.
    let unrelated = sandbox.git("rev-parse HEAD").trim().to_owned();
    sandbox.git(&format!("push -q -f origin {unrelated}:refs/mlx/audit"));
    let error = other.fails("release pets@v0.1.0 --env production", 5);
    assert!(error.contains("no longer holds events"), "{error}");
    sandbox.git(&format!("push -q -f origin {tip}:refs/mlx/audit"));
    assert_eq!(other.json("audit --verify")["sound"], true);
}

#[test]
fn an_invalid_event_is_not_accepted_by_any_clone() {
    let sandbox = registered();
    push_to_hub(&sandbox);
    approve(&sandbox, "pets@v0.1.0");
    let tip = sandbox.git("rev-parse refs/mlx/audit").trim().to_owned();
    let broken = sandbox.git(&format!("commit-tree HEAD^{{tree}} -p {tip} -m x")).trim().to_owned();
    sandbox.git(&format!("push -q origin {broken}:refs/mlx/audit"));
    let other = clone_hub(&sandbox, "fresh");
    let error = other.fails("release pets@v0.1.0 --env production", 5);
    assert!(error.contains("the new part of the audit chain at `origin` is invalid"), "{error}");
    assert_eq!(other.mlx("audit --verify").code, 10);
    // The event was never accepted, so that its removal is not an error.
    sandbox.git(&format!("push -q -f origin {tip}:refs/mlx/audit"));
    assert_eq!(other.json("release pets@v0.1.0 --env production")["released"], true);
    assert_eq!(other.json("audit --verify")["sound"], true);
}

#[test]
fn a_policy_on_a_fork_does_not_count() {
    let sandbox = registered();
    push_to_hub(&sandbox);
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
    // The remote of the audit chain is set in Git's settings, or else is `origin`.
    sandbox.git("remote rename origin hub");
    assert!(
        sandbox.fails("release pets@v0.1.0 --env production", 2).contains("`git config mlx.remote NAME`")
    );
    sandbox.git("config mlx.remote hub");
    assert_eq!(sandbox.json("release pets@v0.1.0 --env production")["released"], false);
    sandbox.git("config mlx.remote missing");
    assert!(
        sandbox
            .fails("release pets@v0.1.0 --env production", 2)
            .contains("Git remote `missing`, set as `mlx.remote`, not found")
    );
}

#[test]
fn any_reason_is_stored_safely_or_refused() {
    let sandbox = registered();
    let report = write_report(&sandbox, "pets@v0.1.0", 0.95);
    let approve_with = |why: &str| {
        let mut args: Vec<&str> = "approve pets@v0.1.0 --report".split(' ').collect();
        args.push(&report);
        args.extend(QA.split(' '));
        args.extend(["--why", why]);
        crate::sandbox::command_result(
            sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo).args(args).output().unwrap(),
        )
    };
    let reasons = [
        "see -----BEGIN NOTE",
        "a {audit} b",
        "\"\"\"'''\\",
        "x\n-----BEGIN SSH SIGNATURE-----\ny",
        "\u{1b}[31mred",
    ];
    let codes = reasons.map(|reason| approve_with(reason).code);
    assert!(codes.iter().all(|code| [0, 2].contains(code)) && codes[..3] == [0, 0, 0], "{codes:?}");
    let released = sandbox.mlx("release pets@v0.1.0 --env production");
    assert_eq!(released.code, 0, "{released:?}");
    let printed = sandbox.ok("audit");
    assert!(!printed.contains('\u{1b}') && printed.contains("a {audit} b"), "{printed}");
    assert_eq!(sandbox.json("audit --verify")["sound"], true);
}

#[test]
fn unrelated_tags_are_neither_pushed_nor_checked() {
    let sandbox = registered();
    push_to_hub(&sandbox);
    sandbox.git("tag -a -m nightly nightly#latest HEAD");
    sandbox.git("push -q origin nightly#latest");
    sandbox.git("commit -q --allow-empty -m private");
    for tag in ["nightly#latest", "scratch#1", "notes@vacation", "pets@v9.9.9"] {
        sandbox.git(&format!("tag -f -a -m mine {tag} HEAD"));
    }
    // A release tag that no event names.
    sandbox.git("tag -a -m x pets#production#99 HEAD");
    approve(&sandbox, "pets@v0.1.0");
    sandbox.ok("release pets@v0.1.0 --env production");
    let hub = sandbox.root().join("hub.git");
    let pushed = sandbox.git(&format!("-C {} tag -l", hub.display()));
    let pushed: Vec<&str> = pushed.split_whitespace().collect();
    let expected =
        ["mlx/approve/pets@v0.1.0/production/1", "nightly#latest", "pets#production#1", "pets@v0.1.0"];
    assert_eq!(pushed, expected);
}

/// The push arrives, but its response is lost: the event is in effect, once.
#[test]
fn a_lost_push_response_creates_no_second_event() {
    let sandbox = registered();
    push_to_hub(&sandbox);
    for (version, strength) in [("pets@v0.1.0", ""), ("pets@v0.2.0", "0.5"), ("pets@v0.3.0", "0.4")] {
        if !strength.is_empty() {
            register_another(&sandbox, strength);
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
    let count =
        |what: &str| rows["rows"].as_array().unwrap().iter().filter(|row| row["what"] == what).count();
    assert_eq!((count("released"), count("rolled back")), (3, 1));
    assert_eq!(sandbox.json("audit --verify")["sound"], true);
}

#[test]
fn a_replaced_version_tag_is_detected() {
    let sandbox = registered();
    approve(&sandbox, "pets@v0.1.0");
    register_another(&sandbox, "0.5");
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
fn a_gpg_signature_counts_if_the_policy_lists_its_key() {
    let sandbox = registered();
    let gpg = |args: &[&str]| {
        let ran = sandbox.command("gpg", &sandbox.repo).args(["--batch", "--quiet"]).args(args).output();
        ran.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).ok()
    };
    if gpg(&["--version"]).is_none() {
        return skip("a_gpg_signature_counts_if_the_policy_lists_its_key", "`gpg` is not installed");
    }
    let generate = ["--passphrase", "", "--quick-gen-key"];
    for who in ["qa@park.example", "eve@park.example"] {
        gpg(&[&generate[..], &[who, "ed25519", "sign", "never"]].concat()).unwrap();
    }
    let fingerprint = |who: &str| {
        let listed = gpg(&["--with-colons", "--list-keys", who]).unwrap();
        let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap_or_else(|| panic!("{listed}"));
        line.split(':').nth(9).unwrap().to_owned()
    };
    let policy = sandbox.read(".mlx/policy.toml").replacen(
        "keys = []",
        &format!("keys = [\"gpg {}\"]", fingerprint("qa@park.example")),
        1,
    );
    sandbox.write(".mlx/policy.toml", policy.replace("signed = false", "signed = true"));
    sandbox.commit("signed");
    let args = format!("approve pets@v0.1.0 --report {} {QA}", write_report(&sandbox, "pets@v0.1.0", 0.95));
    sandbox.git(&format!("config user.signingKey {}", fingerprint("eve@park.example")));
    let refused = sandbox.fails(&args, 6);
    assert!(refused.contains("not signed by a key that the policy lists"), "{refused}");
    sandbox.git(&format!("config user.signingKey {}", fingerprint("qa@park.example")));
    assert_eq!(sandbox.json(&args)["signed"], true);
    sandbox.git("verify-tag mlx/approve/pets@v0.1.0/production/1");
    assert_eq!(sandbox.json("release pets@v0.1.0 --env production")["released"], true);
    // Once the key is removed from the policy, its signatures do not count any more.
    let policy = sandbox
        .read(".mlx/policy.toml")
        .replace(&fingerprint("qa@park.example"), &fingerprint("eve@park.example"));
    sandbox.write(".mlx/policy.toml", policy);
    sandbox.commit("rotated");
    let gates = sandbox.mlx("release pets@v0.1.0 --env production");
    assert!(gates.code == 10 && gates.out.contains("did not sign with a key"), "{gates:?}");
    stop_agent(&sandbox);
}

/// Stops the agent that `gpg` started.
fn stop_agent(sandbox: &Sandbox) {
    let _none = sandbox.command("gpgconf", Path::new(&sandbox.repo)).args(["--kill", "all"]).status();
}

#[test]
fn a_tag_that_differs_from_the_remotes_stops_what_relies_on_it() {
    let sandbox = registered();
    push_to_hub(&sandbox);
    approve(&sandbox, "pets@v0.1.0");
    sandbox.git("tag -f -a -m moved pets@v0.1.0 HEAD");
    let error = sandbox.fails("release pets@v0.1.0 --env production", 5);
    assert!(error.contains("the tag `pets@v0.1.0` here differs from the one at `origin`"), "{error}");
}

#[test]
fn a_release_without_its_tag_stops_the_next_one() {
    let sandbox = registered();
    approve(&sandbox, "pets@v0.1.0");
    let subject = "tag -l --format=%(contents:subject) mlx/approve/pets@v0.1.0/production/1";
    assert_eq!(sandbox.git(subject).trim(), "approved pets@v0.1.0 for production");
    sandbox.ok("release pets@v0.1.0 --env production");
    sandbox.git("tag -d pets#production#1");
    let error = sandbox.fails("release pets@v0.1.0 --env production", 5);
    assert!(error.contains("the tag `pets#production#1` of event 2 is missing"), "{error}");
}
