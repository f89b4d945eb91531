//! Generates the demo's camera frames for a month, including days on which conditions change.
//!
//! Some days have fog, a new camera, mostly dogs or a broken lens, so that the demo has drift to detect.
//! Frames are drawn from a seed like the training photos, and then distorted by the camera's condition on
//! that day.

use image::{Rgb, RgbImage};

use crate::{
    demo_data::{Pet, Random, SIDE, draw, encode},
    error::Result,
};

/// Number of days in the month.
pub const DAYS: u32 = 30;
/// Opening hours of the park, UTC: first hour, and hour of closing.
const OPENING_HOURS: (u32, u32) = (7, 20);
/// Share of dogs on days with many dogs.
const MANY_DOGS_SHARE: f32 = 0.92;
/// First frame number, far from the numbers of the training photos.
const FIRST_NUMBER: u64 = 1_000_000;

/// Conditions on one day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Day {
    pub fog: bool,
    pub new_camera: bool,
    pub many_dogs: bool,
    pub broken_lens: bool,
}

/// Image taken by the camera.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Time of day, in seconds.
    pub second: u32,
    pub pet: Pet,
    pub jpeg: Vec<u8>,
}

impl Day {
    /// Returns the conditions on a day of the month, 1 to 30.
    pub fn of(day: u32) -> Self {
        Self {
            fog: (9..=11).contains(&day),
            new_camera: day >= 15,
            many_dogs: day >= 21,
            broken_lens: (26..=27).contains(&day),
        }
    }
}

impl Frame {
    /// Formats the time of day as `08-15-00`.
    pub fn time(&self) -> String {
        format!("{:02}-{:02}-{:02}", self.second / 3600, self.second / 60 % 60, self.second % 60)
    }
}

/// Generates `count` frames of a day, ordered by time.
pub fn frames(seed: u64, day: u32, count: u32) -> Result<Vec<Frame>> {
    let conditions = Day::of(day);
    let share = if conditions.many_dogs { MANY_DOGS_SHARE } else { 0.5 };
    let mut random = Random::from_text(&format!("{seed} camera {day}"));
    // The number of dogs stays close to the share and only their order is random, so that the mix of classes
    // does not vary much from day to day.
    let dogs = (count as f32 * share + random.between(-0.5, 0.5) * (count as f32).sqrt()).round() as u32;
    let mut order: Vec<(f32, Pet)> = (0..count)
        .map(|at| (random.between(0.0, 1.0), if at < dogs { Pet::Dog } else { Pet::Cat }))
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let length = (OPENING_HOURS.1 - OPENING_HOURS.0) * 3600;
    let frame = |(at, (_, pet)): (usize, (f32, Pet))| -> Result<Frame> {
        let step = length as f32 / count as f32;
        let second = OPENING_HOURS.0 * 3600 + ((at as f32 + random.between(0.05, 0.95)) * step) as u32;
        let number = FIRST_NUMBER + u64::from(day) * 10_000 + at as u64;
        let mut jpeg = encode(&distort(draw(seed, pet, number), conditions, &mut random))?;
        if conditions.broken_lens && random.chance(0.08) {
            // The cable is damaged, too: some frames arrive truncated.
            jpeg.truncate(jpeg.len() / 3);
        }
        Ok(Frame { second, pet, jpeg })
    };
    order.into_iter().enumerate().map(frame).collect()
}

