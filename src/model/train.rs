//! A head for a feature table, its strength chosen by cross-validation.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    digest::Digest,
    error::{Error, Result},
    model::{
        settings::TrainSettings,
        softmax::{Head, Samples, best, fit},
        split::{Picture, Segment, draw},
        table::Table,
    },
    progress::{Event, Progress},
};

/// A head and how it was chosen.
#[derive(Clone, Debug)]
pub struct Trained {
    pub head: Head,
    /// Strength → mean cross-entropy and accuracy on the parts left out.
    pub tried: Vec<(f64, f64, f64)>,
    pub pictures: u64,
}

/// Pictures of one side that have features: their samples, and their digests in the same order.
pub fn samples(
    table: &Table,
    pictures: &[Picture],
    side: Segment,
    classes: &[String],
) -> (Samples, Vec<Digest>) {
    let place: BTreeMap<&str, usize> = classes.iter().enumerate().map(|(at, it)| (it.as_str(), at)).collect();
    let wanted: BTreeMap<Digest, &str> =
        pictures.iter().filter(|it| it.segment == side).map(|it| (it.digest, it.class.as_str())).collect();
    let mut samples = Samples { width: table.width, classes: classes.len(), ..Samples::default() };
    let mut digests = Vec::new();
    for (digest, class) in wanted {
        if let (Some(row), Some(&label)) = (table.rows.get(&digest), place.get(class)) {
            samples.values.extend_from_slice(row);
            samples.labels.push(label);
            digests.push(digest);
        }
    }
    (samples, digests)
}

/// The names of all classes, sorted.
pub fn classes(pictures: &[Picture]) -> Vec<String> {
    let mut names: Vec<String> = pictures.iter().map(|it| it.class.clone()).collect();
    names.sort();
    names.dedup();
    names
}

/// Fits a head to the training side.
pub fn train(
    table: &Table,
    pictures: &[Picture],
    settings: &TrainSettings,
    progress: &dyn Progress,
) -> Result<Trained> {
    settings.check()?;
    let classes = classes(pictures);
    let (samples, digests) = samples(table, pictures, Segment::Train, &classes);
    for (at, class) in classes.iter().enumerate() {
        let count = samples.labels.iter().filter(|it| **it == at).count();
        if count < 2 {
            let message = format!("the class `{class}` has {count} usable pictures on the training side");
            return Err(
                Error::usage(message).hint("add pictures of it, or look at those that were set aside")
            );
        }
    }
    let folds = folds(&samples, &digests, settings);
    let steps = (settings.strengths.len() * settings.folds as usize + 1) as u64;
    progress.event(Event::Started { task: "training", total: Some(steps) });
    let mut tried = Vec::new();
    for &strength in &settings.strengths {
        tried.push(cross_validate(&samples, &classes, &folds, settings.folds, strength, progress)?);
    }
    // The least cross-entropy; of equals the strongest penalty.
    let best =
        tried.iter().fold(tried[0], |best, it| if (it.1, -it.0) < (best.1, -best.0) { *it } else { best });
    let head = fit(&samples, &classes, best.0)?;
    progress.event(Event::Finished);
    Ok(Trained { head, tried, pictures: samples.len() as u64 })
}

/// The part each sample belongs to, even within classes, by the seed and the pictures' digests.
fn folds(samples: &Samples, digests: &[Digest], settings: &TrainSettings) -> Vec<u32> {
    let mut order: Vec<usize> = (0..samples.len()).collect();
    // Other numbers than those that put pictures on sides.
    let key = |at: usize| (samples.labels[at], draw(!settings.seed, &digests[at]));
    order.sort_by(|&a, &b| key(a).0.cmp(&key(b).0).then(key(a).1.total_cmp(&key(b).1)));
    let mut fold = vec![0; samples.len()];
    order.iter().enumerate().for_each(|(at, &sample)| fold[sample] = at as u32 % settings.folds);
    fold
}

fn cross_validate(
    samples: &Samples,
    classes: &[String],
    folds: &[u32],
    count: u32,
    strength: f64,
    progress: &dyn Progress,
) -> Result<(f64, f64, f64)> {
    let (mut loss, mut right, mut seen) = (0.0, 0.0, 0.0);
    for fold in 0..count {
        let side =
            |inside: bool| (0..samples.len()).filter(|&it| (folds[it] == fold) == inside).collect::<Vec<_>>();
        let (rest, left_out) = (samples.pick(&side(false)), samples.pick(&side(true)));
        let head = fit(&rest, classes, strength)?;
        for (row, &label) in left_out.values.chunks(samples.width).zip(&left_out.labels) {
            let scores = head.predict(row);
            loss -= libm::log(scores[label].max(1e-300));
            right += f64::from(u8::from(best(&scores) == label));
            seen += 1.0;
        }
        progress.event(Event::Advanced { by: 1 });
    }
    Ok((strength, loss / seen, right / seen))
}

impl Trained {
    /// What `mlx show metrics` shows of the training.
    pub fn metrics(&self) -> Value {
        let chosen = self
            .tried
            .iter()
            .find(|it| it.0.to_bits() == self.head.strength.to_bits())
            .copied()
            .unwrap_or_default();
        let tried: BTreeMap<String, Value> = self
            .tried
            .iter()
            .map(|it| (format!("strength {}", it.0), json!({"accuracy": it.2, "loss": it.1})))
            .collect();
        json!({
            "cross_validation": {"accuracy": chosen.2, "loss": chosen.1, "tried": tried},
            "pictures": self.pictures,
            "strength": self.head.strength,
        })
    }
}
