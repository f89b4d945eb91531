//! Features learnt from the photos themselves, for those who have no backbone.
//!
//! Patches are normalized and whitened, k-means finds typical ones, and a picture is described by how much
//! of each it shows in each of nine parts (Coates, Ng and Lee, "An Analysis of Single-Layer Networks in
//! Unsupervised Feature Learning", AISTATS 2011; whitening by Cholesky's factor). The result is a network
//! like any other. The arithmetic is sequential and plain, so that it is the same on every machine.

use crate::{
    digest::Digest,
    model::{
        graph::{FEATURES, INPUT, own},
        onnx::{Attribute, Model, Node, Tensor},
        settings::FilterSettings,
    },
};

/// Patches that are looked at in all.
const PATCHES: usize = 16_000;
const ROUNDS: usize = 12;
/// Added to a patch's variance, so that flat ones are not blown up; in squared gray levels.
const CONTRAST: f64 = 10.0;
/// Added to the variance of whitened directions.
const RIDGE: f64 = 0.05;
/// Responses below this are silent.
const THRESHOLD: f64 = 0.5;
/// The picture is described in this many parts a side.
const PARTS: usize = 3;

/// A small deterministic source of numbers.
pub struct Draws {
    seed: u64,
    count: u64,
}

impl Draws {
    pub fn new(seed: u64) -> Self {
        Self { seed, count: 0 }
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        let hash = Digest::of(&[self.seed.to_le_bytes(), self.count.to_le_bytes()].concat());
        u64::from_le_bytes(hash.bytes()[..8].try_into().expect("a digest has 8 bytes"))
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Learns a network from pictures (planes, 3×side×side each).
pub fn learn(pictures: &[Vec<f32>], settings: &FilterSettings) -> Model {
    let (side, patch) = (settings.picture as usize, settings.patch as usize);
    let mut draws = Draws::new(settings.seed);
    let patches = sample(pictures, side, patch, &mut draws);
    let whitening = Whitening::of(&patches);
    let white: Vec<Vec<f64>> = patches.iter().map(|it| whitening.apply(it)).collect();
    let centers = cluster(&white, settings.count as usize, &mut draws);
    network(&centers, &whitening, side, patch)
}

/// Patches from all pictures, normalized: no mean, unit contrast.
fn sample(pictures: &[Vec<f32>], side: usize, patch: usize, draws: &mut Draws) -> Vec<Vec<f64>> {
    let each = (PATCHES / pictures.len().max(1)).clamp(1, 200);
    let mut found = Vec::with_capacity(each * pictures.len());
    for picture in pictures {
        for _ in 0..each {
            let (left, top) = (draws.below(side - patch + 1), draws.below(side - patch + 1));
            let mut values = Vec::with_capacity(3 * patch * patch);
            for channel in 0..3 {
                for y in 0..patch {
                    let row = (channel * side + top + y) * side + left;
                    values.extend(picture[row..row + patch].iter().map(|&it| f64::from(it)));
                }
            }
            normalize(&mut values);
            found.push(values);
        }
    }
    found
}

fn normalize(values: &mut [f64]) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|it| (it - mean) * (it - mean)).sum::<f64>() / count;
    let scale = (variance + CONTRAST).sqrt();
    values.iter_mut().for_each(|it| *it = (*it - mean) / scale);
}

/// Turns correlated values into uncorrelated ones: `x ↦ L⁻¹ (x − mean)`, where `L Lᵀ` is the covariance.
struct Whitening {
    mean: Vec<f64>,
    /// Lower triangular, row by row.
    factor: Vec<f64>,
}

impl Whitening {
    fn of(rows: &[Vec<f64>]) -> Self {
        let width = rows[0].len();
        let count = rows.len() as f64;
        let mut mean = vec![0.0; width];
        rows.iter().for_each(|row| mean.iter_mut().zip(row).for_each(|(sum, it)| *sum += it / count));
        let mut covariance = vec![0.0; width * width];
        for row in rows {
            let off: Vec<f64> = row.iter().zip(&mean).map(|(it, mean)| it - mean).collect();
            for (i, one) in off.iter().enumerate() {
                let products = off[..=i].iter().map(|other| one * other / count);
                covariance[i * width..].iter_mut().zip(products).for_each(|(sum, it)| *sum += it);
            }
        }
        (0..width).for_each(|i| covariance[i * width + i] += RIDGE);
        Self { mean, factor: cholesky(covariance, width) }
    }

