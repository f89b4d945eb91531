//! Learns convolution filters from the training images, as a feature extractor for projects without a
//! backbone.
//!
//! Patches are normalized and whitened, k-means finds typical ones, and an image is described by its mean
//! response to each of them in each of nine regions (Coates, Ng and Lee, "An Analysis of Single-Layer
//! Networks in Unsupervised Feature Learning", AISTATS 2011; whitening by Cholesky factorization). The result
//! is an ordinary ONNX model. The arithmetic is sequential and uses basic operations only, so that it is the
//! same on every machine.

use crate::{
    digest::Digest,
    model::{
        graph::{FEATURES, INPUT, from_nodes},
        onnx::{Attribute, Model, Node, Tensor},
        settings::FilterSettings,
    },
};

/// Number of patches sampled from all images together.
const PATCHES: usize = 16_000;
/// Number of k-means iterations.
const ITERATIONS: usize = 12;
/// Regularization of a patch's variance, so that flat patches are not amplified, in squared gray levels.
const CONTRAST: f64 = 10.0;
/// Regularization of the covariance matrix: added to its diagonal.
const RIDGE: f64 = 0.05;
/// Filter responses up to this size count as 0.
const THRESHOLD: f64 = 0.5;
/// Number of pooling regions per side of an image.
const REGIONS: usize = 3;

/// Deterministic random number generator: hashes of the seed and a counter.
pub struct Rng {
    seed: u64,
    count: u64,
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self { seed, count: 0 }
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        let hash = Digest::of(&[self.seed.to_le_bytes(), self.count.to_le_bytes()].concat());
        u64::from_le_bytes(hash.bytes()[..8].try_into().expect("a digest has 8 bytes"))
    }

    /// Returns the next number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Learns a feature extractor from images (3×side×side planes each).
pub fn learn(images: &[Vec<f32>], settings: &FilterSettings) -> Model {
    let (side, patch) = (settings.image_size as usize, settings.patch as usize);
    let mut rng = Rng::new(settings.seed);
    let patches = sample_patches(images, side, patch, &mut rng);
    let whitening = Whitening::of(&patches);
    let white: Vec<Vec<f64>> = patches.iter().map(|patch| whitening.apply(patch)).collect();
    let centers = cluster(&white, settings.count as usize, &mut rng);
    build_model(&centers, &whitening, side, patch)
}

