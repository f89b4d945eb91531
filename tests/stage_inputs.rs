//! Tests of what counts as an input of a stage: inputs that change during the run, files that Git ignores,
//! links, nested repositories, and files of outputs that `.mlxignore` names.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::sandbox::{Sandbox, outcomes};

/// Creates a repository with one stage.
fn with_stage(command: &str, deps: &str, outs: &str, more: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    stage(&sandbox, command, deps, outs, more);
    sandbox
}

fn stage(sandbox: &Sandbox, command: &str, deps: &str, outs: &str, more: &str) {
    let text = format!("[stage.s]\ncmd = '''{command}'''\ndeps = [{deps}]\nouts = [{outs}]\n{more}\n");
    sandbox.write("mlx.toml", text);
}

fn outcome(sandbox: &Sandbox, args: &str) -> String {
    let value = sandbox.json(args);
    value["stages"][0]["outcome"].as_str().unwrap_or_else(|| panic!("{value}")).to_owned()
}

/// Returns the only folder of quarantined outputs.
fn quarantined(sandbox: &Sandbox) -> PathBuf {
    let found: Vec<_> = fs::read_dir(sandbox.repo.join(".git/mlx/failed")).unwrap().collect();
    assert_eq!(found.len(), 1);
    found.into_iter().next().unwrap().unwrap().path()
}

#[test]
fn an_input_that_changed_and_changed_back_is_not_recorded() {
    let sandbox = with_stage("echo two > i; cat i > o; echo one > i", "'i'", "'o'", "");
    sandbox.write("i", "one\n");
    let error = sandbox.fails("repro", 4);
    assert!(error.contains("`i` changed while the stage `s` ran (mtime"), "{error}");
    assert!(!sandbox.has("mlx.lock") && !sandbox.has("o"));
    let place = quarantined(&sandbox);
    assert_eq!(fs::read_to_string(place.join("o")).unwrap(), "two\n");
    let hint = format!(
        "run `mlx repro` again; to accept its outputs nevertheless, move them back from {} and run \
         `mlx commit s`",
        place.display()
    );
    assert!(error.contains(&hint), "{error}");
}

#[test]
fn params_files_and_names_in_folders_that_come_and_go_count() {
    let more = "params = ['p.toml:x']";
    for (command, subject) in [
        ("echo x = 2 > p.toml; touch o; echo x = 1 > p.toml", "`p.toml` changed"),
        ("echo y = 2 >> p.toml; touch o", "`p.toml` changed"),
        ("mv in/a in/b; touch o; mv in/b in/a", "`in/a` changed"),
        ("touch in/b; touch o; rm in/b", "`in` changed while the stage `s` ran (a name in it came or went)"),
        ("rm in/a; touch o", "`in/a` was removed"),
        ("mkdir in/d; touch in/d/x o", "`in/d/x` appeared"),
        ("chmod +x in/a; touch o; chmod -x in/a", "`in/a` changed while the stage `s` ran (ctime)"),
        ("touch -r in/a stamp; echo 2 > in/a; touch -r stamp in/a; touch o", "`in/a` changed"),
    ] {
        let sandbox = with_stage(command, "'in'", "'o'", more);
        sandbox.write("in/a", "1\n");
        sandbox.write("p.toml", "x = 1\n");
        let error = sandbox.fails("repro", 4);
        assert!(error.contains(subject), "{command}\n{error}");
        assert!(!sandbox.has("mlx.lock"), "{command}");
    }
}