    fn apply(&self, row: &[f64]) -> Vec<f64> {
        let width = self.mean.len();
        let mut out: Vec<f64> = Vec::with_capacity(width);
        for (i, (value, mean)) in row.iter().zip(&self.mean).enumerate() {
            let factors = &self.factor[i * width..=i * width + i];
            let known = dot(&factors[..i], &out);
            out.push((value - mean - known) / factors[i]);
        }
        out
    }

    /// The filter on normalized patches that answers as `center` does on whitened ones: `L⁻ᵀ center`.
    fn unapply(&self, center: &[f64]) -> Vec<f64> {
        let width = self.mean.len();
        let mut out = vec![0.0; width];
        for i in (0..width).rev() {
            let known: f64 = (i + 1..width).map(|j| self.factor[j * width + i] * out[j]).sum();
            out[i] = (center[i] - known) / self.factor[i * width + i];
        }
        out
    }
}

/// The lower factor of a positive definite matrix whose lower half is given.
fn cholesky(mut matrix: Vec<f64>, width: usize) -> Vec<f64> {
    for i in 0..width {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| matrix[i * width + k] * matrix[j * width + k]).sum();
            let rest = matrix[i * width + j] - known;
            matrix[i * width + j] =
                if i == j { rest.max(1e-12).sqrt() } else { rest / matrix[j * width + j] };
        }
    }
    matrix
}

