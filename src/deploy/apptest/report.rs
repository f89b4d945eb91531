//! What an application test found, as people and release gates read it: `report.json`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    deploy::apptest::{
        data::{Case, Data},
        runs::Reply,
    },
    digest::Digest,
    model::{evaluate::Confusion, offline::Seen},
};

pub const FORMAT: u64 = 1;
/// Wrong pictures that are shown, at most.
const WORST: usize = 24;

/// All of it. A release gate reads version, package, accuracy, precision, recall, latency and checks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub format: u64,
    /// `pets@v0.1.0`
    pub version: String,
    pub package: Digest,
    pub when: String,
    /// What ran the package for comparison.
    pub engine: String,
    /// Of the machine that asked.
    pub cores: u64,
    pub data: DataSet,
    pub checks: Vec<Check>,
    pub accuracy: f64,
    pub precision: BTreeMap<String, f64>,
    pub recall: BTreeMap<String, f64>,
    pub f1: BTreeMap<String, f64>,
    /// Label → answer → count.
    pub confusion: BTreeMap<String, BTreeMap<String, u64>>,
    pub groups: Groups,
    pub latency: Latency,
    /// Pictures a second, several at once.
    pub throughput: f64,
    /// Pictures a second of the package run in a loop on the machine that asks, 16 at once, decoding included.
    pub loop_throughput: f64,
    /// Right requests that got no right answer.
    pub errors: u64,
    pub same_answers: SameAnswers,
    pub wrong_requests: Vec<WrongRequest>,
    /// Status, or `none` → count.
    pub burst: BTreeMap<String, u64>,
    pub worst: Vec<Worst>,
}

/// The pictures that were asked about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSet {
    pub name: String,
    pub digest: Digest,
    pub pictures: u64,
    /// Those that cannot be decoded: to be refused.
    pub damaged: u64,
}

/// Something that must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    pub name: String,
    pub passed: bool,
    pub found: String,
}

/// Accuracy by class, and by subfolder where there are any.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    pub class: BTreeMap<String, Group>,
    pub folder: BTreeMap<String, Group>,
    /// Between the best and the worst of one kind.
    pub largest_difference: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub accuracy: f64,
    pub pictures: u64,
}

/// Milliseconds from asking to the whole answer, one request at a time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

/// The service against the package run here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SameAnswers {
    pub compared: u64,
    pub different_classes: u64,
    /// Of two probabilities.
    pub largest_difference: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrongRequest {
    pub name: String,
    /// 0 where there was no answer.
    pub status: u16,
}

/// A picture that was taken for something else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worst {
    pub digest: Digest,
    pub label: String,
    pub class: String,
    pub probability: f64,
}

/// Replies of all runs against what must come.
#[derive(Debug, Default)]
pub struct Tally {
    pub requests: u64,
    pub errors: u64,
    /// The first thing that went wrong.
    pub first: Option<String>,
    pub same: SameAnswers,
    /// Versions that answered.
    pub versions: BTreeSet<String>,
}

impl Report {
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|it| it.passed)
    }
}

impl Tally {
    /// Counts a reply; a picture that cannot be decoded must be refused.
    pub fn add(&mut self, reply: &Reply, expected: Option<&Seen>) {
        self.requests += 1;
        let wrong = match (expected, &reply.said) {
            (Some(expected), Some(said)) => {
                self.versions.insert(said.version.clone());
                self.same.compared += 1;
                self.same.different_classes += u64::from(said.class != expected.class);
                let pairs = said.scores.iter().zip(&expected.scores);
                let largest = pairs.map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
                self.same.largest_difference = self.same.largest_difference.max(largest);
                return;
            }
            (None, None) if (400..500).contains(&reply.status) => return,
            (None, _) => format!("a damaged picture got {}", reply.status),
            (Some(_), None) => reply.why.clone(),
        };
        self.errors += 1;
        self.first.get_or_insert(wrong);
    }
}

