//! Tests Git layouts: repositories of other users, linked worktrees, shallow and sparse clones, submodules,
//! and settings that name programs. mlx works or reports why not, and never runs such a program.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::json;

use crate::sandbox::{CommandResult, Sandbox, command_result, skip, snapshot};

/// Creates a repository with two commits, whose data a remote has.
fn setup() -> Sandbox {
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

/// Creates a folder of programs that each leave a trace file when they run.
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

/// Runs mlx with only the trap programs in its `PATH`.
fn run_with_traps(sandbox: &Sandbox, folder: &Path, args: &str) -> CommandResult {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), folder);
    command_result(command.args(args.split(' ')).env("PATH", traps(sandbox)).output().unwrap())
}

fn assert_nothing_ran(sandbox: &Sandbox, case: &str) {
    let entries = fs::read_dir(sandbox.root()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let ran: Vec<_> = names.filter(|name| name.starts_with("ran-")).collect();
    assert_eq!(ran, Vec::<String>::new(), "{case}");
}

fn setup_with_stage() -> Sandbox {
    let sandbox = setup();
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'cp data/a o'\ndeps = ['data']\nouts = ['o']\n");
    sandbox.ok("repro");
    sandbox.ok("push");
    sandbox.commit("stage");
    sandbox
}

/// Commands that must not run other programs.
const COMMANDS: [&str; 12] = [
    "status",
    "repro --dry-run",
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
fn programs_named_in_repository_settings_do_not_run() {
    let sandbox = setup_with_stage();
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
    let included = sandbox.root().join("included");
    fs::write(&included, format!("[core]\npager = {evil}\neditor = {evil}\naskPass = {evil}\n")).unwrap();
    let settings = format!(
        "[core]\nfsmonitor = {evil}\nsshCommand = {evil}\nhooksPath = {}\nalternateRefsCommand = {evil}\n\
         gitProxy = {evil}\n[remote \"origin\"]\nurl = ssh://host.invalid/x\nfetch = +refs/*:refs/*\n\
         uploadpack = {evil}\nreceivepack = {evil}\n[credential]\nhelper = !{evil}\n\
         [filter \"x\"]\nclean = {evil}\nsmudge = {evil}\nprocess = {evil}\nrequired = true\n\
         [diff \"x\"]\ntextconv = {evil}\ncommand = {evil}\n[diff]\nexternal = {evil}\n\
         [gpg]\nprogram = {evil}\n[include]\npath = {}\n\
         [uploadpack]\npackObjectsHook = {evil}\n[gc]\nrecentObjectsHook = {evil}\n",
        hooks.display(),
        included.display()
    );
    let config = sandbox.repo.join(".git/config");
    fs::write(&config, [fs::read_to_string(&config).unwrap(), settings].concat()).unwrap();
    sandbox.write(".gitattributes", "* filter=x diff=x\n");
    sandbox.write(".git/info/attributes", "* filter=x diff=x\n");
    // Committed settings may not name programs either: these keys count only in the user's own settings.
    let text = sandbox.read(".mlx/config.toml");
    let committed = format!(
        "{text}[alert]\ncommand = \"{evil}\"\n[onnx]\nlibrary = \"{evil}\"\n[cache]\ndir = \"{}\"\n\
         [remote.exec]\nurl = \"exec:{evil}\"\n",
        sandbox.root().join("stolen").display()
    );
    sandbox.write(".mlx/config.toml", committed);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    for args in COMMANDS {
        let ran = run_with_traps(&sandbox, &sandbox.repo, args);
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
        assert_nothing_ran(&sandbox, args);
    }
    assert_eq!(sandbox.read("data/a"), "b");
    assert!(!sandbox.root().join("stolen").exists());
    let ran = run_with_traps(&sandbox, &sandbox.repo, "pull --remote exec");
    assert!(ran.code == 2 && ran.err.contains("is not a valid remote URL"), "{}", ran.err);
    assert_nothing_ran(&sandbox, "a remote whose URL is a program");
}

#[test]
fn a_repository_of_another_user_is_read_and_runs_nothing() {
    let sandbox = setup_with_stage();
    let evil = traps(&sandbox).join("evil").display().to_string();
    sandbox.git(&format!("config core.fsmonitor {evil}"));
    sandbox.git(&format!("config filter.x.process {evil}"));
    let chown = sandbox.command("chown", &sandbox.root()).args(["-R", "12345", "repo"]).status().unwrap();
    if !chown.success() {
        return skip("a_repository_of_another_user_is_read_and_runs_nothing", "this user is not root");
    }
    fs::remove_file(sandbox.repo.join("data/a")).unwrap();
    for args in COMMANDS {
        let ran = run_with_traps(&sandbox, &sandbox.repo, args);
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
        assert_nothing_ran(&sandbox, args);
    }
    assert_eq!(sandbox.read("data/a"), "b");
    let error = sandbox.fails("add data --git-add", 1);
    assert!(error.contains("dubious ownership"), "mlx must not bypass Git's ownership check: {error}");
}

#[test]
fn git_dir_of_another_repository_is_refused_and_of_the_same_accepted() {
    let (sandbox, other) = (setup(), setup());
    let before = (snapshot(&sandbox.repo), snapshot(&other.repo));
    let run_with = |folder: &Path, settings: &[(&str, &Path)], args: &str| {
        let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), folder);
        command.envs(settings.iter().copied());
        command_result(command.args(args.split(' ')).output().unwrap())
    };
    let other_git = other.repo.join(".git");
    for args in ["status", "checkout --force", "gc --grace 0s --yes", "add data --git-add", "init"] {
        let ran = run_with(&sandbox.repo, &[("GIT_DIR", &other_git)], args);
        assert!(ran.code == 2 && ran.err.contains("`GIT_DIR` is"), "{args}: {ran:?}");
        let ran = run_with(&sandbox.repo, &[("GIT_WORK_TREE", &other.repo)], args);
        assert!(
            ran.code == 2 && ran.err.contains("is not in the worktree of its repository"),
            "{args}: {ran:?}"
        );
        let ran = run_with(&sandbox.repo, &[("GIT_DIR", &other_git), ("GIT_WORK_TREE", &other.repo)], args);
        assert_eq!(ran.code, 2, "{args}: {ran:?}");
        let ran = run_with(&sandbox.root(), &[("GIT_DIR", &other_git), ("GIT_WORK_TREE", &other.repo)], args);
        assert!((2..4).contains(&ran.code), "{args}: {ran:?}");
    }
    assert_eq!((snapshot(&sandbox.repo), snapshot(&other.repo)), before);
    // Git sets `GIT_DIR` for hooks to the repository they run in.
    for git in [Path::new(".git"), &sandbox.repo.join(".git")] {
        assert_eq!(run_with(&sandbox.repo, &[("GIT_DIR", git)], "status").code, 0);
    }
}

