//! Explains a model's prediction for an image by occlusion: a heat map of the parts that the prediction
//! depends on.
//!
//! One square after another is hidden; its heat is the drop in the log-odds of the predicted class. The map
//! is validated by the deletion metric, against a random order and an order from the center outwards. Only
//! the model's scores are needed, so any package can be explained. All numbers depend on what replaces the
//! hidden pixels ([`Fill`]): results with different fills are not comparable.

mod draw;

pub use self::draw::draw;

use image::{Rgb, Rgb32FImage, imageops};
use serde::Serialize;

use crate::{
    error::{Error, Result},
    model::softmax::argmax,
    traffic::Record,
};

/// Lower bound of probabilities in logarithms.
const MIN_PROBABILITY: f32 = 1e-30;
/// Number of images per call of the model.
const BATCH: usize = 16;
/// Number of steps of the deletion metric, from nothing to everything hidden.
const DELETION_STEPS: usize = 20;

/// Replacement of hidden pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fill {
    /// Blurred copy of the image.
    Blur,
    /// Mean color of the image.
    Mean,
}

impl std::str::FromStr for Fill {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "blur" => Ok(Self::Blur),
            "mean" => Ok(Self::Mean),
            other => Err(Error::usage(format!("`{other}` is not a fill")).hint("use `blur` or `mean`")),
        }
    }
}

/// Settings of an explanation.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Side of the hidden square, as a share of the image's, from 0.02 to 0.9.
    pub patch: f64,
    pub fill: Fill,
    /// Seed of the random order with which deletion is compared.
    pub seed: u64,
}

/// Square of an image, in pixels from the upper left corner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Square {
    pub left: usize,
    pub top: usize,
    pub side: usize,
}

/// Deletion metric: area under the class's probability while more and more of the image is hidden. It is low
/// if the order hides the decisive parts first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Deletion {
    /// Score of the heat map's order, the hottest pixels first.
    pub heat: f64,
    /// Score of a random order of squares of the same size.
    pub random: f64,
    /// Score of the order from the center outwards: a baseline that needs no explanation.
    pub center: f64,
}

/// Heat map of an image, with the prediction it explains.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeatMap {
    /// Index of the predicted class.
    pub class: usize,
    /// Probability of each class.
    pub scores: Vec<f32>,
    /// Side of the hidden square, in pixels.
    pub patch: usize,
    /// Distance from one square to the next, in pixels.
    pub stride: usize,
    pub fill: Fill,
    /// Drop in the class's log-odds without each square, row by row.
    pub map: Vec<Vec<f32>>,
    /// Square whose absence lowers the log-odds most; None if no square lowers them.
    pub decisive: Option<Square>,
    pub deletion: Deletion,
}

/// Function that runs the model on images (3×side×side values each) and returns the scores of each.
pub type Run<'r> = dyn FnMut(&[f32]) -> Result<Vec<Vec<f32>>> + 'r;

/// Computes the heat map of an image's planes (3×side×side, 0–255).
pub fn explain(run: &mut Run<'_>, planes: &[f32], side: usize, settings: &Settings) -> Result<HeatMap> {
    if !(0.02..=0.9).contains(&settings.patch) {
        return Err(Error::usage("the patch must be a share of the image's side from 0.02 to 0.9"));
    }
    let patch = ((side as f64 * settings.patch).round() as usize).clamp(1, side);
    let stride = (patch / 2).max(1);
    let offsets = square_offsets(side, patch, stride);
    let replacement = replacement(planes, side, patch, settings.fill);
    let scores = run(planes)?.pop().unwrap_or_default();
    let class = argmax(&scores);
    if scores.is_empty() {
        return Err(Error::corrupt("the model returns no scores"));
    }
    let baseline = log_odds(&scores, class);
    let squares = offsets.iter().flat_map(|top| offsets.iter().map(move |left| (*top, *left)));
    let occluded = squares.map(|(top, left)| {
        let inside =
            move |x: usize, y: usize| (left..left + patch).contains(&x) && (top..top + patch).contains(&y);
        hide(planes, &replacement, side, inside)
    });
    let found = measure_each(run, occluded, &|scores| log_odds(scores, class))?;
    let drops = |row: &[f32]| row.iter().map(|odds| baseline - odds).collect();
    let map: Vec<Vec<f32>> = found.chunks(offsets.len()).map(drops).collect();
    let mut test =
        DeletionTest { run, planes, replacement: &replacement, side, offsets: &offsets, patch, class };
    let deletion = test.compare(&map, settings.seed)?;
    let decisive = decisive(&map, &offsets, patch);
    Ok(HeatMap { class, scores, patch, stride, fill: settings.fill, map, decisive, deletion })
}

