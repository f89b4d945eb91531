//! Tests of `mlx log`: versions that were removed, and those that cannot be read.

use serde_json::{Value, json};

use crate::sandbox::Sandbox;

/// Returns for each version, newest first, its message, whether it has a digest, and why it cannot be read.
fn versions(sandbox: &Sandbox, path: &str) -> Vec<(String, bool, String)> {
    let log = sandbox.json(&format!("log {path}"));
    let row = |row: &Value| {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        assert_eq!(row["size"].is_null(), row["digest"].is_null(), "{row}");
        (text("summary"), !row["digest"].is_null(), text("unreadable"))
    };
    log["versions"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn a_version_that_cannot_be_read_is_not_called_removed() {
    let sandbox = Sandbox::new();
    sandbox.write("d/x", "1");
    sandbox.write("d/y", "1");
    sandbox.ok("add d");
    let pointer = sandbox.read("d.mlx");
    sandbox.write("d.mlx", pointer.replace("format = 1", "format = 99"));
    sandbox.commit("newer");
    sandbox.write("note", "a commit that does not touch the pointer");
    sandbox.commit("note");
    sandbox.write("d.mlx", &pointer);
    sandbox.commit("readable");
    sandbox.write("d.mlx", format!("<<<<<<< ours\n{pointer}=======\n{pointer}>>>>>>> theirs\n"));
    sandbox.commit("marks");
    sandbox.write("d.mlx", &pointer);
    sandbox.commit("resolved");
    sandbox.ok("remove d");
    sandbox.commit("removed");
    let found = versions(&sandbox, "d");
    assert_eq!(found, versions(&sandbox, "d/x"));
    let rows: Vec<_> = found.iter().map(|row| (row.0.as_str(), row.1, row.2.is_empty())).collect();
    let removed = ("removed", false, true);
    let marks = [("resolved", true, true), ("marks", false, false), ("readable", true, true)];
    assert_eq!(rows, [&[removed][..], &marks, &[("newer", false, false)]].concat());
    assert!(
        found[2].2.contains("is in conflict") && found[4].2.contains("written by a newer mlx"),
        "{found:?}"
    );
    let text = sandbox.ok("log d");
    assert_eq!((text.matches("removed").count(), text.matches("unreadable").count()), (2, 2), "{text}");
    assert!(text.contains("`d.mlx` is in conflict"), "{text}");
}

#[test]
fn an_output_is_unreadable_where_its_lockfile_is() {
    let sandbox = Sandbox::new();
    sandbox.write("i", "1");
    sandbox.write("mlx.toml", "[stage.s]\ncmd = \"cp i o\"\ndeps = [\"i\"]\nouts = [\"o\"]\n");
    sandbox.ok("repro");
    sandbox.write("p", "1");
    sandbox.ok("add p");
    sandbox.commit("one");
    let lock = sandbox.read("mlx.lock");
    sandbox.write("mlx.lock", format!("<<<<<<< ours\n{lock}=======\n{lock}>>>>>>> theirs\n"));
    sandbox.commit("marks");
    sandbox.write("mlx.lock", "format = 1\n");
    sandbox.commit("removed");
    let rows: Vec<_> =
        versions(&sandbox, "o").into_iter().map(|row| (row.0, row.1, row.2.is_empty())).collect();
    let row = |name: &str, has_digest, readable| (name.to_owned(), has_digest, readable);
    assert_eq!(rows, [row("removed", false, true), row("marks", false, false), row("one", true, true)]);
    // A pointer says what a path holds, whatever a lockfile says.
    assert_eq!(versions(&sandbox, "p"), [("one".to_owned(), true, String::new())]);
    sandbox.git("revert --no-edit HEAD");
    let error = sandbox.fails("lineage o --rev HEAD", 4);
    assert!(error.contains("`mlx.lock` is in conflict"), "{error}");
    assert_eq!(sandbox.json("log o --rev HEAD~3")["versions"][0]["unreadable"], json!(null));
}
