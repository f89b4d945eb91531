//! Tests of several pipelines in one repository: one graph over all of them, names of stages, and pipelines
//! that cannot be read or whose stages need each other.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, outcomes};

/// Creates a repository in which the stage `d` at the top needs the output of the stage `u` in `up`.
fn two_folders() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("up/i", "1\n");
    sandbox.write("up/mlx.toml", "[stage.u]\ncmd = 'cp i o'\ndeps = ['i']\nouts = ['o']\n");
    let top = "[stage.d]\ncmd = 'cp up/o final'\ndeps = ['up/o']\nouts = ['final']\n";
    sandbox.write("mlx.toml", top);
    sandbox.commit("pipelines");
    sandbox
}

#[test]
fn a_stage_brings_what_it_needs_from_another_folder_up_to_date() {
    let sandbox = two_folders();
    assert_eq!(outcomes(&sandbox.json("repro")), "up:u ran, d ran");
    sandbox.write("up/i", "2\n");
    assert_eq!(outcomes(&sandbox.json("repro --dry-run")), "up:u would run, d would run");
    assert_eq!(outcomes(&sandbox.json("status")), "up:u would run, d would run");
    assert_eq!(outcomes(&sandbox.json("repro")), "up:u ran, d ran");
    assert_eq!(sandbox.read("final"), "2\n");
    assert!(
        sandbox.read("up/mlx.lock").contains("[stage.u]") && !sandbox.read("mlx.lock").contains("stage.u")
    );
    assert_eq!(outcomes(&sandbox.json("-C up repro")), "up:u unchanged", "nothing there needs the top");
    assert_eq!(sandbox.json("lineage final")["inputs"][0]["stage"]["name"], "up:u");
}

#[test]
fn an_absent_output_of_another_folder_counts_by_its_record() {
    let sandbox = two_folders();
    sandbox.git("rm -q --cached up/i");
    sandbox.ok("add up/i");
    sandbox.ok("repro");
    sandbox.commit("results");
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), clone.display()));
    let other = sandbox.at(&clone);
    assert_eq!(outcomes(&other.json("repro --dry-run")), "up:u unchanged, d unchanged");
}

#[test]
fn all_runs_the_pipelines_of_every_folder() {
    let sandbox = two_folders();
    sandbox.write("b/mlx.toml", "[stage.u]\ncmd = 'echo b >o'\nouts = ['o']\n");
    sandbox.write("b/c/x", "");
    sandbox.commit("more");
    assert_eq!(outcomes(&sandbox.json("-C b/c repro --all")), "up:u ran, d ran, b:u ran");
    assert!(sandbox.has("b/mlx.lock"));
}

#[test]
fn a_stage_is_named_by_its_folder_or_by_its_name_where_that_is_unique() {
    let sandbox = two_folders();
    sandbox.write("b/mlx.toml", "[stage.u]\ncmd = 'echo b >o'\nouts = ['o']\n");
    sandbox.write("c/x", "");
    sandbox.commit("more");
    assert_eq!(outcomes(&sandbox.json("-C b repro u")), "b:u ran", "the nearest pipeline comes first");
    assert_eq!(outcomes(&sandbox.json("-C b repro d")), "up:u ran, d ran", "the only one of that name");
    let error = sandbox.fails("-C c repro u", 2);
    assert!(error.contains("several pipelines have a stage `u`: `b:u`, `up:u`"), "{error}");
    assert_eq!(
        outcomes(&sandbox.json("-C c repro up:u b:u :d")),
        "up:u unchanged, d unchanged, b:u unchanged"
    );
    for unknown in ["x", "b:x", "c:u", ":u"] {
        let error = sandbox.fails(&format!("repro {unknown}"), 3);
        assert!(error.contains("not found") && error.contains("known stages: d, b:u, up:u"), "{error}");
    }
    let text = sandbox.ok("repro --all");
    assert!(text.contains("\nd     unchanged\n") && text.contains("up:u  unchanged\n"), "{text}");
}

#[test]
fn a_folder_without_a_pipeline_says_how_to_run_the_others() {
    let sandbox = Sandbox::new();
    sandbox.write("a/mlx.toml", "[stage.s]\ncmd = 'echo 1 >o'\nouts = ['o']\n");
    sandbox.commit("pipeline");
    let error = sandbox.fails("repro", 3);
    assert!(error.contains("`mlx.toml` not found") && error.contains("`mlx repro --all`"), "{error}");
}

