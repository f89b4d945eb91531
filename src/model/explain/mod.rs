//! Why a model said what it said: parts of a picture are hidden, one after another, and the heat of a place is
//! how much the log-odds of the decided class drop without it.
//!
//! Only the network's answers are needed, so any package can be explained. What hides a part is a choice that
//! shows in every number; it is named in the result, and results of different choices are not comparable.

mod draw;

pub use self::draw::draw;

use image::{Rgb, Rgb32FImage, imageops};
use serde::Serialize;

use crate::{
    error::{Error, Result},
    model::softmax::best,
    traffic::Record,
};

/// Smaller probabilities count as this one.
const LEAST: f32 = 1e-30;
/// Pictures that go through the network at once.
const BATCH: usize = 16;
/// Shares of the picture that deletion looks at, beside none.
const STEPS: usize = 20;

/// What stands in the place of what is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fill {
    /// The picture itself, blurred.
    Blur,
    /// The picture's mean color.
    Mean,
}

impl std::str::FromStr for Fill {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "blur" => Ok(Self::Blur),
            "mean" => Ok(Self::Mean),
            other => Err(Error::usage(format!("nothing is hidden by `{other}`")).hint("blur or mean")),
        }
    }
}

/// How to look.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The hidden square's side, as a share of the picture's.
    pub patch: f64,
    pub fill: Fill,
    /// Of the random order that deletion is compared with.
    pub seed: u64,
}

/// A square of a picture, in pixels from the upper left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Square {
    pub left: usize,
    pub top: usize,
    pub side: usize,
}

/// The area under the class's probability while more and more of the picture is hidden; low where the order
/// hides what matters first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Deletion {
    /// The hottest first.
    pub heat: f64,
    /// In an order by chance, of squares of the same size.
    pub random: f64,
    /// From the middle outwards: what needs no explanation.
    pub center: f64,
}

/// Which parts of a picture decided.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Heat {
    /// Place of the decided class.
    pub class: usize,
    /// By class.
    pub scores: Vec<f32>,
    /// Pixels of the hidden square's side.
    pub patch: usize,
    /// Pixels from one square to the next.
    pub stride: usize,
    pub fill: Fill,
    /// How much the logarithm of the class's odds drops without each square, row by row.
    pub map: Vec<Vec<f32>>,
    /// The square without which it is least probable; none where no square matters.
    pub decisive: Option<Square>,
    pub deletion: Deletion,
}

/// Runs pictures (3×side×side values each): scores of each.
pub type Run<'r> = dyn FnMut(&[f32]) -> Result<Vec<Vec<f32>>> + 'r;

/// Hides one square after another of a picture's planes (3×side×side, 0–255).
pub fn explain(run: &mut Run<'_>, planes: &[f32], side: usize, settings: &Settings) -> Result<Heat> {
    if !(0.02..=0.9).contains(&settings.patch) {
        return Err(Error::usage("the patch is a share of the picture's side from 0.02 to 0.9"));
    }
    let patch = ((side as f64 * settings.patch).round() as usize).clamp(1, side);
    let stride = (patch / 2).max(1);
    let starts = starts(side, patch, stride);
    let filled = filled(planes, side, patch, settings.fill);
    let scores = run(planes)?.pop().unwrap_or_default();
    let class = best(&scores);
    if scores.is_empty() {
        return Err(Error::corrupt("the network gives no scores"));
    }
    let whole = log_odds(&scores, class);
    let hidden = starts.iter().flat_map(|top| starts.iter().map(move |left| (*top, *left)));
    let hidden = hidden.map(|(top, left)| {
        let inside =
            move |x: usize, y: usize| (left..left + patch).contains(&x) && (top..top + patch).contains(&y);
        mixed(planes, &filled, side, inside)
    });
    let found = measured(run, hidden, &|it| log_odds(it, class))?;
    let map: Vec<Vec<f32>> =
        found.chunks(starts.len()).map(|row| row.iter().map(|it| whole - it).collect()).collect();
    let mut place = Places { run, planes, filled: &filled, side, starts: &starts, patch, class };
    let deletion = place.compared(&map, settings.seed)?;
    let decisive = decisive(&map, &starts, patch);
    Ok(Heat { class, scores, patch, stride, fill: settings.fill, map, decisive, deletion })
}

