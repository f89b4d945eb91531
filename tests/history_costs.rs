//! Tests that commands which read history read each file and folder in it once, however many commits hold it:
//! counts the objects that they read from Git.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
};

use mlx::{
    digest::Digest,
    lineage::{Introduction, Lineage, trace, versions},
    maintenance::{GcMode, collect, usage},
    path::RepoPath,
    pipeline::CommitRecords,
    progress::Silent,
    repo::Repo,
};

use crate::sandbox::Sandbox;

fn path(text: &str) -> RepoPath {
    RepoPath::from_text(text).unwrap()
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

/// Returns a pointer to a file that has this text.
fn pointer(text: &str) -> String {
    format!("digest = \"{}\"\nfiles = 1\nformat = 1\nkind = \"file\"\nsize = 4\n", digest(text))
}

/// Commits files, each commit a list of them with their bytes, on top of what is checked out.
fn import(sandbox: &Sandbox, commits: &[Vec<(String, String)>]) {
    let mut stream = String::new();
    for (at, files) in commits.iter().enumerate() {
        let time = 2_000_000_000 + at;
        writeln!(stream, "commit refs/heads/main\ncommitter Ada <ada@park.example> {time} +0000").unwrap();
        writeln!(stream, "data 1\nx{}", if at == 0 { "\nfrom refs/heads/main^0" } else { "" }).unwrap();
        for (file, text) in files {
            writeln!(stream, "M 100644 inline {file}\ndata {}\n{text}", text.len()).unwrap();
        }
    }
    let mut import: Command = sandbox.command("git", &sandbox.repo);
    let mut import = import.args(["fast-import", "--quiet"]).stdin(Stdio::piped()).spawn().unwrap();
    import.stdin.take().unwrap().write_all(stream.as_bytes()).unwrap();
    assert!(import.wait().unwrap().success());
    sandbox.git("reset -q --hard");
}

/// Returns a lockfile of a chain of stages, and of one that made this text.
fn chain(stages: usize, other: &str) -> String {
    let content =
        |text: &str| format!("{{ digest = \"{}\", files = 1, kind = \"file\", size = 4 }}", digest(text));
    let mut lock = "format = 1\n".to_owned();
    for stage in 1..=stages {
        let (before, key) = (stage - 1, digest(&format!("key of {stage}")));
        let (dep, out) = (content(&format!("o{before}")), content(&format!("o{stage}")));
        writeln!(lock, "\n[stage.s{stage}]\ncmd = \"x\"\ndep.\"o{before}\" = {dep}").unwrap();
        writeln!(lock, "key = \"{key}\"\nout.\"o{stage}\" = {out}").unwrap();
    }
    let key = digest("other");
    write!(lock, "\n[stage.t]\ncmd = \"x\"\nkey = \"{key}\"\nout.\"t\" = {}\n", content(other)).unwrap();
    lock
}

/// Returns the lineage of a path in the commit that is checked out, and the number of objects read from Git.
fn lineage_of(sandbox: &Sandbox, file: &str) -> (Lineage, u64) {
    let repo = Repo::discover(&sandbox.repo).unwrap();
    let head = repo.git.head().unwrap();
    let none = |_: &RepoPath| Ok(None);
    let found = trace(&repo.git, &repo.store, Some(&head), &path(file), &none, &[]).unwrap();
    (found, repo.git.reads())
}

#[test]
fn lineage_reads_each_version_of_a_lockfile_once_for_all_stages() {
    let mut reads = Vec::new();
    for stages in [2, 12] {
        let sandbox = Sandbox::new();
        sandbox.commit("start");
        let commits = (0..40).map(|at| vec![("mlx.lock".to_owned(), chain(stages, &at.to_string()))]);
        import(&sandbox, &commits.collect::<Vec<_>>());
        let (lineage, read) = lineage_of(&sandbox, &format!("o{stages}"));
        assert_eq!(lineage.nodes.len(), stages + 1);
        let first = sandbox.git("rev-list --reverse HEAD");
        let first = first.lines().nth(1).unwrap();
        for node in &lineage.nodes[..stages] {
            let Introduction::Commit(commit) = &node.introduction else { panic!("{node:?}") };
            assert_eq!(commit.rev.to_string(), first, "{}", node.path);
        }
        assert!(matches!(lineage.nodes[stages].introduction, Introduction::NotCommitted));
        reads.push(read);
    }
    // Of each commit itself, its folder for either kind of file, and its lockfile.
    assert!(reads[0] <= 4 * 41 + 20 && reads[1] <= reads[0] + 10, "{reads:?}");
}

#[test]
fn log_reads_each_version_of_a_pointer_and_each_folder_once() {
    let sandbox = Sandbox::new();
    sandbox.commit("start");
    let file = |number: usize| format!("d/{number:02}.mlx");
    let change = |at: usize| vec![(file(at % 10), pointer(&format!("{at}")))];
    import(&sandbox, &(0..60).map(change).collect::<Vec<_>>());
    let repo = Repo::discover(&sandbox.repo).unwrap();
    let head = repo.git.head().unwrap();
    let found = versions(&repo.git, &repo.store, &head, &path("d/03")).unwrap();
    assert_eq!(found.len(), 6);
    // Of each commit itself and two folders, and of six the pointer. Where it is not there yet, lockfiles are
    // looked for.
    assert!(repo.git.reads() <= 3 * 61 + 6 + 20, "{}", repo.git.reads());
}

#[test]
fn a_node_that_several_stages_read_is_shown_once() {
    let sandbox = Sandbox::new();
    let mut text = "[stage.s0]\ncmd = 'echo 0 >a0; echo 0 >b0'\nouts = ['a0', 'b0']\n".to_owned();
    for at in 1..=8 {
        let (a, b) = (format!("a{}", at - 1), format!("b{}", at - 1));
        writeln!(text, "[stage.s{at}]\ncmd = 'cat {a} {b} >a{at}; truncate -s 9 a{at}; echo {at} >b{at}'")
            .unwrap();
        writeln!(text, "deps = ['{a}', '{b}']\nouts = ['a{at}', 'b{at}']").unwrap();
    }
    sandbox.write("mlx.toml", text);
    sandbox.ok("repro");
    sandbox.commit("all");
    assert_eq!(lineage_of(&sandbox, "a8").0.nodes.len(), 17);
    let shown = sandbox.json("lineage a8");
    let text = shown.to_string();
    // Two inputs of each stage but the first are shown below each of its two outputs, once with their inputs.
    let times = |what: &str| text.matches(what).count();
    assert_eq!((times("\"repeated\":false"), times("\"repeated\":true")), (17, 14), "{text}");
    let repeated = &shown["inputs"][1]["inputs"][0];
    assert_eq!(repeated["path"], "a6");
    assert_eq!(
        (repeated["stage"]["name"].as_str(), &repeated["inputs"]),
        (Some("s6"), &serde_json::json!([]))
    );
    assert_eq!(sandbox.ok("lineage a8").matches("(as above)").count(), 14);
}

/// Creates a history of `commits` commits that change one of `pointers` pointers each, in folders of ten.
fn changing(pointers: usize, commits: usize) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.commit("start");
    let file = |number: usize| format!("d{}/{number:03}.mlx", number / 10);
    let first = (0..pointers).map(|number| (file(number), pointer(&format!("first {number}")))).collect();
    let change = |at: usize| vec![(file(at % pointers), pointer(&at.to_string()))];
    import(&sandbox, &std::iter::once(first).chain((1..commits).map(change)).collect::<Vec<_>>());
    sandbox
}