#[test]
fn a_repository_with_its_files_elsewhere_is_refused() {
    let (sandbox, other) = (setup(), setup());
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
    // For the outer repository, it is a folder like any other.
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn shallow_and_sparse_clones_and_linked_worktrees_work() {
    let sandbox = setup();
    let from = format!("file://{}", sandbox.repo.display());
    let folder_of = |name: &str| sandbox.root().join(name);
    sandbox.git(&format!("clone -q --depth 1 {from} {}", folder_of("shallow").display()));
    sandbox.git(&format!("clone -q --sparse {from} {}", folder_of("sparse").display()));
    sandbox.git(&format!("worktree add -q {} HEAD~1", folder_of("linked").display()));
    for (name, text) in [("shallow", "b"), ("sparse", "b"), ("linked", "a")] {
        let folder = folder_of(name);
        let clone = sandbox.at(&folder);
        if name == "sparse" {
            clone.git("sparse-checkout set --no-cone /* !/params.toml");
        }
        clone.ok("pull");
        assert_eq!(fs::read_to_string(folder.join("data/a")).unwrap(), text, "{name}");
        for args in ["status --check", "diff", "log data", "fsck", "gc --grace 0s --yes", "du"] {
            clone.ok(args);
        }
        fs::write(folder.join("data/a"), name).unwrap();
        clone.ok("add data");
        assert_eq!(clone.json("status")["clean"], true, "{name}");
    }
    // A pointer that is not checked out is not tracked here, but the objects it names are kept.
    let folder = folder_of("sparse");
    let clone = sandbox.at(&folder);
    clone.git("checkout -q -f HEAD");
    clone.git("sparse-checkout set --no-cone /* !/data.mlx");
    assert_eq!(clone.json("status")["data"], json!([]));
    clone.ok("gc --grace 0s --yes");
    clone.git("sparse-checkout disable");
    clone.ok("checkout --force");
    assert_eq!(fs::read_to_string(folder.join("data/a")).unwrap(), "b");
}

#[test]
fn a_submodule_has_its_own_pointers_and_store() {
    let (sandbox, inner) = (setup(), setup());
    sandbox.git(&format!("-c protocol.file.allow=always submodule --quiet add {} sub", inner.repo.display()));
    let sub = sandbox.repo.join("sub");
    assert!(sub.join(".git").is_file());
    let submodule = sandbox.at(&sub);
    submodule.ok("pull");
    assert_eq!(fs::read_to_string(sub.join("data/a")).unwrap(), "b");
    assert_eq!(submodule.json("status")["clean"], true);
    // Even without its index, the outer repository does not take the submodule's pointers for its own.
    fs::remove_file(sandbox.repo.join(".git/mlx/index")).unwrap();
    let status = sandbox.json("status");
    assert_eq!((status["data"].as_array().unwrap().len(), &status["clean"]), (1, &json!(true)), "{status}");
    sandbox.fails("add sub", 4);
    sandbox.ok("gc --grace 0s --yes");
    sandbox.ok("fsck");
    assert_eq!(submodule.json("status")["clean"], true);
}

/// A new repository in its place, or the one around it, would be wrong in all these cases.
#[test]
fn a_repository_that_cannot_be_opened_is_named_with_the_reason() {
    let sandbox = Sandbox::new();
    sandbox.commit("start");
    sandbox.git("worktree add -q inner");
    fs::remove_dir_all(sandbox.repo.join(".git/worktrees/inner")).unwrap();
    for args in ["init", "status"] {
        let error = sandbox.at(&sandbox.repo.join("inner")).fails(args, 3);
        assert!(
            error.contains("inner` has lost its Git folder") && error.contains("worktrees/inner`"),
            "{error}"
        );
        assert!(error.contains("git worktree repair") && !error.contains("git init"), "{error}");
    }
    let config = sandbox.repo.join(".git/config");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}[broken\n")).unwrap();
    for args in ["init", "status"] {
        let error = sandbox.fails(args, 5);
        assert!(error.contains("bad config line") && error.contains(".git/config"), "{error}");
        assert!(!error.contains("git init"), "{error}");
    }
    fs::write(&config, text).unwrap();
    sandbox.ok("status");
}

#[test]
fn a_repository_with_sha256_objects_is_refused_by_name() {
    let sandbox = Sandbox::empty();
    sandbox.git("init -q --object-format=sha256 .");
    for args in ["init", "status"] {
        let error = sandbox.fails(args, 2);
        assert!(error.contains("has SHA-256 objects") && !error.contains("git init"), "{error}");
    }
}

#[test]
fn a_revision_that_a_shallow_clone_lacks_is_explained() {
    let sandbox = setup();
    let from = format!("file://{}", sandbox.repo.display());
    let folder = sandbox.root().join("shallow");
    sandbox.git(&format!("clone -q --depth 1 {from} {}", folder.display()));
    for args in ["checkout --rev HEAD~1 data", "log data --rev HEAD~1", "diff data HEAD~1"] {
        let error = sandbox.at(&folder).fails(args, 3);
        assert!(error.contains("shallow") && error.contains("git fetch --unshallow"), "{args}: {error}");
    }
    assert!(!sandbox.fails("checkout --rev HEAD~9 data", 3).contains("shallow"));
}

/// Counts the packs that Git fetched from its remote.
fn fetched_packs(folder: &Path) -> usize {
    let entries = fs::read_dir(folder.join(".git/objects/pack")).unwrap();
    entries
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|it| it == "promisor"))
        .count()
}