/// Samples patches from all images and normalizes each to mean 0 and unit contrast.
fn sample_patches(images: &[Vec<f32>], side: usize, patch: usize, rng: &mut Rng) -> Vec<Vec<f64>> {
    let per_image = (PATCHES / images.len().max(1)).clamp(1, 200);
    let mut found = Vec::with_capacity(per_image * images.len());
    for image in images {
        for _ in 0..per_image {
            let (left, top) = (rng.below(side - patch + 1), rng.below(side - patch + 1));
            let mut values = Vec::with_capacity(3 * patch * patch);
            for channel in 0..3 {
                for y in 0..patch {
                    let row = (channel * side + top + y) * side + left;
                    values.extend(image[row..row + patch].iter().map(|&it| f64::from(it)));
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
    let variance = values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / count;
    let scale = (variance + CONTRAST).sqrt();
    values.iter_mut().for_each(|value| *value = (*value - mean) / scale);
}

/// Whitening transform, `x ↦ L⁻¹ (x − mean)`, where `L Lᵀ` is the covariance.
struct Whitening {
    mean: Vec<f64>,
    /// `L`: lower triangular, in row-major order.
    factor: Vec<f64>,
}

impl Whitening {
    fn of(rows: &[Vec<f64>]) -> Self {
        let width = rows[0].len();
        let count = rows.len() as f64;
        let mut mean = vec![0.0; width];
        rows.iter().for_each(|row| mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value / count));
        let mut covariance = vec![0.0; width * width];
        for row in rows {
            let centered: Vec<f64> = row.iter().zip(&mean).map(|(value, mean)| value - mean).collect();
            for (i, one) in centered.iter().enumerate() {
                let products = centered[..=i].iter().map(|other| one * other / count);
                covariance[i * width..].iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
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

    /// Returns the filter whose response to normalized patches equals that of `center` to whitened ones:
    /// `L⁻ᵀ center`.
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

/// Returns the lower Cholesky factor of a positive definite matrix, of which only the lower half is read.
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

/// Spherical k-means: returns `count` cluster centers of unit length.
fn cluster(rows: &[Vec<f64>], count: usize, rng: &mut Rng) -> Vec<Vec<f64>> {
    let mut centers: Vec<Vec<f64>> =
        (0..count).map(|_| to_unit_length(rows[rng.below(rows.len())].clone())).collect();
    for _ in 0..ITERATIONS {
        let width = rows[0].len();
        let mut sums = vec![vec![0.0; width]; count];
        for row in rows {
            let best = (0..count)
                .map(|index| (index, dot(&centers[index], row)))
                .fold((0, 0.0_f64), |best, next| if next.1.abs() > best.1.abs() { next } else { best });
            sums[best.0].iter_mut().zip(row).for_each(|(sum, value)| *sum += best.1 * value);
        }
        for (center, sum) in centers.iter_mut().zip(sums) {
            let empty = sum.iter().all(|it| *it == 0.0);
            *center = to_unit_length(if empty { rows[rng.below(rows.len())].clone() } else { sum });
        }
    }
    centers
}

/// Returns the sum of `a[i] · b[i]`, added in order. Counts with `while` as the loops in `softmax` do.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let b = &b[..a.len()];
    let (mut sum, mut at) = (0.0, 0);
    while at < a.len() {
        sum += a[at] * b[at];
        at += 1;
    }
    sum
}

fn to_unit_length(mut row: Vec<f64>) -> Vec<f64> {
    let length = dot(&row, &row).sqrt().max(1e-12);
    row.iter_mut().for_each(|it| *it /= length);
    row
}

/// Builds the ONNX model: `relu(±(filter · normalized patch − b) − threshold)`, averaged over each of nine
/// regions. Two convolutions with equal weights compute the patch's mean and contrast.
fn build_model(centers: &[Vec<f64>], whitening: &Whitening, side: usize, patch: usize) -> Model {
    let (count, width) = (centers.len(), 3 * patch * patch);
    let filters: Vec<Vec<f64>> = centers.iter().map(|center| whitening.unapply(center)).collect();
    let offsets: Vec<f32> = filters.iter().map(|filter| dot(filter, &whitening.mean) as f32).collect();
    let sums: Vec<f32> = filters.iter().map(|filter| filter.iter().sum::<f64>() as f32).collect();
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
    let region = (response / REGIONS) as i64;
    let pool = || {
        vec![
            Attribute::ints("kernel_shape", &[region, region]),
            Attribute::ints("strides", &[region, region]),
            Attribute::ints("pads", &[0; 4]),
        ]
    };
    let node =
        |operator: &str, inputs: &[&str], output: &str| Node::new(operator, inputs, output, Vec::new());
    let convolve = |inputs: &[&str], output: &str| {
        // Some engines require the default values to be explicit.
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
    from_nodes(nodes, tensors, side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitened_rows_are_uncorrelated_and_filters_respond_alike() {
        let mut rng = Rng::new(3);
        let mut number = || rng.below(1000) as f64 / 500.0 - 1.0;
        let rows: Vec<Vec<f64>> = (0..3000)
            .map(|_| {
                // Far above the ridge, so that its effect is negligible.
                let (a, b) = (20.0 * number(), 20.0 * number());
                vec![a, 3.0 * a + b, b]
            })
            .collect();
        let whitening = Whitening::of(&rows);
        let white: Vec<_> = rows.iter().map(|row| whitening.apply(row)).collect();
        let moment =
            |i: usize, j: usize| white.iter().map(|row| row[i] * row[j]).sum::<f64>() / white.len() as f64;
        assert!(moment(0, 1).abs() < 0.02 && moment(0, 2).abs() < 0.05, "{} {}", moment(0, 1), moment(0, 2));
        let center = [0.3, -0.2, 0.9];
        let filter = whitening.unapply(&center);
        let direct = dot(&center, &white[7]);
        let centered: Vec<f64> =
            rows[7].iter().zip(&whitening.mean).map(|(value, mean)| value - mean).collect();
        assert!((direct - dot(&filter, &centered)).abs() < 1e-9);
    }
}