#[test]
fn commands_on_all_history_read_each_pointer_and_each_folder_once() {
    let commands: [(&str, u64, &dyn Fn(&Repo)); 3] = [
        ("du", 2, &|repo| assert!(usage(repo).is_ok())),
        ("gc", 1, &|repo| assert!(collect(repo, 0, GcMode::DryRun, &Silent).is_ok())),
        ("fetch --all-commits", 1, &|repo| {
            let (revs, errors) = repo.git.all_commits().unwrap();
            let mut records = CommitRecords::new(&repo.git);
            revs.iter().for_each(|rev| records.add(rev));
            let (contents, runs, faults) = records.finish();
            assert_eq!((runs.len(), errors.len(), faults.len()), (0, 0, 0));
            assert!(contents.len() as u64 > 100, "{}", contents.len());
        }),
    ];
    for (name, passes, command) in commands {
        let [few, many] = [40, 160].map(|pointers| {
            let sandbox = changing(pointers, 100);
            let repo = Repo::discover(&sandbox.repo).unwrap();
            command(&repo);
            repo.git.reads()
        });
        // Of each commit itself and two folders, and the pointer; of a pass that compares commits, the
        // folders of both.
        assert!(few <= passes * 6 * 100 + 200, "{name}: {few}");
        assert!(many <= few + 4 * 120 * passes, "{name}: {few}, {many}");
    }
}

#[test]
fn usage_of_revisions_is_that_of_their_contents() {
    let sandbox = Sandbox::new();
    let large = |seed: u8| vec![seed; 2_000_000];
    let write = |file: &str, seed: u8| sandbox.write(file, large(seed));
    let commit = |message: &str| {
        sandbox.ok("add a b");
        sandbox.commit(message);
    };
    write("a", 1);
    write("b", 2);
    commit("one");
    write("b", 3);
    commit("two");
    // The same data again, and a commit without a change of it.
    write("b", 2);
    commit("three");
    sandbox.write("other", "x");
    sandbox.git("add other");
    sandbox.git("commit -q -m four");
    let du = sandbox.json("du");
    let rows = du["revisions"].as_array().unwrap().iter();
    let row = |row: &serde_json::Value| {
        let number = |name: &str| row[name].as_u64().unwrap();
        let summary = row["summary"].as_str().unwrap().to_owned();
        (
            summary,
            number("commits"),
            number("pointers"),
            number("size"),
            row["only"]["bytes"].as_u64().unwrap(),
        )
    };
    let mut rows: Vec<_> = rows.map(row).collect();
    rows.sort();
    // All commits are of one second: of the three with the same data, any may be the newest.
    let same = rows.iter().find(|row| row.1 == 3).unwrap().clone();
    assert!(["one", "three", "four"].contains(&&same.0[..]), "{rows:?}");
    let two = ("two".to_owned(), 1, 2, 4_000_000, 2_000_000);
    assert_eq!(rows.len(), 2);
    assert!(rows.contains(&two) && rows.contains(&(same.0.clone(), 3, 2, 4_000_000, 2_000_000)), "{rows:?}");
}
