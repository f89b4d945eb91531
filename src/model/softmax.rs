//! Linear softmax classifier (multinomial logistic regression), fitted by L-BFGS until convergence.
//!
//! The cost is the mean cross-entropy plus `strength / 2` times the sum of the squared weights (without the
//! biases). Sums run in a fixed order and transcendental functions come from `libm`, so a head is the same to
//! the last bit on every machine and with any number of threads.

use std::sync::{Mutex, PoisonError};

use argmin::{
    core::{CostFunction, Executor, Gradient, State as _},
    solver::{linesearch::MoreThuenteLineSearch, quasinewton::LBFGS},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// Number of rows that one task sums up; a constant, so that sums do not depend on the number of threads.
const CHUNK: usize = 128;
/// History size of L-BFGS.
const MEMORY: usize = 10;
const MAX_ITERATIONS: u64 = 1000;
/// Most scaled features that a fit keeps (64 MiB); those of further rows are computed each time.
const MOST_KEPT: usize = 8 << 20;
/// Gradient norm at which the fit ends.
const GRADIENT_TOLERANCE: f64 = 1e-6;

/// Fitted classifier head. Weights apply to scaled features: `(x − mean) / scale`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub format: u64,
    pub classes: Vec<String>,
    pub mean: Vec<f64>,
    pub scale: Vec<f64>,
    /// One row per class, in row-major order.
    pub weights: Vec<f64>,
    pub bias: Vec<f64>,
    /// Strength of the L2 penalty.
    pub strength: f64,
}

/// Labeled rows of features.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Number of features per row.
    pub width: usize,
    /// Features, row by row.
    pub values: Vec<f32>,
    /// Class index of each row.
    pub labels: Vec<usize>,
    /// Number of classes.
    pub classes: usize,
}

impl Samples {
    fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Returns the rows with these indices.
    pub fn select(&self, rows: &[usize]) -> Self {
        let values = rows.iter().flat_map(|&row| self.row(row).iter().copied()).collect();
        let labels = rows.iter().map(|&row| self.labels[row]).collect();
        Self { width: self.width, values, labels, classes: self.classes }
    }
}

/// Returns the mean and standard deviation of each feature; the deviation of a constant feature is given as
/// 1.
pub fn scaling(samples: &Samples) -> (Vec<f64>, Vec<f64>) {
    let count = samples.len().max(1) as f64;
    let mut mean = vec![0.0; samples.width];
    let mut square = vec![0.0; samples.width];
    for row in 0..samples.len() {
        mean.iter_mut().zip(samples.row(row)).for_each(|(sum, value)| *sum += f64::from(*value) / count);
    }
    for row in 0..samples.len() {
        for ((sum, value), mean) in square.iter_mut().zip(samples.row(row)).zip(&mean) {
            let deviation = f64::from(*value) - mean;
            *sum += deviation * deviation / count;
        }
    }
    let scale = square.iter().map(|variance| if *variance > 1e-12 { variance.sqrt() } else { 1.0 }).collect();
    (mean, scale)
}

/// Optimization problem for L-BFGS. The parameters are the weights, class by class, followed by the biases.
struct Problem<'p> {
    samples: &'p Samples,
    mean: &'p [f64],
    scale: &'p [f64],
    strength: f64,
    /// Scaled features of the first rows.
    kept: Vec<f64>,
    /// Point that was evaluated last, with its cost and gradient: the solver asks for one after the other.
    last: Mutex<(Vec<f64>, f64, Vec<f64>)>,
}

/// Turns scores into probabilities, in place. Returns the log-sum-exp of the scores.
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

// The loops of training count with `while`: in a debug build, iterators over numbers are functions of the
// dependencies, which are not optimized there, and take twenty times as long.

