//! Results of an application test: the `report.json` that release gates read, and how its numbers are
//! computed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    deploy::apptest::{
        data::{Case, Data},
        load::Reply,
    },
    digest::Digest,
    model::{evaluate::ConfusionMatrix, inference::Prediction},
};

/// Version of the report's format.
pub const FORMAT: u64 = 1;
/// Largest number of misclassified images in a report.
const MAX_WORST: usize = 24;

/// Report of a test. A release gate reads version, package, accuracy, precision, recall, latency and checks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub format: u64,
    /// `pets@v0.1.0`
    pub version: String,
    pub package: Digest,
    pub when: String,
    /// Engine that ran the package locally.
    pub engine: String,
    /// CPU cores of the machine that ran the test.
    pub cores: u64,
    pub data: DataSet,
    pub checks: Vec<Check>,
    pub accuracy: f64,
    pub precision: BTreeMap<String, f64>,
    pub recall: BTreeMap<String, f64>,
    pub f1: BTreeMap<String, f64>,
    /// Counts by true class, then predicted class.
    pub confusion: BTreeMap<String, BTreeMap<String, u64>>,
    pub groups: Groups,
    pub latency: Latency,
    /// Images per second with concurrent requests.
    pub throughput: f64,
    /// Images per second of the package run in a local loop, 16 per batch, decoding included.
    pub loop_throughput: f64,
    /// Number of valid requests without a valid response.
    pub errors: u64,
    pub same_answers: SameAnswers,
    pub wrong_requests: Vec<InvalidRequest>,
    /// Number of responses to the burst by status; `none` where there was no response.
    pub burst: BTreeMap<String, u64>,
    /// Misclassified images with the highest probability, highest first.
    pub worst: Vec<Misclassified>,
}

/// Test set of a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSet {
    pub name: String,
    pub digest: Digest,
    #[serde(rename = "pictures")]
    pub images: u64,
    /// Number of images that cannot be decoded, which the service must reject.
    pub damaged: u64,
}

/// Requirement, and the values found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    pub name: String,
    pub passed: bool,
    pub found: String,
}

/// Accuracy by class, and by subfolder if there are any.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    pub class: BTreeMap<String, Group>,
    pub folder: BTreeMap<String, Group>,
    /// Largest accuracy difference between two classes or two subfolders.
    pub largest_difference: f64,
}

/// Accuracy on some of the images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub accuracy: f64,
    #[serde(rename = "pictures")]
    pub images: u64,
}

/// Response times in milliseconds of sequential requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

/// Comparison of the service with the package run locally.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SameAnswers {
    pub compared: u64,
    pub different_classes: u64,
    /// Largest difference of two probabilities.
    pub largest_difference: f64,
}

/// Invalid request that was sent, and its response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvalidRequest {
    pub name: String,
    /// Status of the response; 0 if there was none.
    pub status: u16,
}

/// Misclassified image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Misclassified {
    pub digest: Digest,
    /// True class.
    pub label: String,
    /// Predicted class.
    pub class: String,
    /// Probability of the predicted class.
    pub probability: f64,
}

/// Totals over all replies, compared with the expected predictions.
#[derive(Debug, Default)]
pub struct Tally {
    pub requests: u64,
    pub errors: u64,
    pub first_error: Option<String>,
    pub same: SameAnswers,
    /// Versions named in the responses.
    pub versions: BTreeSet<String>,
}

impl Report {
    /// Returns true if all checks passed.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|it| it.passed)
    }
}

impl Tally {
    /// Adds a reply. An image without an expected prediction cannot be decoded, and must be rejected with a
    /// 4xx status.
    pub fn add(&mut self, reply: &Reply, expected: Option<&Prediction>) {
        self.requests += 1;
        let error = match (expected, &reply.prediction) {
            (Some(expected), Some(served)) => {
                self.versions.insert(served.version.clone());
                self.same.compared += 1;
                self.same.different_classes += u64::from(served.class != expected.class);
                let pairs = served.scores.iter().zip(&expected.scores);
                let largest = pairs.map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
                self.same.largest_difference = self.same.largest_difference.max(largest);
                return;
            }
            (None, None) if (400..500).contains(&reply.status) => return,
            (None, _) => format!("a damaged image got {}", reply.status),
            (Some(_), None) => reply.error.clone(),
        };
        self.errors += 1;
        self.first_error.get_or_insert(error);
    }
}

