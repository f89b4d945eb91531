//! A linear head with softmax, fitted by L-BFGS to the end.
//!
//! The cost is the mean cross-entropy plus `strength / 2` times the squared weights (not the biases).
//! Sums run in a fixed order and transcendental functions come from `libm`, so a head is the same to the
//! last bit on every machine and with any number of threads.

use argmin::{
    core::{CostFunction, Executor, Gradient, State as _},
    solver::{linesearch::MoreThuenteLineSearch, quasinewton::LBFGS},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// Rows whose sums one thread takes; a constant, so that sums never depend on threads.
const CHUNK: usize = 128;
const MEMORY: usize = 10;
const MOST_ITERATIONS: u64 = 1000;
/// The fit ends where no slope is steeper.
const FLAT: f64 = 1e-6;

/// A fitted head. Weights are for scaled features: `(x − mean) / scale`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub format: u64,
    pub classes: Vec<String>,
    pub mean: Vec<f64>,
    pub scale: Vec<f64>,
    /// Class by class.
    pub weights: Vec<f64>,
    pub bias: Vec<f64>,
    pub strength: f64,
}

/// Rows of features with the place of their class.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    pub width: usize,
    pub values: Vec<f32>,
    pub labels: Vec<usize>,
    pub classes: usize,
}

impl Samples {
    fn row(&self, at: usize) -> &[f32] {
        &self.values[at * self.width..][..self.width]
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// These rows alone.
    pub fn pick(&self, rows: &[usize]) -> Self {
        let values = rows.iter().flat_map(|&it| self.row(it).iter().copied()).collect();
        let labels = rows.iter().map(|&it| self.labels[it]).collect();
        Self { width: self.width, values, labels, classes: self.classes }
    }
}

/// Mean and deviation of each feature; a constant one is left at its size.
pub fn scaling(samples: &Samples) -> (Vec<f64>, Vec<f64>) {
    let count = samples.len().max(1) as f64;
    let mut mean = vec![0.0; samples.width];
    let mut square = vec![0.0; samples.width];
    for at in 0..samples.len() {
        mean.iter_mut().zip(samples.row(at)).for_each(|(sum, it)| *sum += f64::from(*it) / count);
    }
    for at in 0..samples.len() {
        for ((sum, it), mean) in square.iter_mut().zip(samples.row(at)).zip(&mean) {
            let off = f64::from(*it) - mean;
            *sum += off * off / count;
        }
    }
    let scale = square.iter().map(|it| if *it > 1e-12 { it.sqrt() } else { 1.0 }).collect();
    (mean, scale)
}

/// The problem that L-BFGS solves; parameters are weights class by class, then biases.
struct Problem<'p> {
    samples: &'p Samples,
    mean: &'p [f64],
    scale: &'p [f64],
    strength: f64,
}

/// Probabilities from scores, in place; the logarithm of their sum of exponentials.
fn softmax(scores: &mut [f64]) -> f64 {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = libm::exp(*score - largest);
        sum += *score;
    }
    scores.iter_mut().for_each(|it| *it /= sum);
    largest + libm::log(sum)
}

fn dot(weights: &[f64], row: &[f64]) -> f64 {
    // Four sums in a fixed order: fast, and always the same.
    let mut sums = [0.0; 4];
    let (weights, rest_weights) = weights.as_chunks::<4>();
    let (row, rest_row) = row.as_chunks::<4>();
    for (a, b) in weights.iter().zip(row) {
        (0..4).for_each(|at| sums[at] += a[at] * b[at]);
    }
    let rest: f64 = rest_weights.iter().zip(rest_row).map(|(a, b)| a * b).sum();
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

impl Problem<'_> {
    fn scaled(&self, at: usize, row: &mut [f64]) {
        let values = self.samples.row(at).iter().zip(self.mean).zip(self.scale);
        row.iter_mut()
            .zip(values)
            .for_each(|(out, ((it, mean), scale))| *out = (f64::from(*it) - mean) / scale);
    }

    /// Cost and gradient, chunk by chunk, summed in order.
    fn evaluate(&self, parameters: &[f64], with_gradient: bool) -> (f64, Vec<f64>) {
        let (width, classes, count) = (self.samples.width, self.samples.classes, self.samples.len());
        let starts: Vec<usize> = (0..count).step_by(CHUNK).collect();
        let part = |start: &usize| {
            let mut gradient = vec![0.0; if with_gradient { parameters.len() } else { 0 }];
            let (mut cost, mut row, mut scores) = (0.0, vec![0.0; width], vec![0.0; classes]);
            for at in *start..(*start + CHUNK).min(count) {
                self.scaled(at, &mut row);
                for class in 0..classes {
                    scores[class] = parameters[classes * width + class]
                        + dot(&parameters[class * width..][..width], &row);
                }
                let own = scores[self.samples.labels[at]];
                cost += softmax(&mut scores) - own;
                if with_gradient {
                    scores[self.samples.labels[at]] -= 1.0;
                    for class in 0..classes {
                        let slope = scores[class];
                        gradient[class * width..][..width]
                            .iter_mut()
                            .zip(&row)
                            .for_each(|(sum, it)| *sum += slope * it);
                        gradient[classes * width + class] += slope;
                    }
                }
            }
            (cost, gradient)
        };
        let parts: Vec<_> = starts.par_iter().map(part).collect();
        let mut total = vec![0.0; if with_gradient { parameters.len() } else { 0 }];
        let mut cost = 0.0;
        for (one, gradient) in parts {
            cost += one;
            total.iter_mut().zip(gradient).for_each(|(sum, it)| *sum += it);
        }
        let weights = &parameters[..classes * width];
        cost = cost / count as f64 + self.strength / 2.0 * dot(weights, weights);
        total.iter_mut().for_each(|it| *it /= count as f64);
        total.iter_mut().zip(weights).for_each(|(sum, it)| *sum += self.strength * it);
        (cost, total)
    }
}