#[test]
fn a_partial_clone_fetches_what_it_needs_in_few_requests() {
    let sandbox = setup();
    for option in ["uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"] {
        sandbox.git(&format!("config {option} true"));
    }
    for number in 0..8 {
        sandbox.write("data/a", number.to_string());
        sandbox.ok("add data");
        sandbox.commit(&number.to_string());
    }
    sandbox.ok("push --all-commits");
    let from = format!("file://{}", sandbox.repo.display());
    let clone_to = |name: &str, filter: &str| {
        let folder = sandbox.root().join(name);
        sandbox.git(&format!("clone -q --filter={filter} {from} {}", folder.display()));
        folder
    };
    let commands = [
        "pull",
        "log data",
        "diff data HEAD~2 HEAD",
        "gc",
        "fsck",
        "du",
        "push --all-commits",
        "lineage data",
        "fetch --all-commits",
        "checkout --rev HEAD~3 data",
    ];
    for filter in ["blob:none", "tree:0"] {
        let folder = clone_to(&filter.replace(':', "-"), filter);
        for args in commands {
            sandbox.at(&folder).ok(args);
        }
        for (index, args) in ["log data", "gc", "push --all-commits"].into_iter().enumerate() {
            let folder = clone_to(&format!("{}-{index}", filter.replace(':', "-")), filter);
            sandbox.at(&folder).ok("pull");
            let before = fetched_packs(&folder);
            sandbox.at(&folder).ok(args);
            let requests = fetched_packs(&folder) - before;
            assert!((1..4).contains(&requests), "{filter}: {args} made {requests} requests for 10 commits");
        }
    }
    let folder = clone_to("offline", "blob:none");
    let clone = sandbox.at(&folder);
    clone.ok("pull");
    fs::write(folder.join("data/new"), "local").unwrap();
    clone.ok("add data");
    clone.git("add data.mlx");
    clone.git("commit -q -m local");
    fs::rename(&sandbox.repo, sandbox.root().join("away")).unwrap();
    let error = sandbox.at(&folder).fails("log data", 7);
    assert!(error.contains("partial clone lacks objects") && error.contains("`origin`"), "{error}");
    let error = sandbox.at(&folder).fails("push --all-commits", 7);
    assert!(error.contains("cannot read `data.mlx` of the commit") && error.contains("others: "), "{error}");
    // All that is here was pushed.
    assert!(sandbox.at(&folder).ok("push").starts_with("nothing to push"));
}

