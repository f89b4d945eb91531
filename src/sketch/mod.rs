//! The pet park's photos, drawn: cats and dogs from a seed, at all hours, for those who have no photos at
//! hand. Varied enough that a model has something to learn, and alike enough that it makes some mistakes.

pub mod camera;
mod canvas;

use std::io::Cursor;

use crate::{
    digest::Digest,
    error::{Error, Kind, Result},
};

use self::canvas::{Canvas, Color};

const SIDE: u32 = 96;
const QUALITY: u8 = 88;

/// Who is on a photo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pet {
    Cat,
    Dog,
}

impl Pet {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cat => "cat",
            Self::Dog => "dog",
        }
    }
}

/// Numbers that follow from a seed and a place.
struct Chance {
    state: [u8; 32],
    used: usize,
}

impl Chance {
    fn new(seed: u64, pet: Pet, number: u64) -> Self {
        Self::named(&format!("{seed} {} {number}", pet.name()))
    }

    fn named(name: &str) -> Self {
        Self { state: *Digest::of(name.as_bytes()).bytes(), used: 0 }
    }

    /// Between `low` and `high`.
    fn between(&mut self, low: f32, high: f32) -> f32 {
        if self.used + 4 > self.state.len() {
            self.state = *Digest::of(&self.state).bytes();
            self.used = 0;
        }
        let bytes = self.state[self.used..self.used + 4].try_into().expect("four bytes");
        self.used += 4;
        low + (high - low) * ((u32::from_le_bytes(bytes) >> 8) as f32 / (1 << 24) as f32)
    }

    fn happens(&mut self, share: f32) -> bool {
        self.between(0.0, 1.0) < share
    }
}

/// A JPEG of one animal; the same seed and number always give the same bytes.
pub fn photo(seed: u64, pet: Pet, number: u64) -> Result<Vec<u8>> {
    encode(&picture(seed, pet, number))
}

fn encode(picture: &image::RgbImage) -> Result<Vec<u8>> {
    let mut out = Cursor::new(Vec::new());
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, QUALITY);
    let encoded = picture.write_with_encoder(encoder);
    encoded.map_err(|it| Error::new(Kind::Internal, "cannot draw a photo").because(it))?;
    Ok(out.into_inner())
}

/// One animal as the sun and the grain of the film leave it.
fn picture(seed: u64, pet: Pet, number: u64) -> image::RgbImage {
    let mut chance = Chance::new(seed, pet, number);
    let mut canvas = Canvas::new(SIDE, meadow(&mut chance));
    animal(&mut canvas, pet, &mut chance);
    let light = chance.between(0.55, 1.15);
    let grain = chance.between(4.0, 22.0);
    canvas.finish(light, |_| chance.between(-grain, grain))
}

/// Grass, path or wall, by the hour.
fn meadow(chance: &mut Chance) -> Color {
    let grounds = [[96.0, 128.0, 72.0], [150.0, 140.0, 120.0], [120.0, 120.0, 130.0], [90.0, 110.0, 100.0]];
    let ground = grounds[(chance.between(0.0, 3.999)) as usize];
    ground.map(|it| it + chance.between(-25.0, 25.0))
}

/// Furs that both kinds have.
fn fur(chance: &mut Chance) -> Color {
    let furs = [
        [200.0, 150.0, 90.0],
        [90.0, 80.0, 75.0],
        [225.0, 215.0, 200.0],
        [140.0, 100.0, 70.0],
        [170.0, 165.0, 160.0],
    ];
    let fur = furs[(chance.between(0.0, 4.999)) as usize];
    fur.map(|it| it + chance.between(-20.0, 20.0))
}

