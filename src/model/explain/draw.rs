//! Renders a heat map: the image, and beside it the image in gray with the heat in color.

use image::{ImageBuffer, Luma, Rgb, RgbImage, imageops};

use crate::model::explain::{HeatMap, Square, square_offsets, upsample};

/// Smallest height, in pixels: model inputs are too small for people.
const MIN_HEIGHT: usize = 448;
/// Space between the two images, in pixels.
const GAP: u32 = 16;
/// Thickness of the lines around the decisive square, in pixels.
const LINE: u32 = 3;

/// Draws both images side by side, from the planes (3×side×side, 0–255) that were explained.
pub fn draw(planes: &[f32], side: usize, heat: &HeatMap) -> RgbImage {
    let factor = MIN_HEIGHT.div_ceil(side) as u32;
    let (width, size) = (side as u32, side * side);
    let image = RgbImage::from_fn(width, width, |x, y| {
        let pixel = y as usize * side + x as usize;
        Rgb([0, 1, 2].map(|channel| planes[channel * size + pixel].clamp(0.0, 255.0) as u8))
    });
    let large = width * factor;
    let image = imageops::resize(&image, large, large, imageops::FilterType::CatmullRom);
    let mut heated = overlay(&image, side, heat, factor);
    if let Some(square) = heat.decisive {
        outline(&mut heated, square, factor);
    }
    let mut both = RgbImage::from_pixel(large * 2 + GAP, large, Rgb([255; 3]));
    imageops::replace(&mut both, &image, 0, 0);
    imageops::replace(&mut both, &heated, i64::from(large + GAP), 0);
    both
}

/// Overlays the heat on a gray version of the image, so that color always means heat.
fn overlay(image: &RgbImage, side: usize, heat: &HeatMap, factor: u32) -> RgbImage {
    let offsets = square_offsets(side, heat.patch, heat.stride);
    let values = upsample(&heat.map, side, &offsets, heat.patch);
    let hottest = values.iter().copied().fold(0.0, f32::max).max(1e-6);
    let shares = ImageBuffer::<Luma<f32>, _>::from_fn(side as u32, side as u32, |x, y| {
        Luma([(values[y as usize * side + x as usize] / hottest).clamp(0.0, 1.0)])
    });
    let large = side as u32 * factor;
    let shares = imageops::resize(&shares, large, large, imageops::FilterType::Triangle);
    let mut heated = image.clone();
    for (pixel, share) in heated.pixels_mut().zip(shares.pixels()) {
        let share = share.0[0];
        let gray = pixel.0.iter().map(|it| f32::from(*it)).sum::<f32>() / 3.0;
        // From yellow to red.
        let color = [255.0, 225.0 * (1.0 - share), 30.0];
        let cover = 0.8 * share;
        pixel.0 = color.map(|channel| (gray * (1.0 - cover) + channel * cover) as u8);
    }
    heated
}

/// Draws a white frame with a black inner edge around a square.
fn outline(image: &mut RgbImage, square: Square, factor: u32) {
    let (left, top) = (square.left as u32 * factor, square.top as u32 * factor);
    let end = square.side as u32 * factor;
    for (x, y, pixel) in image.enumerate_pixels_mut() {
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
