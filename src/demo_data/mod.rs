//! Generator of the demo's data: drawn JPEG images of cats and dogs, reproducible from a seed.
//!
//! They stand in for the pet park's photos, so that the demo needs no download. They vary enough for a model
//! to have something to learn, and are similar enough for it to make some mistakes.

pub mod camera;
mod canvas;

use std::io::Cursor;

use crate::{
    digest::Digest,
    error::{Error, Kind, Result},
};

use self::canvas::{Canvas, Color};

/// Width and height of an image, in pixels.
const SIDE: u32 = 96;
const JPEG_QUALITY: u8 = 88;

/// Class of an image.
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

/// Pseudorandom numbers, reproducible from a text: the bytes of repeated digests of it.
struct Random {
    state: [u8; 32],
    /// Number of bytes of `state` used so far.
    used: usize,
}

impl Random {
    fn for_image(seed: u64, pet: Pet, number: u64) -> Self {
        Self::from_text(&format!("{seed} {} {number}", pet.name()))
    }

    fn from_text(text: &str) -> Self {
        Self { state: *Digest::of(text.as_bytes()).bytes(), used: 0 }
    }

    /// Returns a uniform number from `low` to `high`.
    fn between(&mut self, low: f32, high: f32) -> f32 {
        if self.used + 4 > self.state.len() {
            self.state = *Digest::of(&self.state).bytes();
            self.used = 0;
        }
        let (state, at) = (&self.state, self.used);
        let drawn = u32::from_le_bytes([state[at], state[at + 1], state[at + 2], state[at + 3]]);
        self.used += 4;
        low + (high - low) * ((drawn >> 8) as f32 / (1 << 24) as f32)
    }

    /// Returns true with this probability.
    fn chance(&mut self, probability: f32) -> bool {
        self.between(0.0, 1.0) < probability
    }
}

/// Draws one animal and returns it as a JPEG. The same seed and number always give the same bytes.
pub fn photo(seed: u64, pet: Pet, number: u64) -> Result<Vec<u8>> {
    encode(&draw(seed, pet, number))
}

fn encode(image: &image::RgbImage) -> Result<Vec<u8>> {
    let mut out = Cursor::new(Vec::new());
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, JPEG_QUALITY);
    let encoded = image.write_with_encoder(encoder);
    encoded.map_err(|it| Error::new(Kind::Internal, "cannot encode a photo").with_source(it))?;
    Ok(out.into_inner())
}

/// Draws one animal on a background, with random light and film grain.
fn draw(seed: u64, pet: Pet, number: u64) -> image::RgbImage {
    let mut random = Random::for_image(seed, pet, number);
    let mut canvas = Canvas::new(SIDE, background_color(&mut random));
    draw_animal(&mut canvas, pet, &mut random);
    let light = random.between(0.55, 1.15);
    let grain = random.between(4.0, 22.0);
    canvas.finish(light, |_| random.between(-grain, grain))
}

/// Returns the color of grass, a path or a wall, at some time of day.
fn background_color(random: &mut Random) -> Color {
    let colors = [[96.0, 128.0, 72.0], [150.0, 140.0, 120.0], [120.0, 120.0, 130.0], [90.0, 110.0, 100.0]];
    let color = colors[(random.between(0.0, 3.999)) as usize];
    color.map(|channel| channel + random.between(-25.0, 25.0))
}

/// Returns a fur color. Cats and dogs share all of them, so that color does not tell the classes apart.
fn fur_color(random: &mut Random) -> Color {
    let furs = [
        [200.0, 150.0, 90.0],
        [90.0, 80.0, 75.0],
        [225.0, 215.0, 200.0],
        [140.0, 100.0, 70.0],
        [170.0, 165.0, 160.0],
    ];
    let fur = furs[(random.between(0.0, 4.999)) as usize];
    fur.map(|channel| channel + random.between(-20.0, 20.0))
}

fn draw_animal(canvas: &mut Canvas, pet: Pet, random: &mut Random) {
    let fur = fur_color(random);
    let dark = fur.map(|it| it * 0.6);
    let size = random.between(15.0, 25.0);
    let (x, y) = (random.between(36.0, 60.0), random.between(38.0, 56.0));
    canvas.rotate(random.between(-0.3, 0.3), x, y);
    // The body, behind the head.
    canvas.ellipse(x + size * random.between(-0.7, 0.7), y + size * 1.5, size * 1.1, size * 1.0, dark);
    // Some animals of each class are ambiguous, with half-raised ears and a face of medium length.
    let ambiguity = if random.chance(0.12) { 0.75 } else { 0.0 };
    let blend = |cat: f32, dog: f32| {
        if pet == Pet::Cat { cat + (dog - cat) * ambiguity } else { dog + (cat - dog) * ambiguity }
    };
    let width = size * blend(random.between(0.95, 1.1), random.between(0.8, 0.95));
    draw_ears(canvas, (x, y), size, width, [fur, dark], (blend(0.0, 1.0), random.between(0.8, 1.2)));
    canvas.ellipse(x, y, width, size * blend(0.85, 1.05), fur);
    if random.chance(0.35) {
        draw_stripes(canvas, (x, y), size, dark);
    }
    let eye = blend(random.between(0.16, 0.2), random.between(0.09, 0.13)) * size;
    let iris = if random.chance(0.5) { [40.0, 30.0, 20.0] } else { [60.0, 110.0, 60.0] };
    for side in [-1.0, 1.0] {
        canvas.ellipse(x + side * width * 0.42, y - size * 0.12, eye, eye * blend(1.1, 0.9), iris);
    }
    let snout = blend(0.2, 0.48) * size;
    canvas.ellipse(x, y + size * 0.45, snout * 1.1, snout, fur.map(|it| it * 1.12));
    canvas.ellipse(
        x,
        y + size * blend(0.34, 0.3),
        size * blend(0.07, 0.17),
        size * blend(0.06, 0.13),
        [35.0, 25.0, 25.0],
    );
    if pet == Pet::Cat && random.chance(0.85) {
        draw_whiskers(canvas, (x, y), size);
    }
    if pet == Pet::Dog && random.chance(0.4) {
        canvas.ellipse(x, y + size * 0.85, size * 0.13, size * 0.22, [210.0, 90.0, 100.0]);
    }
}

/// Draws ears: upright triangles if `hang` is below 0.5, hanging lobes otherwise.
fn draw_ears(
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

fn draw_stripes(canvas: &mut Canvas, (x, y): (f32, f32), size: f32, dark: Color) {
    for step in -1..=1 {
        canvas.ellipse(x + step as f32 * size * 0.25, y - size * 0.55, size * 0.06, size * 0.22, dark);
    }
}

fn draw_whiskers(canvas: &mut Canvas, (x, y): (f32, f32), size: f32) {
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
    fn the_same_seed_gives_the_same_bytes_and_others_differ() {
        let one = photo(7, Pet::Cat, 3).unwrap();
        assert_eq!(one, photo(7, Pet::Cat, 3).unwrap());
        assert_ne!(one, photo(7, Pet::Cat, 4).unwrap());
        assert_ne!(one, photo(8, Pet::Cat, 3).unwrap());
        assert_ne!(one, photo(7, Pet::Dog, 3).unwrap());
        assert!(image::load_from_memory(&one).is_ok());
    }
}
