//! Decodes image files and preprocesses them for a model: orientation, resize, center crop, color planes.
//!
//! Image files are untrusted: dimensions, aspect ratio and memory are limited.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder as _, ImageReader, Limits, imageops::FilterType};

use crate::{
    error::{Error, Kind, Result},
    model::settings::{Backbone, ResizeFilter},
};

/// Largest width and height, in pixels: a file of a kilobyte can claim to decode to a terabyte.
const MAX_SIDE: u32 = 16_384;
/// Largest aspect ratio: in a very thin image, resizing the shorter side would make the longer one huge.
const MAX_ASPECT_RATIO: u32 = 32;
/// Largest memory for decoding, in bytes.
const MAX_MEMORY: u64 = 512 << 20;

/// Returns the number of pixels an image claims to have, without decoding it.
pub fn claimed_pixels(bytes: &[u8]) -> Result<u64> {
    let failed = |it: image::ImageError| Error::new(Kind::Corrupt, format!("it cannot be decoded: {it}"));
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|it| Error::new(Kind::Corrupt, "it cannot be read").with_source(it))?;
    let (width, height) = reader.into_dimensions().map_err(failed)?;
    Ok(u64::from(width) * u64::from(height))
}

/// Decodes an image and applies its EXIF orientation.
pub fn decode(bytes: &[u8]) -> Result<DynamicImage> {
    let failed = |it: image::ImageError| Error::new(Kind::Corrupt, format!("it cannot be decoded: {it}"));
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|it| Error::new(Kind::Corrupt, "it cannot be read").with_source(it))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_MEMORY);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let orientation = decoder.orientation().map_err(failed)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    image.apply_orientation(orientation);
    let (longer, shorter) = (image.width().max(image.height()), image.width().min(image.height()));
    if longer > shorter.saturating_mul(MAX_ASPECT_RATIO) {
        return Err(Error::new(
            Kind::Corrupt,
            format!(
                "it is {} × {} pixels, but one side may be at most {MAX_ASPECT_RATIO} times the other",
                image.width(),
                image.height()
            ),
        ));
    }
    Ok(image)
}

/// Resizes an image, so that its shorter side has the given length, and returns the red, green and blue
/// planes of its center square (3×crop×crop, 0–255).
pub fn planes(image: &DynamicImage, settings: &Backbone) -> Vec<f32> {
    let (width, height) = (image.width().max(1), image.height().max(1));
    let shorter = width.min(height);
    let scaled =
        |side: u32| (f64::from(side) * f64::from(settings.resize) / f64::from(shorter)).round() as u32;
    let (new_width, new_height) = (scaled(width).max(settings.crop), scaled(height).max(settings.crop));
    let filter = match settings.filter {
        ResizeFilter::Nearest => FilterType::Nearest,
        ResizeFilter::Triangle => FilterType::Triangle,
        ResizeFilter::CatmullRom => FilterType::CatmullRom,
        ResizeFilter::Lanczos3 => FilterType::Lanczos3,
    };
    let image = DynamicImage::ImageRgb8(image.to_rgb8());
    let resized = image.resize_exact(new_width, new_height, filter).into_rgb8();
    let (left, top) = ((new_width - settings.crop) / 2, (new_height - settings.crop) / 2);
    let side = settings.crop as usize;
    let mut planes = vec![0.0; 3 * side * side];
    for y in 0..settings.crop {
        for x in 0..settings.crop {
            let pixel = resized.get_pixel(left + x, top + y);
            for (channel, value) in pixel.0.iter().enumerate() {
                planes[(channel * side + y as usize) * side + x as usize] = f32::from(*value);
            }
        }
    }
    planes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_center_is_cropped_after_resizing_the_shorter_side() {
        let image = image::RgbImage::from_fn(8, 4, |x, _| image::Rgb([x as u8 * 10, 7, 255]));
        let settings = Backbone { resize: 4, crop: 4, filter: ResizeFilter::Nearest, ..Backbone::default() };
        let planes = planes(&DynamicImage::ImageRgb8(image), &settings);
        assert_eq!(planes[..4], [20.0, 30.0, 40.0, 50.0]);
        assert_eq!(planes[16..20], [7.0; 4]);
        assert_eq!(planes[32..36], [255.0; 4]);
    }

    #[test]
    fn bytes_that_are_not_an_image_are_an_error() {
        for bytes in [&b""[..], b"hello", b"\xff\xd8\xff\xe0broken", b"\x89PNG\r\n\x1a\n"] {
            assert_eq!(decode(bytes).unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