#[test]
fn objects_that_a_remote_refuses_do_not_keep_others_from_a_partial_clone() {
    let sandbox = setup();
    sandbox.git("config uploadpack.allowFilter true");
    sandbox.git("config uploadpack.allowAnySHA1InWant true");
    for number in 0..9 {
        sandbox.write("data/a", number.to_string());
        sandbox.ok("add data");
        sandbox.commit(&format!("commit-{number}"));
    }
    let folder = sandbox.root().join("partial");
    let from = format!("file://{}", sandbox.repo.display());
    sandbox.git(&format!("clone -q --filter=blob:none {from} {}", folder.display()));
    let clone = sandbox.at(&folder);
    let pointers: Vec<_> =
        (1..8).map(|back| sandbox.git(&format!("rev-parse HEAD~{back}:data.mlx"))).collect();
    // The remote lost two of the pointers.
    for lost in [&pointers[1], &pointers[4]] {
        fs::remove_file(sandbox.repo.join(".git/objects").join(&lost[..2]).join(lost[2..].trim())).unwrap();
    }
    let error = clone.fails("log data", 7);
    assert!(error.contains("partial clone lacks objects") && error.contains("`origin`"), "{error}");
    let is_here = |id: &String| {
        let mut command = sandbox.command("git", &folder);
        command.env("GIT_NO_LAZY_FETCH", "1").args(["cat-file", "-e", id.trim()]);
        command.output().unwrap().status.success()
    };
    let here: Vec<_> = pointers.iter().map(is_here).collect();
    assert_eq!(here, [true, false, true, true, false, true, true]);
}

