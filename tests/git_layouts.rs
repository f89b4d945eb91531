//! Where a repository lies and whose it is: other people's, linked, shallow, sparse, one in the other, and settings that
//! name programs. It works or says why not; it never runs anything.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::json;

use crate::sandbox::{Ran, Sandbox, ended, skip, snapshot};

/// A commit with data that a remote has.
fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "a");
    sandbox.ok("add data");
    sandbox.ok(&format!("remote add origin file://{} --default", sandbox.root().join("remote").display()));
    sandbox.ok("push");
    sandbox.commit("one");
    sandbox.write("data/a", "b");
    sandbox.ok("add data");
    sandbox.ok("push");
    sandbox.commit("two");
    sandbox
}

/// Where programs would leave a trace.
fn traps(sandbox: &Sandbox) -> std::path::PathBuf {
    let traps = sandbox.root().join("traps");
    fs::create_dir_all(&traps).unwrap();
    for name in ["git", "ssh", "sh", "bash", "gpg", "ssh-keygen", "vi", "less", "python3", "evil", "git-lfs"]
    {
        let path = traps.join(name);
        fs::write(
            &path,
            format!("#!/bin/sh\n/bin/touch {}/ran-$(/usr/bin/basename $0)\n", sandbox.root().display()),
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    traps
}

/// Runs mlx with nothing but traps in its path.
fn trapped(sandbox: &Sandbox, folder: &Path, args: &str) -> Ran {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), folder);
    ended(command.args(args.split(' ')).env("PATH", traps(sandbox)).output().unwrap())
}

fn nothing_ran(sandbox: &Sandbox, what: &str) {
    let ran = fs::read_dir(sandbox.root()).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    let ran: Vec<_> = ran.filter(|it| it.starts_with("ran-")).collect();
    assert_eq!(ran, Vec::<String>::new(), "{what}");
}

const HARMLESS: [&str; 11] = [
    "status",
    "diff",
    "diff data HEAD~1 HEAD",
    "pull",
    "checkout",
    "fetch",
    "log data",
    "fsck",
    "gc",
    "du",
    "push",
];

#[test]
fn settings_of_a_repository_that_name_programs_run_none() {
    let sandbox = project();
    let evil = traps(&sandbox).join("evil").display().to_string();
    let hooks = sandbox.root().join("hooks");
    for folder in [&hooks, &sandbox.repo.join(".git/hooks")] {
        fs::create_dir_all(folder).unwrap();
        for name in [
            "pre-commit",
            "post-checkout",
            "post-index-change",
            "reference-transaction",
            "fsmonitor-watchman",
        ] {
            fs::copy(&evil, folder.join(name)).unwrap();
        }
    }
    let more = sandbox.root().join("more");
    fs::write(&more, format!("[core]\npager = {evil}\neditor = {evil}\naskPass = {evil}\n")).unwrap();
    let settings = format!(
        "[core]\nfsmonitor = {evil}\nsshCommand = {evil}\nhooksPath = {}\nalternateRefsCommand = {evil}\ngitProxy = {evil}\n\
         [remote \"origin\"]\nurl = ssh://host.invalid/x\nfetch = +refs/*:refs/*\nuploadpack = {evil}\nreceivepack = {evil}\n\
         [credential]\nhelper = !{evil}\n[filter \"x\"]\nclean = {evil}\nsmudge = {evil}\nprocess = {evil}\nrequired = true\n\
         [diff \"x\"]\ntextconv = {evil}\ncommand = {evil}\n[diff]\nexternal = {evil}\n[gpg]\nprogram = {evil}\n\
         [include]\npath = {}\n[uploadpack]\npackObjectsHook = {evil}\n[gc]\nrecentObjectsHook = {evil}\n",
        hooks.display(),
        more.display()
    );
    let config = sandbox.repo.join(".git/config");
    fs::write(&config, [fs::read_to_string(&config).unwrap(), settings].concat()).unwrap();
    sandbox.write(".gitattributes", "* filter=x diff=x\n");
    sandbox.write(".git/info/attributes", "* filter=x diff=x\n");
    // What is committed may name as little: these keys count in the user's own settings alone.
    let text = sandbox.read(".mlx/config.toml");
    let ours = format!(
        "{text}[alert]\ncommand = \"{evil}\"\n[onnx]\nlibrary = \"{evil}\"\n[cache]\ndir = \"{}\"\n[remote.exec]\nurl = \"exec:{evil}\"\n",
        sandbox.root().join("stolen").display()
    );
    sandbox.write(".mlx/config.toml", ours);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    for args in HARMLESS {
        let ran = trapped(&sandbox, &sandbox.repo, args);
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
        nothing_ran(&sandbox, args);
    }
    assert_eq!(sandbox.read("data/a"), "b");
    assert!(!sandbox.root().join("stolen").exists());
    let ran = trapped(&sandbox, &sandbox.repo, "pull --remote exec");
    assert!(ran.code == 2 && ran.err.contains("is not a valid remote URL"), "{}", ran.err);
    nothing_ran(&sandbox, "a remote that is a program");
}

