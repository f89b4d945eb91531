//! Tests of `mlx retrain`: the user's branches and files stay unchanged, labels may be corrected, and the
//! candidate is compared on images that the version in production was not trained on.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::{Value, json};

use crate::{
    monitor::{DAY, released_model, seal_day},
    sandbox::{Sandbox, command_result},
    serve::photo,
};

/// Creates a project with a model in production and a labeled day. The first dog is wrongly labeled as a cat.
fn labeled_day() -> Sandbox {
    let sandbox = released_model();
    seal_day(&sandbox, DAY);
    label(&sandbox, 0, "cat");
    for number in 1..10 {
        label(&sandbox, number, "dog");
    }
    sandbox.commit("labels");
    sandbox
}

/// Records the true class of a photo.
fn label(sandbox: &Sandbox, number: u64, class: &str) {
    let digest = mlx::digest::Digest::of(&photo(number));
    let file = sandbox.root().join("truth.csv");
    fs::write(&file, format!("digest,class,who\n{digest},{class},ada\n")).unwrap();
    sandbox.ok(&format!("feedback {}", file.display()));
}

/// Returns the split file of a commit: the images with their sides.
fn split_file(sandbox: &Sandbox, commit: &Value) -> String {
    sandbox.git(&format!("show {}:split.tsv", commit.as_str().unwrap()))
}

#[test]
fn retrain_leaves_branches_and_files_of_the_user_alone() {
    let sandbox = labeled_day();
    // With a hook of the user, the worktree of a killed retraining, and Git's variables in the environment.
    let hook = sandbox.repo.join(".git/hooks/pre-commit");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let leftover = sandbox.repo.join(".git/mlx/retrain-2147483646");
    sandbox.git(&format!("worktree add -q --detach {}", leftover.display()));
    let before = (sandbox.git("rev-parse main"), sandbox.git("status --porcelain"));
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    command.env("GIT_DIR", sandbox.repo.join(".git")).env("GIT_INDEX_FILE", sandbox.repo.join(".git/index"));
    let ran = command_result(command.args(["retrain", "--env", "production", "--json"]).output().unwrap());
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    let first: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&first["candidate"], &first["new"]), (&json!("pets@v0.2.0"), &json!(true)));
    assert_eq!((sandbox.git("rev-parse main"), sandbox.git("status --porcelain")), before);
    assert_eq!(sandbox.git("worktree list").lines().count(), 1);
    assert!(!leftover.exists());
    // Repeating it, even twice at once, makes no new candidate, and gives the same comparison.
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
fn a_corrected_label_moves_its_image_and_the_comparison_is_fair() {
    let sandbox = labeled_day();
    let first = sandbox.json("retrain --env production");
    let wrong = format!("data/cat/traffic-{}.jpg", mlx::digest::Digest::of(&photo(0)).hex());
    assert!(split_file(&sandbox, &first["commit"]).contains(&wrong), "{first}");
    sandbox.git(&format!("merge -q --ff-only {}", first["commit"].as_str().unwrap()));
    label(&sandbox, 0, "dog");
    let params = sandbox.read("params.toml");
    let seeded = params.replacen("seed = 1", "seed = 2", 1);
    assert_ne!(seeded, params);
    sandbox.write("params.toml", seeded);
    sandbox.commit("corrected");
    let second = sandbox.json("retrain --env production");
    let list = split_file(&sandbox, &second["commit"]);
    assert!(!list.contains(&wrong) && list.contains(&wrong.replace("/cat/", "/dog/")), "{second}\n{list}");
    // Images that the version in production was trained on are left out of the comparison.
    let known = sandbox.git("show pets@v0.1.0:split.tsv");
    let trained = |digest: &str| known.lines().any(|line| line.contains(digest) && line.ends_with("\ttrain"));
    let tested: Vec<&str> = list.lines().filter(|line| line.ends_with("\ttest")).collect();
    let left_out = tested.iter().filter(|line| trained(line.split('\t').nth(1).unwrap())).count();
    let counts: u64 =
        second["compared"].as_array().unwrap().iter().map(|it| it["count"].as_u64().unwrap()).sum();
    assert!(left_out > 0);
    assert_eq!(
        (second["left_out"].as_u64(), counts),
        (Some(left_out as u64), (tested.len() - left_out) as u64)
    );
}

#[test]
fn the_log_of_a_failed_stage_is_kept_after_the_worktree_is_deleted() {
    let sandbox = labeled_day();
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