/// Returns the sum of `weights[i] · row[i]`.
fn dot(weights: &[f64], row: &[f64]) -> f64 {
    let row = &row[..weights.len()];
    // Four sums in a fixed order: vectorizable, and deterministic.
    let mut sums = [0.0; 4];
    let mut at = 0;
    while at + 4 <= weights.len() {
        sums[0] += weights[at] * row[at];
        sums[1] += weights[at + 1] * row[at + 1];
        sums[2] += weights[at + 2] * row[at + 2];
        sums[3] += weights[at + 3] * row[at + 3];
        at += 4;
    }
    let mut rest = 0.0;
    while at < weights.len() {
        rest += weights[at] * row[at];
        at += 1;
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

/// Adds `factor · row[i]` to each `sums[i]`.
fn add_scaled(sums: &mut [f64], factor: f64, row: &[f64]) {
    let row = &row[..sums.len()];
    let mut at = 0;
    while at < sums.len() {
        sums[at] += factor * row[at];
        at += 1;
    }
}

impl<'p> Problem<'p> {
    fn new(samples: &'p Samples, mean: &'p [f64], scale: &'p [f64], strength: f64) -> Self {
        Self::with_kept(samples, mean, scale, strength, MOST_KEPT)
    }

    /// Makes a problem that keeps at most this many scaled features.
    fn with_kept(
        samples: &'p Samples,
        mean: &'p [f64],
        scale: &'p [f64],
        strength: f64,
        most: usize,
    ) -> Self {
        let mut problem = Self { samples, mean, scale, strength, kept: Vec::new(), last: Mutex::default() };
        let rows = samples.len().min(most / samples.width.max(1));
        let mut kept = vec![0.0; rows * samples.width];
        for (index, row) in kept.chunks_exact_mut(samples.width.max(1)).enumerate() {
            problem.scale_row(index, row);
        }
        problem.kept = kept;
        problem
    }

    /// Returns the scaled features of a sample; `buffer` holds those that are not kept.
    fn scaled<'r>(&'r self, index: usize, buffer: &'r mut [f64]) -> &'r [f64] {
        let width = self.samples.width;
        if let Some(row) = self.kept.get(index * width..(index + 1) * width) {
            return row;
        }
        self.scale_row(index, buffer);
        buffer
    }

    /// Writes the scaled features of a sample to `row`.
    fn scale_row(&self, index: usize, row: &mut [f64]) {
        let values = &self.samples.row(index)[..row.len()];
        let (mean, scale) = (&self.mean[..row.len()], &self.scale[..row.len()]);
        let mut at = 0;
        while at < row.len() {
            row[at] = (f64::from(values[at]) - mean[at]) / scale[at];
            at += 1;
        }
    }

    /// Calls `read` with the cost and the gradient at a point.
    fn at<T>(&self, parameters: &[f64], read: impl Fn(f64, &[f64]) -> T) -> T {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != parameters {
            let (cost, gradient) = self.evaluate(parameters);
            *last = (parameters.to_vec(), cost, gradient);
        }
        read(last.1, &last.2)
    }

    /// Computes cost and gradient. Chunks are computed in parallel and summed in order.
    fn evaluate(&self, parameters: &[f64]) -> (f64, Vec<f64>) {
        let (width, classes, count) = (self.samples.width, self.samples.classes, self.samples.len());
        let starts: Vec<usize> = (0..count).step_by(CHUNK).collect();
        let evaluate_chunk = |start: &usize| {
            let mut gradient = vec![0.0; parameters.len()];
            let (mut cost, mut buffer, mut scores) = (0.0, vec![0.0; width], vec![0.0; classes]);
            for index in *start..(*start + CHUNK).min(count) {
                let row = self.scaled(index, &mut buffer);
                for class in 0..classes {
                    scores[class] =
                        parameters[classes * width + class] + dot(&parameters[class * width..][..width], row);
                }
                let label_score = scores[self.samples.labels[index]];
                cost += softmax(&mut scores) - label_score;
                scores[self.samples.labels[index]] -= 1.0;
                for class in 0..classes {
                    let slope = scores[class];
                    add_scaled(&mut gradient[class * width..][..width], slope, row);
                    gradient[classes * width + class] += slope;
                }
            }
            (cost, gradient)
        };
        let parts: Vec<_> = starts.par_iter().map(evaluate_chunk).collect();
        let mut total = vec![0.0; parameters.len()];
        let mut cost = 0.0;
        for (chunk_cost, gradient) in parts {
            cost += chunk_cost;
            add_scaled(&mut total, 1.0, &gradient);
        }
        let weights = &parameters[..classes * width];
        cost = cost / count as f64 + self.strength / 2.0 * dot(weights, weights);
        total.iter_mut().for_each(|it| *it /= count as f64);
        add_scaled(&mut total[..weights.len()], self.strength, weights);
        (cost, total)
    }
}

impl CostFunction for &Problem<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, parameters: &Vec<f64>) -> Result<f64, argmin::core::Error> {
        Ok(self.at(parameters, |cost, _| cost))
    }
}

impl Gradient for &Problem<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, parameters: &Vec<f64>) -> Result<Vec<f64>, argmin::core::Error> {
        Ok(self.at(parameters, |_, gradient| gradient.to_vec()))
    }
}