/// Returns the left (or top) edges of the squares; the last square ends at the image's edge.
fn square_offsets(side: usize, patch: usize, stride: usize) -> Vec<usize> {
    let last = side - patch;
    (0..last).step_by(stride).chain([last]).collect()
}

fn decisive(map: &[Vec<f32>], offsets: &[usize], patch: usize) -> Option<Square> {
    let flat: Vec<f32> = map.iter().flatten().copied().collect();
    let hottest = argmax(&flat);
    let (row, column) = (hottest / offsets.len(), hottest % offsets.len());
    (flat[hottest] > 0.0).then(|| Square { left: offsets[column], top: offsets[row], side: patch })
}

/// Returns the planes that replace hidden pixels, of the image's size.
fn replacement(planes: &[f32], side: usize, patch: usize, fill: Fill) -> Vec<f32> {
    let size = side * side;
    match fill {
        Fill::Mean => {
            let mean = |plane: &[f32]| plane.iter().sum::<f32>() / size as f32;
            planes.chunks(size).flat_map(|plane| std::iter::repeat_n(mean(plane), size)).collect()
        }
        Fill::Blur => {
            let width = side as u32;
            let image = Rgb32FImage::from_fn(width, width, |x, y| {
                let pixel = y as usize * side + x as usize;
                // The values of float images are between 0 and 1.
                Rgb([0, 1, 2].map(|channel| planes[channel * size + pixel] / 255.0))
            });
            let blurred = imageops::blur(&image, patch as f32);
            (0..3).flat_map(|channel| blurred.pixels().map(move |pixel| pixel.0[channel] * 255.0)).collect()
        }
    }
}

/// Returns the image with the pixels replaced for which `is_hidden(x, y)` is true.
fn hide(
    planes: &[f32],
    replacement: &[f32],
    side: usize,
    is_hidden: impl Fn(usize, usize) -> bool,
) -> Vec<f32> {
    let size = side * side;
    let value = |index: usize| {
        let pixel = index % size;
        if is_hidden(pixel % side, pixel / side) { replacement[index] } else { planes[index] }
    };
    (0..planes.len()).map(value).collect()
}

/// Returns the log-odds of a class. Unlike probabilities they do not saturate: a confident model's
/// probability stays at 1 whatever is hidden, but its log-odds still change.
fn log_odds(scores: &[f32], class: usize) -> f32 {
    let others: f32 = scores.iter().enumerate().filter(|(index, _)| *index != class).map(|it| it.1).sum();
    libm::logf(scores[class].max(MIN_PROBABILITY)) - libm::logf(others.max(MIN_PROBABILITY))
}

/// Runs the model on images, in batches, and applies `measure` to the scores of each.
fn measure_each(
    run: &mut Run<'_>,
    mut images: impl Iterator<Item = Vec<f32>>,
    measure: &dyn Fn(&[f32]) -> f32,
) -> Result<Vec<f32>> {
    let mut found = Vec::new();
    loop {
        let batch: Vec<f32> = images.by_ref().take(BATCH).flatten().collect();
        if batch.is_empty() {
            return Ok(found);
        }
        found.extend(run(&batch)?.iter().map(|scores| measure(scores)));
    }
}

/// Inputs of the deletion metric.
struct DeletionTest<'p, 'r> {
    run: &'p mut Run<'r>,
    planes: &'p [f32],
    replacement: &'p [f32],
    side: usize,
    offsets: &'p [usize],
    patch: usize,
    class: usize,
}

impl DeletionTest<'_, '_> {
    /// Computes the scores of the heat map and of the two baselines.
    fn compare(&mut self, map: &[Vec<f32>], seed: u64) -> Result<Deletion> {
        let size = self.offsets.len();
        let grid = |value: &mut dyn FnMut(usize, usize) -> f32| -> Vec<Vec<f32>> {
            (0..size).map(|row| (0..size).map(|column| value(row, column)).collect()).collect()
        };
        let mut state = seed;
        let random = grid(&mut |_, _| random_unit(&mut state));
        let middle = (size - 1) as f32 / 2.0;
        let center = grid(&mut |row, column| {
            let (x, y) = (column as f32 - middle, row as f32 - middle);
            -(x * x + y * y)
        });
        Ok(Deletion { heat: self.score(map)?, random: self.score(&random)?, center: self.score(&center)? })
    }

    /// Hides the hottest pixels first, in steps from none to all, and returns the area under the probability.
    fn score(&mut self, map: &[Vec<f32>]) -> Result<f64> {
        let heat = upsample(map, self.side, self.offsets, self.patch);
        let mut order: Vec<usize> = (0..heat.len()).collect();
        order.sort_by(|a, b| heat[*b].total_cmp(&heat[*a]).then(a.cmp(b)));
        let mut ranks = vec![0; order.len()];
        order.iter().enumerate().for_each(|(rank, pixel)| ranks[*pixel] = rank);
        let (planes, replacement, side) = (self.planes, self.replacement, self.side);
        let steps = (0..=DELETION_STEPS).map(|step| {
            let hidden = ranks.len() * step / DELETION_STEPS;
            hide(planes, replacement, side, |x, y| ranks[y * side + x] < hidden)
        });
        let class = self.class;
        let found = measure_each(self.run, steps, &|scores| scores[class])?;
        let area = found.windows(2).map(|pair| f64::from(pair[0] + pair[1]) / 2.0).sum::<f64>();
        Ok(area / DELETION_STEPS as f64)
    }
}