#[test]
fn a_folder_that_another_takes_the_place_of_is_not_recorded() {
    for (inputs, read, first, then) in [
        ("deps = ['p/d']", "p/d/x", "p/d", "p/other"),
        ("deps = ['p/d/x']", "p/d/x", "p/d", "p/other"),
        ("deps = ['p/d']", "p/d/x", "p", "q"),
        ("deps = ['p/d/x']", "p/d/x", "p", "q"),
        ("params = ['p/p.toml:x']", "p/p.toml", "p", "q"),
    ] {
        let sandbox = Sandbox::new();
        let swap =
            format!("mv {first} bak; mv {then} {first}; cat {read} > o; mv {first} {then}; mv bak {first}");
        sandbox.write("mlx.toml", format!("[stage.s]\ncmd = '{swap}'\n{inputs}\nouts = ['o']\n"));
        for (file, text) in [("p/d/x", "1"), ("q/d/x", "2"), ("p/other/x", "2")] {
            sandbox.write(file, text);
        }
        sandbox.write("p/p.toml", "x = 1\n");
        sandbox.write("q/p.toml", "x = 2\n");
        let error = sandbox.fails("repro", 4);
        let text = format!("`{first}` changed while the stage `s` ran (it was moved, or its mode changed)");
        assert!(error.contains(&text), "{inputs} {first}\n{error}");
        assert!(!sandbox.has("mlx.lock"));
    }
    // Names that come and go beside the inputs, and times that a program sets there, do not count.
    let beside = "mkdir p/t out; touch p/log out/log; rmdir p/t; touch -d 2001-01-01 p; cat p/d/x > p/o";
    let sandbox = with_stage(beside, "'p/d'", "'p/o'", "");
    sandbox.write("p/d/x", "1");
    assert_eq!(outcome(&sandbox, "repro"), "ran");
}

#[test]
fn another_name_for_an_input_is_no_change_of_it() {
    let sandbox = with_stage("ln in/a elsewhere; cp in/a o", "'in'", "'o'", "");
    sandbox.write("in/a", "1\n");
    assert_eq!(outcome(&sandbox, "repro"), "ran");
}

#[test]
fn files_that_git_ignores_do_not_count_in_a_dependency() {
    let command = "mkdir -p src/__pycache__ src/empty; date +%N > src/__pycache__/c.pyc; echo > src/b.pyc; \
                   cp src/code o";
    let sandbox = with_stage(command, "'src'", "'o'", "");
    sandbox.write("src/code", "1\n");
    sandbox.write(".gitignore", "__pycache__/\n*.pyc\n");
    assert_eq!(outcome(&sandbox, "repro"), "ran");
    assert_eq!(outcome(&sandbox, "repro"), "unchanged");
    sandbox.git("add -f src/b.pyc");
    assert_eq!(outcome(&sandbox, "repro"), "unchanged", "Git's index does not matter");
    sandbox.commit("all");
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q . {}", clone.display()));
    fs::remove_file(clone.join("src/b.pyc")).unwrap();
    let plan = sandbox.at(&clone).json("repro --dry-run");
    assert_eq!(plan["stages"][0]["why"][0], "its output `o` is missing", "{plan}");
    sandbox.write("src/code", "2\n");
    assert_eq!(outcome(&sandbox, "repro"), "ran");
    // Rules of this machine alone do not count.
    fs::write(sandbox.repo.join(".git/info/exclude"), "note\n").unwrap();
    sandbox.write("src/note", "");
    assert_eq!(outcome(&sandbox, "repro --dry-run"), "would run");
}

#[test]
fn a_file_that_the_run_left_in_a_dependency_is_named_with_the_line_that_ignores_it() {
    for (command, name, line) in [
        ("echo > 'src/a b.log'; touch o", "src/a b.log", "/src/a b.log"),
        ("mkdir -p src/cache/x; echo > src/cache/x/y; touch o", "src/cache/x/y", "/src/cache/"),
    ] {
        let sandbox = with_stage(command, "'src'", "'o'", "");
        sandbox.write("src/code", "1\n");
        let error = sandbox.fails("repro", 4);
        assert!(error.contains(&format!("`{name}` appeared while the stage `s` ran")), "{error}");
        assert!(error.contains(&format!("leave it out with the line `{line}` in `.gitignore`")), "{error}");
        fs::remove_dir_all(sandbox.repo.join("src")).unwrap();
        sandbox.write("src/code", "1\n");
        sandbox.write(".gitignore", format!("{line}\n"));
        assert_eq!(outcome(&sandbox, "repro"), "ran");
    }
}