impl CostFunction for &Problem<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, parameters: &Vec<f64>) -> Result<f64, argmin::core::Error> {
        Ok(self.evaluate(parameters, false).0)
    }
}

impl Gradient for &Problem<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, parameters: &Vec<f64>) -> Result<Vec<f64>, argmin::core::Error> {
        Ok(self.evaluate(parameters, true).1)
    }
}

/// Fits a head of this strength to samples.
pub fn fit(samples: &Samples, classes: &[String], strength: f64) -> Result<Head> {
    let (mean, scale) = scaling(samples);
    let size = samples.classes * (samples.width + 1);
    let problem = Problem { samples, mean: &mean, scale: &scale, strength };
    let failed =
        |it: &dyn std::fmt::Display| Error::new(Kind::Internal, format!("the head cannot be fitted: {it}"));
    let solver = LBFGS::new(MoreThuenteLineSearch::new(), MEMORY);
    let solver = solver.with_tolerance_grad(FLAT).map_err(|it| failed(&it))?;
    let run = Executor::new(&problem, solver)
        .configure(|it| it.param(vec![0.0; size]).max_iters(MOST_ITERATIONS))
        .run();
    let found = run.map_err(|it| failed(&it))?;
    let best = found.state().get_best_param().cloned().ok_or_else(|| failed(&"no solution"))?;
    if best.iter().any(|it| !it.is_finite()) {
        return Err(failed(&"the features hold numbers that are not finite"));
    }
    let (weights, bias) = best.split_at(samples.classes * samples.width);
    let (weights, bias) = (weights.to_vec(), bias.to_vec());
    Ok(Head { format: 1, classes: classes.to_vec(), mean, scale, weights, bias, strength })
}

impl Head {
    /// The probability of each class for one row of features.
    pub fn predict(&self, features: &[f32]) -> Vec<f64> {
        let width = self.mean.len();
        let scaled: Vec<f64> = features
            .iter()
            .zip(&self.mean)
            .zip(&self.scale)
            .map(|((it, mean), scale)| (f64::from(*it) - mean) / scale)
            .collect();
        let score = |class: usize| self.bias[class] + dot(&self.weights[class * width..][..width], &scaled);
        let mut scores: Vec<f64> = (0..self.classes.len()).map(score).collect();
        softmax(&mut scores);
        scores
    }
}

/// The place of the largest number; of equal ones the first.
pub fn best<T: PartialOrd>(scores: &[T]) -> usize {
    (0..scores.len()).fold(0, |best, at| if scores[at] > scores[best] { at } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        let mut draws = crate::model::filters::Draws::new(1);
        let mut values = Vec::new();
        let mut labels = Vec::new();
        for at in 0..600 {
            let label = at % 3;
            labels.push(label);
            for feature in 0..4 {
                let noise = draws.below(1000) as f32 / 1000.0;
                values.push(noise + if feature == label { 0.4 } else { 0.0 } + 100.0);
            }
        }
        Samples { width: 4, values, labels, classes: 3 }
    }

    fn classes() -> Vec<String> {
        ["a", "b", "c"].map(str::to_owned).to_vec()
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_cost() {
        let samples = samples();
        let (mean, scale) = scaling(&samples);
        let problem = Problem { samples: &samples, mean: &mean, scale: &scale, strength: 0.1 };
        let at: Vec<f64> = (0..15).map(|it| f64::from(it) / 10.0 - 0.7).collect();
        let gradient = problem.evaluate(&at, true).1;
        for place in 0..15 {
            let cost = |by: f64| {
                let mut moved = at.clone();
                moved[place] += by;
                problem.evaluate(&moved, false).0
            };
            let slope = (cost(1e-6) - cost(-1e-6)) / 2e-6;
            assert!((slope - gradient[place]).abs() < 1e-6, "{place}: {slope} {}", gradient[place]);
        }
    }

    #[test]
    fn the_fit_ends_where_nothing_can_be_gained() {
        let samples = samples();
        let head = fit(&samples, &classes(), 0.01).unwrap();
        let problem = Problem { samples: &samples, mean: &head.mean, scale: &head.scale, strength: 0.01 };
        let at = [head.weights.clone(), head.bias.clone()].concat();
        let steepest = problem.evaluate(&at, true).1.iter().fold(0.0_f64, |most, it| most.max(it.abs()));
        assert!(steepest < 1e-5, "{steepest}");
        let right = (0..600).filter(|&it| best(&head.predict(samples.row(it))) == samples.labels[it]).count();
        assert!(right > 400, "{right} of 600");
    }

    #[test]
    fn threads_do_not_matter_to_the_last_bit() {
        let samples = samples();
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let many = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
        let fit = || fit(&samples, &classes(), 0.1).unwrap();
        assert_eq!(one.install(fit), many.install(fit));
    }
}