/// Returns the confusion matrix and the mean log loss of the answered requests.
pub fn confusion(classes: &[String], cases: &[Case], replies: &[Reply]) -> ConfusionMatrix {
    let mut found = ConfusionMatrix {
        classes: classes.to_vec(),
        counts: vec![vec![0; classes.len()]; classes.len()],
        loss: 0.0,
    };
    let answered = replies.iter().filter(|it| it.prediction.is_some()).count().max(1) as f64;
    for reply in replies {
        let label = classes.iter().position(|class| *class == cases[reply.case].label);
        if let (Some(prediction), Some(label)) = (&reply.prediction, label) {
            found.counts[label][prediction.class] += 1;
            found.loss -= libm::log(prediction.scores[label].max(1e-300)) / answered;
        }
    }
    found
}

/// Returns one number per class; `select` picks it from precision, recall, F1 and the number of images.
pub fn by_class(
    confusion: &ConfusionMatrix,
    select: impl Fn((f64, f64, f64, u64)) -> f64,
) -> BTreeMap<String, f64> {
    confusion.classes.iter().cloned().zip((0..).map(|it| select(confusion.class_metrics(it)))).collect()
}

/// Returns the confusion matrix by class name.
pub fn matrix(confusion: &ConfusionMatrix) -> BTreeMap<String, BTreeMap<String, u64>> {
    let row = |counts: &Vec<u64>| confusion.classes.iter().cloned().zip(counts.iter().copied()).collect();
    confusion.classes.iter().cloned().zip(confusion.counts.iter().map(row)).collect()
}

/// Returns the accuracy by class and by subfolder.
pub fn groups(classes: &[String], cases: &[Case], replies: &[Reply]) -> Groups {
    let has_folders = cases.iter().any(|it| it.folder.is_some());
    let mut counts: [BTreeMap<String, (u64, u64)>; 2] = Default::default();
    for reply in replies {
        let (Some(prediction), case) = (&reply.prediction, &cases[reply.case]) else { continue };
        let folder = || case.folder.clone().unwrap_or_else(|| "(none)".into());
        let names = [Some(case.label.clone()), has_folders.then(folder)];
        for (counts, name) in counts.iter_mut().zip(names) {
            let Some(name) = name else { continue };
            let row = counts.entry(name).or_default();
            row.0 += u64::from(classes[prediction.class] == case.label);
            row.1 += 1;
        }
    }
    let group = |(name, (correct, all)): (String, (u64, u64))| {
        (name, Group { accuracy: correct as f64 / all as f64, images: all })
    };
    let [class, folder] = counts.map(|rows| rows.into_iter().map(group).collect::<BTreeMap<_, _>>());
    let largest_difference = spread(&class).max(spread(&folder));
    Groups { class, folder, largest_difference }
}

/// Returns the difference between the best and the worst accuracy.
fn spread(groups: &BTreeMap<String, Group>) -> f64 {
    let all = || groups.values().map(|it| it.accuracy);
    if groups.is_empty() { 0.0 } else { all().fold(0.0, f64::max) - all().fold(1.0, f64::min) }
}

/// Returns the latency of the valid responses, or of all responses if none is valid.
pub fn latency(replies: &[Reply]) -> Latency {
    let valid: Vec<_> = replies.iter().filter(|it| it.prediction.is_some()).collect();
    let chosen = if valid.is_empty() { replies.iter().collect() } else { valid };
    let mut times: Vec<f64> = chosen.iter().map(|it| it.milliseconds).collect();
    times.sort_by(f64::total_cmp);
    let mean = times.iter().sum::<f64>() / times.len().max(1) as f64;
    let at = |share| percentile(&times, share);
    Latency { mean, p50: at(0.5), p95: at(0.95), p99: at(0.99) }
}

