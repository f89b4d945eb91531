//! Tests of the values in parameter and metric files: every change of a value reruns the stage that reads it
//! and is shown, and a file that cannot be read hides nothing else.

use std::process::Command;

use serde_json::{Value, json};

use crate::{
    model::python_with,
    sandbox::{Sandbox, SandboxFolder, skip},
};

/// Creates a repository with one stage that reads parameters of a file and copies it to `o`.
fn stage_with_params(file: &str, params: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox
        .write("mlx.toml", format!("[stage.s]\ncmd = 'cp {file} o'\nouts = ['o']\nparams = ['{params}']\n"));
    sandbox
}

/// Creates a repository with a stage that does nothing and these metrics files.
fn with_metrics(files: &[(&str, &str)]) -> Sandbox {
    let sandbox = Sandbox::new();
    let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
    sandbox.write("mlx.toml", format!("[stage.s]\ncmd = 'true'\nmetrics = {names:?}\n"));
    files.iter().for_each(|(name, text)| sandbox.write(name, text));
    sandbox
}

/// Returns the reasons that a dry run gives for the only stage.
fn reasons(sandbox: &Sandbox) -> Vec<String> {
    let found = sandbox.json("repro --dry-run");
    let reasons = found["stages"][0]["why"].as_array().unwrap_or_else(|| panic!("{found}"));
    reasons.iter().map(|reason| reason.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_change_of_a_value_reruns_the_stage_and_is_named() {
    for (file, old, new, reason) in [
        (
            "p.json",
            "{\"a\": 302934307671667531413257853548643485645}",
            "{\"a\": 302934307671667531413257853548643485646}",
            "a 302934307671667531413257853548643485645 → 302934307671667531413257853548643485646",
        ),
        (
            "p.yaml",
            "a: 340282366920938463463374607431768211455",
            "a: 340282366920938463463374607431768211454",
            "a 340282366920938463463374607431768211455 → 340282366920938463463374607431768211454",
        ),
        (
            "p.toml",
            "a = 18446744073709551616",
            "a = 18446744073709551617",
            "a 18446744073709551616 → 18446744073709551617",
        ),
        ("p.yaml", "a: n", "a: false", "a \"n\" → false"),
        ("p.yaml", "a: yes", "a: true", "a yes → true"),
        ("p.yaml", "a: yes", "a: 'yes'", "a yes → \"yes\""),
        ("p.yaml", "a: 010", "a: 10.0", "a 010 → 10.0"),
        ("p.yaml", "a: 010", "a: 8", "a 010 → 8"),
        ("p.yaml", "a: 1_000", "a: 1000", "a 1_000 → 1000"),
        ("p.yaml", "a: 12:30", "a: 750", "a 12:30 → 750"),
        ("p.yaml", "a: 1e3", "a: 1.0e+3", "a 1e3 → 1000.0"),
        ("p.toml", "a = 2024-01-01", "a = '2024-01-01'", "a 2024-01-01 → \"2024-01-01\""),
        ("p.json", "{\"a\": 0.0}", "{\"a\": -0.0}", "a 0.0 → -0.0"),
        ("p.json", "{\"a\": 1}", "{\"a\": 1.0}", "a 1 → 1.0"),
        ("p.json", "{\"a\": 1}", "{\"a\": \"1\"}", "a 1 → \"1\""),
        ("p.json", "{\"a\": 0.1}", "{\"a\": 0.1000000000000000000001}", "a 0.1 → 1.000000000000000000001e-1"),
        ("p.json", "{\"a\": [1]}", "{\"a\": {\"0\": 1}}", "a [1] → {\"0\":1}"),
        ("p.json", "{\"a\": null}", "{}", "a null → none"),
        ("p.json", "{\"a.b\": 1, \"a\": {\"b\": 2}}", "{\"a.b\": 1, \"a\": {\"b\": 9}}", "a.b 2 → 9"),
    ] {
        let sandbox = stage_with_params(file, file);
        sandbox.write(file, old);
        sandbox.ok("repro");
        assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "unchanged", "{old}");
        sandbox.write(file, new);
        assert_eq!(reasons(&sandbox), [format!("{file}: {reason}")], "{old} → {new}");
        assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "ran", "{old} → {new}");
        assert_eq!(sandbox.read("o"), new);
        // The record of the first run is another one.
        sandbox.write(file, old);
        assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "restored", "{old}");
    }
}