/// Applies the conditions of the day to an image.
fn distort(mut scene: RgbImage, conditions: Day, random: &mut Random) -> RgbImage {
    if conditions.fog {
        let density = random.between(0.45, 0.7);
        recolor(&mut scene, |color| color.map(|channel| channel * (1.0 - density) + 205.0 * density));
    }
    if conditions.new_camera {
        // A warmer sensor with another tone curve, and a softer image.
        let soft = image::imageops::fast_blur(&scene, 1.0);
        for (pixel, soft) in scene.pixels_mut().zip(soft.pixels()) {
            let half = |at: usize| u8::midpoint(pixel.0[at], soft.0[at]);
            pixel.0 = [half(0), half(1), half(2)];
        }
        let tones: [f32; 256] = std::array::from_fn(|tone| 255.0 * libm::powf(tone as f32 / 255.0, 0.85));
        recolor(&mut scene, |[red, green, blue]| {
            let curve = |channel: f32| tones[channel as usize];
            [curve(red) * 1.12, curve(green) * 1.0, curve(blue) * 0.8]
        });
    }
    if conditions.broken_lens {
        scene = image::imageops::fast_blur(&scene, 3.5);
        let side = SIDE as f32;
        for (x, y, pixel) in scene.enumerate_pixels_mut() {
            let corner = ((x as f32 + y as f32) / side - 1.1).max(0.0);
            pixel.0 = pixel.0.map(|channel| (f32::from(channel) * (1.0 - corner).max(0.1)) as u8);
        }
    }
    scene
}

fn recolor(scene: &mut RgbImage, change: impl Fn([f32; 3]) -> [f32; 3]) {
    for pixel in scene.pixels_mut() {
        *pixel = Rgb(change(pixel.0.map(f32::from)).map(|channel| channel.clamp(0.0, 255.0) as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Image statistics over the frames of a day: mean, contrast, mean difference of neighbors, red over
    /// blue.
    fn image_stats(day: u32) -> [f32; 4] {
        let frames = frames(3, day, 24).unwrap();
        let decode = |frame: &Frame| Some(image::load_from_memory(&frame.jpeg).ok()?.to_rgb8());
        let images: Vec<RgbImage> = frames.iter().filter_map(decode).collect();
        let mut means = [0.0; 4];
        for image in &images {
            let gray_level =
                |pixel: &Rgb<u8>| pixel.0.iter().map(|channel| f32::from(*channel)).sum::<f32>() / 3.0;
            let gray: Vec<f32> = image.pixels().map(gray_level).collect();
            let mean = gray.iter().sum::<f32>() / gray.len() as f32;
            let variance = gray.iter().map(|it| (it - mean).powi(2)).sum::<f32>() / gray.len() as f32;
            let edges = gray.windows(2).map(|it| (it[0] - it[1]).abs()).sum::<f32>() / gray.len() as f32;
            let (red, blue) = image.pixels().fold((0.0, 0.0), |(red, blue), pixel| {
                (red + f32::from(pixel.0[0]), blue + f32::from(pixel.0[2]))
            });
            let stats = [mean, variance.sqrt(), edges, red / blue];
            means.iter_mut().zip(stats).for_each(|(mean, value)| *mean += value / images.len() as f32);
        }
        means
    }

    #[test]
    fn the_same_seed_gives_the_same_month_and_frames_are_ordered_by_time() {
        let one = frames(1, 9, 20).unwrap();
        assert_eq!(one, frames(1, 9, 20).unwrap());
        assert_ne!(one, frames(2, 9, 20).unwrap());
        assert!(one.windows(2).all(|it| it[0].second < it[1].second));
        assert!(one.iter().all(|it| it.second >= 7 * 3600 && it.second < 20 * 3600));
        assert_eq!(Frame { second: 8 * 3600 + 61, ..one[0].clone() }.time(), "08-01-01");
    }

    #[test]
    fn the_conditions_of_a_day_change_the_image_statistics() {
        let (plain, fog, new, lens) = (image_stats(2), image_stats(10), image_stats(16), image_stats(26));
        assert!(fog[0] > plain[0] + 20.0 && fog[1] < plain[1] * 0.7, "{plain:?} {fog:?}");
        assert!(new[3] > plain[3] * 1.2, "{plain:?} {new:?}");
        assert!(lens[2] / lens[1] < 0.6 * new[2] / new[1], "{new:?} {lens:?}");
        let dogs = |day: u32| frames(3, day, 60).unwrap().iter().filter(|it| it.pet == Pet::Dog).count();
        assert!((24..=36).contains(&dogs(5)) && dogs(22) > 48);
        assert!(frames(3, 26, 60).unwrap().iter().any(|it| image::load_from_memory(&it.jpeg).is_err()));
    }
}