#[test]
fn a_branch_whose_commit_is_missing_is_an_error() {
    let sandbox = Sandbox::new();
    sandbox.write("data", "1");
    sandbox.ok("add data");
    sandbox.commit("one");
    let id = sandbox.git("rev-parse HEAD");
    let object = sandbox.repo.join(".git/objects").join(&id[..2]).join(id[2..].trim());
    let bytes = fs::read(&object).unwrap();
    for (name, log) in [("refs/heads/main", "logs/refs/heads/main`"), ("HEAD", "logs/HEAD`")] {
        if name == "HEAD" {
            fs::write(&object, &bytes).unwrap();
            sandbox.git("checkout -q --detach");
        }
        fs::remove_file(&object).unwrap();
        for args in ["status", "checkout", "lineage data", "gc", "add data"] {
            let error = sandbox.fails(args, 5);
            assert!(error.contains(&format!("the commit of `{name}`")), "{args}: {error}");
            assert!(error.contains(id.trim()) && error.contains(log), "{args}: {error}");
        }
    }
    fs::write(&object, &bytes).unwrap();
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn a_broken_head_is_an_error_and_an_unborn_branch_is_not() {
    let sandbox = Sandbox::new();
    sandbox.write("data", "1");
    sandbox.ok("add data");
    let head = sandbox.repo.join(".git/HEAD");
    for text in [
        "",
        "garbage\n",
        "0123\n",
        "ref: \n",
        "ref: ../x\n",
        "ref: refs/heads/a..b\n",
        "ref: refs/heads/a b\n",
    ] {
        fs::write(&head, text).unwrap();
        for args in ["status", "checkout", "gc"] {
            let error = sandbox.fails(args, 5);
            assert!(error.contains(".git/HEAD`") && error.contains("hint: "), "{text:?}, {args}: {error}");
        }
    }
    fs::write(&head, "ref: refs/heads/unborn\n").unwrap();
    assert_eq!(sandbox.json("status")["clean"], true);
    fs::create_dir_all(sandbox.repo.join(".git/refs/heads")).unwrap();
    fs::write(sandbox.repo.join(".git/refs/heads/unborn"), "garbage\n").unwrap();
    let named = |sandbox: &Sandbox, file: &str| {
        let error = sandbox.fails("status", 5);
        assert!(error.contains(&format!(".git/{file}`: ")) && !error.contains("HEAD`"), "{file}: {error}");
    };
    named(&sandbox, "refs/heads/unborn");
    fs::remove_file(sandbox.repo.join(".git/refs/heads/unborn")).unwrap();
    sandbox.commit("born");
    sandbox.git("pack-refs --all");
    let packed = sandbox.repo.join(".git/packed-refs");
    fs::write(
        &packed,
        fs::read_to_string(&packed).unwrap().replace(" refs/heads/unborn", "z refs/heads/unborn"),
    )
    .unwrap();
    named(&sandbox, "packed-refs");
}
