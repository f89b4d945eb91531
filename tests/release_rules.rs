//! Tests of rules that guard a release and the Git remote: an independent approver, and the protocols that
//! Git may use for mlx.

use crate::{
    release::{registered, write_report},
    sandbox::Sandbox,
};

#[test]
fn the_person_who_registered_a_version_cannot_approve_it_where_approvers_are_independent() {
    let sandbox = registered();
    let policy = sandbox.read(".mlx/policy.toml");
    let set = |independent: bool| {
        let approvers = "approvers = [\"Ada@park.example\", \"qa@park.example\"]";
        let policy = policy.replace("approvers = [\"qa@park.example\"]", approvers);
        let policy = policy.replace("[env.test]", "[people.\"Ada@park.example\"]\n\n[env.test]");
        let policy = policy.replace("signed = false", &format!("independent = {independent} #"));
        sandbox.write(".mlx/policy.toml", policy);
        sandbox.commit("policy");
    };
    set(true);
    let report = write_report(&sandbox, "pets@v0.1.0", 0.95);
    let approve = |who: &str| {
        sandbox.mlx(&format!("approve pets@v0.1.0 --report {report} --env production --as {who}"))
    };
    // Git's tagger is `ada@park.example`: the case of an address makes no other person.
    approve("Ada@park.example");
    let refused = sandbox.mlx("release pets@v0.1.0 --env production");
    assert_eq!(refused.code, 10, "{refused:?}");
    let said = format!("{}{}", refused.out, refused.err);
    assert!(said.contains("Ada@park.example registered the version"), "{said}");
    // Without the rule her approval is enough.
    set(false);
    assert_eq!(sandbox.json("release pets@v0.1.0 --env production")["released"], true);
}

#[test]
fn git_runs_no_program_that_the_address_of_a_remote_names() {
    let sandbox = Sandbox::new();
    sandbox.commit("first");
    // The user's own settings allow it, so that only the rule of mlx forbids it.
    sandbox.git("config protocol.ext.allow always");
    let started = sandbox.root().join("started");
    sandbox.git(&format!("remote add origin 'ext::touch {}'", started.display()));
    let control = sandbox.command("git", &sandbox.repo).args(["ls-remote", "origin"]).output().unwrap();
    assert!(!control.status.success() && started.exists(), "Git alone runs it: {control:?}");
    std::fs::remove_file(&started).unwrap();
    for args in ["audit --verify", "fetch", "pull"] {
        let ran = sandbox.mlx(args);
        assert!(!started.exists(), "{args}: {ran:?}");
    }
    let said = sandbox.mlx("audit --verify").err;
    assert!(said.contains("`origin` cannot be reached") && said.contains("'ext' not allowed"), "{said}");
}

#[test]
fn each_option_that_decides_who_gets_credentials_needs_trust() {
    let options = [
        ("profile", "work"),
        ("role_arn", "arn:aws:iam::1:role/x"),
        ("external_id", "x"),
        ("endpoint", "http://127.0.0.1:9"),
    ];
    for (option, value) in options {
        let sandbox = Sandbox::new();
        let trusted = || sandbox.json("remote list")["remotes"][0]["trusted"].clone();
        let set = |lines: &str| {
            let head = "[core]\nremote = \"s3\"\n[remote.s3]\nurl = \"s3://bucket/x\"\nregion = \"eu\"\n";
            sandbox.write(".mlx/config.toml", format!("{head}{lines}\n"));
        };
        set("");
        assert_eq!(trusted(), true, "the cloud's own endpoint, with the user's default credentials");
        set(&format!("{option} = \"{value}\""));
        assert_eq!(trusted(), false, "{option}");
        sandbox.write("data", "x");
        sandbox.ok("add data");
        let error = sandbox.fails("push", 6);
        assert!(error.contains("mlx remote trust s3"), "{option}: {error}");
        sandbox.ok("remote trust s3");
        assert_eq!(trusted(), true, "{option}");
        // Trust is in this value, not in the option.
        set(&format!("{option} = \"{value}0\""));
        assert_eq!(trusted(), false, "{option}");
    }
}
