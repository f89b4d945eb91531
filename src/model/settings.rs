//! What `params.toml` says of the built-in stages.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    error::{Error, Result},
    fs::Root,
    path::RepoPath,
};

/// How pictures are put on sides.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitSettings {
    pub seed: u64,
    /// The share of pictures kept for the test, between 0 and 1.
    pub test: f64,
}

/// A frozen feature extractor, and what a picture goes through before it. The defaults fit networks of the
/// EfficientNet-Lite family.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backbone {
    /// An ONNX file beside `mlx.toml`; empty when features are learnt from the photos themselves.
    pub file: String,
    /// Pixels of the shorter side after resizing.
    pub resize: u32,
    /// Pixels of the square cut from the middle.
    pub crop: u32,
    pub filter: Filter,
    /// Subtracted from each channel (red, green, blue; 0–255).
    pub mean: [f32; 3],
    /// Divides each channel after that.
    pub scale: [f32; 3],
    /// Name of the network's input, N×3×H×W.
    pub input: String,
    /// Name of the output to take, N×D.
    pub output: String,
}

/// How pictures are resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    Nearest,
    /// Bilinear, over all pixels that fall together when shrinking.
    Triangle,
    /// Bicubic.
    CatmullRom,
    Lanczos3,
}

/// Features learnt from the photos themselves.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterSettings {
    pub seed: u64,
    /// Pixels of the side that pictures are brought to.
    pub picture: u32,
    /// Pixels of a patch's side.
    pub patch: u32,
    /// Number of filters.
    pub count: u32,
}

/// How the head is fitted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    pub seed: u64,
    /// Parts of the cross-validation that chooses the strength.
    pub folds: u32,
    /// Weights of the squared penalty to choose from.
    pub strengths: Vec<f64>,
}

impl Default for Backbone {
    fn default() -> Self {
        Self {
            file: String::new(),
            resize: 256,
            crop: 224,
            filter: Filter::Triangle,
            mean: [127.0; 3],
            scale: [128.0; 3],
            input: "image".to_owned(),
            output: "features".to_owned(),
        }
    }
}

/// Reads one table of the parameter file at `path`.
pub fn read<T: DeserializeOwned>(files: &Root, path: &RepoPath, table: &str) -> Result<T> {
    let bytes = files.read_if_there(path)?.ok_or_else(|| {
        Error::not_found(format!("the parameter file `{path}` is not there"))
            .hint("`mlx init --template pets` writes one")
    })?;
    let value = crate::document::parse(path, &bytes)?;
    let found = value.get(table).cloned().ok_or_else(|| {
        Error::not_found(format!("`{path}` has no table `{table}`"))
            .hint(format!("add [{table}] to it, as in the template"))
    })?;
    serde_json::from_value(found).map_err(|it| {
        Error::usage(format!("`{path}`: the table `{table}` cannot be used: {it}"))
            .hint("compare it with the template's")
    })
}

impl SplitSettings {
    pub fn check(&self) -> Result<()> {
        if self.test > 0.0 && self.test < 1.0 {
            return Ok(());
        }
        Err(Error::usage(format!("`split.test` is {}, not between 0 and 1", self.test))
            .hint("0.2 keeps a fifth"))
    }
}

impl Backbone {
    pub fn check(&self) -> Result<()> {
        if self.crop == 0 || self.crop > self.resize || self.resize > 4096 {
            let message = format!("`backbone.crop` is {} and `backbone.resize` {}", self.crop, self.resize);
            return Err(Error::usage(message)
                .hint("crop is at least 1 and no more than resize, that no more than 4096"));
        }
        if self.scale.iter().any(|it| *it == 0.0 || !it.is_finite())
            || self.mean.iter().any(|it| !it.is_finite())
        {
            return Err(Error::usage(
                "`backbone.mean` and `backbone.scale` are finite numbers, and no scale is 0",
            ));
        }
        Ok(())
    }
}

impl FilterSettings {
    pub fn check(&self) -> Result<()> {
        let small = (2..=16).contains(&self.patch)
            && (16..=256).contains(&self.picture)
            && (1..=1024).contains(&self.count);
        if small && self.picture >= 3 * self.patch {
            return Ok(());
        }
        Err(Error::usage(
            "`filters` cannot be used: patch is 2–16, picture 16–256 and at least three patches, count 1–1024",
        ))
    }
}

impl TrainSettings {
    pub fn check(&self) -> Result<()> {
        if self.folds < 2 {
            return Err(Error::usage(format!("`train.folds` is {}", self.folds))
                .hint("cross-validation needs 2 or more"));
        }
        if self.strengths.is_empty() || self.strengths.iter().any(|it| !it.is_finite() || *it <= 0.0) {
            return Err(Error::usage("`train.strengths` is a list of numbers above 0")
                .hint("for example [0.001, 0.01, 0.1]"));
        }
        Ok(())
    }
}