/// Returns the next random number in [0, 1) (`SplitMix64`).
fn random_unit(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1 << 24) as f32
}

/// Upsamples a map of squares to pixels: bilinear between the centers of squares, constant beyond the
/// outermost.
fn upsample(map: &[Vec<f32>], side: usize, offsets: &[usize], patch: usize) -> Vec<f32> {
    let middle = |index: usize| offsets[index] as f32 + patch as f32 / 2.0;
    let weights: Vec<(usize, usize, f32)> = (0..side)
        .map(|pixel| {
            let position = pixel as f32 + 0.5;
            let next = (0..offsets.len()).position(|index| middle(index) > position);
            match next {
                Some(0) => (0, 0, 0.0),
                Some(next) => {
                    let (low, high) = (middle(next - 1), middle(next));
                    (next - 1, next, (position - low) / (high - low))
                }
                None => (offsets.len() - 1, offsets.len() - 1, 0.0),
            }
        })
        .collect();
    let interpolate = |a: f32, b: f32, share: f32| a + (b - a) * share;
    weights
        .iter()
        .flat_map(|&(top, bottom, down)| {
            weights.iter().map(move |&(left, right, across)| {
                let upper = interpolate(map[top][left], map[top][right], across);
                interpolate(upper, interpolate(map[bottom][left], map[bottom][right], across), down)
            })
        })
        .collect()
}

