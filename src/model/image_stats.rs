//! Image statistics: brightness, contrast, sharpness, colors and a perceptual hash of an image.
//!
//! A few numbers that are enough to detect fog, blur, night or another camera. They are computed from the
//! planes that the model takes, after resize and crop.

use crate::traffic::ImageStats;

/// Luma weights of red, green and blue.
const GRAY: [f32; 3] = [0.299, 0.587, 0.114];
/// Contrast of one gray level. An image with less is uniform, and its sharpness is meaningless.
const FLAT: f64 = 1.0 / 255.0;
/// Columns and rows of the grid from which a fingerprint is computed: eight gradients in each of eight rows.
const GRID: (usize, usize) = (9, 8);

/// Measures red, green and blue planes (3×side×side, 0–255). Returns zeros if there are too few values.
pub fn measure_image(planes: &[f32], side: usize) -> ImageStats {
    let area = side * side;
    if area == 0 || planes.len() < 3 * area {
        return ImageStats::default();
    }
    let to_gray = |pixel: usize| {
        (0..3).map(|channel| GRAY[channel] * planes[channel * area + pixel]).sum::<f32>() / 255.0
    };
    let gray: Vec<f32> = (0..area).map(to_gray).collect();
    let mean = average(gray.iter().map(|&it| f64::from(it)));
    let variance = average(gray.iter().map(|&value| (f64::from(value) - mean).powi(2)));
    let contrast = variance.sqrt();
    ImageStats {
        brightness: mean as f32,
        contrast: contrast as f32,
        // Fog reduces edges and contrast together, blur reduces the edges alone.
        sharpness: (edge_strength(&gray, side) / (contrast + FLAT)) as f32,
        colors: colors(planes, area),
        fingerprint: fingerprint(&gray, side),
    }
}

fn average(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1);
    values.sum::<f64>() / count as f64
}

/// Returns the mean absolute difference between a pixel and the mean of its four neighbors.
fn edge_strength(gray: &[f32], side: usize) -> f64 {
    if side < 3 {
        return 0.0;
    }
    let mut sum = 0.0;
    for y in 1..side - 1 {
        for x in 1..side - 1 {
            let at = y * side + x;
            let around = gray[at - 1] + gray[at + 1] + gray[at - side] + gray[at + side];
            sum += f64::from(around / 4.0 - gray[at]).abs();
        }
    }
    sum / ((side - 2) * (side - 2)) as f64
}

/// Returns the shares of red, green and blue in their sum; of a black image a third each.
fn colors(planes: &[f32], area: usize) -> [f32; 3] {
    let channel_mean =
        |channel: usize| average(planes[channel * area..][..area].iter().map(|&it| f64::from(it)));
    let means = [0, 1, 2].map(channel_mean);
    let total: f64 = means.iter().sum();
    if total > 0.0 { means.map(|mean| (mean / total) as f32) } else { [1.0 / 3.0; 3] }
}

/// Difference hash: one bit for each pair of horizontal neighbors in a small grid, set if the right one is
/// brighter.
fn fingerprint(gray: &[f32], side: usize) -> u64 {
    let mut bits = 0;
    for row in 0..GRID.1 {
        for column in 0..GRID.0 - 1 {
            let (left, right) = (cell_mean(gray, side, column, row), cell_mean(gray, side, column + 1, row));
            bits = bits << 1 | u64::from(right > left);
        }
    }
    bits
}