#[test]
fn pipelines_of_nested_repositories_are_not_part_of_the_graph() {
    let sandbox = two_folders();
    sandbox.git("init -q nested");
    sandbox.write("nested/mlx.toml", "[stage.n]\ncmd = 'touch ran'\nouts = ['ran']\n");
    assert_eq!(outcomes(&sandbox.json("repro --all")), "up:u ran, d ran");
}

#[test]
fn a_cycle_stops_only_the_stages_that_need_it() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "mlx.toml",
        "[stage.a]\ncmd = 'cp y x'\ndeps = ['y']\nouts = ['x']\n\
        [stage.b]\ncmd = 'cp x y'\ndeps = ['x']\nouts = ['y']\n\
        [stage.c]\ncmd = 'cp x z'\ndeps = ['x']\nouts = ['z']\n\
        [stage.free]\ncmd = 'echo 1 >w'\nouts = ['w']\n",
    );
    assert_eq!(outcomes(&sandbox.json("repro free")), "free ran");
    let plan = sandbox.mlx("repro --dry-run --json");
    let value: Value = serde_json::from_str(&plan.out).unwrap();
    assert_eq!((plan.code, &outcomes(&value)[..]), (2, "b blocked, a blocked, c blocked, free unchanged"));
    std::fs::remove_file(sandbox.repo.join("w")).unwrap();
    let run = sandbox.mlx("repro --json");
    let value: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((run.code, &outcomes(&value)[..]), (2, "b failed, a failed, c skipped, free restored"));
    assert!(
        value["error"]["message"].as_str().unwrap().contains("these stages form a cycle: `a` → `b` → `a`")
    );
    assert_eq!(sandbox.json("status")["stages"][0]["outcome"], "blocked");
}

#[test]
fn outputs_of_two_stages_at_one_path_stop_only_these() {
    for second in ["o", "o/p"] {
        let sandbox = Sandbox::new();
        sandbox.write("up/mlx.toml", format!("[stage.b]\ncmd = 'x'\nouts = ['../{second}']\n"));
        let top = "[stage.a]\ncmd = 'x'\nouts = ['o']\n[stage.free]\ncmd = 'echo 1 >w'\nouts = ['w']\n";
        sandbox.write("mlx.toml", top);
        sandbox.commit("pipelines");
        let error = sandbox.fails("repro --all", 2);
        assert!(error.contains("`o` of `a`") || error.contains("both `a` and `up:b`"), "{error}");
        assert!(sandbox.has("w") && !sandbox.has("o"));
    }
}

#[test]
fn a_broken_pipeline_elsewhere_stops_only_what_needs_it() {
    let sandbox = two_folders();
    sandbox.ok("repro");
    sandbox.commit("results");
    sandbox.write("up/mlx.toml", "[stage.u\n");
    sandbox.write("free/mlx.toml", "[stage.free]\ncmd = 'echo 1 >w'\nouts = ['w']\n");
    sandbox.write("data", "1\n");
    sandbox.git("add free");
    let added = sandbox.mlx("add data");
    assert_eq!((added.code, added.err.matches("cannot read `up/mlx.toml`").count()), (0, 1), "{added:?}");
    assert!(sandbox.fails("add up/o", 4).contains("belongs to the stage `up:u`"));
    std::fs::remove_file(sandbox.repo.join("up/o")).unwrap();
    assert_eq!(sandbox.mlx("checkout").code, 0);
    assert_eq!(sandbox.read("up/o"), "1\n", "what the lockfile records is checked out");
    let free = sandbox.mlx("-C free repro --json");
    assert_eq!((free.code, outcomes(&serde_json::from_str(&free.out).unwrap())), (0, "free:free ran".into()));
    let run = sandbox.mlx("repro --json");
    assert_eq!((run.code, outcomes(&serde_json::from_str(&run.out).unwrap())), (2, "d failed".into()));
    let all = sandbox.mlx("repro --all --json");
    let value: Value = serde_json::from_str(&all.out).unwrap();
    assert_eq!((all.code, &outcomes(&value)[..]), (2, "d failed, free:free unchanged"));
    let status = sandbox.mlx("status --json");
    let value: Value = serde_json::from_str(&status.out).unwrap();
    assert_eq!((status.code, &value["clean"]), (2, &json!(false)));
    assert_eq!(value["problems"].as_array().unwrap().len(), 1);
    assert!(sandbox.fails("-C up repro", 2).contains("cannot read `up/mlx.toml`"));
}