#[test]
fn what_a_stage_names_and_what_git_or_mlx_keeps_cannot_be_left_out() {
    for (moved, deps, more) in [
        ("src/tracked", "'src'", ""),
        ("src/data/x", "'src'", ""),
        ("src/code", "'src/code'", ""),
        ("src/code", "'src'", "[stage.t]\ncmd = 'true'\ndeps = ['src/code']"),
        ("src/p.toml", "'src'", "params = ['src/p.toml:x']"),
        ("p.toml", "", "params = ['p.toml:x']"),
    ] {
        let sandbox = with_stage(&format!("touch -d 2001-01-01 {moved}; touch o"), deps, "'o'", more);
        sandbox.write("src/tracked", "1\n");
        sandbox.write("src/data/x", "1\n");
        sandbox.ok("add src/data");
        sandbox.commit("code");
        for (file, text) in [("src/code", "1\n"), ("src/p.toml", "x = 1\n"), ("p.toml", "x = 1\n")] {
            sandbox.write(file, text);
        }
        let error = sandbox.fails("repro s", 4);
        assert!(error.contains(&format!("`{moved}` changed while the stage `s` ran")), "{error}");
        assert!(!error.contains(".gitignore"), "{deps} {more}\n{error}");
    }
}

#[test]
fn what_mlx_keeps_in_a_dependency_counts_although_git_ignores_it() {
    let sandbox = with_stage("cat src/data/x src/made > o", "'src'", "'o'", "");
    let made = "[stage.a]\ncmd = 'cat i > src/made'\ndeps = ['i']\nouts = ['src/made']\n";
    let text = sandbox.read("mlx.toml");
    sandbox.write("mlx.toml", format!("{made}{text}"));
    sandbox.write("src/data/x", "1\n");
    sandbox.write("i", "1\n");
    sandbox.ok("add src/data");
    sandbox.ok("repro");
    sandbox.write("src/data/x", "2\n");
    sandbox.ok("commit");
    sandbox.ok("repro");
    assert_eq!(sandbox.read("o"), "2\n1\n");
    sandbox.write("i", "2\n");
    sandbox.ok("repro");
    assert_eq!(sandbox.read("o"), "2\n2\n");
    // A dependency that is ignored itself counts with all its files.
    let sandbox = with_stage("cp gen/x o", "'gen'", "'o'", "");
    sandbox.write(".gitignore", "gen/\n");
    for text in ["1", "2"] {
        sandbox.write("gen/x", text);
        assert_eq!(outcome(&sandbox, "repro"), "ran");
        assert_eq!(sandbox.read("o"), text);
    }
}

#[test]
fn an_edit_of_a_tracked_params_file_is_recorded_before_the_run() {
    let sandbox = with_stage("cat conf/p.toml > o", "", "'o'", "params = ['conf/p.toml:x']");
    sandbox.write("conf/p.toml", "x = 1\n");
    sandbox.write("conf/q", "1");
    sandbox.ok("add conf");
    sandbox.ok("repro");
    sandbox.write("conf/p.toml", "x = 2\n");
    sandbox.write("conf/q", "2");
    let ran = sandbox.mlx("repro");
    let note = "`conf/p.toml`, an input of the stage `s`, was edited: `conf.mlx` now records it";
    assert!(ran.code == 0 && ran.err.contains(note), "{ran:?}");
    assert!(ran.out.contains("next: git add .gitignore conf.mlx mlx.lock"), "{ran:?}");
    let status = sandbox.ok("status");
    assert!(status.contains("modified  conf/q") && !status.contains("conf/p.toml"), "{status}");
    sandbox.ok("commit");
    sandbox.commit("all");
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q . {}", clone.display()));
    let error = sandbox.at(&clone).fails("repro", 3);
    assert!(error.contains("get it with `mlx pull conf/p.toml`"), "{error}");
}

