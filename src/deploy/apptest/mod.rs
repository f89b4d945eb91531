//! A served version, driven as an application would: is it what was registered, how good and how fast is it,
//! and does it stand what strangers send?
//!
//! [`data`] finds the pictures, [`runs`] asks about them, [`strangers`] ask wrongly and too much, [`report`] has
//! what came of it, [`page`] shows it to a person. Whether the numbers are good enough is not decided here: that is
//! for the policy. What is checked is that the service does what its package does, for everybody, always.

pub mod data;
mod page;
mod report;
mod runs;
mod strangers;

pub use self::report::{Check, Report};

use std::{collections::BTreeSet, time::Instant};

use crate::{
    deploy::{Answered, Client},
    error::{Doing, Error, Kind, Result},
    model::{
        offline::{Offline, Seen},
        registry::{self, Version},
    },
    progress::Progress,
    repo::Repo,
    store::Store,
    time::Timestamp,
};

use self::{
    data::{Case, Data},
    report::{FORMAT, Tally, by_class},
    runs::{Reply, Subject},
};

/// How far a served probability may be from the package's own.
const CLOSE: f64 = 1e-4;
/// Pictures in memory at once while the package is run here.
const AT_ONCE: usize = 64;
/// Requests a second of the steady stream, at most.
const FASTEST: f64 = 20.0;

/// Report and page of a test.
pub struct Tested {
    pub report: Report,
    /// Of its own: no scripts, nothing from elsewhere.
    pub html: String,
}

/// The version that a service serves: the one `asked` for, or whichever of the registered models it has.
pub fn served(repo: &Repo, client: &Client, asked: Option<&str>) -> Result<Version> {
    if let Some(asked) = asked {
        let version = registry::require(&repo.git, asked)?;
        let found = number(client, &version.model)?;
        let other = match found {
            Some(it) if it == version.number.to_string() => return Ok(version),
            Some(it) => format!("the service serves `{}@{it}`, not `{}`", version.model, version.name()),
            None => format!("the service has no model `{}`", version.model),
        };
        let error = Error::new(Kind::Conflict, other);
        return Err(error.hint("ask another service, or leave out --version to test what is served"));
    }
    let versions = registry::versions(&repo.git, None)?;
    let models: BTreeSet<&str> = versions.iter().map(|it| &it.model[..]).collect();
    for model in &models {
        if let Some(number) = number(client, model)? {
            return registry::require(&repo.git, &format!("{model}@{number}"));
        }
    }
    let error = Error::not_found("the service serves no model that is registered here");
    Err(error.hint("`mlx model list` shows those that are; `git fetch --tags` brings others'"))
}

/// The number of the version of a model that answers, if the service has that model.
fn number(client: &Client, model: &str) -> Result<Option<String>> {
    let answered = client.get(&format!("/v2/models/{model}"))?;
    let odd =
        |it: &Answered| Error::new(Kind::Unavailable, format!("the service answers with {}", it.status));
    match answered.status {
        200 => {
            let wrong = || Error::corrupt("the service does not tell which version it serves");
            let number = answered.body["versions"][0].as_str().ok_or_else(wrong)?;
            Ok(Some(number.to_owned()))
        }
        404 => Ok(None),
        401 | 403 => Err(Error::new(Kind::Denied, "the service does not let us in")
            .hint("give its token in MLX_TOKEN or --token-file")),
        _ => Err(odd(&answered)),
    }
}