#[test]
fn a_repository_of_somebody_else_is_read_and_runs_nothing() {
    let sandbox = project();
    let evil = traps(&sandbox).join("evil").display().to_string();
    sandbox.git(&format!("config core.fsmonitor {evil}"));
    sandbox.git(&format!("config filter.x.process {evil}"));
    let chown = sandbox.command("chown", &sandbox.root()).args(["-R", "12345", "repo"]).status().unwrap();
    if !chown.success() {
        return skip("a_repository_of_somebody_else", "this user is not root");
    }
    fs::remove_file(sandbox.repo.join("data/a")).unwrap();
    for args in HARMLESS {
        let ran = trapped(&sandbox, &sandbox.repo, args);
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
        nothing_ran(&sandbox, args);
    }
    assert_eq!(sandbox.read("data/a"), "b");
    let error = sandbox.fails("add data --git-add", 1);
    assert!(error.contains("dubious ownership"), "what Git refuses to touch stays untouched: {error}");
}

#[test]
fn another_repository_in_the_environment_is_refused_and_the_same_is_none() {
    let (sandbox, other) = (project(), project());
    let before = (snapshot(&sandbox.repo), snapshot(&other.repo));
    let with = |folder: &Path, settings: &[(&str, &Path)], args: &str| {
        let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), folder);
        command.envs(settings.iter().copied());
        ended(command.args(args.split(' ')).output().unwrap())
    };
    let theirs = other.repo.join(".git");
    for args in ["status", "checkout --force", "gc --grace 0s --yes", "add data --git-add", "init"] {
        let ran = with(&sandbox.repo, &[("GIT_DIR", &theirs)], args);
        assert!(ran.code == 2 && ran.err.contains("`GIT_DIR` is"), "{args}: {ran:?}");
        let ran = with(&sandbox.repo, &[("GIT_WORK_TREE", &other.repo)], args);
        assert!(
            ran.code == 2 && ran.err.contains("is not in the worktree of its repository"),
            "{args}: {ran:?}"
        );
        let ran = with(&sandbox.repo, &[("GIT_DIR", &theirs), ("GIT_WORK_TREE", &other.repo)], args);
        assert_eq!(ran.code, 2, "{args}: {ran:?}");
        let ran = with(&sandbox.root(), &[("GIT_DIR", &theirs), ("GIT_WORK_TREE", &other.repo)], args);
        assert!((2..4).contains(&ran.code), "{args}: {ran:?}");
    }
    assert_eq!((snapshot(&sandbox.repo), snapshot(&other.repo)), before);
    // A hook is told of the repository that it runs in.
    for git in [Path::new(".git"), &sandbox.repo.join(".git")] {
        assert_eq!(with(&sandbox.repo, &[("GIT_DIR", git)], "status").code, 0);
    }
}