/// Where squares begin, the last one at the edge.
fn starts(side: usize, patch: usize, stride: usize) -> Vec<usize> {
    let last = side - patch;
    (0..last).step_by(stride).chain([last]).collect()
}

fn decisive(map: &[Vec<f32>], starts: &[usize], patch: usize) -> Option<Square> {
    let flat: Vec<f32> = map.iter().flatten().copied().collect();
    let at = best(&flat);
    let (row, column) = (at / starts.len(), at % starts.len());
    (flat[at] > 0.0).then(|| Square { left: starts[column], top: starts[row], side: patch })
}

/// What hides: as large as the picture.
fn filled(planes: &[f32], side: usize, patch: usize, fill: Fill) -> Vec<f32> {
    let size = side * side;
    match fill {
        Fill::Mean => {
            let mean = |it: &[f32]| it.iter().sum::<f32>() / size as f32;
            planes.chunks(size).flat_map(|it| std::iter::repeat_n(mean(it), size)).collect()
        }
        Fill::Blur => {
            let width = side as u32;
            let picture = Rgb32FImage::from_fn(width, width, |x, y| {
                let at = y as usize * side + x as usize;
                // Floats of pictures lie between 0 and 1.
                Rgb([0, 1, 2].map(|channel| planes[channel * size + at] / 255.0))
            });
            let blurred = imageops::blur(&picture, patch as f32);
            (0..3).flat_map(|channel| blurred.pixels().map(move |it| it.0[channel] * 255.0)).collect()
        }
    }
}

/// The picture, hidden where `is_hidden` says so.
fn mixed(planes: &[f32], filled: &[f32], side: usize, is_hidden: impl Fn(usize, usize) -> bool) -> Vec<f32> {
    let size = side * side;
    let value = |at: usize| {
        let place = at % size;
        if is_hidden(place % side, place / side) { filled[at] } else { planes[at] }
    };
    (0..planes.len()).map(value).collect()
}

/// How sure a class is, without a ceiling: a network that is sure stays at a probability of 1 whatever is hidden,
/// and the logarithm of its odds still moves.
fn log_odds(scores: &[f32], class: usize) -> f32 {
    let others: f32 = scores.iter().enumerate().filter(|it| it.0 != class).map(|it| it.1).sum();
    libm::logf(scores[class].max(LEAST)) - libm::logf(others.max(LEAST))
}

/// What is measured of the scores of each picture.
fn measured(
    run: &mut Run<'_>,
    mut pictures: impl Iterator<Item = Vec<f32>>,
    measure: &dyn Fn(&[f32]) -> f32,
) -> Result<Vec<f32>> {
    let mut found = Vec::new();
    loop {
        let batch: Vec<f32> = pictures.by_ref().take(BATCH).flatten().collect();
        if batch.is_empty() {
            return Ok(found);
        }
        found.extend(run(&batch)?.iter().map(|it| measure(it)));
    }
}

/// Everything that deletion needs.
struct Places<'p, 'r> {
    run: &'p mut Run<'r>,
    planes: &'p [f32],
    filled: &'p [f32],
    side: usize,
    starts: &'p [usize],
    patch: usize,
    class: usize,
}