#[test]
fn another_way_to_write_the_same_value_reruns_nothing() {
    for (file, old, new) in [
        ("p.json", "{\"a\": 0.10, \"b\": 1e2}", "{\"b\": 100.0, \"a\": 0.1}"),
        ("p.yaml", "a: 0x1F\nb: ~\nc: 'y'\nd: 007\n", "{d: 7, c: y, b: null, a: 31}"),
        ("p.toml", "a = 1_000\nb = 1.50", "b = 1.5\na = 1000"),
    ] {
        let sandbox = stage_with_params(file, file);
        sandbox.write(file, old);
        sandbox.ok("repro");
        let lock = sandbox.read("mlx.lock");
        sandbox.write(file, new);
        assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "unchanged", "{new}");
        assert_eq!(sandbox.read("mlx.lock"), lock);
    }
}

#[test]
fn y_and_n_are_names_of_parameters() {
    let sandbox = stage_with_params("p.yaml", "p.yaml:n");
    sandbox.write("p.yaml", "n: 100\ny: 2\n");
    sandbox.ok("repro");
    sandbox.write("p.yaml", "n: 100\ny: 3\n");
    assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "unchanged");
    sandbox.write("p.yaml", "n: 200\ny: 3\n");
    assert_eq!(reasons(&sandbox), ["p.yaml: n 100 → 200"]);
}

#[test]
fn a_name_that_fits_two_values_is_refused() {
    let sandbox = stage_with_params("p.json", "p.json:a.b");
    sandbox.write("p.json", "{\"a.b\": 1, \"a\": {\"b\": 2}}");
    let error = sandbox.fails("repro", 2);
    assert!(error.contains("`a.b` names two values of `p.json`"), "{error}");
    assert!(!sandbox.has("o") && !sandbox.has("mlx.lock"));
}

#[test]
fn parameters_nested_too_deep_are_refused_before_anything_is_written() {
    let sandbox = stage_with_params("p.json", "p.json");
    let nested = |levels: usize| format!("{{\"a\": {}1{}}}", "[".repeat(levels), "]".repeat(levels));
    sandbox.write("p.json", nested(64));
    for command in ["repro", "repro --dry-run"] {
        let error = sandbox.fails(command, 5);
        assert!(error.contains("`p.json`") && error.contains("more than 64 levels deep"), "{error}");
        assert!(error.contains("under `deps`"), "{error}");
    }
    assert!(!sandbox.has("o") && !sandbox.has("mlx.lock"));
    // The deepest that is accepted makes a lockfile that can be read.
    sandbox.write("p.json", nested(63));
    sandbox.ok("repro");
    sandbox.ok("status");
    assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "unchanged");
}

#[test]
fn a_second_yaml_document_is_one_clear_sentence() {
    let sandbox = stage_with_params("p.yaml", "p.yaml:a");
    sandbox.write("p.yaml", "a: 1\n---\na: 2\n");
    assert_eq!(
        sandbox.fails("repro", 5),
        "error: cannot read `p.yaml`: it has two documents; the second begins at line 2 column 1\n\
         hint: keep one document in a file: remove the line `---`, or move the rest to another file\n"
    );
}

#[test]
fn a_broken_metrics_file_hides_no_other() {
    let sandbox =
        with_metrics(&[("a.json", "{\"loss\": 0.25}"), ("b.json", "{\"b\": 1}"), ("c.json", "{\"c\": 2}")]);
    sandbox.commit("readable");
    sandbox.write("a.json", "{\"loss\": 0.5}");
    sandbox.write("b.json", "{\"b\": ");
    sandbox.write("c.json", "{");
    let shown = sandbox.mlx("show metrics");
    assert_eq!(shown.code, 5);
    assert!(shown.out.contains("0.5") && !shown.out.contains("b.json"), "{}", shown.out);
    assert!(shown.err.contains("`b.json`") && shown.err.contains("`c.json`"), "{}", shown.err);
    let shown = sandbox.json("show metrics");
    assert_eq!((&shown["a.json"], &shown["error"]["kind"]), (&json!({"loss": 0.5}), &json!("corrupt")));

    // Of a file that one side cannot read, no difference is claimed.
    let rows = sandbox.mlx("diff metrics --json");
    let deltas: Value = serde_json::from_str(&rows.out).unwrap();
    assert_eq!(deltas.as_array().unwrap().len(), 1, "{deltas}");
    assert_eq!(rows.code, 5);
    assert!(rows.err.contains("`b.json`"), "{}", rows.err);

    // A past version can no longer be corrected: it is named, and is not a failure unless it was asked for.
    sandbox.commit("broken");
    sandbox.commit_all_readable();
    let shown = sandbox.mlx("show metrics --all-commits");
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert_eq!(shown.err.matches("`b.json`").count(), 1, "{}", shown.err);
    assert!(shown.out.contains("0.25") && shown.out.contains("0.5"), "{}", shown.out);
    let error = sandbox.fails("show metrics HEAD~1", 5);
    assert!(error.contains("in `HEAD~1`") && error.contains("`b.json`"), "{error}");
}

