//! Tests of approvals, releases and rollbacks: the gates of the policy, signatures, the tags and the chain
//! of audit events, and that an event has no effect before it is pushed.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    model::small_project,
    sandbox::{Sandbox, SandboxFolder, command_result},
};

/// Flags that name the environment and an approver of the policy.
pub const QA: &str = "--env production --as qa@park.example";

/// Creates a project with a default remote, a committed policy and the registered model `pets@v0.1.0`.
pub fn registered() -> Sandbox {
    let sandbox = small_project(20);
    sandbox.ok("add data");
    sandbox.ok("repro");
    let remote = sandbox.root().join("objects");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.commit("first");
    sandbox.ok("model register pets");
    sandbox
}

/// Trains the model with another regularization strength and registers it as its next version.
pub fn register_another(sandbox: &Sandbox, strength: &str) {
    let params = sandbox.read("params.toml");
    let start = params.find("strengths = [").unwrap();
    let end = start + params[start..].find(']').unwrap();
    sandbox.write("params.toml", format!("{}strengths = [{strength}{}", &params[..start], &params[end..]));
    sandbox.ok("repro");
    sandbox.commit("next");
    sandbox.ok("model register pets");
}

/// Writes a report of an application test, with the fields that a release checks. Returns its path.
pub fn write_report(sandbox: &Sandbox, version: &str, accuracy: f64) -> String {
    let package = sandbox.json(&format!("model show {version}"))["package"].clone();
    let rows = json!({"cat": accuracy, "dog": accuracy});
    let digest = package["digest"].as_str().map_or(package.clone(), Value::from);
    let value = json!({"format": 1, "version": version, "package": digest,
        "accuracy": accuracy, "precision": rows, "recall": rows, "latency": {"p99": 12.5},
        "checks": [{"name": "same answers", "passed": true}]});
    let path = sandbox.root().join(format!("report-{version}-{accuracy}.json"));
    fs::write(&path, value.to_string()).unwrap();
    path.display().to_string()
}

/// Approves a version for production with a report of 95 % accuracy.
pub fn approve(sandbox: &Sandbox, version: &str) {
    sandbox.ok(&format!("approve {version} --report {} {QA}", write_report(sandbox, version, 0.95)));
}

/// Creates the bare repository `hub.git` as the Git remote `origin`, and pushes everything to it.
pub fn push_to_hub(sandbox: &Sandbox) {
    let hub = sandbox.root().join("hub.git");
    sandbox.git(&format!("init -q --bare -b main {}", hub.display()));
    sandbox.git(&format!("remote add origin {}", hub.display()));
    sandbox.git("push -q -u origin main");
    sandbox.git("push -q --tags origin");
    sandbox.ok("push");
}

/// Clones `hub.git` into a folder of this name.
pub fn clone_hub<'s>(sandbox: &'s Sandbox, name: &str) -> SandboxFolder<'s> {
    let folder = sandbox.root().join(name);
    sandbox.git(&format!("clone -q {} {}", sandbox.root().join("hub.git").display(), folder.display()));
    sandbox.at(&folder)
}

#[test]
fn a_version_is_approved_released_and_rolled_back() {
    let sandbox = registered();
    let refused = sandbox.mlx("release pets@v0.1.0 --env production");
    assert_eq!(refused.code, 10, "{}", refused.err);
    assert!(
        refused.out.contains("CLOSED") && refused.out.contains("does not meet the policy of production"),
        "{}",
        refused.out
    );
    let printed = sandbox
        .ok(&format!("approve pets@v0.1.0 --report {} {QA}", write_report(&sandbox, "pets@v0.1.0", 0.95)));
    assert!(
        printed.contains("the approver's name is not verified")
            && printed.contains("tag mlx/approve/pets@v0.1.0/production/1"),
        "{printed}"
    );
    let released = sandbox.json("release pets@v0.1.0 --env production");
    assert_eq!((&released["released"], &released["tag"]), (&json!(true), &json!("pets#production#1")));
    assert!(
        sandbox.fails("release pets@v0.1.0 --env production", 4).contains("already serves in `production`")
    );

    register_another(&sandbox, "0.5");
    approve(&sandbox, "pets@v0.2.0");
    assert_eq!(sandbox.json("release pets@v0.2.0 --env production --why better")["tag"], "pets#production#2");
    let back = sandbox.json("rollback --env production --why 'worse at night'");
    assert_eq!((&back["version"], &back["tag"]), (&json!("pets@v0.1.0"), &json!("pets#production#3")));
    assert!(
        sandbox.fails("rollback --env production", 3).contains("no earlier version served in `production`")
    );

    let message = sandbox.git("tag -l --format=%(contents) pets#production#2");
    let package = &sandbox.json("model show pets@v0.2.0")["package"];
    for part in [
        "previous = \"pets#production#1\"",
        "version = \"pets@v0.2.0\"",
        "approvals = [\"mlx/approve/pets@v0.2.0/production/1\"]",
        "why = \"better\"",
        "policy = \"b3:",
        "audit = \"",
        package["digest"].as_str().unwrap_or_else(|| package.as_str().unwrap()),
    ] {
        assert!(message.contains(part), "{part}\n{message}");
    }
    let rows = sandbox.json("audit");
    let what: Vec<&str> =
        rows["rows"].as_array().unwrap().iter().map(|it| it["what"].as_str().unwrap()).collect();
    for word in ["ingested", "trained", "tested", "registered", "approved", "released", "rolled back"] {
        assert!(what.contains(&word), "{word}: {rows}");
    }
    let sound = sandbox.json("audit --verify");
    assert_eq!(sound, json!({"sound": true, "events": 5, "tags": 5, "findings": []}));
}