/// Returns the `count` records whose features are nearest to `features`, as index and distance, nearest
/// first. The distance is Euclidean, each feature scaled by its standard deviation among the records. Records
/// with another number of features are ignored.
pub fn nearest(features: &[f32], rows: &[Record], count: usize) -> Vec<(usize, f32)> {
    let candidates: Vec<(usize, &[f32])> = rows
        .iter()
        .enumerate()
        .filter(|(_, record)| record.features.len() == features.len() && !features.is_empty())
        .map(|(index, record)| (index, &record.features[..]))
        .collect();
    let total = candidates.len().max(1) as f64;
    let scale = |column: usize| {
        let values = candidates.iter().map(|(_, row)| f64::from(row[column]));
        let mean = values.clone().sum::<f64>() / total;
        let variance = values.map(|value| (value - mean) * (value - mean)).sum::<f64>() / total;
        // A constant feature does not distinguish records.
        if variance > 0.0 { 1.0 / variance } else { 0.0 }
    };
    let scales: Vec<f64> = (0..features.len()).map(scale).collect();
    let distance = |row: &[f32]| {
        let part = |((a, b), scale): ((&f32, &f32), &f64)| {
            let difference = f64::from(*a) - f64::from(*b);
            difference * difference * scale
        };
        row.iter().zip(features).zip(&scales).map(part).sum::<f64>().sqrt() as f32
    };
    let mut found: Vec<_> = candidates.into_iter().map(|(index, row)| (index, distance(row))).collect();
    found.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    found.truncate(count);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        digest::Digest,
        model::{
            engine::{self, Engine},
            graph,
            onnx::{Node, Tensor},
            softmax::Head,
        },
    };

    const SIDE: usize = 32;
    /// The only square that the model responds to: columns 16–23, rows 8–15.
    const LEFT: usize = 16;
    const TOP: usize = 8;
    const FIELD: usize = 8;

    fn inside(index: usize) -> bool {
        let (x, y) = (index % SIDE, index / SIDE % SIDE);
        (LEFT..LEFT + FIELD).contains(&x) && (TOP..TOP + FIELD).contains(&y)
    }

    /// Loads a model that predicts `on` if one square is bright, whatever the rest of the image is.
    fn load_model() -> Box<dyn Engine> {
        let mask: Vec<f32> = (0..SIDE * SIDE).map(|pixel| if inside(pixel) { 16.0 } else { 0.0 }).collect();
        let nodes = vec![
            Node::new("Mul", &[graph::INPUT, "mask"], "seen", Vec::new()),
            Node::new("GlobalAveragePool", &["seen"], "means", Vec::new()),
            Node::new("Flatten", &["means"], graph::FEATURES, Vec::new()),
        ];
        let model = graph::from_nodes(nodes, vec![Tensor::floats("mask", &[1, 1, SIDE, SIDE], &mask)], SIDE);
        let head = Head {
            format: 1,
            classes: ["off", "on"].map(str::to_owned).to_vec(),
            mean: vec![150.0; 3],
            scale: vec![10.0; 3],
            weights: vec![-0.2, -0.2, -0.2, 0.2, 0.2, 0.2],
            bias: vec![0.0; 2],
            strength: 1.0,
        };
        let bytes = graph::encode(&graph::with_head(model, &head).unwrap());
        engine::builtin(&bytes, graph::INPUT, graph::OUTPUT).unwrap()
    }

    /// Gray, with a bright square where the model responds and a brighter one where it does not.
    fn planes() -> Vec<f32> {
        let elsewhere =
            |index: usize| (2..10).contains(&(index % SIDE)) && (20..28).contains(&(index / SIDE % SIDE));
        let value = |index: usize| {
            if inside(index) {
                220.0
            } else if elsewhere(index) {
                255.0
            } else {
                90.0
            }
        };
        (0..3 * SIDE * SIDE).map(value).collect()
    }

    fn found(fill: Fill) -> HeatMap {
        let mut engine = load_model();
        let mut run = |planes: &[f32]| Ok(engine.run(planes, SIDE)?.chunks(2).map(<[f32]>::to_vec).collect());
        explain(&mut run, &planes(), SIDE, &Settings { patch: 0.25, fill, seed: 1 }).unwrap()
    }

    #[test]
    fn only_the_parts_that_the_model_responds_to_are_hot() {
        for fill in [Fill::Mean, Fill::Blur] {
            let heat = found(fill);
            assert_eq!((heat.class, heat.patch, heat.stride), (1, 8, 4));
            assert!(heat.scores[1] > 0.99, "{:?}", heat.scores);
            assert_eq!(heat.map.len(), 7);
            for (row, values) in heat.map.iter().enumerate() {
                for (column, value) in values.iter().enumerate() {
                    let touches = (3..=5).contains(&column) && (1..=3).contains(&row);
                    assert_eq!(*value > 1e-6, touches, "{fill:?} {row} {column}: {value}");
                }
            }
            assert_eq!(heat.decisive, Some(Square { left: LEFT, top: TOP, side: FIELD }));
            assert!(heat.map[2][4] > 0.5, "{fill:?} {:?}", heat.map);
            let deletion = heat.deletion;
            assert!(deletion.heat < deletion.random && deletion.heat < deletion.center, "{deletion:?}");
        }
    }

    #[test]
    fn constant_scores_have_no_decisive_part() {
        let mut run = |planes: &[f32]| Ok(vec![vec![0.5, 0.5]; planes.len() / (3 * SIDE * SIDE)]);
        let settings = Settings { patch: 0.3, fill: Fill::Mean, seed: 1 };
        let heat = explain(&mut run, &planes(), SIDE, &settings).unwrap();
        assert_eq!(heat.decisive, None);
        assert!((heat.deletion.heat - 0.5).abs() < 1e-9);
        assert!(explain(&mut run, &planes(), SIDE, &Settings { patch: 0.0, ..settings }).is_err());
    }

    #[test]
    fn a_map_is_interpolated_between_the_centers_of_squares() {
        let pixels = upsample(&[vec![0.0, 1.0], vec![0.0, 1.0]], 8, &[0, 4], 4);
        assert_eq!(pixels[..8], [0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.0, 1.0]);
        assert_eq!(pixels[56..], pixels[..8]);
        assert_eq!(square_offsets(10, 4, 2), [0, 2, 4, 6]);
        assert_eq!(square_offsets(9, 4, 2), [0, 2, 4, 5]);
        assert_eq!(square_offsets(4, 4, 2), [0]);
    }

    #[test]
    fn distances_are_scaled_by_the_spread_of_each_feature() {
        let row = |features: &[f32]| Record {
            id: String::new(),
            captured: 0,
            received: 0,
            version: String::new(),
            package: Digest::of(b""),
            input: Digest::of(b""),
            name: String::new(),
            status: 200,
            latency: 0.0,
            class: String::new(),
            scores: Vec::new(),
            features: features.to_vec(),
            image_stats: None,
            kept: false,
        };
        // The first feature varies a thousand times as much as the second; the third never does.
        let rows: Vec<_> =
            [&[0.0, 0.0, 5.0][..], &[1000.0, 0.1, 5.0], &[2000.0, 1.0, 5.0], &[1.0]].map(row).into();
        let found = nearest(&[900.0, 0.9, 7.0], &rows, 2);
        assert_eq!(found.iter().map(|it| it.0).collect::<Vec<_>>(), [2, 1]);
        assert!(found[0].1 < found[1].1);
        assert_eq!(nearest(&[1.0], &rows, 5), [(3, 0.0)]);
        assert!(nearest(&[], &rows, 5).is_empty());
    }
}