/// Returns the mean of one cell of the grid. In an image smaller than the grid, cells share pixels.
fn cell_mean(gray: &[f32], side: usize, column: usize, row: usize) -> f64 {
    let range = |index: usize, count: usize| {
        let start = index * side / count;
        start..((index + 1) * side / count).max(start + 1)
    };
    let (rows, columns) = (range(row, GRID.1), range(column, GRID.0));
    let count = rows.len() * columns.len();
    let sum: f64 = rows.flat_map(|y| columns.clone().map(move |x| f64::from(gray[y * side + x]))).sum();
    sum / count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIDE: usize = 36;

    /// Gray planes from a function of the pixel's coordinates.
    fn planes(value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        let gray: Vec<f32> = (0..SIDE * SIDE).map(|at| value(at % SIDE, at / SIDE)).collect();
        gray.repeat(3)
    }

    /// Stripes four pixels wide.
    fn stripes(x: usize, _: usize) -> f32 {
        if (x / 4).is_multiple_of(2) { 40.0 } else { 200.0 }
    }

    fn blurred(x: usize, y: usize) -> f32 {
        let from = x.saturating_sub(3);
        let to = (x + 4).min(SIDE);
        (from..to).map(|x| stripes(x, y)).sum::<f32>() / (to - from) as f32
    }

    fn close(a: f32, b: f32) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }

    #[test]
    fn a_uniform_gray_image_has_brightness_only() {
        let found = measure_image(&planes(|_, _| 51.0), SIDE);
        close(found.brightness, 0.2);
        close(found.contrast, 0.0);
        close(found.sharpness, 0.0);
        assert_eq!(found.fingerprint, 0);
        found.colors.iter().for_each(|&it| close(it, 1.0 / 3.0));
    }

    #[test]
    fn fog_lowers_contrast_and_blur_lowers_sharpness() {
        let clear = measure_image(&planes(stripes), SIDE);
        let fog = measure_image(&planes(|x, y| stripes(x, y) * 0.4 + 130.0), SIDE);
        let blur = measure_image(&planes(blurred), SIDE);
        assert!(fog.contrast < clear.contrast * 0.5, "{fog:?} {clear:?}");
        assert!(fog.sharpness > clear.sharpness * 0.9, "{fog:?} {clear:?}");
        assert!(blur.sharpness < clear.sharpness * 0.7, "{blur:?} {clear:?}");
    }

    #[test]
    fn colors_are_shares() {
        let mut red = planes(|_, _| 60.0);
        red[..SIDE * SIDE].fill(180.0);
        let found = measure_image(&red, SIDE).colors;
        close(found[0], 0.6);
        close(found[2], 0.2);
    }

    #[test]
    fn a_fingerprint_survives_light_and_noise_and_differs_between_images() {
        let wave = |x: usize, y: usize| 128.0 + 90.0 * (x as f32 * 0.4 + (y / 5) as f32).sin();
        let one = measure_image(&planes(wave), SIDE).fingerprint;
        let dimmed =
            measure_image(&planes(|x, y| wave(x, y) * 0.7 + ((x * 7 + y * 13) % 5) as f32), SIDE).fingerprint;
        let other = measure_image(&planes(|x, y| wave(SIDE - 1 - x, y)), SIDE).fingerprint;
        assert!((one ^ dimmed).count_ones() <= 6, "{one:x} {dimmed:x}");
        assert!((one ^ other).count_ones() >= 20, "{one:x} {other:x}");
        let rising = measure_image(&planes(|x, _| x as f32), SIDE).fingerprint;
        assert_eq!(rising, u64::MAX);
    }

    #[test]
    fn too_few_values_give_default_statistics() {
        assert_eq!(measure_image(&[1.0, 2.0], 2), ImageStats::default());
        assert_eq!(measure_image(&[], 0), ImageStats::default());
    }

    proptest! {
        #[test]
        fn any_size_gives_finite_numbers(side in 1_usize..20, seed: u32) {
            let value = |index: usize| (seed.wrapping_mul(index as u32 + 1) % 256) as f32;
            let found = measure_image(&(0..3 * side * side).map(value).collect::<Vec<_>>(), side);
            prop_assert!((0.0..=1.0).contains(&found.brightness) && (0.0..=1.0).contains(&found.contrast));
            let total: f32 = found.colors.iter().sum();
            prop_assert!(found.sharpness.is_finite() && (total - 1.0).abs() < 1e-4);
        }
    }
}
