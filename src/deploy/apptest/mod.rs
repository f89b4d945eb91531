//! Application test of a served version: compares its responses with the registered package run locally,
//! measures accuracy, latency and throughput, and sends invalid requests and a burst.
//!
//! [`data`] loads the images, [`load`] sends valid requests, [`robustness`] sends invalid ones and a burst,
//! [`report`] computes the results, and [`page`] renders them as HTML. The checks only require that the
//! service behaves like its package for every request; whether the numbers are good enough for a release is
//! decided by the policy.

pub mod data;
mod load;
mod page;
mod report;
mod robustness;

pub use self::report::{Check, Report};

use std::{collections::BTreeSet, time::Instant};

use crate::{
    deploy::Client,
    error::{Error, Kind, Result, WithContext},
    model::{
        inference::{LoadedPackage, Prediction},
        registry::{self, Version},
    },
    progress::Progress,
    repo::Repo,
    store::Store,
    time::Timestamp,
};

use self::{
    data::{Case, Data},
    load::{Reply, Target},
    report::{FORMAT, Tally, by_class},
};

/// Largest difference between a served probability and the package's own.
const TOLERANCE: f64 = 1e-4;
/// Images in memory at once while the package is run locally.
const CHUNK: usize = 64;
/// Highest rate of the steady stream, in requests per second.
const MAX_STREAM_RATE: f64 = 20.0;
/// Text added to a check if the service did not answer a valid request after it.
const NO_ANSWER_AFTER: &str = "then valid requests were no longer answered";

/// Report of a test, as data and as HTML.
pub struct TestResult {
    pub report: Report,
    /// Self-contained page without scripts or external resources.
    pub html: String,
}

/// Returns the version that a service serves. With `expected`, any other version is an error; without it, the
/// first registered model that the service has is used.
pub fn served_version(repo: &Repo, client: &Client, expected: Option<&str>) -> Result<Version> {
    if let Some(expected) = expected {
        let version = registry::require(&repo.git, expected)?;
        let found = served_number(client, &version.model)?;
        let message = match found {
            Some(number) if number == version.number.to_string() => return Ok(version),
            Some(number) => {
                format!("the service serves `{}@{number}`, not `{}`", version.model, version.name())
            }
            None => format!("the service does not serve the model `{}`", version.model),
        };
        let error = Error::new(Kind::Conflict, message);
        return Err(error.hint("use the URL of another service, or omit --version to test the served one"));
    }
    let versions = registry::versions(&repo.git, None)?;
    let models: BTreeSet<&str> = versions.iter().map(|it| &it.model[..]).collect();
    for model in &models {
        if let Some(number) = served_number(client, model)? {
            return registry::require(&repo.git, &format!("{model}@{number}"));
        }
    }
    let error = Error::not_found("the service serves no model that is registered in this repository");
    Err(error.hint("`mlx model list` lists the registered ones; `git fetch --tags` fetches those of others"))
}

/// Returns the number of the served version of a model; `None` if the service does not have that model.
fn served_number(client: &Client, model: &str) -> Result<Option<String>> {
    let response = client.get(&format!("/v2/models/{model}"))?;
    match response.status {
        200 => {
            let missing = || Error::corrupt("the service does not report which version it serves");
            let number = response.body["versions"][0].as_str().ok_or_else(missing)?;
            Ok(Some(number.to_owned()))
        }
        404 => Ok(None),
        401 | 403 => Err(Error::new(Kind::Denied, "the service denied access")
            .hint("pass its token in `MLX_TOKEN` or with --token-file")),
        status => Err(Error::new(Kind::Unavailable, format!("the service answered with status {status}"))),
    }
}