fn animal(canvas: &mut Canvas, pet: Pet, chance: &mut Chance) {
    let fur = fur(chance);
    let dark = fur.map(|it| it * 0.6);
    let size = chance.between(15.0, 25.0);
    let (x, y) = (chance.between(36.0, 60.0), chance.between(38.0, 56.0));
    canvas.turn(chance.between(-0.3, 0.3), x, y);
    // A body behind the head.
    canvas.ellipse(x + size * chance.between(-0.7, 0.7), y + size * 1.5, size * 1.1, size * 1.0, dark);
    // Some of each kind are hard to tell: ears half up, a face of middling length.
    let doubt = if chance.happens(0.12) { 0.75 } else { 0.0 };
    let other = |cat: f32, dog: f32| {
        if pet == Pet::Cat { cat + (dog - cat) * doubt } else { dog + (cat - dog) * doubt }
    };
    let width = size * other(chance.between(0.95, 1.1), chance.between(0.8, 0.95));
    ears(canvas, (x, y), size, width, [fur, dark], (other(0.0, 1.0), chance.between(0.8, 1.2)));
    canvas.ellipse(x, y, width, size * other(0.85, 1.05), fur);
    if chance.happens(0.35) {
        stripes(canvas, (x, y), size, dark);
    }
    let eye = other(chance.between(0.16, 0.2), chance.between(0.09, 0.13)) * size;
    let iris = if chance.happens(0.5) { [40.0, 30.0, 20.0] } else { [60.0, 110.0, 60.0] };
    for side in [-1.0, 1.0] {
        canvas.ellipse(x + side * width * 0.42, y - size * 0.12, eye, eye * other(1.1, 0.9), iris);
    }
    let snout = other(0.2, 0.48) * size;
    canvas.ellipse(x, y + size * 0.45, snout * 1.1, snout, fur.map(|it| it * 1.12));
    canvas.ellipse(
        x,
        y + size * other(0.34, 0.3),
        size * other(0.07, 0.17),
        size * other(0.06, 0.13),
        [35.0, 25.0, 25.0],
    );
    if pet == Pet::Cat && chance.happens(0.85) {
        whiskers(canvas, (x, y), size);
    }
    if pet == Pet::Dog && chance.happens(0.4) {
        canvas.ellipse(x, y + size * 0.85, size * 0.13, size * 0.22, [210.0, 90.0, 100.0]);
    }
}

/// Upright triangles at one end, hanging lobes at the other.
fn ears(
    canvas: &mut Canvas,
    at: (f32, f32),
    size: f32,
    width: f32,
    colors: [Color; 2],
    (hang, length): (f32, f32),
) {
    for side in [-1.0, 1.0] {
        let base = (at.0 + side * width * 0.62, at.1 - size * 0.55);
        if hang < 0.5 {
            let tip = (
                base.0 + side * size * (0.15 + hang * 0.5),
                base.1 - size * 0.75 * length * (1.0 - hang * 0.6),
            );
            let inner = (at.0 + side * width * 0.15, at.1 - size * 0.75);
            let outer = (at.0 + side * width * 0.98, at.1 - size * 0.2);
            canvas.triangle([inner, tip, outer], colors[0]);
            canvas.triangle(
                [(inner.0 + side * 2.0, inner.1), (tip.0, tip.1 + 3.0), (outer.0 - side * 3.0, outer.1)],
                colors[1],
            );
        } else {
            let drop = size * 0.75 * hang * length;
            canvas.ellipse(
                base.0 + side * size * 0.3,
                base.1 + drop * 0.75,
                size * 0.27,
                drop * 0.85,
                colors[1],
            );
        }
    }
}

fn stripes(canvas: &mut Canvas, (x, y): (f32, f32), size: f32, dark: Color) {
    for step in -1..=1 {
        canvas.ellipse(x + step as f32 * size * 0.25, y - size * 0.55, size * 0.06, size * 0.22, dark);
    }
}

fn whiskers(canvas: &mut Canvas, (x, y): (f32, f32), size: f32) {
    for side in [-1.0, 1.0] {
        for step in [-1.0, 0.0, 1.0] {
            let start = (x + side * size * 0.2, y + size * 0.45);
            canvas.line(start, (x + side * size * 1.15, y + size * (0.42 + step * 0.16)), [235.0; 3]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_bytes_and_others_differ() {
        let one = photo(7, Pet::Cat, 3).unwrap();
        assert_eq!(one, photo(7, Pet::Cat, 3).unwrap());
        assert_ne!(one, photo(7, Pet::Cat, 4).unwrap());
        assert_ne!(one, photo(8, Pet::Cat, 3).unwrap());
        assert_ne!(one, photo(7, Pet::Dog, 3).unwrap());
        assert!(image::load_from_memory(&one).is_ok());
    }
}