/// Labels against answers.
pub fn confusion(classes: &[String], cases: &[Case], replies: &[Reply]) -> Confusion {
    let mut found = Confusion {
        classes: classes.to_vec(),
        counts: vec![vec![0; classes.len()]; classes.len()],
        loss: 0.0,
    };
    let answered = replies.iter().filter(|it| it.said.is_some()).count().max(1) as f64;
    for reply in replies {
        let label = classes.iter().position(|it| *it == cases[reply.case].label);
        if let (Some(said), Some(label)) = (&reply.said, label) {
            found.counts[label][said.class] += 1;
            found.loss -= libm::log(said.scores[label].max(1e-300)) / answered;
        }
    }
    found
}

/// One number of each class.
pub fn by_class(confusion: &Confusion, which: impl Fn((f64, f64, f64, u64)) -> f64) -> BTreeMap<String, f64> {
    confusion.classes.iter().cloned().zip((0..).map(|it| which(confusion.class(it)))).collect()
}

pub fn matrix(confusion: &Confusion) -> BTreeMap<String, BTreeMap<String, u64>> {
    let row = |it: &Vec<u64>| confusion.classes.iter().cloned().zip(it.iter().copied()).collect();
    confusion.classes.iter().cloned().zip(confusion.counts.iter().map(row)).collect()
}

pub fn groups(classes: &[String], cases: &[Case], replies: &[Reply]) -> Groups {
    let has_folders = cases.iter().any(|it| it.folder.is_some());
    let mut counts: [BTreeMap<String, (u64, u64)>; 2] = Default::default();
    for reply in replies {
        let (Some(said), case) = (&reply.said, &cases[reply.case]) else { continue };
        let folder = || case.folder.clone().unwrap_or_else(|| "(none)".into());
        let names = [Some(case.label.clone()), has_folders.then(folder)];
        for (counts, name) in counts.iter_mut().zip(names) {
            let Some(name) = name else { continue };
            let row = counts.entry(name).or_default();
            row.0 += u64::from(classes[said.class] == case.label);
            row.1 += 1;
        }
    }
    let group = |(name, (right, all)): (String, (u64, u64))| {
        (name, Group { accuracy: right as f64 / all as f64, pictures: all })
    };
    let [class, folder] = counts.map(|it| it.into_iter().map(group).collect::<BTreeMap<_, _>>());
    let largest_difference = spread(&class).max(spread(&folder));
    Groups { class, folder, largest_difference }
}

fn spread(groups: &BTreeMap<String, Group>) -> f64 {
    let all = || groups.values().map(|it| it.accuracy);
    if groups.is_empty() { 0.0 } else { all().fold(0.0, f64::max) - all().fold(1.0, f64::min) }
}

/// Times of right answers; of all answers where none was right.
pub fn latency(replies: &[Reply]) -> Latency {
    let right: Vec<_> = replies.iter().filter(|it| it.said.is_some()).collect();
    let chosen = if right.is_empty() { replies.iter().collect() } else { right };
    let mut times: Vec<f64> = chosen.iter().map(|it| it.milliseconds).collect();
    times.sort_by(f64::total_cmp);
    let mean = times.iter().sum::<f64>() / times.len().max(1) as f64;
    let at = |share| percentile(&times, share);
    Latency { mean, p50: at(0.5), p95: at(0.95), p99: at(0.99) }
}

/// The smallest of the sorted values that a share of them does not exceed.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

/// The wrong pictures that the model was surest of.
pub fn worst(classes: &[String], cases: &[Case], replies: &[Reply]) -> Vec<Worst> {
    let wrong = |reply: &Reply| {
        let (said, case) = (reply.said.as_ref()?, &cases[reply.case]);
        (classes[said.class] != case.label).then(|| Worst {
            digest: case.digest,
            label: case.label.clone(),
            class: classes[said.class].clone(),
            probability: said.scores[said.class],
        })
    };
    let mut found: Vec<_> = replies.iter().filter_map(wrong).collect();
    found.sort_by(|a, b| b.probability.total_cmp(&a.probability).then(a.digest.cmp(&b.digest)));
    found.truncate(WORST);
    found
}

