//! Reports that approvals rest on: kept in the store under their digest, sent along, read back.

use serde_json::Value;

use crate::{
    cli::Context,
    digest::Digest,
    error::{Doing, Error, Kind, Result},
    model::registry::Version,
    path::RepoPath,
    pointer::{Content, Shape},
    policy::Evidence,
    remote::{self, Access, Depth, Remote, Wants},
    repo::Repo,
    store::Writer,
};

/// What a report says of a version; a report of another one is refused.
pub fn of(bytes: &[u8], version: &Version) -> Result<Evidence> {
    let evidence = parse(bytes)?;
    if evidence.package == version.package.digest && evidence.version == version.name() {
        return Ok(evidence);
    }
    let error = Error::new(
        Kind::Conflict,
        format!(
            "this is a report of {} ({}), not of {} ({})",
            evidence.version,
            evidence.package.short(),
            version.name(),
            version.package.digest.short()
        ),
    );
    Err(error.hint(format!("test that one: `mlx apptest URL --version {}`", version.name())))
}

fn parse(bytes: &[u8]) -> Result<Evidence> {
    let wrong = |what: &str| {
        Error::corrupt(format!("this is no report of an application test: {what}"))
            .hint("`mlx apptest` writes one: apptest/report.json")
    };
    let value: Value = serde_json::from_slice(bytes).map_err(|it| wrong(&it.to_string()))?;
    let text = |key: &str| value[key].as_str().ok_or_else(|| wrong(&format!("it has no {key}")));
    let rows = |key: &str| {
        let map = value[key].as_object().ok_or_else(|| wrong(&format!("it has no {key}")));
        map.map(|it| it.iter().map(|(class, it)| (class.clone(), it.as_f64().unwrap_or(f64::NAN))).collect())
    };
    if value["format"] != 1 {
        return Err(wrong("it is of another format"));
    }
    let checks = value["checks"].as_array().filter(|it| !it.is_empty());
    let checks = checks.ok_or_else(|| wrong("it has no checks"))?;
    let failed = checks.iter().filter(|it| it["passed"] != true);
    let evidence = Evidence {
        version: text("version")?.to_owned(),
        package: text("package")?.parse()?,
        accuracy: value["accuracy"].as_f64().unwrap_or(f64::NAN),
        precision: rows("precision")?,
        recall: rows("recall")?,
        p99: value["latency"]["p99"].as_f64().unwrap_or(f64::NAN),
        failed: failed.map(|it| it["name"].as_str().unwrap_or("?").to_owned()).collect(),
    };
    // What is missing closes its gate; what cannot be is no report.
    let shares = evidence.precision.values().chain(evidence.recall.values()).chain([&evidence.accuracy]);
    if shares.into_iter().any(|it| !it.is_nan() && !(0.0..=1.0).contains(it)) {
        return Err(wrong("a share in it is not between 0 and 1"));
    }
    if evidence.p99 < 0.0 || evidence.p99.is_infinite() {
        return Err(wrong("its p99 is no time"));
    }
    if !evidence.precision.keys().eq(evidence.recall.keys()) || evidence.recall.len() < 2 {
        return Err(wrong("precision and recall are not of the same two or more classes"));
    }
    Ok(evidence)
}

/// Keeps a report, here and on the default remote.
pub fn keep(ctx: &Context<'_>, repo: &Repo, bytes: &[u8]) -> Result<Content> {
    let mut writer = Writer::new(&repo.store);
    let digest = writer.put_bytes(bytes)?;
    writer.finish()?;
    let content = Content { digest, files: 1, kind: Shape::File, size: bytes.len() as u64 };
    send(ctx, repo, vec![(name(&digest)?, content)])?;
    Ok(content)
}

/// Sends contents to the default remote. Where others share the Git repository there has to be one.
pub fn send(ctx: &Context<'_>, repo: &Repo, contents: Vec<(RepoPath, Content)>) -> Result<()> {
    let configured = repo.config.remote(None);
    if configured.is_err() && repo.git.upstream()?.is_none() {
        return Ok(());
    }
    let configured = configured.doing(|| "others could not fetch what this rests on".into())?;
    let remote = Remote::open(&configured, Access::Write)?;
    remote::push(repo, &remote, &Wants { contents, runs: Vec::new() }, ctx.progress).map(drop)
}

/// Reads a report back, from the store or the default remote.
pub fn load(ctx: &Context<'_>, repo: &Repo, report: &Content) -> Result<Evidence> {
    if !repo.store.contains(&report.digest) {
        let wants = Wants { contents: vec![(name(&report.digest)?, *report)], runs: Vec::new() };
        let remote = Remote::open(&repo.config.remote(None)?, Access::Read)?;
        remote::fetch(repo, &remote, &wants, Depth::Everything, ctx.progress)?;
    }
    parse(&repo.store.read(&report.digest)?)
}

fn name(digest: &Digest) -> Result<RepoPath> {
    RepoPath::from_text(&format!("reports/{}.json", digest.short()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_is_no_report() {
        let good = json!({"format": 1, "version": "pets@v0.1.0", "package": Digest::of(b"p"), "accuracy": 0.9,
            "precision": {"cat": 0.9, "dog": 1.0}, "recall": {"cat": 0.9, "dog": 0.0}, "latency": {"p99": 12.5},
            "checks": [{"name": "same answers", "passed": true}]});
        let read = |value: &Value| parse(value.to_string().as_bytes());
        assert!((read(&good).unwrap().p99 - 12.5).abs() < 1e-9);
        for (key, value) in [
            ("format", json!(99)),
            ("accuracy", json!(95)),
            ("accuracy", json!(-0.1)),
            ("precision", json!({"cat": 0.9, "dog": 1.1})),
            ("recall", json!({"unicorn": 1.0})),
            ("recall", json!({"cat": 0.9, "unicorn": 1.0})),
            ("latency", json!({"p99": -3})),
            ("checks", json!([])),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            let error = read(&bad).expect_err(key);
            assert_eq!(error.kind(), Kind::Corrupt, "{bad}");
        }
        // What is missing closes its gate instead.
        let mut silent = good;
        silent["accuracy"] = Value::Null;
        assert!(read(&silent).unwrap().accuracy.is_nan());
    }
}