#[test]
fn a_rejection_holds_until_the_same_person_approves() {
    let sandbox = registered();
    approve(&sandbox, "pets@v0.1.0");
    sandbox.ok(&format!("reject pets@v0.1.0 {QA} --why puppies"));
    let refused = sandbox.json("release pets@v0.1.0 --env production");
    assert_eq!(refused["released"], false);
    assert_eq!(
        refused["gates"][1],
        json!({"gate": "rejections", "asked": "none", "found": "qa@park.example", "open": false})
    );
    approve(&sandbox, "pets@v0.1.0");
    assert_eq!(sandbox.json("release pets@v0.1.0 --env production")["released"], true);
    // A rollback to a version that was rejected later is refused.
    register_another(&sandbox, "0.5");
    approve(&sandbox, "pets@v0.2.0");
    sandbox.ok("release pets@v0.2.0 --env production");
    sandbox.ok(&format!("reject pets@v0.1.0 {QA} --why kittens"));
    assert!(
        sandbox
            .fails("rollback --env production", 6)
            .contains("`pets@v0.1.0` was rejected by qa@park.example")
    );
}

#[test]
fn invalid_arguments_are_errors_and_change_nothing() {
    let sandbox = registered();
    register_another(&sandbox, "0.5");
    let good = write_report(&sandbox, "pets@v0.1.0", 0.95);
    let poor = write_report(&sandbox, "pets@v0.1.0", 0.5);
    let other = write_report(&sandbox, "pets@v0.2.0", 0.95);
    fs::write(sandbox.root().join("junk"), "{}").unwrap();
    let junk = sandbox.root().join("junk").display().to_string();
    let before = sandbox.git("for-each-ref");
    for (args, code, message) in [
        (format!("approve pets@v9.0.0 --report {good} {QA}"), 3, "version `pets@v9.0.0` is not registered"),
        (format!("approve pets --report {good} {QA}"), 2, "`pets` is not the full name of a version"),
        (
            format!("approve pets@v0.1.0 --report {good} --env moon --as qa@park.example"),
            3,
            "environment `moon` not found in the policy",
        ),
        (
            format!("approve pets@v0.1.0 --report {good} --env production --as eve@x"),
            6,
            "does not list `eve@x` as an approver",
        ),
        (format!("approve pets@v0.1.0 --report {other} {QA}"), 4, "the report is on pets@v0.2.0"),
        (format!("approve pets@v0.1.0 --report {junk} {QA}"), 5, "not one of an application test"),
        (format!("approve pets@v0.1.0 --report /nowhere {QA}"), 3, "cannot read `/nowhere`"),
        (format!("reject pets@v0.1.0 {QA} --why ' '"), 2, "a rejection needs a reason"),
        ("release pets@v9.0.0 --env production".into(), 3, "version `pets@v9.0.0` is not registered"),
        ("release pets@v0.1.0 --env moon".into(), 3, "environment `moon` not found in the policy"),
        ("rollback --env production".into(), 3, "no version was released to `production`"),
    ] {
        let error = sandbox.fails(&args, code);
        assert!(
            error.contains(message) && error.contains("hint: ") || code == 3 && error.contains(message),
            "{args}: {error}"
        );
    }
    assert_eq!(sandbox.git("for-each-ref"), before);
    // A report below the limits can be approved, but opens no gate.
    let printed = sandbox.ok(&format!("approve pets@v0.1.0 --report {poor} {QA}"));
    assert!(printed.contains("some gates for a release are still closed"), "{printed}");
    assert_eq!(sandbox.mlx("release pets@v0.1.0 --env production").code, 10);
    // An uncommitted policy does not count, and one with an unknown field is an error.
    let policy = sandbox.read(".mlx/policy.toml");
    sandbox.write(".mlx/policy.toml", policy.replace("accuracy", "acuracy"));
    assert_eq!(sandbox.mlx("release pets@v0.1.0 --env production").code, 10);
    sandbox.commit("misspelled");
    let error = sandbox.fails("release pets@v0.1.0 --env production", 2);
    assert!(error.contains("unknown field `acuracy`"), "{error}");
    sandbox.git("rm -q .mlx/policy.toml");
    sandbox.git("commit -q -m none");
    assert!(
        sandbox
            .fails("release pets@v0.1.0 --env production", 6)
            .contains("`.mlx/policy.toml` not found in commit")
    );
}

