//! A picture file as numbers.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder as _, ImageReader, Limits, imageops::FilterType};

use crate::{
    error::{Error, Kind, Result},
    model::settings::{Backbone, Filter},
};

/// No picture may be wider or higher: a kilobyte can claim a terabyte.
const LARGEST_SIDE: u32 = 16_384;
/// A side so many times longer than the other would grow beyond measure when the other is brought to size.
const THINNEST: u32 = 32;
const LARGEST_MEMORY: u64 = 512 << 20;

/// How many pixels a picture claims to have; nothing is decoded.
pub fn pixels(bytes: &[u8]) -> Result<u64> {
    let wrong = |it: image::ImageError| Error::new(Kind::Corrupt, format!("it cannot be decoded: {it}"));
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|it| Error::new(Kind::Corrupt, "it cannot be read").because(it))?;
    let (width, height) = reader.into_dimensions().map_err(wrong)?;
    Ok(u64::from(width) * u64::from(height))
}

/// Decodes a picture, turned as its camera says.
pub fn decode(bytes: &[u8]) -> Result<DynamicImage> {
    let wrong = |it: image::ImageError| Error::new(Kind::Corrupt, format!("it cannot be decoded: {it}"));
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|it| Error::new(Kind::Corrupt, "it cannot be read").because(it))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(LARGEST_SIDE);
    limits.max_image_height = Some(LARGEST_SIDE);
    limits.max_alloc = Some(LARGEST_MEMORY);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    let orientation = decoder.orientation().map_err(wrong)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    picture.apply_orientation(orientation);
    let (longer, shorter) = (picture.width().max(picture.height()), picture.width().min(picture.height()));
    if longer > shorter.saturating_mul(THINNEST) {
        return Err(Error::new(
            Kind::Corrupt,
            format!("it is {} × {} pixels: a line, no picture", picture.width(), picture.height()),
        ));
    }
    Ok(picture)
}

/// Red, green and blue planes (3×H×W, 0–255) of the square in the middle, after resizing.
pub fn planes(picture: &DynamicImage, settings: &Backbone) -> Vec<f32> {
    let (width, height) = (picture.width().max(1), picture.height().max(1));
    let shorter = width.min(height);
    let longer =
        |side: u32| (f64::from(side) * f64::from(settings.resize) / f64::from(shorter)).round() as u32;
    let (new_width, new_height) = (longer(width).max(settings.crop), longer(height).max(settings.crop));
    let filter = match settings.filter {
        Filter::Nearest => FilterType::Nearest,
        Filter::Triangle => FilterType::Triangle,
        Filter::CatmullRom => FilterType::CatmullRom,
        Filter::Lanczos3 => FilterType::Lanczos3,
    };
    let resized = image::imageops::resize(&picture.to_rgb8(), new_width, new_height, filter);
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
    fn the_middle_is_taken_after_resizing_the_shorter_side() {
        let picture = image::RgbImage::from_fn(8, 4, |x, _| image::Rgb([x as u8 * 10, 7, 255]));
        let settings = Backbone { resize: 4, crop: 4, filter: Filter::Nearest, ..Backbone::default() };
        let planes = planes(&DynamicImage::ImageRgb8(picture), &settings);
        assert_eq!(planes[..4], [20.0, 30.0, 40.0, 50.0]);
        assert_eq!(planes[16..20], [7.0; 4]);
        assert_eq!(planes[32..36], [255.0; 4]);
    }

    #[test]
    fn what_is_no_picture_is_an_error() {
        for bytes in [&b""[..], b"hello", b"\xff\xd8\xff\xe0broken", b"\x89PNG\r\n\x1a\n"] {
            assert_eq!(decode(bytes).unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