impl Sandbox {
    /// Corrects the broken files and commits them.
    fn commit_all_readable(&self) {
        self.write("b.json", "{\"b\": 3}");
        self.write("c.json", "{\"c\": 3}");
        self.commit("corrected");
    }
}

#[test]
fn a_broken_pipeline_hides_no_metrics_of_others() {
    let sandbox = with_metrics(&[("a.json", "{\"loss\": 0.25}")]);
    sandbox.write("wip/mlx.toml", "[stage.s");
    sandbox.git("add -A");
    let shown = sandbox.mlx("show metrics");
    assert!(shown.code == 2 && shown.out.contains("0.25"), "{shown:?}");
    assert!(shown.err.contains("`wip/mlx.toml`"), "{}", shown.err);
}

#[test]
fn columns_and_rows_have_different_headings() {
    let sandbox = with_metrics(&[("a.json", "{}"), ("b.json", "{}")]);
    for number in 1..=5 {
        sandbox.write(
            "a.json",
            format!("{{\"loss\": 0.{number}, \"only\": 1, \"x.y\": 1, \"x\": {{\"y\": 2}}}}"),
        );
        sandbox.write("b.json", format!("{{\"loss\": 0.9{number}}}"));
        sandbox.commit("next");
    }
    let shown = sandbox.ok("show metrics --all-commits");
    let head: Vec<_> = shown.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["revision", "\"x.y\"", "a.json:loss", "only", "x.y", "b.json:loss"]);
}

#[test]
fn every_difference_of_metrics_is_shown_and_no_two_sides_look_alike() {
    let rows = |old: &str, new: &str| {
        let sandbox = with_metrics(&[("m.json", old)]);
        sandbox.commit("old");
        sandbox.write("m.json", new);
        let text = sandbox.ok("diff metrics");
        let rows: Vec<Vec<String>> = text
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().skip(1).map(str::to_owned).collect())
            .filter(|row: &Vec<String>| !row.is_empty())
            .collect();
        rows.iter().map(|row| row.join(" ")).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(rows("{\"a\": \"1\"}", "{\"a\": 1}"), "a \"1\" 1");
    assert_eq!(rows("{\"a\": 0.12345671}", "{\"a\": 0.12345672}"), "a 0.12345671 0.12345672 +1.0000e-8");
    assert_eq!(rows("{\"loss\": null, \"b\": 1}", "{\"b\": 1}"), "loss null");
    assert_eq!(
        rows("{\"loss\": [1, 2]}", "{\"loss\": {\"0\": 1, \"1\": 2}}"),
        "loss [1,2] {\"0\":1,\"1\":2}"
    );
    assert_eq!(rows("{\"a.b\": 1, \"a\": {\"b\": 2}}", "{\"a.b\": 1, \"a\": {\"b\": 9}}"), "a.b 2 9 +7");
}

#[test]
fn a_table_of_numbers_is_refused_as_metrics_and_hides_no_other() {
    let sandbox = with_metrics(&[("a.json", "{\"loss\": 0.25}"), ("b.csv", "x,y\n1,2\n")]);
    for command in ["repro", "repro --dry-run"] {
        let error = sandbox.fails(command, 2);
        assert!(error.contains("`b.csv` of the stage `s`") && error.contains("under `plots`"), "{error}");
    }
    assert!(!sandbox.has("mlx.lock"));
    let shown = sandbox.mlx("show metrics");
    assert!(shown.code == 5 && shown.out.contains("0.25") && shown.err.contains("`b.csv`"), "{shown:?}");
}

