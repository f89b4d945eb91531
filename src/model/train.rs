//! Trains a linear classifier head on a feature table.
//!
//! The strength of the L2 penalty is chosen by k-fold cross-validation: the lowest mean cross-entropy wins,
//! of equal ones the strongest penalty. Folds are stratified by class and follow from the seed and the
//! images' digests alone.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    digest::Digest,
    error::{Error, Result},
    model::{
        settings::TrainSettings,
        softmax::{Head, Samples, argmax, fit},
        split::{LabeledImage, Subset, unit_hash},
        table::Table,
    },
    progress::{Event, Progress},
};

/// A trained head and the results of the cross-validation.
#[derive(Clone, Debug)]
pub struct Trained {
    pub head: Head,
    /// Results by strength: strength, mean cross-entropy and accuracy on the held-out folds.
    pub candidates: Vec<(f64, f64, f64)>,
    /// Number of images in the training set.
    pub images: u64,
}

/// Returns the samples of one subset, with their digests in the same order. Images without features are left
/// out.
pub fn samples(
    table: &Table,
    images: &[LabeledImage],
    subset: Subset,
    classes: &[String],
) -> (Samples, Vec<Digest>) {
    let indices: BTreeMap<&str, usize> =
        classes.iter().enumerate().map(|(index, class)| (class.as_str(), index)).collect();
    let wanted: BTreeMap<Digest, &str> = images
        .iter()
        .filter(|image| image.subset == subset)
        .map(|image| (image.digest, image.class.as_str()))
        .collect();
    let mut samples = Samples { width: table.width, classes: classes.len(), ..Samples::default() };
    let mut digests = Vec::new();
    for (digest, class) in wanted {
        if let (Some(row), Some(&label)) = (table.rows.get(&digest), indices.get(class)) {
            samples.values.extend_from_slice(row);
            samples.labels.push(label);
            digests.push(digest);
        }
    }
    (samples, digests)
}

/// Returns the names of all classes, sorted.
pub fn class_names(images: &[LabeledImage]) -> Vec<String> {
    let mut names: Vec<String> = images.iter().map(|image| image.class.clone()).collect();
    names.sort();
    names.dedup();
    names
}

/// Fits a head to the training set. Each class needs two usable images.
pub fn train(
    table: &Table,
    images: &[LabeledImage],
    settings: &TrainSettings,
    progress: &dyn Progress,
) -> Result<Trained> {
    settings.check()?;
    let classes = class_names(images);
    let (samples, digests) = samples(table, images, Subset::Train, &classes);
    for (index, class) in classes.iter().enumerate() {
        let count = samples.labels.iter().filter(|label| **label == index).count();
        if count < 2 {
            let message = format!("the class `{class}` has {count} usable images in the training set");
            return Err(Error::usage(message).hint("add images of it, or check those that were skipped"));
        }
    }
    let folds = assign_folds(&samples, &digests, settings);
    let steps = (settings.strengths.len() * settings.folds as usize + 1) as u64;
    progress.event(Event::Started { task: "training", total: Some(steps) });
    let mut candidates = Vec::new();
    for &strength in &settings.strengths {
        candidates.push(cross_validate(&samples, &classes, &folds, settings.folds, strength, progress)?);
    }
    // Lowest cross-entropy; on a tie, the strongest penalty.
    let best = candidates.iter().fold(candidates[0], |best, candidate| {
        if (candidate.1, -candidate.0) < (best.1, -best.0) { *candidate } else { best }
    });
    let head = fit(&samples, &classes, best.0)?;
    progress.event(Event::Finished);
    Ok(Trained { head, candidates, images: samples.len() as u64 })
}

/// Returns the fold of each sample: stratified by class, shuffled by the seed and the images' digests.
fn assign_folds(samples: &Samples, digests: &[Digest], settings: &TrainSettings) -> Vec<u32> {
    let mut order: Vec<usize> = (0..samples.len()).collect();
    // The seed is inverted, so that folds are independent of the train/test split.
    let key = |index: usize| (samples.labels[index], unit_hash(!settings.seed, &digests[index]));
    order.sort_by(|&a, &b| key(a).0.cmp(&key(b).0).then(key(a).1.total_cmp(&key(b).1)));
    let mut fold = vec![0; samples.len()];
    order.iter().enumerate().for_each(|(rank, &sample)| fold[sample] = rank as u32 % settings.folds);
    fold
}

/// Returns the strength, and the mean cross-entropy and accuracy on the held-out folds.
fn cross_validate(
    samples: &Samples,
    classes: &[String],
    folds: &[u32],
    count: u32,
    strength: f64,
    progress: &dyn Progress,
) -> Result<(f64, f64, f64)> {
    let (mut loss, mut correct, mut total) = (0.0, 0.0, 0.0);
    for fold in 0..count {
        let rows = |held_out: bool| {
            (0..samples.len()).filter(|&row| (folds[row] == fold) == held_out).collect::<Vec<_>>()
        };
        let (rest, held_out) = (samples.select(&rows(false)), samples.select(&rows(true)));
        let head = fit(&rest, classes, strength)?;
        for (row, &label) in held_out.values.chunks(samples.width).zip(&held_out.labels) {
            let scores = head.predict(row);
            loss -= libm::log(scores[label].max(1e-300));
            correct += f64::from(u8::from(argmax(&scores) == label));
            total += 1.0;
        }
        progress.event(Event::Advanced { by: 1 });
    }
    Ok((strength, loss / total, correct / total))
}

impl Trained {
    /// Returns the metrics that `mlx show metrics` shows of the training, as JSON.
    pub fn metrics(&self) -> Value {
        let chosen = self
            .candidates
            .iter()
            .find(|candidate| candidate.0.to_bits() == self.head.strength.to_bits())
            .copied()
            .unwrap_or_default();
        let tried: BTreeMap<String, Value> = self
            .candidates
            .iter()
            .map(|(strength, loss, accuracy)| {
                (format!("strength {strength}"), json!({"accuracy": accuracy, "loss": loss}))
            })
            .collect();
        json!({
            "cross_validation": {"accuracy": chosen.2, "loss": chosen.1, "tried": tried},
            "pictures": self.images,
            "strength": self.head.strength,
        })
    }
}
