//! The pet park's camera over a month: ordinary days, and what happens to a camera in the end.
//!
//! Frames are drawn as the training photos are, from a seed, and then seen through the camera of that day.

use image::{Rgb, RgbImage};

use crate::{
    error::Result,
    sketch::{Chance, Pet, SIDE, encode, picture},
};

/// Days of the month.
pub const DAYS: u32 = 30;
/// Hours, UTC, in which the park is open.
const OPEN: (u32, u32) = (7, 20);
/// The share of dogs from the day they become many.
const MANY: f32 = 0.92;
/// Numbers of frames start here, far from those of the training photos.
const FIRST: u64 = 1_000_000;

/// What the camera's day is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Day {
    pub fog: bool,
    pub new_camera: bool,
    pub many_dogs: bool,
    pub broken_lens: bool,
}

/// A picture that the camera took.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Seconds since the day began.
    pub second: u32,
    pub pet: Pet,
    pub jpeg: Vec<u8>,
}

impl Day {
    /// What happens on a day of the month, 1 to 30.
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
    /// `08-15-00`
    pub fn time(&self) -> String {
        format!("{:02}-{:02}-{:02}", self.second / 3600, self.second / 60 % 60, self.second % 60)
    }
}

/// The frames of a day, in their order.
pub fn frames(seed: u64, day: u32, count: u32) -> Result<Vec<Frame>> {
    let what = Day::of(day);
    let share = if what.many_dogs { MANY } else { 0.5 };
    let mut chance = Chance::named(&format!("{seed} camera {day}"));
    // As near to the share as whole frames allow, in an order of chance: a day's mix is no lottery.
    let dogs = (count as f32 * share + chance.between(-0.5, 0.5) * (count as f32).sqrt()).round() as u32;
    let mut order: Vec<(f32, Pet)> = (0..count)
        .map(|at| (chance.between(0.0, 1.0), if at < dogs { Pet::Dog } else { Pet::Cat }))
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let length = (OPEN.1 - OPEN.0) * 3600;
    let frame = |(at, (_, pet)): (usize, (f32, Pet))| -> Result<Frame> {
        let step = length as f32 / count as f32;
        let second = OPEN.0 * 3600 + ((at as f32 + chance.between(0.05, 0.95)) * step) as u32;
        let number = FIRST + u64::from(day) * 10_000 + at as u64;
        let mut jpeg = encode(&through(picture(seed, pet, number), what, &mut chance))?;
        if what.broken_lens && chance.happens(0.08) {
            // The cable suffers, too.
            jpeg.truncate(jpeg.len() / 3);
        }
        Ok(Frame { second, pet, jpeg })
    };
    order.into_iter().enumerate().map(frame).collect()
}

/// What the camera of the day makes of a scene.
fn through(mut scene: RgbImage, what: Day, chance: &mut Chance) -> RgbImage {
    if what.fog {
        let thick = chance.between(0.45, 0.7);
        recolor(&mut scene, |it| it.map(|it| it * (1.0 - thick) + 205.0 * thick));
    }
    if what.new_camera {
        // A warmer sensor with another curve, and a softer picture.
        let soft = image::imageops::fast_blur(&scene, 1.0);
        for (pixel, soft) in scene.pixels_mut().zip(soft.pixels()) {
            let half = |at: usize| u8::midpoint(pixel.0[at], soft.0[at]);
            pixel.0 = [half(0), half(1), half(2)];
        }
        recolor(&mut scene, |[red, green, blue]| {
            let curve = |it: f32| 255.0 * libm::powf(it / 255.0, 0.85);
            [curve(red) * 1.12, curve(green) * 1.0, curve(blue) * 0.8]
        });
    }
    if what.broken_lens {
        scene = image::imageops::fast_blur(&scene, 3.5);
        let side = SIDE as f32;
        for (x, y, pixel) in scene.enumerate_pixels_mut() {
            let corner = ((x as f32 + y as f32) / side - 1.1).max(0.0);
            pixel.0 = pixel.0.map(|it| (f32::from(it) * (1.0 - corner).max(0.1)) as u8);
        }
    }
    scene
}

fn recolor(scene: &mut RgbImage, change: impl Fn([f32; 3]) -> [f32; 3]) {
    for pixel in scene.pixels_mut() {
        *pixel = Rgb(change(pixel.0.map(f32::from)).map(|it| it.clamp(0.0, 255.0) as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean, contrast, and mean difference of neighbors of a day's frames; red over blue.
    fn looks(day: u32) -> [f32; 4] {
        let frames = frames(3, day, 24).unwrap();
        let good: Vec<RgbImage> =
            frames.iter().filter_map(|it| Some(image::load_from_memory(&it.jpeg).ok()?.to_rgb8())).collect();
        let mut sums = [0.0; 4];
        for picture in &good {
            let gray: Vec<f32> =
                picture.pixels().map(|it| it.0.iter().map(|it| f32::from(*it)).sum::<f32>() / 3.0).collect();
            let mean = gray.iter().sum::<f32>() / gray.len() as f32;
            let spread = gray.iter().map(|it| (it - mean).powi(2)).sum::<f32>() / gray.len() as f32;
            let edges = gray.windows(2).map(|it| (it[0] - it[1]).abs()).sum::<f32>() / gray.len() as f32;
            let (red, blue) = picture
                .pixels()
                .fold((0.0, 0.0), |it, pixel| (it.0 + f32::from(pixel.0[0]), it.1 + f32::from(pixel.0[2])));
            let found = [mean, spread.sqrt(), edges, red / blue];
            sums.iter_mut().zip(found).for_each(|(sum, it)| *sum += it / good.len() as f32);
        }
        sums
    }

    #[test]
    fn the_same_seed_gives_the_same_month_and_frames_come_in_order() {
        let one = frames(1, 9, 20).unwrap();
        assert_eq!(one, frames(1, 9, 20).unwrap());
        assert_ne!(one, frames(2, 9, 20).unwrap());
        assert!(one.windows(2).all(|it| it[0].second < it[1].second));
        assert!(one.iter().all(|it| it.second >= 7 * 3600 && it.second < 20 * 3600));
        assert_eq!(Frame { second: 8 * 3600 + 61, ..one[0].clone() }.time(), "08-01-01");
    }

    #[test]
    fn what_happens_to_the_camera_shows() {
        let (plain, fog, new, lens) = (looks(2), looks(10), looks(16), looks(26));
        assert!(fog[0] > plain[0] + 20.0 && fog[1] < plain[1] * 0.7, "{plain:?} {fog:?}");
        assert!(new[3] > plain[3] * 1.2, "{plain:?} {new:?}");
        assert!(lens[2] / lens[1] < 0.6 * new[2] / new[1], "{new:?} {lens:?}");
        let dogs = |day: u32| frames(3, day, 60).unwrap().iter().filter(|it| it.pet == Pet::Dog).count();
        assert!((24..=36).contains(&dogs(5)) && dogs(22) > 48);
        assert!(frames(3, 26, 60).unwrap().iter().any(|it| image::load_from_memory(&it.jpeg).is_err()));
    }
}
