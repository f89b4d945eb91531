//! Predictions against labels.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    error::{Error, Result},
    model::{
        softmax::{Head, best},
        split::{Picture, Segment},
        table::Table,
        train::samples,
    },
};

/// Counts of what was and what was said: `[label][prediction]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Confusion {
    pub classes: Vec<String>,
    pub counts: Vec<Vec<u64>>,
    /// Mean cross-entropy.
    pub loss: f64,
}

/// Shows the test side to a head.
pub fn evaluate(head: &Head, table: &Table, pictures: &[Picture]) -> Result<Confusion> {
    if head.mean.len() != table.width {
        let message = format!("the head takes {} features, the table has {}", head.mean.len(), table.width);
        return Err(Error::usage(message).hint("they belong to different runs: `mlx repro`"));
    }
    let known = crate::model::train::classes(pictures);
    if known != head.classes {
        let message =
            format!("the head knows {}, the pictures are {}", head.classes.join(", "), known.join(", "));
        return Err(Error::usage(message).hint("train it anew: `mlx repro` or `mlx model train`"));
    }
    let (samples, _) = samples(table, pictures, Segment::Test, &head.classes);
    if samples.is_empty() {
        return Err(Error::usage("there are no usable pictures on the test side"));
    }
    let size = head.classes.len();
    let mut found = Confusion { classes: head.classes.clone(), counts: vec![vec![0; size]; size], loss: 0.0 };
    for (row, &label) in samples.values.chunks(samples.width).zip(&samples.labels) {
        let scores = head.predict(row);
        found.loss -= libm::log(scores[label].max(1e-300)) / samples.len() as f64;
        found.counts[label][best(&scores)] += 1;
    }
    Ok(found)
}

/// A ratio; nothing of nothing is 0, as in scikit-learn.
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Confusion {
    fn total(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    pub fn accuracy(&self) -> f64 {
        ratio((0..self.classes.len()).map(|it| self.counts[it][it]).sum(), self.total())
    }

    /// Precision, recall, F1 and number of pictures of a class.
    pub fn class(&self, at: usize) -> (f64, f64, f64, u64) {
        let right = self.counts[at][at];
        let said = self.counts.iter().map(|it| it[at]).sum();
        let were = self.counts[at].iter().sum();
        let (precision, recall) = (ratio(right, said), ratio(right, were));
        // F1 = 2·TP / (2·TP + FP + FN)
        (precision, recall, ratio(2 * right, said + were), were)
    }

    /// Accuracy, loss, and precision, recall and F1 by class and averaged.
    pub fn metrics(&self, damaged: u64) -> Value {
        let rows: Vec<_> = (0..self.classes.len()).map(|it| self.class(it)).collect();
        let total = self.total().max(1) as f64;
        let average = |weight: &dyn Fn(u64) -> f64| {
            let sum = |value: &dyn Fn(&(f64, f64, f64, u64)) -> f64| {
                rows.iter().map(|it| value(it) * weight(it.3)).sum::<f64>()
            };
            json!({"precision": sum(&|it| it.0), "recall": sum(&|it| it.1), "f1": sum(&|it| it.2)})
        };
        let even = 1.0 / rows.len().max(1) as f64;
        let by_class: BTreeMap<_, _> = self
            .classes
            .iter()
            .zip(&rows)
            .map(|(name, it)| {
                (name, json!({"precision": it.0, "recall": it.1, "f1": it.2, "pictures": it.3}))
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

    /// One line a pair of classes: what it was, what was said, how often.
    pub fn csv(&self) -> String {
        let field = |it: &String| {
            if it.contains([',', '"', '\n']) {
                format!("\"{}\"", it.replace('"', "\"\""))
            } else {
                it.clone()
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
    fn the_numbers_are_those_of_the_book() {
        // 3 cats right, 1 called dog; 4 dogs right, 2 called cat; no bird ever said.
        let classes = ["bird", "cat", "dog"].map(str::to_owned).to_vec();
        let counts = vec![vec![0, 1, 0], vec![0, 3, 1], vec![0, 2, 4]];
        let metrics = Confusion { classes, counts, loss: 0.0 }.metrics(1);
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
