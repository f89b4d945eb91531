//! Evaluates a classifier head on the test set: confusion matrix, accuracy, precision, recall, F1 and loss.
//!
//! The metrics are reported as JSON, the matrix also as CSV. A ratio without cases is 0, as in scikit-learn.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    error::{Error, Result},
    model::{
        softmax::{Head, argmax},
        split::{LabeledImage, Subset},
        table::Table,
        train::{class_names, samples},
    },
};

/// Confusion matrix: number of images by true and predicted class.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfusionMatrix {
    pub classes: Vec<String>,
    /// Number of images, as `[label][prediction]`.
    pub counts: Vec<Vec<u64>>,
    /// Mean cross-entropy.
    pub loss: f64,
}

/// Evaluates a head on the test images of a feature table. The head must have the table's number of features
/// and the images' classes.
pub fn evaluate(head: &Head, table: &Table, images: &[LabeledImage]) -> Result<ConfusionMatrix> {
    if head.mean.len() != table.width {
        let message =
            format!("the head expects {} features, but the table has {}", head.mean.len(), table.width);
        return Err(Error::usage(message).hint("they come from different runs: run `mlx repro`"));
    }
    let known = class_names(images);
    if known != head.classes {
        let message = format!(
            "the head was trained on the classes {}, but the images have {}",
            head.classes.join(", "),
            known.join(", ")
        );
        return Err(Error::usage(message).hint("train it again: `mlx repro` or `mlx model train`"));
    }
    let (samples, _) = samples(table, images, Subset::Test, &head.classes);
    if samples.is_empty() {
        return Err(Error::usage("the test set has no usable images"));
    }
    let size = head.classes.len();
    let mut confusion =
        ConfusionMatrix { classes: head.classes.clone(), counts: vec![vec![0; size]; size], loss: 0.0 };
    for (row, &label) in samples.values.chunks(samples.width).zip(&samples.labels) {
        let scores = head.predict(row);
        confusion.loss -= libm::log(scores[label].max(1e-300)) / samples.len() as f64;
        confusion.counts[label][argmax(&scores)] += 1;
    }
    Ok(confusion)
}

/// Divides two counts; 0/0 is 0, as in scikit-learn.
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl ConfusionMatrix {
    fn total(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    pub fn accuracy(&self) -> f64 {
        ratio((0..self.classes.len()).map(|class| self.counts[class][class]).sum(), self.total())
    }

    /// Returns the precision, recall, F1 and number of images of the class with this index.
    pub fn class_metrics(&self, class: usize) -> (f64, f64, f64, u64) {
        let correct = self.counts[class][class];
        let predicted = self.counts.iter().map(|row| row[class]).sum();
        let actual = self.counts[class].iter().sum();
        let (precision, recall) = (ratio(correct, predicted), ratio(correct, actual));
        // F1 = 2·TP / (2·TP + FP + FN)
        (precision, recall, ratio(2 * correct, predicted + actual), actual)
    }

    /// Returns accuracy, loss, and precision, recall and F1 by class and averaged, as JSON. `damaged` is the
    /// number of images that could not be decoded.
    pub fn metrics(&self, damaged: u64) -> Value {
        let rows: Vec<_> = (0..self.classes.len()).map(|class| self.class_metrics(class)).collect();
        let total = self.total().max(1) as f64;
        let average = |weight: &dyn Fn(u64) -> f64| {
            let sum = |value: &dyn Fn(&(f64, f64, f64, u64)) -> f64| {
                rows.iter().map(|row| value(row) * weight(row.3)).sum::<f64>()
            };
            json!({"precision": sum(&|it| it.0), "recall": sum(&|it| it.1), "f1": sum(&|it| it.2)})
        };
        let even = 1.0 / rows.len().max(1) as f64;
        let by_class: BTreeMap<_, _> = self
            .classes
            .iter()
            .zip(&rows)
            .map(|(name, (precision, recall, f1, images))| {
                (name, json!({"precision": precision, "recall": recall, "f1": f1, "pictures": images}))
            })
            .collect();
        let confusion: BTreeMap<_, _> = self
            .classes
            .iter()
            .zip(&self.counts)
            .map(|(name, row)| (name, self.classes.iter().zip(row).collect::<BTreeMap<_, _>>()))
            .collect();
        json!({
            "accuracy": self.accuracy(),
            "average": {"macro": average(&|_| even), "weighted": average(&|count| count as f64 / total)},
            "class": by_class,
            "confusion": confusion,
            "loss": self.loss,
            "pictures": {"damaged": damaged, "tested": self.total()},
        })
    }

    /// Returns the matrix as CSV: one line per pair of true and predicted class, with its count.
    pub fn to_csv(&self) -> String {
        let field = |name: &String| {
            if name.contains([',', '"', '\n']) {
                format!("\"{}\"", name.replace('"', "\"\""))
            } else {
                name.clone()
            }
        };
        let mut text = "actual,predicted,count\n".to_owned();
        for (actual, row) in self.classes.iter().zip(&self.counts) {
            for (predicted, count) in self.classes.iter().zip(row) {
                text.push_str(&format!("{},{},{count}\n", field(actual), field(predicted)));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_match_values_computed_by_hand() {
        // 3 cats correct, 1 predicted as dog; 4 dogs correct, 2 predicted as cat; bird is never predicted.
        let classes = ["bird", "cat", "dog"].map(str::to_owned).to_vec();
        let counts = vec![vec![0, 1, 0], vec![0, 3, 1], vec![0, 2, 4]];
        let metrics = ConfusionMatrix { classes, counts, loss: 0.0 }.metrics(1);
        let close = |value: &Value, expected: f64| {
            assert!((value.as_f64().unwrap() - expected).abs() < 1e-12, "{value}");
        };
        close(&metrics["accuracy"], 7.0 / 11.0);
        close(&metrics["class"]["cat"]["precision"], 0.5);
        close(&metrics["class"]["cat"]["recall"], 0.75);
        close(&metrics["class"]["cat"]["f1"], 0.6);
        close(&metrics["class"]["bird"]["f1"], 0.0);
        close(&metrics["average"]["macro"]["recall"], (0.75 + 4.0 / 6.0) / 3.0);
        close(&metrics["average"]["weighted"]["recall"], 7.0 / 11.0);
        assert_eq!(metrics["confusion"]["dog"]["cat"], 2);
        assert_eq!(metrics["pictures"], json!({"damaged": 1, "tested": 11}));
    }
}
