//! Test reports that approvals are based on: parsed, stored under their digest, sent to the default remote,
//! read back.

use serde_json::Value;

use crate::{
    cli::Context,
    digest::Digest,
    error::{Error, Kind, Result, WithContext},
    model::registry::Version,
    path::RepoPath,
    pointer::{Content, ContentKind},
    policy::Evidence,
    remote::{self, Access, Depth, Remote, Wants},
    repo::Repo,
    store::Writer,
};

/// Parses a report on a version; a report on another version is an error.
pub fn parse_for(bytes: &[u8], version: &Version) -> Result<Evidence> {
    let evidence = parse(bytes)?;
    if evidence.package == version.package.digest && evidence.version == version.name() {
        return Ok(evidence);
    }
    let error = Error::new(
        Kind::Conflict,
        format!(
            "the report is on {} ({}), not on {} ({})",
            evidence.version,
            evidence.package.short(),
            version.name(),
            version.package.digest.short()
        ),
    );
    Err(error.hint(format!("test the right version with `mlx apptest URL --version {}`", version.name())))
}

/// Parses a report. Missing numbers become NaN and close their gates; impossible ones are errors.
fn parse(bytes: &[u8]) -> Result<Evidence> {
    let invalid = |problem: &str| {
        Error::corrupt(format!("the report is not one of an application test: {problem}"))
            .hint("`mlx apptest` writes such a report to `apptest/report.json`")
    };
    let value: Value = serde_json::from_slice(bytes).map_err(|error| invalid(&error.to_string()))?;
    let text = |key: &str| value[key].as_str().ok_or_else(|| invalid(&format!("it has no {key}")));
    let by_class = |key: &str| {
        let map = value[key].as_object().ok_or_else(|| invalid(&format!("it has no {key}")))?;
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        Ok::<_, Error>(map.iter().map(|(class, value)| (class.clone(), number(value))).collect())
    };
    if value["format"] != 1 {
        return Err(invalid("its format is unknown"));
    }
    let checks = value["checks"].as_array().filter(|checks| !checks.is_empty());
    let checks = checks.ok_or_else(|| invalid("it has no checks"))?;
    let failed = checks.iter().filter(|check| check["passed"] != true);
    let evidence = Evidence {
        version: text("version")?.to_owned(),
        package: text("package")?.parse()?,
        accuracy: value["accuracy"].as_f64().unwrap_or(f64::NAN),
        precision: by_class("precision")?,
        recall: by_class("recall")?,
        p99: value["latency"]["p99"].as_f64().unwrap_or(f64::NAN),
        failed: failed.map(|check| check["name"].as_str().unwrap_or("?").to_owned()).collect(),
    };
    // A missing number closes its gate; an impossible one makes the report invalid.
    let shares = evidence.precision.values().chain(evidence.recall.values()).chain([&evidence.accuracy]);
    if shares.into_iter().any(|share| !share.is_nan() && !(0.0..=1.0).contains(share)) {
        return Err(invalid("its accuracy, precision or recall is not between 0 and 1"));
    }
    if evidence.p99 < 0.0 || evidence.p99.is_infinite() {
        return Err(invalid("its p99 is not a duration"));
    }
    if !evidence.precision.keys().eq(evidence.recall.keys()) || evidence.recall.len() < 2 {
        return Err(invalid("its precision and recall are not for the same two or more classes"));
    }
    Ok(evidence)
}

/// Stores a report locally and sends it to the default remote.
pub fn store_report(ctx: &Context<'_>, repo: &Repo, bytes: &[u8]) -> Result<Content> {
    let mut writer = Writer::new(&repo.store);
    let digest = writer.put_bytes(bytes)?;
    writer.finish()?;
    let content = Content { digest, files: 1, kind: ContentKind::File, size: bytes.len() as u64 };
    send(ctx, repo, vec![(name(&digest)?, content)])?;
    Ok(content)
}

/// Sends contents to the default remote. Without one nothing is sent, unless the repository has a Git remote:
/// then it is an error, since other clones could not fetch the contents.
pub fn send(ctx: &Context<'_>, repo: &Repo, contents: Vec<(RepoPath, Content)>) -> Result<()> {
    let configured = repo.config.remote(None);
    if configured.is_err() && repo.git.upstream()?.is_none() {
        return Ok(());
    }
    let configured = configured.context(|| "other clones could not fetch the report or package".into())?;
    let remote = Remote::open(&configured, Access::Write)?;
    remote::push_all(repo, &remote, &Wants { contents, runs: Vec::new() }, ctx.progress).map(drop)
}

/// Reads a stored report, which is fetched from the default remote if it is missing locally.
pub fn load(ctx: &Context<'_>, repo: &Repo, report: &Content) -> Result<Evidence> {
    if !repo.store.contains(&report.digest) {
        let wants = Wants { contents: vec![(name(&report.digest)?, *report)], runs: Vec::new() };
        let remote = Remote::open(&repo.config.remote(None)?, Access::Read)?;
        remote::fetch(repo, &remote, &wants, Depth::Everything, ctx.progress)?;
    }
    parse(&repo.store.read(&report.digest)?)
}

/// Returns the path that identifies a report in transfers.
fn name(digest: &Digest) -> Result<RepoPath> {
    RepoPath::from_text(&format!("reports/{}.json", digest.short()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn impossible_numbers_make_a_report_invalid() {
        let good = json!({"format": 1, "version": "pets@v0.1.0", "package": Digest::of(b"p"), "accuracy": 0.9,
            "precision": {"cat": 0.9, "dog": 1.0}, "recall": {"cat": 0.9, "dog": 0.0},
            "latency": {"p99": 12.5},
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
        // A missing number closes its gate instead.
        let mut incomplete = good;
        incomplete["accuracy"] = Value::Null;
        assert!(read(&incomplete).unwrap().accuracy.is_nan());
    }
}