pub fn data_set(data: &Data, damaged: u64) -> DataSet {
    DataSet { name: data.name.clone(), digest: data.digest(), pictures: data.cases.len() as u64, damaged }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::apptest::{data::Source, runs::Said};

    fn classes() -> Vec<String> {
        vec!["cat".into(), "dog".into()]
    }

    fn case(label: &str, folder: Option<&str>) -> Case {
        let digest = Digest::of(format!("{label}{folder:?}").as_bytes());
        let source = Source::File(label.into());
        Case { digest, label: label.into(), folder: folder.map(str::to_owned), source }
    }

    fn reply(case: usize, cat: f64) -> Reply {
        let said = Said {
            class: usize::from(cat < 0.5),
            scores: vec![cat, 1.0 - cat],
            version: "pets@v0.1.0".into(),
        };
        Reply { case, status: 200, said: Some(said), why: String::new(), milliseconds: case as f64 }
    }

    fn seen(cat: f32) -> Seen {
        Seen { class: usize::from(cat < 0.5), scores: vec![cat, 1.0 - cat], features: Vec::new() }
    }

    #[test]
    fn replies_are_held_against_the_package() {
        let mut tally = Tally::default();
        tally.add(&reply(0, 0.75), Some(&seen(0.75)));
        tally.add(&reply(0, 0.25), Some(&seen(0.75)));
        assert_eq!(tally.same, SameAnswers { compared: 2, different_classes: 1, largest_difference: 0.5 });
        let refused = Reply { status: 400, why: "400: no".into(), ..Reply::default() };
        tally.add(&refused, None);
        assert_eq!((tally.requests, tally.errors), (3, 0), "a damaged picture is refused");
        tally.add(&refused, Some(&seen(0.75)));
        tally.add(&reply(0, 0.75), None);
        assert_eq!((tally.errors, tally.first.as_deref()), (2, Some("400: no")));
        assert_eq!(tally.versions.len(), 1);
    }

    #[test]
    fn numbers_of_a_run() {
        let cases =
            [case("cat", Some("night")), case("cat", None), case("dog", None), case("dog", Some("x"))];
        let replies = [reply(0, 0.1), reply(1, 0.9), reply(2, 0.2), Reply { case: 3, ..Reply::default() }];
        let found = confusion(&classes(), &cases, &replies);
        assert_eq!(found.counts, [[1, 1], [0, 1]]);
        assert_eq!(by_class(&found, |it| it.1), [("cat".into(), 0.5), ("dog".into(), 1.0)].into());
        let groups = groups(&classes(), &cases, &replies);
        assert_eq!(groups.class["cat"], Group { accuracy: 0.5, pictures: 2 });
        assert_eq!(groups.folder["night"], Group { accuracy: 0.0, pictures: 1 });
        assert_eq!(groups.folder["(none)"], Group { accuracy: 1.0, pictures: 2 });
        assert!((groups.largest_difference - 1.0).abs() < 1e-12);
        let worst = worst(&classes(), &cases, &replies);
        assert_eq!((worst.len(), &worst[0].class[..], worst[0].probability), (1, "dog", 0.9));
        assert_eq!(latency(&replies), Latency { mean: 1.0, p50: 1.0, p95: 2.0, p99: 2.0 });
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let found = |values: &[f64]| -> Vec<f64> {
            [0.0, 0.5, 0.95, 0.99, 1.0].iter().map(|it| percentile(values, *it)).collect()
        };
        let many: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(found(&many), vec![1.0, 50.0, 95.0, 99.0, 100.0]);
        assert_eq!(found(&[7.0]), vec![7.0; 5]);
        assert_eq!(found(&[]), vec![0.0; 5]);
    }
}