#[test]
fn an_event_that_cannot_be_pushed_has_no_effect() {
    let sandbox = registered();
    push_to_hub(&sandbox);
    let hub = sandbox.root().join("hub.git");
    fs::rename(&hub, sandbox.root().join("away")).unwrap();
    let before = sandbox.git("for-each-ref");
    let args = format!("approve pets@v0.1.0 --report {} {QA}", write_report(&sandbox, "pets@v0.1.0", 0.95));
    assert!(sandbox.fails(&args, 7).contains("the Git remote `origin` cannot be reached"));
    assert_eq!(sandbox.git("for-each-ref"), before);
    fs::rename(sandbox.root().join("away"), &hub).unwrap();
    // A hub that refuses every push.
    let hook = hub.join("hooks/pre-receive");
    fs::write(&hook, "#!/bin/sh\necho 'tags are guarded here'; exit 1\n").unwrap();
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = sandbox.fails(&args, 6);
    assert!(error.contains("refuses your events") && error.contains("tags are guarded here"), "{error}");
    assert_eq!(sandbox.git("tag -l mlx/*"), "");
    fs::remove_file(hook).unwrap();
    assert_eq!(sandbox.json(&args)["pushed_to"], "origin");
    let other = clone_hub(&sandbox, "colleague");
    let released = other.json("release pets@v0.1.0 --env production");
    assert_eq!(released["released"], true, "{released}");
    assert_eq!(sandbox.json("audit")["rows"].as_array().unwrap().last().unwrap()["what"], "released");
    // Only the pushed policy counts.
    let policy = sandbox.read(".mlx/policy.toml");
    sandbox.write(".mlx/policy.toml", policy.replace("approvals = 1", "approvals = 0"));
    sandbox.commit("lax");
    register_another(&sandbox, "0.5");
    assert_eq!(sandbox.mlx("release pets@v0.2.0 --env production").code, 10);
}

#[test]
fn concurrent_approvals_are_all_recorded_in_order() {
    let sandbox = registered();
    push_to_hub(&sandbox);
    let report = write_report(&sandbox, "pets@v0.1.0", 0.95);
    let clones: Vec<_> = (0..4).map(|number| clone_hub(&sandbox, &format!("c{number}"))).collect();
    thread::scope(|scope| {
        for (person, clone) in clones.iter().enumerate() {
            let report = &report;
            scope.spawn(move || {
                for turn in 0..2 {
                    // The same reason in the same second would be the same event.
                    let args = format!("approve pets@v0.1.0 --report {report} {QA} --why {person}-{turn}");
                    // The command gives up after five lost races; repeat it then.
                    loop {
                        let ran = clone.mlx(&args);
                        assert!(ran.code == 0 || ran.code == 4, "{}", ran.err);
                        if ran.code == 0 {
                            break;
                        }
                    }
                }
            });
        }
    });
    sandbox.ok("audit");
    let tags = sandbox.git("tag -l mlx/approve/*");
    assert_eq!(tags.lines().count(), 8, "{tags}");
    assert_eq!(sandbox.json("audit --verify")["sound"], true);
}

