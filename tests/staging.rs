//! Tests of what commands leave for Git: `--git-add`, and the `next: git add …` line, run as it stands there.

use std::{fs, path::Path};

use crate::sandbox::{Sandbox, command_result};

/// Names that a shell or Git could take for something else.
const NAMES: [&str; 8] =
    ["-dash", ":colon", ":!not", "two\nlines", "blank $HOME", "it's", "notes[12]", "back\\slash"];

/// Runs mlx on one path and returns its standard output.
fn run(sandbox: &Sandbox, folder: &Path, args: &[&str]) -> String {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), folder);
    let ran = command_result(command.args(args).output().unwrap());
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.err);
    ran.out
}

/// Runs the command behind `next: ` in a shell and returns the staged files.
fn paste(sandbox: &Sandbox, folder: &Path, out: &str) -> Vec<String> {
    let at = out.find("next: ").unwrap_or_else(|| panic!("nothing to paste in: {out}"));
    let line = &out[at + "next: ".len()..];
    assert!(line.trim_end().len() < 1000 && !line.trim_end().contains('\n'), "{line}");
    let mut shell = sandbox.command("bash", folder);
    let ran = command_result(shell.args(["-c", line]).output().unwrap());
    assert_eq!(ran.code, 0, "{line}: {}", ran.err);
    staged(sandbox)
}

fn staged(sandbox: &Sandbox) -> Vec<String> {
    let listed = sandbox.git("diff --cached --name-only -z");
    listed.split_terminator('\0').map(str::to_owned).collect()
}

#[test]
fn the_next_line_stages_the_pointer_of_any_name_and_nothing_else() {
    for folder in ["", "sub"] {
        let sandbox = Sandbox::new();
        sandbox.commit("start");
        sandbox.write("sub/notes1", "y");
        sandbox.write("notes1", "y");
        sandbox.ok("add notes1 sub/notes1");
        for name in NAMES {
            sandbox.write(name, name);
            let from = sandbox.repo.join(folder);
            let path = if folder.is_empty() { name.to_owned() } else { format!("../{name}") };
            let staged = paste(&sandbox, &from, &run(&sandbox, &from, &["add", "--", &path]));
            assert!(staged.contains(&format!("{name}.mlx")), "{name:?} from `{folder}`: {staged:?}");
            assert!(!staged.iter().any(|file| file.ends_with("notes1.mlx")), "{name:?}: {staged:?}");
        }
    }
}

#[test]
fn git_add_takes_names_for_names() {
    for name in NAMES {
        let sandbox = Sandbox::new();
        sandbox.commit("start");
        sandbox.write("notes1", "y");
        sandbox.ok("add notes1");
        sandbox.write(name, name);
        let out = run(&sandbox, &sandbox.repo, &["add", "--git-add", "--", name]);
        assert!(!out.contains("next:"), "{out}");
        let found = staged(&sandbox);
        assert!(found.contains(&format!("{name}.mlx")) && found.len() == 2, "{found:?}");
    }
}

#[test]
fn many_files_are_staged_by_a_short_line() {
    let sandbox = Sandbox::new();
    sandbox.commit("start");
    let names: Vec<String> = (0..300).map(|number| format!("data/{number}/file")).collect();
    for name in &names {
        sandbox.write(name, name);
    }
    let paths: Vec<&str> = names.iter().map(String::as_str).collect();
    sandbox.write("other.txt", "not for this commit");
    let out = run(&sandbox, &sandbox.repo, &[&["add"][..], &paths].concat());
    let staged = paste(&sandbox, &sandbox.repo, &out);
    assert_eq!(staged.len(), 2 * names.len(), "a pointer and a .gitignore each");
    assert!(!staged.contains(&"other.txt".to_owned()));
}

#[test]
fn repro_commit_and_remote_name_what_they_changed_for_git() {
    let sandbox = Sandbox::new();
    sandbox.write("i", "1");
    let stage = "[stage.s]\ncmd = \"cp i o && cp i d/m.json\"\ndeps = [\"i\"]\nouts = [\"o\"]\n\
                 metrics = [\"d/m.json\"]\n";
    sandbox.write("mlx.toml", stage);
    fs::create_dir(sandbox.repo.join("d")).unwrap();
    sandbox.commit("start");
    let staged = paste(&sandbox, &sandbox.repo, &sandbox.ok("repro"));
    assert_eq!(staged, [".gitignore", "d/m.json", "mlx.lock"]);
    sandbox.commit("one");
    assert!(!sandbox.ok("repro").contains("next:"), "nothing changed");
    assert!(!sandbox.ok("repro --dry-run --force").contains("next:"));
    sandbox.write("o", "2");
    assert_eq!(paste(&sandbox, &sandbox.repo, &sandbox.ok("commit")), ["mlx.lock"]);
    sandbox.commit("two");
    let out = sandbox.ok("remote add origin file:///tmp/none");
    assert_eq!(
        paste(&sandbox, &sandbox.repo.join("d"), &out.replace(".mlx", ":/.mlx")),
        [".mlx/config.toml"]
    );
    assert!(!sandbox.ok("remote list").contains("next:"));
    assert!(!sandbox.ok("remote add --local mine file:///tmp/mine").contains("next:"));
    let out = sandbox.at(&sandbox.repo.join("d")).ok("remote remove origin");
    assert!(out.contains("next: git add :/.mlx"), "{out}");
}

#[test]
fn an_ignore_file_that_lost_its_last_line_is_named_for_git() {
    let sandbox = Sandbox::new();
    let stage = |output: &str| format!("[stage.s]\ncmd = 'echo 1 > {output}'\nouts = ['{output}']\n");
    sandbox.write("mlx.toml", stage("a/o"));
    sandbox.ok("repro");
    sandbox.commit("one");
    sandbox.write("mlx.toml", stage("o"));
    let out = sandbox.ok("repro");
    assert!(out.ends_with("next: git add .gitignore a/.gitignore mlx.lock mlx.toml\n"), "{out}");
    sandbox.commit("two");
    sandbox.write("mlx.toml", "");
    assert_eq!(paste(&sandbox, &sandbox.repo, &sandbox.ok("repro")), [".gitignore", "mlx.lock", "mlx.toml"]);
}

#[test]
fn a_pointer_that_git_ignores_is_not_written_if_it_is_to_be_staged() {
    for (rule, file) in [("*.mlx", "d/x.mlx"), (".gitignore", "d/.gitignore")] {
        let sandbox = Sandbox::new();
        sandbox.write("d/x", "1");
        sandbox.write(".git/info/exclude", rule);
        for args in ["add --git-add d/x", "add --git-add --glob d/*"] {
            let error = sandbox.fails(args, 2);
            assert!(error.contains(&format!("Git ignores `{file}`, by `{rule}` in line 1 of")), "{error}");
            assert!(!sandbox.has("d/x.mlx") && !sandbox.has("d/.gitignore"), "{args}");
            assert!(!sandbox.has(".git/mlx/packs"), "nothing is stored in vain");
        }
        sandbox.ok("add d/x");
        // One that Git tracks already is staged whatever the rules say.
        sandbox.git("add -f d/x.mlx d/.gitignore");
        sandbox.write("d/x", "2");
        sandbox.ok("add --git-add d/x");
        assert_eq!(sandbox.git("diff --name-only"), "");
    }
}