/// Typical directions, of unit length.
fn cluster(rows: &[Vec<f64>], count: usize, draws: &mut Draws) -> Vec<Vec<f64>> {
    let mut centers: Vec<Vec<f64>> =
        (0..count).map(|_| unit(rows[draws.below(rows.len())].clone())).collect();
    for _ in 0..ROUNDS {
        let width = rows[0].len();
        let mut sums = vec![vec![0.0; width]; count];
        for row in rows {
            let best = (0..count)
                .map(|at| (at, dot(&centers[at], row)))
                .fold((0, 0.0_f64), |best, it| if it.1.abs() > best.1.abs() { it } else { best });
            sums[best.0].iter_mut().zip(row).for_each(|(sum, it)| *sum += best.1 * it);
        }
        for (center, sum) in centers.iter_mut().zip(sums) {
            let empty = sum.iter().all(|it| *it == 0.0);
            *center = unit(if empty { rows[draws.below(rows.len())].clone() } else { sum });
        }
    }
    centers
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn unit(mut row: Vec<f64>) -> Vec<f64> {
    let length = dot(&row, &row).sqrt().max(1e-12);
    row.iter_mut().for_each(|it| *it /= length);
    row
}

/// `relu(±(filter · normalized patch − b) − threshold)`, averaged over each of nine parts. The patch's mean
/// and contrast come from two convolutions with equal weights.
fn network(centers: &[Vec<f64>], whitening: &Whitening, side: usize, patch: usize) -> Model {
    let (count, width) = (centers.len(), 3 * patch * patch);
    let filters: Vec<Vec<f64>> = centers.iter().map(|it| whitening.unapply(it)).collect();
    let offsets: Vec<f32> = filters.iter().map(|it| dot(it, &whitening.mean) as f32).collect();
    let sums: Vec<f32> = filters.iter().map(|it| it.iter().sum::<f64>() as f32).collect();
    let weights: Vec<f32> = filters.iter().flatten().map(|&it| it as f32).collect();
    let shape = [count, 3, patch, patch];
    let tensors = vec![
        Tensor::floats("mlx_filters", &shape, &weights),
        Tensor::floats("mlx_equal", &[1, 3, patch, patch], &vec![1.0 / width as f32; width]),
        Tensor::floats("mlx_sums", &[1, count, 1, 1], &sums),
        Tensor::floats("mlx_offsets", &[1, count, 1, 1], &offsets),
        Tensor::floats("mlx_contrast", &[1, 1, 1, 1], &[CONTRAST as f32]),
        Tensor::floats("mlx_threshold", &[1, 1, 1, 1], &[THRESHOLD as f32]),
    ];
    let response = side - patch + 1;
    let part = (response / PARTS) as i64;
    let pool = || {
        vec![
            Attribute::ints("kernel_shape", &[part, part]),
            Attribute::ints("strides", &[part, part]),
            Attribute::ints("pads", &[0; 4]),
        ]
    };
    let node =
        |operator: &str, inputs: &[&str], output: &str| Node::new(operator, inputs, output, Vec::new());
    let convolve = |inputs: &[&str], output: &str| {
        // Some engines want even the defaults said.
        let ones = |name: &str| Attribute::ints(name, &[1, 1]);
        Node::new(
            "Conv",
            inputs,
            output,
            vec![ones("strides"), ones("dilations"), Attribute::ints("pads", &[0; 4])],
        )
    };
    let nodes = vec![
        convolve(&[INPUT, "mlx_filters"], "mlx_raw"),
        convolve(&[INPUT, "mlx_equal"], "mlx_average"),
        node("Mul", &[INPUT, INPUT], "mlx_squared"),
        convolve(&["mlx_squared", "mlx_equal"], "mlx_average_square"),
        node("Mul", &["mlx_average", "mlx_average"], "mlx_square_average"),
        node("Sub", &["mlx_average_square", "mlx_square_average"], "mlx_variance_raw"),
        node("Relu", &["mlx_variance_raw"], "mlx_variance"),
        node("Add", &["mlx_variance", "mlx_contrast"], "mlx_softened"),
        node("Sqrt", &["mlx_softened"], "mlx_deviation"),
        node("Mul", &["mlx_average", "mlx_sums"], "mlx_average_part"),
        node("Sub", &["mlx_raw", "mlx_average_part"], "mlx_centered"),
        node("Div", &["mlx_centered", "mlx_deviation"], "mlx_normalized"),
        node("Sub", &["mlx_normalized", "mlx_offsets"], "mlx_answer"),
        node("Sub", &["mlx_answer", "mlx_threshold"], "mlx_above"),
        node("Relu", &["mlx_above"], "mlx_positive"),
        node("Neg", &["mlx_answer"], "mlx_opposite"),
        node("Sub", &["mlx_opposite", "mlx_threshold"], "mlx_below"),
        node("Relu", &["mlx_below"], "mlx_negative"),
        Node::new("Concat", &["mlx_positive", "mlx_negative"], "mlx_both", vec![Attribute::int("axis", 1)]),
        Node::new("AveragePool", &["mlx_both"], "mlx_pooled", pool()),
        Node::new("Flatten", &["mlx_pooled"], FEATURES, vec![Attribute::int("axis", 1)]),
    ];
    own(nodes, tensors, side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitened_rows_are_uncorrelated_and_filters_answer_alike() {
        let mut draws = Draws::new(3);
        let mut number = || draws.below(1000) as f64 / 500.0 - 1.0;
        let rows: Vec<Vec<f64>> = (0..3000)
            .map(|_| {
                // Far above the ridge, so that it does not show.
                let (a, b) = (20.0 * number(), 20.0 * number());
                vec![a, 3.0 * a + b, b]
            })
            .collect();
        let whitening = Whitening::of(&rows);
        let white: Vec<_> = rows.iter().map(|it| whitening.apply(it)).collect();
        let moment =
            |i: usize, j: usize| white.iter().map(|it| it[i] * it[j]).sum::<f64>() / white.len() as f64;
        assert!(moment(0, 1).abs() < 0.02 && moment(0, 2).abs() < 0.05, "{} {}", moment(0, 1), moment(0, 2));
        let center = [0.3, -0.2, 0.9];
        let filter = whitening.unapply(&center);
        let direct = dot(&center, &white[7]);
        let centered: Vec<f64> = rows[7].iter().zip(&whitening.mean).map(|(it, mean)| it - mean).collect();
        assert!((direct - dot(&filter, &centered)).abs() < 1e-9);
    }
}