#[test]
fn signed_approvals_count_only_with_a_listed_key() {
    let sandbox = registered();
    let keygen = |name: &str| {
        let file = sandbox.root().join(name);
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file).status();
        assert!(made.unwrap().success());
        (file.clone(), fs::read_to_string(file.with_extension("pub")).unwrap().trim().to_owned())
    };
    let (listed, public) = keygen("listed");
    let (unlisted, _) = keygen("unlisted");
    let policy = sandbox.read(".mlx/policy.toml");
    let start = policy.find("keys = []").unwrap();
    let policy = format!("{}keys = [\"{public}\"]{}", &policy[..start], &policy[start + 9..])
        .replace("signed = false", "signed = true");
    sandbox.write(".mlx/policy.toml", policy);
    sandbox.commit("signed");
    let args = format!("approve pets@v0.1.0 --report {} {QA}", write_report(&sandbox, "pets@v0.1.0", 0.95));
    sandbox.git("config gpg.format ssh");
    assert!(sandbox.fails(&args, 2).contains("`user.signingKey` is not set in Git"));
    let sign_with = |key: &Path| {
        sandbox.git("config gpg.format ssh");
        sandbox.git(&format!("config user.signingKey {}", key.display()));
    };
    sign_with(&unlisted);
    assert!(
        sandbox.fails(&args, 6).contains("not signed by a key that the policy lists for `qa@park.example`")
    );
    assert_eq!(sandbox.mlx("release pets@v0.1.0 --env production").code, 10);
    sign_with(&listed);
    let approved = sandbox.json(&args);
    assert_eq!(approved["signed"], true);
    // Git itself verifies the signature too.
    fs::write(sandbox.root().join("allowed"), format!("qa@park.example {public}\n")).unwrap();
    sandbox.git(&format!("config gpg.ssh.allowedSignersFile {}", sandbox.root().join("allowed").display()));
    sandbox.git("verify-tag mlx/approve/pets@v0.1.0/production/1");
    assert_eq!(sandbox.json("release pets@v0.1.0 --env production")["released"], true);
}

#[test]
fn edits_gaps_reordering_and_truncation_of_the_chain_are_detected() {
    let sandbox = registered();
    approve(&sandbox, "pets@v0.1.0");
    sandbox.ok("release pets@v0.1.0 --env production");
    register_another(&sandbox, "0.5");
    approve(&sandbox, "pets@v0.2.0");
    sandbox.ok("release pets@v0.2.0 --env production");
    let tip = sandbox.git("rev-parse refs/mlx/audit").trim().to_owned();
    let findings = |what: &str| {
        let checked = sandbox.mlx("audit --verify --json");
        let value: Value = serde_json::from_str(&checked.out).unwrap();
        assert_eq!(checked.code, 10, "{what}: {value}");
        sandbox.git(&format!("update-ref refs/mlx/audit {tip}"));
        value["findings"].to_string()
    };
    // Truncated: the last event is missing.
    sandbox.git("update-ref refs/mlx/audit refs/mlx/audit~1");
    assert!(findings("cut").contains("the tag `pets#production#2` is not on the audit chain"));
    // Edited: the last event is replaced by one with another name in it.
    let commit_files = |names: &[&str], edit: &dyn Fn(String) -> String, source: &str, parent: &str| {
        let text = edit(sandbox.git(&format!("show {source}:event.json")));
        fs::write(sandbox.root().join("event"), text).unwrap();
        let blob = sandbox.git(&format!("hash-object -w {}", sandbox.root().join("event").display()));
        let row = |name: &str| format!("100644 blob {}\t{name}\n", blob.trim());
        let rows = names.iter().map(|name| row(name)).collect::<String>();
        fs::write(sandbox.root().join("tree"), rows).unwrap();
        let tree = command_result(
            sandbox
                .command("git", &sandbox.repo)
                .arg("mktree")
                .stdin(fs::File::open(sandbox.root().join("tree")).unwrap())
                .output()
                .unwrap(),
        );
        sandbox.git(&format!("commit-tree {} -p {parent} -m x", tree.out.trim())).trim().to_owned()
    };
    let commit_event = |edit: &dyn Fn(String) -> String, source: &str, parent: &str| {
        commit_files(&["event.json"], edit, source, parent)
    };
    let new =
        commit_event(&|text| text.replace("ada@park", "eve@park"), "refs/mlx/audit", "refs/mlx/audit~1");
    sandbox.git(&format!("update-ref refs/mlx/audit {new}"));
    assert!(findings("edit").contains("is not on the audit chain"));
    // Written by another program: other spaces, or another file beside the event.
    let spaced = |text: String| text.replace(':', ": ");
    for (names, edit) in
        [(&["event.json"][..], &spaced as &dyn Fn(String) -> String), (&["event.json", "x"], &|text| text)]
    {
        let new = commit_files(names, edit, "refs/mlx/audit", "refs/mlx/audit~1");
        sandbox.git(&format!("update-ref refs/mlx/audit {new}"));
        assert!(findings("foreign").contains("it was not written by mlx"), "{names:?}");
    }
    // Gap: the third event is left out.
    let new = commit_event(&|text| text, "refs/mlx/audit", "refs/mlx/audit~2");
    sandbox.git(&format!("update-ref refs/mlx/audit {new}"));
    assert!(findings("gap").contains("its number is 4, but it is event 3 of the chain"));
    // Reordered: the fourth event comes before the third.
    let fourth = commit_event(&|text| text, "refs/mlx/audit", "refs/mlx/audit~2");
    let third = commit_event(&|text| text, "refs/mlx/audit~1", &fourth);
    sandbox.git(&format!("update-ref refs/mlx/audit {third}"));
    assert!(findings("order").contains("its number is 4, but it is event 3 of the chain"));
    // A deleted tag is reported, and restoring it makes the chain sound again.
    let tag = sandbox.git("rev-parse refs/tags/pets#production#1").trim().to_owned();
    sandbox.git("tag -d pets#production#1");
    let found = findings("tag");
    assert!(found.contains("the tag `pets#production#1` of event 2 is missing"), "{found}");
    sandbox.git(&format!("update-ref refs/tags/pets#production#1 {tag}"));
    assert_eq!(sandbox.json("audit --verify")["sound"], true);
}