/// Ways in which a lockfile cannot be read, each as what follows its text, and the exit code.
const UNREADABLE: [(&str, i32); 3] =
    [("\n<<<<<<< HEAD\n=======\n>>>>>>> x\n", 4), ("\nformat = 9\n", 5), ("\n[stage.u\n", 5)];

/// Creates a repository with three pipelines that ran, tracked data and a remote.
fn with_lockfiles() -> Sandbox {
    let sandbox = two_folders();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox
        .write("free/mlx.toml", "[stage.free]\ncmd = 'cat ../data >w'\ndeps = ['../data']\nouts = ['w']\n");
    sandbox.write("data", "1\n");
    sandbox.ok("add data");
    sandbox.commit("pipelines");
    sandbox.ok("repro --all");
    sandbox.commit("results");
    sandbox
}

#[test]
fn an_unreadable_lockfile_stops_only_what_needs_it() {
    for (ending, broken) in UNREADABLE {
        let sandbox = with_lockfiles();
        sandbox.write("up/mlx.lock", sandbox.read("up/mlx.lock").replace("format = 1", "") + ending);
        let named = |text: &str| text.matches("`up/mlx.lock` ").count();
        let status = sandbox.mlx("status --json");
        let value: Value = serde_json::from_str(&status.out).unwrap();
        assert_eq!(outcomes(&value), "up:u blocked, d blocked, free:free unchanged", "{ending}");
        assert_eq!(
            (status.code, &value["clean"], &value["error"]["kind"]),
            (broken, &json!(false), &json!(if broken == 4 { "conflict" } else { "corrupt" }))
        );
        assert_eq!(value["problems"].as_array().unwrap().len(), 1);
        assert_eq!(named(&sandbox.fails("status", broken)), 1, "{ending}");
        for path in ["data", "free/w"] {
            std::fs::remove_file(sandbox.repo.join(path)).unwrap();
        }
        // The rest is done, whatever was asked for; what needs the lockfile is an error then.
        for (args, code) in
            [("checkout data", 0), ("status data", 0), ("checkout up/o", broken), ("checkout", broken)]
        {
            let ran = sandbox.mlx(args);
            assert_eq!((ran.code, named(&ran.err)), (code, 1), "{ending}, {args}: {ran:?}");
            assert!(sandbox.has("data"), "{args}");
        }
        assert!(sandbox.has("free/w") && sandbox.has("up/o"), "{ending}");
        for (args, code) in
            [("push data", 0), ("push", broken), ("pull data", 0), ("pull", broken), ("fetch", broken)]
        {
            let ran = sandbox.mlx(args);
            assert_eq!((ran.code, named(&ran.err)), (code, 1), "{ending}, {args}: {ran:?}");
        }
        sandbox.write("data", "2\n");
        for (args, code) in
            [("diff data", broken), ("diff HEAD HEAD", 0), ("commit data", 0), ("commit", broken)]
        {
            let ran = sandbox.mlx(args);
            assert_eq!((ran.code, named(&ran.err)), (code, 1), "{ending}, {args}: {ran:?}");
        }
        std::fs::remove_file(sandbox.repo.join("data")).unwrap();
        let free = sandbox.mlx("-C free repro --dry-run");
        assert_eq!((free.code, named(&free.err)), (3, 1), "its input counts by its pointer: {free:?}");
        assert!(
            free.err.contains("`data` is not here\nhint: bring it back with `mlx checkout data`"),
            "{free:?}"
        );
        sandbox.ok("checkout data");
        let free = sandbox.mlx("-C free repro --json");
        assert_eq!(
            (free.code, &outcomes(&serde_json::from_str(&free.out).unwrap())[..]),
            (0, "free:free ran")
        );
        assert_eq!(named(&free.err), 1, "{}", free.err);
        sandbox.write("data", "3\n");
        let all = sandbox.mlx("repro --all --json");
        let value = serde_json::from_str(&all.out).unwrap();
        assert_eq!(
            (all.code, &outcomes(&value)[..]),
            (broken, "up:u failed, d skipped, free:free ran"),
            "{ending}"
        );
        let ran = sandbox.mlx("repro");
        assert_eq!((ran.code, named(&ran.err)), (broken, 1), "{ending}");
        assert!(!ran.out.contains("git add"), "the broken file is not to be staged: {}", ran.out);
    }
}