#[test]
fn a_link_out_of_a_dependency_is_followed_inside_the_repository() {
    let sandbox = with_stage("cat in/* in/s/* > o", "'in'", "'o'", "");
    sandbox.write("real", "1");
    sandbox.write("tables/t", "1");
    sandbox.write("in/s/own", "1");
    let link = |target: &str, name: &str| symlink(target, sandbox.repo.join(name)).unwrap();
    link("../hop", "in/table");
    link("real", "hop");
    link("../../tables/t", "in/s/t");
    link("own", "in/s/inner");
    assert_eq!(outcome(&sandbox, "repro"), "failed", "`cat` reads no folders");
    stage(&sandbox, "cat in/table in/s/* > o", "'in'", "'o'", "");
    assert_eq!(outcome(&sandbox, "repro"), "ran");
    assert_eq!(outcome(&sandbox, "repro"), "unchanged");
    let lock = sandbox.read("mlx.lock");
    assert!(
        lock.contains("dep.\"real\"") && lock.contains("dep.\"tables/t\"") && !lock.contains("own"),
        "{lock}"
    );
    sandbox.write("real", "2");
    assert_eq!(sandbox.json("repro --dry-run")["stages"][0]["why"][0], "`real` changed");
    assert_eq!(outcome(&sandbox, "repro"), "ran");
    assert_eq!(sandbox.read("o"), "2111");
    fs::remove_file(sandbox.repo.join("hop")).unwrap();
    symlink("tables/t", sandbox.repo.join("hop")).unwrap();
    assert_eq!(sandbox.json("repro --dry-run")["stages"][0]["why"][0], "`real` is no longer a dependency");
}

#[test]
fn a_link_out_of_the_repository_is_refused_by_name() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("x"), "secret").unwrap();
    let outside = outside.path().join("x");
    for target in
        [outside.as_path(), Path::new("../../x"), Path::new("../.git/config"), Path::new("../a/up/../x")]
    {
        let sandbox = with_stage("touch o", "'in'", "'o'", "");
        sandbox.write("in/a", "");
        sandbox.write("a/b", "");
        symlink("../..", sandbox.repo.join("a/up")).unwrap();
        symlink(target, sandbox.repo.join("in/table")).unwrap();
        let error = sandbox.fails("repro", 6);
        assert!(error.contains("the link `in/table` leads out of the repository"), "{error}");
        assert!(!sandbox.has("o"));
        let status = sandbox.json("status").to_string();
        assert!(status.contains("the link `in/table` leads out of the repository"), "{status}");
        assert!(!status.contains("secret"));
    }
}

