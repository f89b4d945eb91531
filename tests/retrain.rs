//! Retraining: nobody's branch or files move, labels may be corrected, and the comparison is fair.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::{Value, json};

use crate::{
    monitor::{DAY, day, in_production},
    sandbox::{Sandbox, ended},
    serve::photo,
};

/// A model in production with a labeled day; the first of its dogs is called a cat.
fn taught() -> Sandbox {
    let sandbox = in_production();
    day(&sandbox, DAY);
    label(&sandbox, 0, "cat");
    for number in 1..10 {
        label(&sandbox, number, "dog");
    }
    sandbox.commit("labels");
    sandbox
}

fn label(sandbox: &Sandbox, number: u64, class: &str) {
    let digest = mlx::digest::Digest::of(&photo(number));
    let file = sandbox.root().join("truth.csv");
    fs::write(&file, format!("digest,class,who\n{digest},{class},ada\n")).unwrap();
    sandbox.ok(&format!("feedback {}", file.display()));
}

/// The list of sides in a commit.
fn sides(sandbox: &Sandbox, commit: &Value) -> String {
    sandbox.git(&format!("show {}:split.tsv", commit.as_str().unwrap()))
}

#[test]
fn a_retraining_touches_nothing_of_the_caller() {
    let sandbox = taught();
    // A hook of the user's, a retraining that was killed, and a caller that Git started.
    let hook = sandbox.repo.join(".git/hooks/pre-commit");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let left = sandbox.repo.join(".git/mlx/retrain-2147483646");
    sandbox.git(&format!("worktree add -q --detach {}", left.display()));
    let before = (sandbox.git("rev-parse main"), sandbox.git("status --porcelain"));
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    command.env("GIT_DIR", sandbox.repo.join(".git")).env("GIT_INDEX_FILE", sandbox.repo.join(".git/index"));
    let ran = ended(command.args(["retrain", "--env", "production", "--json"]).output().unwrap());
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    let first: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&first["candidate"], &first["new"]), (&json!("pets@v0.2.0"), &json!(true)));
    assert_eq!((sandbox.git("rev-parse main"), sandbox.git("status --porcelain")), before);
    assert_eq!(sandbox.git("worktree list").lines().count(), 1);
    assert!(!left.exists());
    // The same once more, and twice at once, is no new candidate, and compared all the same.
    let again = || sandbox.json("retrain --env production");
    let both =
        std::thread::scope(|scope| [scope.spawn(again), scope.spawn(again)].map(|it| it.join().unwrap()));
    for second in both {
        assert_eq!((&second["candidate"], &second["new"]), (&json!("pets@v0.2.0"), &json!(false)));
        assert_eq!(second["compared"], first["compared"]);
    }
    assert_eq!(sandbox.json("model list")["versions"].as_array().unwrap().len(), 2);
}

#[test]
fn a_corrected_label_moves_its_picture_and_the_comparison_is_fair() {
    let sandbox = taught();
    let first = sandbox.json("retrain --env production");
    let wrong = format!("data/cat/traffic-{}.jpg", mlx::digest::Digest::of(&photo(0)).hex());
    assert!(sides(&sandbox, &first["commit"]).contains(&wrong), "{first}");
    sandbox.git(&format!("merge -q --ff-only {}", first["commit"].as_str().unwrap()));
    label(&sandbox, 0, "dog");
    let params = sandbox.read("params.toml");
    let seeded = params.replacen("seed = 1", "seed = 2", 1);
    assert_ne!(seeded, params);
    sandbox.write("params.toml", seeded);
    sandbox.commit("corrected");
    let second = sandbox.json("retrain --env production");
    let list = sides(&sandbox, &second["commit"]);
    assert!(!list.contains(&wrong) && list.contains(&wrong.replace("/cat/", "/dog/")), "{second}\n{list}");
    // What the version in production was trained on does not judge it.
    let known = sandbox.git("show pets@v0.1.0:split.tsv");
    let trained = |digest: &str| known.lines().any(|it| it.contains(digest) && it.ends_with("\ttrain"));
    let tested: Vec<&str> = list.lines().filter(|it| it.ends_with("\ttest")).collect();
    let left_out = tested.iter().filter(|it| trained(it.split('\t').nth(1).unwrap())).count();
    let counts: u64 =
        second["compared"].as_array().unwrap().iter().map(|it| it["count"].as_u64().unwrap()).sum();
    assert!(left_out > 0);
    assert_eq!(
        (second["left_out"].as_u64(), counts),
        (Some(left_out as u64), (tested.len() - left_out) as u64)
    );
}

#[test]
fn the_log_of_a_failed_stage_outlasts_the_worktree() {
    let sandbox = taught();
    let pipeline = sandbox.read("mlx.toml");
    sandbox.write(
        "mlx.toml",
        pipeline.replace("cmd = \"mlx data split", "cmd = \"echo why; exit 3; mlx data split"),
    );
    sandbox.commit("broken");
    let error = sandbox.fails("retrain --env production", 8);
    let log = error.split("its output is in ").nth(1).unwrap().lines().next().unwrap();
    assert!(fs::read_to_string(Path::new(log.trim())).unwrap().contains("why"), "{error}");
    assert_eq!(sandbox.json("model list")["versions"].as_array().unwrap().len(), 1);
}