#[test]
fn an_output_is_not_called_deleted_while_its_lockfile_cannot_be_read() {
    let sandbox = with_lockfiles();
    sandbox.write("up/mlx.lock", "[stage.u\n");
    sandbox.write("data", "2\n");
    let expected = json!([{"path": "data", "change": "modified"}]);
    for manifest in ["[stage.u\n", ""] {
        sandbox.write("up/mlx.toml", manifest);
        let ran = sandbox.mlx("diff data --json");
        assert_eq!((ran.code, serde_json::from_str::<Value>(&ran.out).unwrap()), (5, expected.clone()));
    }
    std::fs::remove_file(sandbox.repo.join("up/mlx.toml")).unwrap();
    let ran = sandbox.mlx("diff data HEAD --json");
    assert_eq!((ran.code, serde_json::from_str::<Value>(&ran.out).unwrap()), (5, expected));
}

#[test]
fn add_and_lineage_go_on_beside_an_unreadable_lockfile_and_name_it() {
    let sandbox = with_lockfiles();
    let before = sandbox.json("lineage free/w");
    sandbox.write("up/mlx.lock", "[stage.u\n");
    sandbox.write("data", "2\n");
    let added = sandbox.mlx("add data");
    assert_eq!((added.code, added.err.matches("`up/mlx.lock` ").count()), (0, 1), "{added:?}");
    let lineage = |args: &str| {
        let ran = sandbox.mlx(&format!("lineage --json {args}"));
        (ran.code, serde_json::from_str::<Value>(&ran.out).unwrap()["inputs"].clone(), ran.out + &ran.err)
    };
    for args in ["free/w", "free/w --rev HEAD"] {
        let (code, inputs, error) = lineage(args);
        assert_eq!((code, &inputs[0]["digest"]), (5, &before["inputs"][0]["digest"]), "{args}: {error}");
        assert_eq!(error.matches("`up/mlx.lock` ").count(), 1, "{args}: {error}");
        if args == "free/w" {
            sandbox.commit("broken");
        }
    }
    assert!(sandbox.fails("lineage up/o", 5).contains("`up/mlx.lock`"));
}

#[test]
fn nothing_is_removed_while_a_lockfile_cannot_be_read() {
    for broken_manifest in [false, true] {
        let sandbox = with_lockfiles();
        // Its stage is gone from both, so that only the lockfiles know of the outputs.
        sandbox.write("up/mlx.toml", if broken_manifest { "[stage.u\n" } else { "" });
        sandbox.write("free/mlx.toml", "");
        let lock = sandbox.read("up/mlx.lock");
        sandbox.write("up/mlx.lock", lock.clone() + UNREADABLE[0].0);
        assert_eq!(sandbox.mlx("checkout").code, UNREADABLE[0].1);
        sandbox.mlx("-C free repro");
        sandbox.mlx("repro --all");
        assert!(sandbox.has("up/o") && sandbox.has("free/w"), "{broken_manifest}");
        assert!(sandbox.read("free/mlx.lock").contains("stage.free"), "{broken_manifest}");
        sandbox.write("up/mlx.lock", lock);
        sandbox.ok("-C free repro");
        assert!(!sandbox.has("free/w") && sandbox.has("up/o"), "{broken_manifest}");
    }
}

#[test]
fn push_beside_a_broken_pipeline_warns_once_and_sends_what_its_lockfile_records() {
    let sandbox = with_lockfiles();
    sandbox.write("up/mlx.toml", "[stage.u\n");
    let pushed = sandbox.mlx("push");
    assert_eq!((pushed.code, pushed.err.matches("cannot read `up/mlx.toml`").count()), (0, 1), "{pushed:?}");
    std::fs::remove_dir_all(sandbox.repo.join(".git/mlx/packs")).unwrap();
    std::fs::remove_file(sandbox.repo.join("up/o")).unwrap();
    let pulled = sandbox.mlx("pull up/o");
    assert_eq!((pulled.code, sandbox.read("up/o")), (0, "1\n".into()), "{pulled:?}");
}