impl Places<'_, '_> {
    fn compared(&mut self, map: &[Vec<f32>], seed: u64) -> Result<Deletion> {
        let size = self.starts.len();
        let grid = |value: &mut dyn FnMut(usize, usize) -> f32| -> Vec<Vec<f32>> {
            (0..size).map(|row| (0..size).map(|column| value(row, column)).collect()).collect()
        };
        let mut state = seed;
        let random = grid(&mut |_, _| chance(&mut state));
        let middle = (size - 1) as f32 / 2.0;
        let center = grid(&mut |row, column| {
            let (x, y) = (column as f32 - middle, row as f32 - middle);
            -(x * x + y * y)
        });
        Ok(Deletion {
            heat: self.deletion(map)?,
            random: self.deletion(&random)?,
            center: self.deletion(&center)?,
        })
    }

    /// Hides the hottest pixels first, in steps from none to all.
    fn deletion(&mut self, map: &[Vec<f32>]) -> Result<f64> {
        let heat = spread(map, self.side, self.starts, self.patch);
        let mut order: Vec<usize> = (0..heat.len()).collect();
        order.sort_by(|a, b| heat[*b].total_cmp(&heat[*a]).then(a.cmp(b)));
        let mut rank = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, at)| rank[*at] = place);
        let (planes, filled, side) = (self.planes, self.filled, self.side);
        let steps = (0..=STEPS).map(|step| {
            let hidden = rank.len() * step / STEPS;
            mixed(planes, filled, side, |x, y| rank[y * side + x] < hidden)
        });
        let class = self.class;
        let found = measured(self.run, steps, &|it| it[class])?;
        let area = found.windows(2).map(|it| f64::from(it[0] + it[1]) / 2.0).sum::<f64>();
        Ok(area / STEPS as f64)
    }
}

/// A number between 0 and 1 (`SplitMix64`).
fn chance(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1 << 24) as f32
}

/// A map of squares as a map of pixels: straight between the middles of squares, even beyond them.
fn spread(map: &[Vec<f32>], side: usize, starts: &[usize], patch: usize) -> Vec<f32> {
    let middle = |at: usize| starts[at] as f32 + patch as f32 / 2.0;
    let weights: Vec<(usize, usize, f32)> = (0..side)
        .map(|pixel| {
            let place = pixel as f32 + 0.5;
            let next = (0..starts.len()).position(|it| middle(it) > place);
            match next {
                Some(0) => (0, 0, 0.0),
                Some(next) => {
                    let (low, high) = (middle(next - 1), middle(next));
                    (next - 1, next, (place - low) / (high - low))
                }
                None => (starts.len() - 1, starts.len() - 1, 0.0),
            }
        })
        .collect();
    let between = |a: f32, b: f32, share: f32| a + (b - a) * share;
    weights
        .iter()
        .flat_map(|&(top, bottom, down)| {
            weights.iter().map(move |&(left, right, across)| {
                let upper = between(map[top][left], map[top][right], across);
                between(upper, between(map[bottom][left], map[bottom][right], across), down)
            })
        })
        .collect()
}

