//! A heat map for the eye: the picture, and beside it the picture under its heat.

use image::{ImageBuffer, Luma, Rgb, RgbImage, imageops};

use crate::model::explain::{Heat, Square, spread, starts};

/// Pixels of the height, at least: networks see less than people.
const HEIGHT: usize = 448;
const GAP: u32 = 16;
/// Lines around the decisive square are so thick.
const LINE: u32 = 3;

/// Draws both, side by side, from the planes (3×side×side, 0–255) that were explained.
pub fn draw(planes: &[f32], side: usize, heat: &Heat) -> RgbImage {
    let factor = HEIGHT.div_ceil(side) as u32;
    let (width, size) = (side as u32, side * side);
    let picture = RgbImage::from_fn(width, width, |x, y| {
        let at = y as usize * side + x as usize;
        Rgb([0, 1, 2].map(|channel| planes[channel * size + at].clamp(0.0, 255.0) as u8))
    });
    let large = width * factor;
    let picture = imageops::resize(&picture, large, large, imageops::FilterType::CatmullRom);
    let mut warm = under(&picture, side, heat, factor);
    if let Some(square) = heat.decisive {
        frame(&mut warm, square, factor);
    }
    let mut both = RgbImage::from_pixel(large * 2 + GAP, large, Rgb([255; 3]));
    imageops::replace(&mut both, &picture, 0, 0);
    imageops::replace(&mut both, &warm, i64::from(large + GAP), 0);
    both
}

/// Gray where nothing is hot, so that color means heat alone.
fn under(picture: &RgbImage, side: usize, heat: &Heat, factor: u32) -> RgbImage {
    let values = spread(&heat.map, side, &starts(side, heat.patch, heat.stride), heat.patch);
    let hottest = values.iter().copied().fold(0.0, f32::max).max(1e-6);
    let shares = ImageBuffer::<Luma<f32>, _>::from_fn(side as u32, side as u32, |x, y| {
        Luma([(values[y as usize * side + x as usize] / hottest).clamp(0.0, 1.0)])
    });
    let large = side as u32 * factor;
    let shares = imageops::resize(&shares, large, large, imageops::FilterType::Triangle);
    let mut warm = picture.clone();
    for (pixel, share) in warm.pixels_mut().zip(shares.pixels()) {
        let share = share.0[0];
        let gray = pixel.0.iter().map(|it| f32::from(*it)).sum::<f32>() / 3.0;
        // From yellow to red.
        let color = [255.0, 225.0 * (1.0 - share), 30.0];
        let cover = 0.8 * share;
        pixel.0 = color.map(|it| (gray * (1.0 - cover) + it * cover) as u8);
    }
    warm
}

fn frame(picture: &mut RgbImage, square: Square, factor: u32) {
    let (left, top) = (square.left as u32 * factor, square.top as u32 * factor);
    let end = square.side as u32 * factor;
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        let (Some(x), Some(y)) = (x.checked_sub(left), y.checked_sub(top)) else { continue };
        if x < end && y < end {
            match x.min(y).min(end - 1 - x).min(end - 1 - y) {
                0..LINE => pixel.0 = [255; 3],
                LINE => pixel.0 = [0; 3],
                _ => {}
            }
        }
    }
}