#[test]
fn yaml_is_read_as_the_help_says() {
    let sandbox = Sandbox::new();
    let help = sandbox.ok("help params");
    let listed = help.lines().skip_while(|line| !line.contains("scalar   ")).skip(1);
    let scalars: Vec<&str> = listed
        .take_while(|line| line.starts_with("  "))
        .flat_map(|line| line[..36].split_whitespace())
        .collect();
    assert!(scalars.len() >= 14, "{scalars:?}");
    for scalar in &scalars {
        let sandbox = with_metrics(&[("m.yaml", &format!("a: {scalar}\n"))]);
        assert_eq!(sandbox.json("show metrics")["m.yaml"]["a"], *scalar);
    }
}

#[test]
fn every_scalar_that_pyyaml_reads_otherwise_is_kept_as_its_text() {
    let scalars =
        ["010", "08", "0o17", "1_000", "yes", "No", "on", "12:30", "1e3", "1.5e3", "-.5", "2024-01-01"];
    let alike = ["y", "n", "12", "0x1F", "1.5", "1.0e+3", "true", "~", "007", "text"];
    let script = "import sys, yaml, json\n\
        for text in sys.argv[1:]:\n    \
        print(json.dumps(yaml.safe_load(text), default=lambda date: ['date']))";
    let arguments = scalars.iter().chain(&alike);
    let Some(python) = python_with("yaml") else {
        return skip(
            "every_scalar_that_pyyaml_reads_otherwise_is_kept_as_its_text",
            "`PyYAML` is not installed",
        );
    };
    let output = Command::new(python).args(["-c", script]).args(arguments).output().unwrap();
    let answers: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for (at, scalar) in scalars.iter().chain(&alike).enumerate() {
        let sandbox = with_metrics(&[("m.yaml", &format!("a: {scalar}\n"))]);
        let ours = sandbox.json("show metrics")["m.yaml"]["a"].clone();
        let expected = if at < scalars.len() { json!(scalar) } else { answers[at].clone() };
        assert_eq!(ours, expected, "{scalar}: PyYAML reads {}", answers[at]);
    }
}

#[test]
fn params_that_mlx_keeps_are_compared_between_versions() {
    let sandbox = Sandbox::new();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.write("conf/params.yaml", "rate: 0.1\n");
    sandbox.ok("add conf");
    let make = "[stage.make]\ncmd = 'cp conf/params.yaml made.yaml'\ndeps = ['conf']\nouts = ['made.yaml']\n";
    let read = "[stage.read]\ncmd = 'cp made.yaml out'\nouts = ['out']\n\
        params = ['made.yaml:rate', 'conf/params.yaml']\n";
    sandbox.write("mlx.toml", format!("{make}{read}"));
    sandbox.ok("repro");
    sandbox.commit("one");
    sandbox.write("conf/params.yaml", "rate: 0.2\n");
    sandbox.ok("repro");
    sandbox.commit("two");
    sandbox.ok("push --all-commits");
    let expected = ["conf/params.yaml", "made.yaml"].map(|file| (file.to_owned(), json!([0.1, 0.2])));
    let compare = |at: &SandboxFolder<'_>, revisions: &str| {
        let rows = at.json(&format!("diff params {revisions}"));
        let rows = rows.as_array().unwrap().clone();
        let row = |row: &Value| (row["file"].as_str().unwrap().to_owned(), json!([row["old"], row["new"]]));
        rows.iter().map(row).collect::<Vec<_>>()
    };
    let here = sandbox.at(&sandbox.repo);
    assert_eq!(compare(&here, "HEAD~1 HEAD"), expected);
    assert_eq!(compare(&here, "HEAD~1"), expected);
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q . {}", clone.display()));
    let clone = sandbox.at(&clone);
    let lacking = clone.mlx("diff params HEAD~1 HEAD");
    assert_eq!(lacking.code, 3, "{lacking:?}");
    assert!(lacking.err.contains("`conf/params.yaml`"), "{lacking:?}");
    clone.ok("fetch --all-commits");
    assert_eq!(compare(&clone, "HEAD~1 HEAD"), expected);
    assert_eq!(compare(&clone, "HEAD~1"), expected, "what is not checked out counts as it is recorded");
}