/// Puts a service through all of it.
pub fn test(
    repo: &Repo,
    client: &Client,
    version: &Version,
    data: &Data,
    progress: &dyn Progress,
) -> Result<Tested> {
    let mut offline = Offline::load(repo, version)?;
    data.check(&offline.description.classes)?;
    let start = Instant::now();
    let expected = expect(&mut offline, &repo.store, &data.cases)?;
    let loop_throughput = expected.len() as f64 / start.elapsed().as_secs_f64();
    let usable: Vec<usize> = (0..expected.len()).filter(|it| expected[*it].is_some()).collect();
    let Some(&first) = usable.first() else {
        return Err(Error::corrupt(format!("none of the pictures in `{}` can be decoded", data.name)));
    };
    let description = &offline.description;
    let subject = Subject { client, store: &repo.store, version, description, cases: &data.cases };
    let single = runs::one_by_one(&subject, progress)?;
    let (many, seconds) = runs::together(&subject);
    let throughput = many.iter().filter(|it| it.said.is_some()).count() as f64 / seconds;
    let rate = (throughput / 2.0).clamp(1.0, FASTEST);
    let stream = runs::stream(&subject, rate);
    let tensors = runs::tensors(&subject, &offline.settings(), &usable)?;
    let wrong = strangers::wrong_requests(&subject, first)?;
    let calm = strangers::still_answers(&subject, first);
    let burst = strangers::burst(&subject, first)?;
    let after = strangers::still_answers(&subject, first);

    let mut tally = Tally::default();
    let all = single.iter().chain(&many).chain(&stream).chain(&tensors);
    all.for_each(|it| tally.add(it, expected[it.case].as_ref()));
    let classes = &description.classes;
    let confusion = report::confusion(classes, &data.cases, &single);
    let checks = vec![
        answers(&tally),
        one_version(&tally, version),
        same_answers(&tally),
        steady(&stream, rate, &expected),
        wrong_requests(&wrong, &calm),
        stands_burst(&burst, &after),
    ];
    let report = Report {
        format: FORMAT,
        version: version.name(),
        package: version.package.digest,
        when: Timestamp::now().to_text(),
        engine: offline.engine.id(),
        cores: std::thread::available_parallelism().map_or(1, |it| it.get() as u64),
        data: report::data_set(data, (expected.len() - usable.len()) as u64),
        checks,
        accuracy: confusion.accuracy(),
        precision: by_class(&confusion, |it| it.0),
        recall: by_class(&confusion, |it| it.1),
        f1: by_class(&confusion, |it| it.2),
        confusion: report::matrix(&confusion),
        groups: report::groups(classes, &data.cases, &single),
        latency: report::latency(&single),
        throughput,
        loop_throughput,
        errors: tally.errors,
        same_answers: tally.same,
        wrong_requests: wrong,
        burst: burst.counts,
        worst: report::worst(classes, &data.cases, &single),
    };
    let html = page::print(&report, &|digest| {
        let case = data.cases.iter().find(|it| it.digest == *digest)?;
        case.bytes(&repo.store).ok()
    });
    Ok(Tested { report, html })
}

/// What the package says here; nothing for pictures that cannot be decoded.
fn expect(offline: &mut Offline, store: &Store, cases: &[Case]) -> Result<Vec<Option<Seen>>> {
    let mut expected = Vec::with_capacity(cases.len());
    for cases in cases.chunks(AT_ONCE) {
        let bytes = cases.iter().map(|it| it.bytes(store)).collect::<Result<Vec<_>>>();
        let seen = offline.see(&bytes.doing(|| "cannot read the pictures".into())?)?;
        expected.extend(seen.into_iter().map(Result::ok));
    }
    Ok(expected)
}

fn check(name: &str, passed: bool, found: String) -> Check {
    Check { name: name.to_owned(), passed, found }
}

fn answers(tally: &Tally) -> Check {
    let mut found = format!("{} of {} requests went wrong", tally.errors, tally.requests);
    if let Some(first) = &tally.first {
        found = format!("{found}; the first: {first}");
    }
    check("every right request is answered", tally.errors == 0, found)
}

fn one_version(tally: &Tally, version: &Version) -> Check {
    let found: Vec<&str> = tally.versions.iter().map(|it| &it[..]).collect();
    let passed = found == [version.name()];
    let found = if found.is_empty() { "no answer names a version".to_owned() } else { found.join(", ") };
    check("one version answers", passed, found)
}

fn same_answers(tally: &Tally) -> Check {
    let same = &tally.same;
    let passed = same.compared > 0 && same.different_classes == 0 && same.largest_difference <= CLOSE;
    let found = format!(
        "{} answers compared: {} other classes, probabilities differ by up to {:.1e}",
        same.compared, same.different_classes, same.largest_difference
    );
    check("same answers as the package", passed, found)
}

fn steady(stream: &[Reply], rate: f64, expected: &[Option<Seen>]) -> Check {
    let lost = stream.iter().filter(|it| it.said.is_none() && expected[it.case].is_some()).count();
    let slowest = stream.iter().map(|it| it.milliseconds).fold(0.0, f64::max);
    let found = format!("{} at {rate:.0} a second: {lost} lost, slowest {slowest:.0} ms", stream.len());
    check("keeps up with a steady stream", lost == 0, found)
}

fn wrong_requests(wrong: &[report::WrongRequest], after: &Reply) -> Check {
    let odd = wrong.iter().filter(|it| !(400..500).contains(&it.status));
    let mut odd: Vec<String> = odd.map(|it| format!("{} got {}", it.name, it.status)).collect();
    if after.said.is_none() {
        odd.push("then no right answer any more".to_owned());
    }
    let passed = odd.is_empty();
    let found = if passed { format!("all {} refused", wrong.len()) } else { odd.join(", ") };
    check("refuses wrong requests", passed, found)
}

fn stands_burst(burst: &strangers::Burst, after: &Reply) -> Check {
    let counts: Vec<String> = burst.counts.iter().map(|(status, it)| format!("{it} with {status}")).collect();
    let mut found = counts.join(", ");
    if burst.without_retry > 0 {
        found = format!("{found}; {} with 503 and without Retry-After", burst.without_retry);
    }
    if after.said.is_none() {
        found = format!("{found}; then no right answer any more");
    }
    check("stands a burst", burst.passed() && after.said.is_some(), found)
}
