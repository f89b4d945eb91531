//! Square RGB canvas that draws ellipses, triangles and lines, with rotation, light and film grain.

/// Red, green and blue, 0–255 each.
pub type Color = [f32; 3];

pub struct Canvas {
    side: u32,
    pixels: Vec<Color>,
    /// Sine, cosine and center of the rotation that applies to all shapes.
    rotation: (f32, f32, f32, f32),
}

impl Canvas {
    /// Creates a canvas with a background that gets darker towards the top.
    pub fn new(side: u32, background: Color) -> Self {
        let shade = |at: u32| 0.75 + 0.4 * (at / side) as f32 / side as f32;
        let pixels = (0..side * side).map(|at| background.map(|channel| channel * shade(at))).collect();
        Self { side, pixels, rotation: (0.0, 1.0, 0.0, 0.0) }
    }

    /// Rotates all shapes drawn from now on around a center, by an angle in radians.
    pub fn rotate(&mut self, angle: f32, x: f32, y: f32) {
        self.rotation = (libm::sinf(angle), libm::cosf(angle), x, y);
    }

    /// Colors every pixel whose position, rotated back, `inside` accepts.
    fn fill(&mut self, color: Color, inside: impl Fn(f32, f32) -> bool) {
        let (sine, cosine, center_x, center_y) = self.rotation;
        for at in 0..self.side * self.side {
            let (x, y) = ((at % self.side) as f32 - center_x, (at / self.side) as f32 - center_y);
            if inside(x * cosine + y * sine + center_x, y * cosine - x * sine + center_y) {
                self.pixels[at as usize] = color;
            }
        }
    }

    pub fn ellipse(&mut self, x: f32, y: f32, width: f32, height: f32, color: Color) {
        self.fill(color, |px, py| {
            let (dx, dy) = ((px - x) / width, (py - y) / height);
            dx * dx + dy * dy <= 1.0
        });
    }

    pub fn triangle(&mut self, [a, b, c]: [(f32, f32); 3], color: Color) {
        let side =
            |p: (f32, f32), q: (f32, f32), x: f32, y: f32| (q.0 - p.0) * (y - p.1) - (q.1 - p.1) * (x - p.0);
        self.fill(color, |x, y| {
            let signs = [side(a, b, x, y), side(b, c, x, y), side(c, a, x, y)];
            signs.iter().all(|it| *it >= 0.0) || signs.iter().all(|it| *it <= 0.0)
        });
    }

    pub fn line(&mut self, from: (f32, f32), to: (f32, f32), color: Color) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length = (dx * dx + dy * dy).sqrt().max(1.0);
        self.fill(color, |x, y| {
            let along = ((x - from.0) * dx + (y - from.1) * dy) / length;
            let off = ((x - from.0) * dy - (y - from.1) * dx) / length;
            (0.0..=length).contains(&along) && off.abs() <= 0.6
        });
    }

    /// Returns the image in this light, with grain added to each channel of each pixel.
    pub fn finish(self, light: f32, mut grain: impl FnMut(usize) -> f32) -> image::RgbImage {
        let mut image = image::RgbImage::new(self.side, self.side);
        for (at, (pixel, color)) in image.pixels_mut().zip(&self.pixels).enumerate() {
            pixel.0 = color.map(|channel| (channel * light + grain(at)).clamp(0.0, 255.0) as u8);
        }
        image
    }
}