/// Fits a head to samples with an L2 penalty of this strength.
pub fn fit(samples: &Samples, classes: &[String], strength: f64) -> Result<Head> {
    let (mean, scale) = scaling(samples);
    let size = samples.classes * (samples.width + 1);
    let problem = Problem::new(samples, &mean, &scale, strength);
    let failed = |reason: &dyn std::fmt::Display| {
        Error::new(Kind::Internal, format!("the head cannot be fitted: {reason}"))
    };
    let solver = LBFGS::new(MoreThuenteLineSearch::new(), MEMORY);
    let solver = solver.with_tolerance_grad(GRADIENT_TOLERANCE).map_err(|it| failed(&it))?;
    let run = Executor::new(&problem, solver)
        .configure(|state| state.param(vec![0.0; size]).max_iters(MAX_ITERATIONS))
        .run();
    let found = run.map_err(|it| failed(&it))?;
    let best = found.state().get_best_param().cloned().ok_or_else(|| failed(&"no solution"))?;
    if best.iter().any(|it| !it.is_finite()) {
        return Err(failed(&"the features contain numbers that are not finite"));
    }
    let (weights, bias) = best.split_at(samples.classes * samples.width);
    let (weights, bias) = (weights.to_vec(), bias.to_vec());
    Ok(Head { format: 1, classes: classes.to_vec(), mean, scale, weights, bias, strength })
}

impl Head {
    /// Returns the probability of each class for one row of features.
    pub fn predict(&self, features: &[f32]) -> Vec<f64> {
        let width = self.mean.len();
        let scaled: Vec<f64> = features
            .iter()
            .zip(&self.mean)
            .zip(&self.scale)
            .map(|((value, mean), scale)| (f64::from(*value) - mean) / scale)
            .collect();
        let score = |class: usize| self.bias[class] + dot(&self.weights[class * width..][..width], &scaled);
        let mut scores: Vec<f64> = (0..self.classes.len()).map(score).collect();
        softmax(&mut scores);
        scores
    }
}

/// Returns the index of the largest score; of equal ones the first.
pub fn argmax<T: PartialOrd>(scores: &[T]) -> usize {
    (0..scores.len()).fold(0, |best, index| if scores[index] > scores[best] { index } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        let mut rng = crate::model::filters::Rng::new(1);
        let mut values = Vec::new();
        let mut labels = Vec::new();
        for index in 0..600 {
            let label = index % 3;
            labels.push(label);
            for feature in 0..4 {
                let noise = rng.below(1000) as f32 / 1000.0;
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
        let problem = Problem::new(&samples, &mean, &scale, 0.1);
        let point: Vec<f64> = (0..15).map(|index| f64::from(index) / 10.0 - 0.7).collect();
        let gradient = problem.evaluate(&point).1;
        for index in 0..15 {
            let cost = |by: f64| {
                let mut moved = point.clone();
                moved[index] += by;
                problem.evaluate(&moved).0
            };
            let slope = (cost(1e-6) - cost(-1e-6)) / 2e-6;
            assert!((slope - gradient[index]).abs() < 1e-6, "{index}: {slope} {}", gradient[index]);
        }
    }

    #[test]
    fn rows_that_are_not_kept_count_alike() {
        let samples = samples();
        let (mean, scale) = scaling(&samples);
        let point: Vec<f64> = (0..15).map(|index| f64::from(index) / 10.0 - 0.7).collect();
        let all = Problem::new(&samples, &mean, &scale, 0.1);
        assert_eq!(all.kept.len(), samples.values.len());
        let some = Problem::with_kept(&samples, &mean, &scale, 0.1, 402);
        assert_eq!(some.kept.len(), 400);
        assert_eq!(some.evaluate(&point), all.evaluate(&point));
        for point in [point.clone(), vec![0.0; 15], point] {
            assert_eq!(some.at(&point, |cost, slopes| (cost, slopes.to_vec())), all.evaluate(&point));
        }
    }

    #[test]
    fn the_fit_converges_to_the_minimum() {
        let samples = samples();
        let head = fit(&samples, &classes(), 0.01).unwrap();
        let problem = Problem::new(&samples, &head.mean, &head.scale, 0.01);
        let point = [head.weights.clone(), head.bias.clone()].concat();
        let gradient = problem.evaluate(&point).1;
        let steepest = gradient.iter().fold(0.0_f64, |most, slope| most.max(slope.abs()));
        assert!(steepest < 1e-5, "{steepest}");
        let is_correct = |row: &usize| argmax(&head.predict(samples.row(*row))) == samples.labels[*row];
        let correct = (0..600).filter(is_correct).count();
        assert!(correct > 400, "{correct} of 600");
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let samples = samples();
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let many = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
        let fit = || fit(&samples, &classes(), 0.1).unwrap();
        assert_eq!(one.install(fit), many.install(fit));
    }
}
