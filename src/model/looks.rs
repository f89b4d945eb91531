//! What a picture itself looks like, in a few numbers: enough to see fog, blur, night and another camera.

use crate::traffic::Looks;

/// Red, green and blue in gray, as the eye weighs them.
const GRAY: [f32; 3] = [0.299, 0.587, 0.114];
/// A picture with less contrast than one gray level is of one color; its sharpness says nothing.
const FLAT: f64 = 1.0 / 255.0;
/// The grid that a fingerprint is taken from: eight gradients in each of eight rows.
const GRID: (usize, usize) = (9, 8);

/// Measures red, green and blue planes (3×side×side, 0–255).
pub fn looks(planes: &[f32], side: usize) -> Looks {
    let area = side * side;
    if area == 0 || planes.len() < 3 * area {
        return Looks::default();
    }
    let gray: Vec<f32> =
        (0..area).map(|at| (0..3).map(|it| GRAY[it] * planes[it * area + at]).sum::<f32>() / 255.0).collect();
    let mean = average(gray.iter().map(|&it| f64::from(it)));
    let variance = average(gray.iter().map(|&it| (f64::from(it) - mean).powi(2)));
    let contrast = variance.sqrt();
    Looks {
        brightness: mean as f32,
        contrast: contrast as f32,
        // Fog takes edges and contrast away together, blur the edges alone.
        sharpness: (edges(&gray, side) / (contrast + FLAT)) as f32,
        colors: colors(planes, area),
        fingerprint: fingerprint(&gray, side),
    }
}

fn average(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1);
    values.sum::<f64>() / count as f64
}

/// How far a pixel is from the mean of its four neighbors, on average.
fn edges(gray: &[f32], side: usize) -> f64 {
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

fn colors(planes: &[f32], area: usize) -> [f32; 3] {
    let sums = [0, 1, 2].map(|it| average(planes[it * area..][..area].iter().map(|&it| f64::from(it))));
    let total: f64 = sums.iter().sum();
    // Black has no color: each has its third.
    if total > 0.0 { sums.map(|it| (it / total) as f32) } else { [1.0 / 3.0; 3] }
}

/// One bit for each pair of neighbors in a small grid: whether it gets brighter to the right.
fn fingerprint(gray: &[f32], side: usize) -> u64 {
    let mut bits = 0;
    for row in 0..GRID.1 {
        for column in 0..GRID.0 - 1 {
            let (left, right) = (cell(gray, side, column, row), cell(gray, side, column + 1, row));
            bits = bits << 1 | u64::from(right > left);
        }
    }
    bits
}

/// The mean of one cell of the grid; in a picture smaller than the grid cells share pixels.
fn cell(gray: &[f32], side: usize, column: usize, row: usize) -> f64 {
    let part = |at: usize, of: usize| {
        let start = at * side / of;
        start..((at + 1) * side / of).max(start + 1)
    };
    let (rows, columns) = (part(row, GRID.1), part(column, GRID.0));
    let count = rows.len() * columns.len();
    let sum: f64 = rows.flat_map(|y| columns.clone().map(move |x| f64::from(gray[y * side + x]))).sum();
    sum / count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIDE: usize = 36;

    /// Gray planes from a function of the place.
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
        (from..to).map(|it| stripes(it, y)).sum::<f32>() / (to - from) as f32
    }

    fn close(a: f32, b: f32) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }

    #[test]
    fn a_gray_picture_has_brightness_and_nothing_else() {
        let found = looks(&planes(|_, _| 51.0), SIDE);
        close(found.brightness, 0.2);
        close(found.contrast, 0.0);
        close(found.sharpness, 0.0);
        assert_eq!(found.fingerprint, 0);
        found.colors.iter().for_each(|&it| close(it, 1.0 / 3.0));
    }

    #[test]
    fn fog_takes_contrast_and_blur_takes_sharpness() {
        let clear = looks(&planes(stripes), SIDE);
        let fog = looks(&planes(|x, y| stripes(x, y) * 0.4 + 130.0), SIDE);
        let blur = looks(&planes(blurred), SIDE);
        assert!(fog.contrast < clear.contrast * 0.5, "{fog:?} {clear:?}");
        assert!(fog.sharpness > clear.sharpness * 0.9, "{fog:?} {clear:?}");
        assert!(blur.sharpness < clear.sharpness * 0.7, "{blur:?} {clear:?}");
    }

    #[test]
    fn colors_are_shares() {
        let mut red = planes(|_, _| 60.0);
        red[..SIDE * SIDE].fill(180.0);
        let found = looks(&red, SIDE).colors;
        close(found[0], 0.6);
        close(found[2], 0.2);
    }

    #[test]
    fn a_fingerprint_stands_light_and_noise_and_tells_pictures_apart() {
        let wave = |x: usize, y: usize| 128.0 + 90.0 * (x as f32 * 0.4 + (y / 5) as f32).sin();
        let one = looks(&planes(wave), SIDE).fingerprint;
        let dimmed =
            looks(&planes(|x, y| wave(x, y) * 0.7 + ((x * 7 + y * 13) % 5) as f32), SIDE).fingerprint;
        let other = looks(&planes(|x, y| wave(SIDE - 1 - x, y)), SIDE).fingerprint;
        assert!((one ^ dimmed).count_ones() <= 6, "{one:x} {dimmed:x}");
        assert!((one ^ other).count_ones() >= 20, "{one:x} {other:x}");
        let rising = looks(&planes(|x, _| x as f32), SIDE).fingerprint;
        assert_eq!(rising, u64::MAX);
    }

    #[test]
    fn too_few_numbers_look_like_nothing() {
        assert_eq!(looks(&[1.0, 2.0], 2), Looks::default());
        assert_eq!(looks(&[], 0), Looks::default());
    }

    proptest! {
        #[test]
        fn any_size_gives_finite_numbers(side in 1_usize..20, seed: u32) {
            let value = |at: usize| (seed.wrapping_mul(at as u32 + 1) % 256) as f32;
            let found = looks(&(0..3 * side * side).map(value).collect::<Vec<_>>(), side);
            prop_assert!((0.0..=1.0).contains(&found.brightness) && (0.0..=1.0).contains(&found.contrast));
            prop_assert!(found.sharpness.is_finite() && (found.colors.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        }
    }
}