#[test]
fn a_repository_whose_files_lie_elsewhere_is_refused() {
    let (sandbox, other) = (project(), project());
    sandbox.git("init -q --bare inner");
    let inner = sandbox.repo.join("inner");
    let error = sandbox.at(&inner).fails("status", 2);
    assert!(error.contains("this Git repository is bare"), "{error}");
    let before = (snapshot(&sandbox.repo), snapshot(&other.repo));
    sandbox.at(&inner).git("config core.bare false");
    sandbox.at(&inner).git(&format!("config core.worktree {}", other.repo.display()));
    for args in ["status", "checkout --force", "gc --grace 0s --yes", "diff", "fsck", "du", "pull"] {
        let error = sandbox.at(&inner).fails(args, 2);
        assert!(error.contains("is not in the worktree of its repository"), "{args}: {error}");
    }
    fs::write(sandbox.repo.join("inner/config"), "").unwrap();
    sandbox.git("init -q --bare inner");
    assert_eq!(snapshot(&other.repo), before.1);
    // Seen from outside, it is a folder like any other.
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn a_shallow_a_sparse_and_a_linked_clone_work() {
    let sandbox = project();
    let from = format!("file://{}", sandbox.repo.display());
    let at = |name: &str| sandbox.root().join(name);
    sandbox.git(&format!("clone -q --depth 1 {from} {}", at("shallow").display()));
    sandbox.git(&format!("clone -q --sparse {from} {}", at("sparse").display()));
    sandbox.git(&format!("worktree add -q {} HEAD~1", at("linked").display()));
    for (name, text) in [("shallow", "b"), ("sparse", "b"), ("linked", "a")] {
        let folder = at(name);
        let there = sandbox.at(&folder);
        if name == "sparse" {
            there.git("sparse-checkout set --no-cone /* !/params.toml");
        }
        there.ok("pull");
        assert_eq!(fs::read_to_string(folder.join("data/a")).unwrap(), text, "{name}");
        for args in ["status --check", "diff", "log data", "fsck", "gc --grace 0s --yes", "du"] {
            there.ok(args);
        }
        fs::write(folder.join("data/a"), name).unwrap();
        there.ok("add data");
        assert_eq!(there.json("status")["clean"], true, "{name}");
    }
    // A pointer that is not checked out is not on record here, and what it names is kept.
    let folder = at("sparse");
    let there = sandbox.at(&folder);
    there.git("checkout -q -f HEAD");
    there.git("sparse-checkout set --no-cone /* !/data.mlx");
    assert_eq!(there.json("status")["data"], json!([]));
    there.ok("gc --grace 0s --yes");
    there.git("sparse-checkout disable");
    there.ok("checkout --force");
    assert_eq!(fs::read_to_string(folder.join("data/a")).unwrap(), "b");
}

#[test]
fn a_submodule_keeps_its_own() {
    let (sandbox, inner) = (project(), project());
    sandbox.git(&format!("-c protocol.file.allow=always submodule --quiet add {} sub", inner.repo.display()));
    let sub = sandbox.repo.join("sub");
    assert!(sub.join(".git").is_file());
    let there = sandbox.at(&sub);
    there.ok("pull");
    assert_eq!(fs::read_to_string(sub.join("data/a")).unwrap(), "b");
    assert_eq!(there.json("status")["clean"], true);
    // Not even when all that is remembered is lost are its pointers taken for those of the outer one.
    fs::remove_file(sandbox.repo.join(".git/mlx/index")).unwrap();
    let status = sandbox.json("status");
    assert_eq!((status["data"].as_array().unwrap().len(), &status["clean"]), (1, &json!(true)), "{status}");
    sandbox.fails("add sub", 4);
    sandbox.ok("gc --grace 0s --yes");
    sandbox.ok("fsck");
    assert_eq!(there.json("status")["clean"], true);
}