/// Runs the whole test against a service and returns the report. Failed checks are part of it, not an error.
pub fn run(
    repo: &Repo,
    client: &Client,
    version: &Version,
    data: &Data,
    progress: &dyn Progress,
) -> Result<TestResult> {
    let mut loaded = LoadedPackage::load(repo, version)?;
    data.check(&loaded.description.classes)?;
    let start = Instant::now();
    let expected = run_locally(&mut loaded, &repo.store, &data.cases)?;
    let loop_throughput = expected.len() as f64 / start.elapsed().as_secs_f64();
    let usable: Vec<usize> = (0..expected.len()).filter(|it| expected[*it].is_some()).collect();
    let Some(&first) = usable.first() else {
        return Err(Error::corrupt(format!("none of the images in `{}` can be decoded", data.name)));
    };
    let description = &loaded.description;
    let target = Target { client, store: &repo.store, version, description, cases: &data.cases };
    let sequential = load::sequential(&target, progress)?;
    let (concurrent, seconds) = load::concurrent(&target);
    let throughput = concurrent.iter().filter(|it| it.prediction.is_some()).count() as f64 / seconds;
    let rate = (throughput / 2.0).clamp(1.0, MAX_STREAM_RATE);
    let stream = load::stream(&target, rate);
    let tensors = load::tensors(&target, &loaded.settings(), &usable)?;
    let invalid = robustness::invalid_requests(&target, first)?;
    let after_invalid = target.classify(first);
    let burst = robustness::burst(&target, first)?;
    let after_burst = target.classify(first);

    let mut tally = Tally::default();
    let all = sequential.iter().chain(&concurrent).chain(&stream).chain(&tensors);
    all.for_each(|reply| tally.add(reply, expected[reply.case].as_ref()));
    let classes = &description.classes;
    let confusion = report::confusion(classes, &data.cases, &sequential);
    let checks = vec![
        check_answers(&tally),
        check_version(&tally, version),
        check_predictions(&tally),
        check_stream(&stream, rate, &expected),
        check_invalid_requests(&invalid, &after_invalid),
        check_burst(&burst, &after_burst),
    ];
    let report = Report {
        format: FORMAT,
        version: version.name(),
        package: version.package.digest,
        when: Timestamp::now().to_text(),
        engine: loaded.engine.id(),
        cores: std::thread::available_parallelism().map_or(1, |it| it.get() as u64),
        data: report::data_set(data, (expected.len() - usable.len()) as u64),
        checks,
        accuracy: confusion.accuracy(),
        precision: by_class(&confusion, |it| it.0),
        recall: by_class(&confusion, |it| it.1),
        f1: by_class(&confusion, |it| it.2),
        confusion: report::matrix(&confusion),
        groups: report::groups(classes, &data.cases, &sequential),
        latency: report::latency(&sequential),
        throughput,
        loop_throughput,
        errors: tally.errors,
        same_answers: tally.same,
        wrong_requests: invalid,
        burst: burst.counts,
        worst: report::worst(classes, &data.cases, &sequential),
    };
    let html = page::render(&report, &|digest| {
        let case = data.cases.iter().find(|case| case.digest == *digest)?;
        case.bytes(&repo.store).ok()
    });
    Ok(TestResult { report, html })
}

/// Returns the package's own prediction for each image; `None` if the image cannot be decoded.
fn run_locally(loaded: &mut LoadedPackage, store: &Store, cases: &[Case]) -> Result<Vec<Option<Prediction>>> {
    let mut expected = Vec::with_capacity(cases.len());
    for chunk in cases.chunks(CHUNK) {
        let bytes = chunk.iter().map(|it| it.bytes(store)).collect::<Result<Vec<_>>>();
        let predictions = loaded.predict(&bytes.context(|| "cannot read the images".into())?)?;
        expected.extend(predictions.into_iter().map(Result::ok));
    }
    Ok(expected)
}

fn check(name: &str, passed: bool, found: String) -> Check {
    Check { name: name.to_owned(), passed, found }
}

fn check_answers(tally: &Tally) -> Check {
    let mut found = format!("{} of {} requests failed", tally.errors, tally.requests);
    if let Some(first) = &tally.first_error {
        found = format!("{found}; the first: {first}");
    }
    check("every valid request is answered", tally.errors == 0, found)
}

fn check_version(tally: &Tally, version: &Version) -> Check {
    let found: Vec<&str> = tally.versions.iter().map(|it| &it[..]).collect();
    let passed = found == [version.name()];
    let found = if found.is_empty() { "no response names a version".to_owned() } else { found.join(", ") };
    check("one version answers", passed, found)
}

fn check_predictions(tally: &Tally) -> Check {
    let same = &tally.same;
    let passed = same.compared > 0 && same.different_classes == 0 && same.largest_difference <= TOLERANCE;
    let found = format!(
        "{} answers compared: {} with another class, probabilities differ by up to {:.1e}",
        same.compared, same.different_classes, same.largest_difference
    );
    check("same answers as the package", passed, found)
}

fn check_stream(stream: &[Reply], rate: f64, expected: &[Option<Prediction>]) -> Check {
    let lost = stream.iter().filter(|it| it.prediction.is_none() && expected[it.case].is_some()).count();
    let slowest = stream.iter().map(|it| it.milliseconds).fold(0.0, f64::max);
    let found =
        format!("{} requests at {rate:.0} per second: {lost} lost, slowest {slowest:.0} ms", stream.len());
    check("keeps up with a steady stream", lost == 0, found)
}

fn check_invalid_requests(requests: &[report::InvalidRequest], after: &Reply) -> Check {
    let accepted = requests.iter().filter(|it| !(400..500).contains(&it.status));
    let mut failures: Vec<String> = accepted.map(|it| format!("{} got {}", it.name, it.status)).collect();
    if after.prediction.is_none() {
        failures.push(NO_ANSWER_AFTER.to_owned());
    }
    let passed = failures.is_empty();
    let found = if passed { format!("all {} rejected", requests.len()) } else { failures.join(", ") };
    check("rejects invalid requests", passed, found)
}

fn check_burst(burst: &robustness::Burst, after: &Reply) -> Check {
    let counts: Vec<String> =
        burst.counts.iter().map(|(status, count)| format!("{count} with {status}")).collect();
    let mut found = counts.join(", ");
    if burst.without_retry > 0 {
        found = format!("{found}; {} with 503 and without Retry-After", burst.without_retry);
    }
    if after.prediction.is_none() {
        found = format!("{found}; {NO_ANSWER_AFTER}");
    }
    check("survives a burst", burst.passed() && after.prediction.is_some(), found)
}
