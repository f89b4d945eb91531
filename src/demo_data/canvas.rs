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

    /// Colors the pixels whose position, rotated back, `inside` accepts. Only pixels near `bounds` are tried:
    /// the least and greatest x and y of the shape before its rotation.
    fn fill(
        &mut self,
        color: Color,
        [left, top, right, bottom]: [f32; 4],
        inside: impl Fn(f32, f32) -> bool,
    ) {
        let (sine, cosine, center_x, center_y) = self.rotation;
        let corners = [(left, top), (right, top), (left, bottom), (right, bottom)].map(|(x, y)| {
            let (x, y) = (x - center_x, y - center_y);
            (x * cosine - y * sine + center_x, x * sine + y * cosine + center_y)
        });
        let range = |values: [f32; 4]| {
            let least = values.into_iter().fold(f32::INFINITY, f32::min) - 1.0;
            let greatest = values.into_iter().fold(f32::NEG_INFINITY, f32::max) + 2.0;
            least.max(0.0) as u32..(greatest.max(0.0) as u32).min(self.side)
        };
        for row in range(corners.map(|corner| corner.1)) {
            for column in range(corners.map(|corner| corner.0)) {
                let (x, y) = (column as f32 - center_x, row as f32 - center_y);
                if inside(x * cosine + y * sine + center_x, y * cosine - x * sine + center_y) {
                    self.pixels[(row * self.side + column) as usize] = color;
                }
            }
        }
    }

    pub fn ellipse(&mut self, x: f32, y: f32, width: f32, height: f32, color: Color) {
        self.fill(color, [x - width, y - height, x + width, y + height], |px, py| {
            let (dx, dy) = ((px - x) / width, (py - y) / height);
            dx * dx + dy * dy <= 1.0
        });
    }

    pub fn triangle(&mut self, [a, b, c]: [(f32, f32); 3], color: Color) {
        let side =
            |p: (f32, f32), q: (f32, f32), x: f32, y: f32| (q.0 - p.0) * (y - p.1) - (q.1 - p.1) * (x - p.0);
        let bounds =
            [a.0.min(b.0).min(c.0), a.1.min(b.1).min(c.1), a.0.max(b.0).max(c.0), a.1.max(b.1).max(c.1)];
        self.fill(color, bounds, |x, y| {
            let signs = [side(a, b, x, y), side(b, c, x, y), side(c, a, x, y)];
            signs.iter().all(|sign| *sign >= 0.0) || signs.iter().all(|sign| *sign <= 0.0)
        });
    }

    pub fn line(&mut self, from: (f32, f32), to: (f32, f32), color: Color) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length = (dx * dx + dy * dy).sqrt().max(1.0);
        let bounds = [from.0.min(to.0), from.1.min(to.1), from.0.max(to.0), from.1.max(to.1)];
        self.fill(color, bounds, |x, y| {
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
