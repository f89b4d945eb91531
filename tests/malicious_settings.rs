//! Tests that malicious links, lockfiles, settings and remotes of a cloned repository cannot write outside of
//! the workspace, run programs or obtain credentials.

use std::{fs, os::unix::fs::symlink};

use crate::sandbox::{Sandbox, snapshot};

/// Creates a repository with a pushed file. Returns it and the URL of its remote.
fn setup_pushed() -> (Sandbox, String) {
    let sandbox = Sandbox::new();
    sandbox.write("data/pre-commit", "#!/bin/sh\necho pwned\n");
    sandbox.ok("add data/pre-commit");
    let remote = format!("file://{}", sandbox.root().join("remote").display());
    sandbox.ok(&format!("remote add origin {remote} --default"));
    sandbox.ok("push");
    (sandbox, remote)
}

fn hooks(sandbox: &Sandbox) -> Vec<String> {
    let names = fs::read_dir(sandbox.repo.join(".git/hooks")).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn no_command_writes_through_a_link_to_the_hooks() {
    let (sandbox, _) = setup_pushed();
    sandbox.write(
        "mlx.toml",
        "[stage.evil]\ncmd = 'echo pwned > hookdir/pre-commit'\nouts = ['hookdir/pre-commit']\n",
    );
    symlink(".git/hooks", sandbox.repo.join("hookdir")).unwrap();
    fs::copy(sandbox.repo.join("data/pre-commit.mlx"), sandbox.repo.join("pointer")).unwrap();
    sandbox.git("add -A");
    let before = hooks(&sandbox);
    let error = sandbox.fails("repro", 6);
    assert!(error.contains("`hookdir` is a symlink"), "{error}");
    // The lockfile names the path: as a pointer, Git would check out `hookdir/pre-commit.mlx` only through
    // the link.
    let pointer = sandbox.read("pointer");
    let digest = pointer.lines().next().unwrap().trim_start_matches("digest = ").to_owned();
    let lock = format!(
        "format = 1\n\n[stage.evil]\ncmd = \"x\"\nkey = {digest}\n\
         out.\"hookdir/pre-commit\" = {{ digest = {digest}, files = 1, kind = \"executable\", size = 27 }}\n"
    );
    sandbox.write("mlx.lock", lock);
    for args in ["checkout", "pull", "checkout --force", "pull --force", "repro"] {
        let error = sandbox.fails(args, 6);
        assert!(error.contains("`hookdir` is a symlink"), "{args}: {error}");
    }
    assert_eq!(hooks(&sandbox), before);
}

#[test]
fn paths_in_lockfiles_cannot_leave_the_workspace() {
    let (sandbox, _) = setup_pushed();
    let digest = format!("b3:{}", "0".repeat(64));
    for path in ["../x", "/etc/x", ".git/hooks/x", "a/../../x", ".GIT/config", "git~1/config"] {
        let lock = format!(
            "format = 1\n\n[stage.a]\ncmd = \"x\"\nkey = \"{digest}\"\n\
             out.\"{path}\" = {{ digest = \"{digest}\", files = 1, kind = \"file\", size = 1 }}\n"
        );
        sandbox.write("mlx.toml", "[stage.a]\ncmd = 'x'\nouts = ['x']\n");
        sandbox.write("mlx.lock", lock);
        // What is sound is checked out all the same, so that mlx notes the remote's indexes.
        let files = || {
            let mut files = snapshot(&sandbox.root());
            files.retain(|path, _| !path.starts_with(b"repo/.git/mlx/"));
            files
        };
        let before = files();
        assert_ne!(sandbox.mlx("checkout").code, 0, "{path}");
        assert_ne!(sandbox.mlx("pull").code, 0, "{path}");
        assert_eq!(files(), before, "{path}");
    }
}

#[test]
fn a_linked_mlx_folder_is_refused() {
    let (sandbox, _) = setup_pushed();
    fs::rename(sandbox.repo.join(".mlx"), sandbox.root().join("elsewhere")).unwrap();
    symlink("../elsewhere", sandbox.repo.join(".mlx")).unwrap();
    assert_ne!(sandbox.mlx("status").code, 0);
}

#[test]
fn committed_settings_cannot_run_programs_or_choose_a_library() {
    let (sandbox, _) = setup_pushed();
    let lib = sandbox.repo.join("libonnxruntime.so");
    fs::write(&lib, "not a library").unwrap();
    let text = sandbox.read(".mlx/config.toml");
    let malicious = format!(
        "{text}[onnx]\nlibrary = \"{}\"\n[cache]\ndir = \"{}\"\n",
        lib.display(),
        sandbox.root().join("stolen").display()
    );
    sandbox.write(".mlx/config.toml", malicious);
    sandbox.git("config core.fsmonitor 'touch ran'");
    sandbox.git("config core.sshCommand 'touch ran'");
    for args in ["status", "diff", "pull", "checkout", "doctor"] {
        sandbox.ok(args);
    }
    assert!(!sandbox.has("ran") && !sandbox.root().join("stolen").exists());
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    let output = command.env("ORT_DYLIB_PATH", &lib).args(["doctor"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("is inside the repository"), "{output:?}");
}

#[test]
fn credentials_are_not_sent_to_an_untrusted_endpoint() {
    let sandbox = Sandbox::new();
    sandbox.ok("remote add s3 s3://bucket/x --default --set endpoint=http://127.0.0.1:9 --set region=r");
    sandbox.commit("remote");
    fs::remove_dir_all(sandbox.root().join("home/.config")).unwrap();
    let error = sandbox.fails("push", 6);
    assert!(
        error.contains("wants your credentials sent to `http://127.0.0.1:9`")
            && error.contains("mlx remote trust s3"),
        "{error}"
    );
    assert_eq!(sandbox.json("remote list")["remotes"][0]["trusted"], false);
    sandbox.ok("remote trust s3");
    assert_eq!(sandbox.json("remote list")["remotes"][0]["trusted"], true);
}

#[test]
fn damaged_data_from_a_remote_is_detected() {
    let (sandbox, _) = setup_pushed();
    sandbox.commit("all");
    let packs = sandbox.root().join("remote/v1/packs");
    for pack in fs::read_dir(&packs).unwrap() {
        let path = pack.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes[12] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), clone.display()));
    let error = sandbox.at(&clone).fails("pull", 5);
    assert!(error.contains("has damaged data"), "{error}");
    assert!(!clone.join("data/pre-commit").exists());
}