#[test]
fn files_that_git_ignores_are_named_for_what_was_asked_and_what_it_needs() {
    let sandbox = two_folders();
    sandbox.write("up/i2", "1\n");
    sandbox.ok("add up/i2");
    let up = "[stage.u]\ncmd = 'cp i o; echo {} >m.json'\ndeps = ['i', 'i2']\nouts = ['o']\n\
        metrics = ['m.json']\n";
    sandbox.write("up/mlx.toml", format!("{up}[stage.w]\ncmd = 'echo {{}} >w.json'\nmetrics = ['w.json']\n"));
    sandbox.write("free/mlx.toml", "[stage.free]\ncmd = 'echo 1 >w'\nouts = ['w']\n");
    sandbox.commit("pipelines");
    sandbox.git("rm -q --cached up/i2.mlx");
    sandbox.write(".gitignore", "mlx.lock\n*.json\n*.mlx\n");
    sandbox.ok("repro --all -q");
    let named = |args: &str| -> Vec<String> {
        let err = sandbox.mlx(args).err;
        err.lines()
            .filter_map(|line| {
                Some(line.strip_prefix("warning: Git ignores `")?.split('`').next()?.to_owned())
            })
            .collect()
    };
    assert_eq!(named("repro d"), ["mlx.lock", "up/i2.mlx", "up/m.json", "up/mlx.lock"]);
    assert_eq!(named("repro free:free"), ["free/mlx.lock"]);
    assert_eq!(named("-C free repro"), ["free/mlx.lock"]);
    assert_eq!(named("-C up repro"), ["up/i2.mlx", "up/m.json", "up/mlx.lock", "up/w.json"]);
}

#[test]
fn outputs_of_a_pipeline_that_was_moved_are_known() {
    let sandbox = Sandbox::new();
    sandbox.write("p/i", "1\n");
    let stage = "[stage.s]\ncmd = 'mkdir out; cp i out/x; cp i o'\ndeps = ['i']\nouts = ['out', 'o']\n";
    sandbox.write("p/mlx.toml", stage);
    sandbox.at(&sandbox.repo.join("p")).ok("repro");
    sandbox.commit("all");
    sandbox.git("mv p q");
    let moved = sandbox.at(&sandbox.repo.join("q")).mlx("repro");
    assert!(moved.code == 0 && !moved.err.contains("no run recorded"), "{moved:?}");
    // What a user made there is kept.
    sandbox.git("mv q r");
    sandbox.write("r/o", "made by hand\n");
    let moved = sandbox.at(&sandbox.repo.join("r")).mlx("repro");
    assert_eq!(moved.err.matches("no run recorded").count(), 1, "{moved:?}");
    assert!(moved.err.contains("`r/o` held content that no run recorded"), "{moved:?}");
}

#[test]
fn status_names_a_broken_file_once_and_exits_with_its_kind() {
    let sandbox = Sandbox::new();
    let stage = "[stage.s]\ncmd = 'echo 1 > o'\nouts = ['o']\n";
    sandbox.write("mlx.toml", stage);
    sandbox.write("data", "1\n");
    sandbox.ok("add data");
    sandbox.ok("repro");
    let lock = sandbox.read("mlx.lock");
    sandbox.write("data", "2\n");
    let error = "TOML parse error at line";
    for (file, code, text) in [("mlx.toml", 2, stage), ("mlx.lock", 5, &lock)] {
        sandbox.write(file, format!("{text}broken\n"));
        for args in ["status", "status --check", "status --quiet"] {
            let ran = sandbox.mlx(args);
            assert_eq!((ran.code, ran.err.matches(error).count()), (code, 1), "{args}: {}", ran.err);
            assert!(ran.err.contains("broken\n") && !ran.out.contains("broken\n"), "{args}: {}", ran.out);
            assert_eq!(ran.out.contains("data: 1 change"), !args.contains("quiet"), "{args}: {}", ran.out);
        }
        let value = sandbox.json("status");
        assert_eq!(value["problems"].as_array().map(Vec::len), Some(1), "{value}");
        assert!(value["error"]["message"].as_str().unwrap().contains(error), "{value}");
        sandbox.write(file, text);
    }
    assert!(sandbox.ok("help exit-codes").contains("broken `mlx.toml` or `mlx.lock`"));
}

#[test]
fn a_broken_pipeline_that_stops_a_stage_is_named_once() {
    let sandbox = two_folders();
    sandbox.ok("repro");
    sandbox.commit("results");
    sandbox.write("up/mlx.toml", "[stage.u\n");
    for args in ["repro", "repro -k", "repro --dry-run", "repro --all", "repro --all -k", "status"] {
        let ran = sandbox.mlx(args);
        assert_eq!(
            (ran.code, ran.err.matches("cannot read `up/mlx.toml`").count()),
            (2, 1),
            "{args}: {}",
            ran.err
        );
    }
    // What it would make is missing, and nothing records that.
    std::fs::remove_file(sandbox.repo.join("up/mlx.lock")).unwrap();
    std::fs::remove_file(sandbox.repo.join("up/o")).unwrap();
    let ran = sandbox.mlx("repro");
    assert_eq!((ran.code, ran.err.matches("cannot read `up/mlx.toml`").count()), (3, 1), "{}", ran.err);
}
