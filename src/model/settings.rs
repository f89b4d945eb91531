//! Settings of the built-in stages, read from the tables `split`, `backbone`, `filters` and `train` of
//! `params.toml`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    error::{Error, Result},
    fs::Root,
    path::RepoPath,
};

/// Settings of the split into training and test set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitSettings {
    pub seed: u64,
    /// Share of images in the test set, between 0 and 1 exclusive.
    pub test: f64,
}

/// Frozen feature extractor and the preprocessing of its images. The defaults fit models of the
/// EfficientNet-Lite family.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backbone {
    /// ONNX file, relative to the folder of the parameter file, which also has the features folder; empty if
    /// filters are learned from the training images instead.
    pub file: String,
    /// Length of the shorter side after resizing, in pixels.
    pub resize: u32,
    /// Side of the center square that is cropped after resizing, in pixels.
    pub crop: u32,
    pub filter: ResizeFilter,
    /// Value subtracted from each channel (red, green, blue; 0–255).
    pub mean: [f32; 3],
    /// Divisor of each channel after the subtraction.
    pub scale: [f32; 3],
    /// Name of the model's input, N×3×H×W.
    pub input: String,
    /// Name of the model's output that holds the features, N×D.
    pub output: String,
}

/// Interpolation filter for resizing images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ResizeFilter {
    Nearest,
    /// Bilinear, with antialiasing when shrinking.
    Triangle,
    /// Bicubic.
    CatmullRom,
    Lanczos3,
}

/// Settings of filters that are learned from the training images.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterSettings {
    pub seed: u64,
    /// Side of the square to which images are resized, in pixels.
    #[serde(rename = "picture")]
    pub image_size: u32,
    /// Side of a patch, in pixels.
    pub patch: u32,
    /// Number of filters.
    pub count: u32,
}

/// Settings of the training of the head.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    pub seed: u64,
    /// Number of folds of the cross-validation that chooses the strength.
    pub folds: u32,
    /// Candidate strengths of the L2 penalty.
    pub strengths: Vec<f64>,
}

impl Default for Backbone {
    fn default() -> Self {
        Self {
            file: String::new(),
            resize: 256,
            crop: 224,
            filter: ResizeFilter::Triangle,
            mean: [127.0; 3],
            scale: [128.0; 3],
            input: "image".to_owned(),
            output: "features".to_owned(),
        }
    }
}

/// Reads one table of the parameter file at `path`.
pub fn read<T: DeserializeOwned>(files: &Root, path: &RepoPath, table: &str) -> Result<T> {
    let bytes = files.read_if_exists(path)?.ok_or_else(|| {
        Error::not_found(format!("the parameter file `{path}` does not exist"))
            .hint("create one with `mlx init --template pets`")
    })?;
    let value = crate::document::parse(path, &bytes)?;
    let found = value.get(table).ok_or_else(|| {
        Error::not_found(format!("`{path}` has no table `{table}`"))
            .hint(format!("add `[{table}]` to it, as in the template"))
    })?;
    serde_json::from_value(found.to_typed_json()).map_err(|error| {
        Error::usage(format!("`{path}`: the table `{table}` is invalid: {error}"))
            .hint("compare it with the template's")
    })
}

impl SplitSettings {
    /// Checks that the values are in range.
    pub fn check(&self) -> Result<()> {
        if self.test > 0.0 && self.test < 1.0 {
            return Ok(());
        }
        Err(Error::usage(format!("`split.test` is {}, but it must be between 0 and 1", self.test))
            .hint("0.2 puts a fifth of the images into the test set"))
    }
}

impl Backbone {
    /// Checks that the values are in range.
    pub fn check(&self) -> Result<()> {
        if self.crop == 0 || self.crop > self.resize || self.resize > 4096 {
            let message = format!("`backbone.crop` is {} and `backbone.resize` {}", self.crop, self.resize);
            return Err(
                Error::usage(message).hint("`crop` must be from 1 to `resize`, and `resize` at most 4096")
            );
        }
        if self.scale.iter().any(|it| *it == 0.0 || !it.is_finite())
            || self.mean.iter().any(|it| !it.is_finite())
        {
            return Err(Error::usage(
                "`backbone.mean` and `backbone.scale` must be finite numbers, and no scale may be 0",
            ));
        }
        Ok(())
    }
}

impl FilterSettings {
    /// Checks that the values are in range.
    pub fn check(&self) -> Result<()> {
        let in_range = (2..=16).contains(&self.patch)
            && (16..=256).contains(&self.image_size)
            && (1..=1024).contains(&self.count);
        if in_range && self.image_size >= 3 * self.patch {
            return Ok(());
        }
        Err(Error::usage(
            "the table `filters` is invalid: `patch` must be 2–16, `picture` 16–256 and \
             at least 3 × `patch`, `count` 1–1024",
        ))
    }
}

impl TrainSettings {
    /// Checks that the values are in range.
    pub fn check(&self) -> Result<()> {
        if self.folds < 2 {
            return Err(Error::usage(format!("`train.folds` is {}, but it must be at least 2", self.folds))
                .hint("5 or 10 folds are common"));
        }
        if self.strengths.is_empty()
            || self.strengths.iter().any(|strength| !strength.is_finite() || *strength <= 0.0)
        {
            return Err(Error::usage("`train.strengths` must be a list of numbers above 0")
                .hint("for example [0.001, 0.01, 0.1]"));
        }
        Ok(())
    }
}