/// The records whose features are nearest to `features`, by place and distance, nearest first. Each feature counts
/// by its spread among the records; records with another number of features are passed over.
pub fn nearest(features: &[f32], rows: &[Record], count: usize) -> Vec<(usize, f32)> {
    let fitting: Vec<(usize, &[f32])> = rows
        .iter()
        .enumerate()
        .filter(|it| it.1.features.len() == features.len() && !features.is_empty())
        .map(|(at, it)| (at, &it.features[..]))
        .collect();
    let total = fitting.len().max(1) as f64;
    let scale = |column: usize| {
        let values = fitting.iter().map(|it| f64::from(it.1[column]));
        let mean = values.clone().sum::<f64>() / total;
        let spread = values.map(|it| (it - mean) * (it - mean)).sum::<f64>() / total;
        // A feature that never changes tells nothing apart.
        if spread > 0.0 { 1.0 / spread } else { 0.0 }
    };
    let scales: Vec<f64> = (0..features.len()).map(scale).collect();
    let distance = |row: &[f32]| {
        let part = |((a, b), scale): ((&f32, &f32), &f64)| {
            let apart = f64::from(*a) - f64::from(*b);
            apart * apart * scale
        };
        row.iter().zip(features).zip(&scales).map(part).sum::<f64>().sqrt() as f32
    };
    let mut found: Vec<_> = fitting.into_iter().map(|(at, row)| (at, distance(row))).collect();
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
    /// Where the network looks: columns 16–23, rows 8–15.
    const LEFT: usize = 16;
    const TOP: usize = 8;
    const LOOKS: usize = 8;

    fn inside(at: usize) -> bool {
        let (x, y) = (at % SIDE, at / SIDE % SIDE);
        (LEFT..LEFT + LOOKS).contains(&x) && (TOP..TOP + LOOKS).contains(&y)
    }

    /// Says `on` where one square is bright, and sees nothing else.
    fn network() -> Box<dyn Engine> {
        let mask: Vec<f32> = (0..SIDE * SIDE).map(|at| if inside(at) { 16.0 } else { 0.0 }).collect();
        let nodes = vec![
            Node::new("Mul", &[graph::INPUT, "mask"], "seen", Vec::new()),
            Node::new("GlobalAveragePool", &["seen"], "means", Vec::new()),
            Node::new("Flatten", &["means"], graph::FEATURES, Vec::new()),
        ];
        let model = graph::own(nodes, vec![Tensor::floats("mask", &[1, 1, SIDE, SIDE], &mask)], SIDE);
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

    /// Gray, with a bright square where the network looks and a brighter one where it does not.
    fn planes() -> Vec<f32> {
        let elsewhere = |at: usize| (2..10).contains(&(at % SIDE)) && (20..28).contains(&(at / SIDE % SIDE));
        let value = |at: usize| {
            if inside(at) {
                220.0
            } else if elsewhere(at) {
                255.0
            } else {
                90.0
            }
        };
        (0..3 * SIDE * SIDE).map(value).collect()
    }

    fn found(fill: Fill) -> Heat {
        let mut engine = network();
        let mut run = |planes: &[f32]| Ok(engine.run(planes, SIDE)?.chunks(2).map(<[f32]>::to_vec).collect());
        explain(&mut run, &planes(), SIDE, &Settings { patch: 0.25, fill, seed: 1 }).unwrap()
    }

    #[test]
    fn the_heat_is_where_the_network_looks_and_nowhere_else() {
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
            assert_eq!(heat.decisive, Some(Square { left: LEFT, top: TOP, side: LOOKS }));
            assert!(heat.map[2][4] > 0.5, "{fill:?} {:?}", heat.map);
            let deletion = heat.deletion;
            assert!(deletion.heat < deletion.random && deletion.heat < deletion.center, "{deletion:?}");
        }
    }

    #[test]
    fn a_network_that_sees_nothing_has_no_decisive_part() {
        let mut run = |planes: &[f32]| Ok(vec![vec![0.5, 0.5]; planes.len() / (3 * SIDE * SIDE)]);
        let settings = Settings { patch: 0.3, fill: Fill::Mean, seed: 1 };
        let heat = explain(&mut run, &planes(), SIDE, &settings).unwrap();
        assert_eq!(heat.decisive, None);
        assert!((heat.deletion.heat - 0.5).abs() < 1e-9);
        assert!(explain(&mut run, &planes(), SIDE, &Settings { patch: 0.0, ..settings }).is_err());
    }

    #[test]
    fn a_map_is_spread_evenly_between_the_middles() {
        let spread = spread(&[vec![0.0, 1.0], vec![0.0, 1.0]], 8, &[0, 4], 4);
        assert_eq!(spread[..8], [0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.0, 1.0]);
        assert_eq!(spread[56..], spread[..8]);
        assert_eq!(starts(10, 4, 2), [0, 2, 4, 6]);
        assert_eq!(starts(9, 4, 2), [0, 2, 4, 5]);
        assert_eq!(starts(4, 4, 2), [0]);
    }

    #[test]
    fn the_nearest_are_counted_by_the_spread_of_each_feature() {
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
            looks: None,
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