/// Returns the nearest-rank percentile of sorted values: the smallest one that at least the given share of
/// them does not exceed. 0 if there are none.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

/// Returns the misclassified images with the highest probability.
pub fn worst(classes: &[String], cases: &[Case], replies: &[Reply]) -> Vec<Misclassified> {
    let misclassified = |reply: &Reply| {
        let (prediction, case) = (reply.prediction.as_ref()?, &cases[reply.case]);
        (classes[prediction.class] != case.label).then(|| Misclassified {
            digest: case.digest,
            label: case.label.clone(),
            class: classes[prediction.class].clone(),
            probability: prediction.scores[prediction.class],
        })
    };
    let mut found: Vec<_> = replies.iter().filter_map(misclassified).collect();
    found.sort_by(|a, b| b.probability.total_cmp(&a.probability).then(a.digest.cmp(&b.digest)));
    found.truncate(MAX_WORST);
    found
}

/// Returns the entry of a test set; `damaged` of its images cannot be decoded.
pub fn data_set(data: &Data, damaged: u64) -> DataSet {
    DataSet { name: data.name.clone(), digest: data.digest(), images: data.cases.len() as u64, damaged }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::apptest::{data::Source, load::ServedPrediction};

    fn classes() -> Vec<String> {
        vec!["cat".into(), "dog".into()]
    }

    fn case(label: &str, folder: Option<&str>) -> Case {
        let digest = Digest::of(format!("{label}{folder:?}").as_bytes());
        let source = Source::File(label.into());
        Case { digest, label: label.into(), folder: folder.map(str::to_owned), source }
    }

    fn reply(case: usize, cat: f64) -> Reply {
        let prediction = ServedPrediction {
            class: usize::from(cat < 0.5),
            scores: vec![cat, 1.0 - cat],
            version: "pets@v0.1.0".into(),
        };
        let prediction = Some(prediction);
        Reply { case, status: 200, prediction, error: String::new(), milliseconds: case as f64 }
    }

    fn expected(cat: f32) -> Prediction {
        Prediction { class: usize::from(cat < 0.5), scores: vec![cat, 1.0 - cat], features: Vec::new() }
    }

    #[test]
    fn replies_are_compared_with_the_package() {
        let mut tally = Tally::default();
        tally.add(&reply(0, 0.75), Some(&expected(0.75)));
        tally.add(&reply(0, 0.25), Some(&expected(0.75)));
        assert_eq!(tally.same, SameAnswers { compared: 2, different_classes: 1, largest_difference: 0.5 });
        let rejected = Reply { status: 400, error: "400: no".into(), ..Reply::default() };
        tally.add(&rejected, None);
        assert_eq!((tally.requests, tally.errors), (3, 0), "a damaged image is rejected");
        tally.add(&rejected, Some(&expected(0.75)));
        tally.add(&reply(0, 0.75), None);
        assert_eq!((tally.errors, tally.first_error.as_deref()), (2, Some("400: no")));
        assert_eq!(tally.versions.len(), 1);
    }

    #[test]
    fn numbers_are_computed_from_replies() {
        let cases =
            [case("cat", Some("night")), case("cat", None), case("dog", None), case("dog", Some("x"))];
        let replies = [reply(0, 0.1), reply(1, 0.9), reply(2, 0.2), Reply { case: 3, ..Reply::default() }];
        let found = confusion(&classes(), &cases, &replies);
        assert_eq!(found.counts, [[1, 1], [0, 1]]);
        assert_eq!(by_class(&found, |it| it.1), [("cat".into(), 0.5), ("dog".into(), 1.0)].into());
        let groups = groups(&classes(), &cases, &replies);
        assert_eq!(groups.class["cat"], Group { accuracy: 0.5, images: 2 });
        assert_eq!(groups.folder["night"], Group { accuracy: 0.0, images: 1 });
        assert_eq!(groups.folder["(none)"], Group { accuracy: 1.0, images: 2 });
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