/// Kills a command at different moments, and checks that the same command then finishes and the audit chain
/// stays sound.
fn survives_kills(shared: bool, args: &dyn Fn(&Sandbox) -> String, prepare: &dyn Fn(&Sandbox)) {
    let sandbox = registered();
    if shared {
        push_to_hub(&sandbox);
    }
    prepare(&sandbox);
    let args = args(&sandbox);
    let start = std::time::Instant::now();
    let backup = sandbox.root().join("kept");
    let copy = |from: &Path, to: &Path| {
        fs::create_dir_all(to).unwrap();
        let mut cp = sandbox.command("cp", from);
        assert!(
            cp.args(["-a", "repo", "objects"])
                .args(shared.then_some("hub.git"))
                .arg(to)
                .status()
                .unwrap()
                .success()
        );
    };
    copy(&sandbox.root(), &backup);
    let restore = || {
        for name in ["repo", "objects", "hub.git"] {
            drop(fs::remove_dir_all(sandbox.root().join(name)));
        }
        copy(&backup, &sandbox.root());
    };
    sandbox.ok(&args);
    let duration = start.elapsed();
    for round in 0..20_u32 {
        restore();
        let mut child = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        let words: Vec<&str> = args.split(' ').collect();
        let mut child = child
            .args(words)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(duration * ((round * 7) % 20) / 20);
        child.kill().unwrap();
        child.wait().unwrap();
        // A Git process that mlx started may go on for a moment.
        thread::sleep(Duration::from_millis(30));
        let ran = sandbox.mlx(&args);
        assert!(ran.code == 0 || ran.code == 4 && ran.err.contains("already"), "round {round}: {}", ran.err);
        assert_eq!(sandbox.json("audit --verify")["sound"], true, "round {round}");
    }
}

#[test]
fn lock_files_of_killed_processes_stop_no_command() {
    let sandbox = registered();
    push_to_hub(&sandbox);
    let other = clone_hub(&sandbox, "other");
    let report = write_report(&sandbox, "pets@v0.1.0", 0.95);
    other.ok(&format!("approve pets@v0.1.0 --report {report} {QA}"));
    let lock = |name: &str| {
        let file = sandbox.repo.join(format!(".git/{name}.lock"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "").unwrap();
    };
    lock("refs/tags/mlx/approve/pets@v0.1.0/production/1");
    lock("refs/mlx/remotes/origin/incoming");
    lock("refs/mlx/remotes/origin/audit");
    sandbox.ok("release pets@v0.1.0 --env production");
    assert_eq!(sandbox.git("tag -l mlx/approve/*"), "mlx/approve/pets@v0.1.0/production/1\n");
    lock("refs/tags/pets@v0.2.0");
    register_another(&sandbox, "0.5");
    assert_eq!(sandbox.git("tag -l pets@v0.2.0"), "pets@v0.2.0\n");
}

#[test]
fn a_killed_approve_can_be_repeated() {
    let args = |sandbox: &Sandbox| {
        format!("approve pets@v0.1.0 --report {} {QA}", write_report(sandbox, "pets@v0.1.0", 0.95))
    };
    survives_kills(true, &args, &|_| ());
    survives_kills(false, &args, &|_| ());
}

#[test]
fn a_killed_release_can_be_repeated() {
    let args = |_: &Sandbox| "release pets@v0.1.0 --env production".to_owned();
    survives_kills(true, &args, &|sandbox| approve(sandbox, "pets@v0.1.0"));
    survives_kills(false, &args, &|sandbox| approve(sandbox, "pets@v0.1.0"));
}