#[test]
fn a_link_to_the_stages_own_output_or_to_a_folder_around_it_is_refused() {
    for (target, text) in [
        ("../o", "a link in `in`, which the stage `s` needs, leads to its own output `o`"),
        ("..", "the link `in/l` leads to `.`, which contains `in`"),
    ] {
        let sandbox = with_stage("touch o", "'in'", "'o'", "");
        sandbox.write("in/a", "");
        sandbox.write("o", "");
        symlink(target, sandbox.repo.join("in/l")).unwrap();
        let error = sandbox.fails("repro", 2);
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn the_git_folder_of_a_nested_repository_is_not_content() {
    let sandbox = Sandbox::new();
    let up = sandbox.root().join("up");
    fs::create_dir(&up).unwrap();
    fs::write(up.join("code"), "1").unwrap();
    let git = |args: &str| sandbox.at(&up).git(args);
    git("init -q");
    git("add -A");
    git("commit -q -m one");
    // As data, as a dependency and as an output.
    let clone = format!("git clone -q {} model", up.display());
    sandbox.write("keep", "");
    sandbox.git(&format!("clone -q {} data/hub", up.display()));
    sandbox.ok("add data");
    fs::remove_file(sandbox.repo.join("data/hub/code")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/hub/code"), "1");
    assert_eq!(sandbox.json("status")["clean"], true);
    sandbox.ok("unprotect data");
    stage(&sandbox, &clone, "'lib'", "'model'", "");
    sandbox.git(&format!("clone -q {} lib/hub", up.display()));
    let ran = sandbox.mlx("repro");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err.contains("not part of the output `model`, so that no clone gets it: `model/.git`"),
        "{}",
        ran.err
    );
    assert_eq!(outcome(&sandbox, "repro"), "unchanged");
    sandbox.write("lib/hub/code", "2");
    let ran = sandbox.mlx("repro");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(quarantined(&sandbox).join("model/git/HEAD").is_file());
    fs::remove_dir_all(sandbox.repo.join("model")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("model/code"), "1");
    // A name that the file system may take for it is refused, and can be ignored.
    sandbox.write("data/.GIT", "");
    let error = sandbox.fails("add data", 6);
    assert!(error.contains("`data/.GIT`") && error.contains("`.mlxignore`"), "{error}");
    sandbox.write(".mlxignore", ".GIT\n");
    sandbox.ok("add data");
}

#[test]
fn files_of_an_output_that_are_left_out_stay_in_place() {
    let sandbox =
        with_stage("mkdir -p out; cat i > out/result; echo > out/s.tmp; exit $(cat rc)", "'i'", "'out'", "");
    sandbox.write(".mlxignore", "*.tmp\nnotes/\n");
    sandbox.write("i", "1\n");
    sandbox.write("rc", "0");
    let ran = sandbox.mlx("repro");
    assert_eq!(ran.code, 0, "{}", ran.err);
    let warning = "warning: not part of the output `out`, so that no clone gets it: `out/s.tmp`\n";
    assert!(ran.err.contains(warning), "{}", ran.err);
    sandbox.write("out/by-hand.tmp", "labels");
    sandbox.write("out/notes/n", "note");
    for code in [0, 8] {
        sandbox.write("i", format!("{code}\n"));
        sandbox.write("rc", code.to_string());
        assert_eq!(sandbox.mlx("repro --force").code, code);
        assert_eq!(
            (sandbox.read("out/by-hand.tmp"), sandbox.read("out/notes/n")),
            ("labels".into(), "note".into())
        );
        assert_eq!(
            sandbox.read("out/result"),
            "0\n",
            "the failed run's is moved away, the recorded one is back"
        );
    }
    assert!(quarantined(&sandbox).join("out/result").is_file());
}

#[test]
fn an_output_in_a_dependency_of_which_a_part_is_here_stops_the_stage() {
    let sandbox = with_stage("ls -R src > o", "'src'", "'o'", "");
    sandbox.ok(&format!("remote add r file://{} --default", sandbox.root().join("r").display()));
    let make = "[stage.a]\ncmd = 'mkdir src/out; cp d/i src/out/x; echo y > src/out/y'\ndeps = ['d']\n\
                outs = ['src/out']\n";
    sandbox.write("mlx.toml", format!("{make}{}", sandbox.read("mlx.toml")));
    sandbox.write("d/i", "1\n");
    sandbox.write("src/code", "1\n");
    sandbox.ok("add d");
    sandbox.ok("repro");
    sandbox.commit("all");
    sandbox.ok("push");
    for part in ["src/out/x", "o"] {
        let folder = sandbox.root().join(part.replace('/', "-"));
        sandbox.git(&format!("clone -q . {}", folder.display()));
        let clone = sandbox.at(&folder);
        clone.ok(&format!("pull {part}"));
        let text = fs::read_to_string(folder.join("mlx.toml")).unwrap();
        fs::write(folder.join("mlx.toml"), text.replace("ls -R", "ls  -R")).unwrap();
        let error = clone.fails("repro", 3);
        assert!(error.contains("mlx pull src/out`"), "{error}");
        clone.ok("pull src/out");
        clone.ok("repro");
        assert_eq!(fs::read_to_string(folder.join("o")).unwrap(), sandbox.read("o"));
    }
}

#[test]
fn a_stage_that_writes_its_own_input_is_told_so_by_the_second_try() {
    for (command, more, subject) in [
        ("cat in/i > o; echo x >> in/i", "", "`in/i` changed"),
        ("cat in/i > o; mktemp -p in", "", "`in/tmp."),
        ("cat in/i > o; echo >> p.toml", "params = ['p.toml']", "`p.toml` changed"),
    ] {
        let sandbox = with_stage(command, "'in'", "'o'", more);
        sandbox.write("in/i", "1\n");
        sandbox.write("p.toml", "x = 1\n");
        sandbox.git("add in p.toml");
        let first = sandbox.fails("repro", 4);
        assert!(first.contains(subject) && !first.contains("its last run"), "{first}");
        let second = sandbox.fails("repro", 4);
        assert!(second.contains(subject) && second.contains("during its last run"), "{second}");
        let hint = "hint: the command seems to write to its own input, and no such run can be recorded: ";
        assert!(second.contains(hint) && second.contains("let it write to an output"), "{second}");
        // The way out that the hint tells.
        let place = second.split("move them back from ").nth(1).unwrap().split(' ').next().unwrap();
        fs::rename(Path::new(place).join("o"), sandbox.repo.join("o")).unwrap();
        sandbox.ok("commit s");
        assert_eq!(outcome(&sandbox, "repro"), "unchanged");
        // A run that is recorded in between ends it.
        stage(&sandbox, "cat in/i > o", "'in'", "'o'", more);
        sandbox.ok("repro");
        stage(&sandbox, command, "'in'", "'o'", more);
        assert!(!sandbox.fails("repro --force", 4).contains("its last run"));
    }
}

#[test]
fn a_plan_refuses_a_run_on_an_absent_input_as_the_run_does() {
    let sandbox = with_stage("cat a i > o", "'a', 'i'", "'o'", "[stage.a]\ncmd = 'echo 1 > a'\nouts = ['a']");
    sandbox.write("i", "input\n");
    sandbox.ok("add i");
    sandbox.ok("repro");
    sandbox.commit("all");
    let folder = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q . {}", folder.display()));
    let clone = sandbox.at(&folder);
    let planned = |args: &str| outcomes(&clone.json(args));
    assert_eq!(planned("status"), "a would run, s would run");
    let why = "it cannot run without `i`, which is not here: run `mlx pull i` first";
    assert_eq!(clone.json("repro --dry-run")["stages"][1]["why"][1], why);
    assert_eq!(outcomes(&clone.json("repro")), "a ran, s unchanged", "its inputs are as recorded");
    let text = sandbox.read("mlx.toml").replace("cat a i", "cat  a i");
    fs::write(folder.join("mlx.toml"), text).unwrap();
    for args in ["repro --dry-run", "repro", "repro --force s --dry-run", "repro --force s"] {
        let error = clone.fails(args, 3);
        assert!(error.contains("cannot run the stage `s`: the content of `i`"), "{args}: {error}");
        assert!(error.contains("get it with `mlx pull i`"), "{args}: {error}");
    }
    assert_eq!(planned("status"), "a unchanged, s blocked");
}

#[test]
fn an_output_whose_recorded_tree_is_not_here_stops_the_stage_that_reads_it() {
    let sandbox = with_stage("cat src/out/x > o", "'src'", "'o'", "");
    sandbox.ok(&format!("remote add r file://{} --default", sandbox.root().join("r").display()));
    let make = "[stage.a]\ncmd = 'mkdir src/out; cp d/i src/out/x; echo y > src/out/y'\ndeps = ['d']\n\
                outs = ['src/out']\n";
    sandbox.write("mlx.toml", format!("{make}{}", sandbox.read("mlx.toml")));
    sandbox.write("d/i", "1\n");
    sandbox.write("src/code", "1\n");
    sandbox.ok("add d");
    sandbox.ok("repro");
    sandbox.commit("all");
    sandbox.ok("push");
    for (dependency, compared) in [("src", "src/out"), ("src/out", "src/out"), ("src/out/x", "src/out/x")] {
        let folder = sandbox.root().join(dependency.replace('/', "-"));
        sandbox.git(&format!("clone -q . {}", folder.display()));
        let text = sandbox.read("mlx.toml").replace("deps = ['src']", &format!("deps = ['{dependency}']"));
        fs::write(folder.join("mlx.toml"), text.replace("cat src", "cat  src")).unwrap();
        // Whether it is all of the output, only the recorded tree tells.
        fs::create_dir(folder.join("src/out")).unwrap();
        fs::write(folder.join("src/out/x"), "edited").unwrap();
        let error = sandbox.at(&folder).fails("repro s", 3);
        assert!(error.contains(&format!("cannot compare `{compared}` with its record")), "{error}");
        assert_eq!(fs::read_to_string(folder.join("mlx.lock")).unwrap(), sandbox.read("mlx.lock"));
        assert!(!folder.join("o").exists(), "{dependency}");
    }
}
