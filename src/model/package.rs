//! Model packages: a folder with everything that serving and monitoring a model need.
//!
//! ```text
//! model.onnx          backbone and head in one file: pixels in, probabilities out
//! model.toml          classes, preprocessing, metrics, and the digests of the inputs
//! reference.parquet   statistics, features and scores of training images, as the baseline of monitoring
//! ```
//!
//! `model.toml` refers to the inputs by digest only; a commit cannot be named, because it comes later.

use std::collections::BTreeMap;

use crate::{
    digest::Digest,
    document,
    error::{Error, Kind, Result, WithContext},
    fs::Sync,
    model::{
        engine, graph, preprocess,
        reference::build_reference,
        softmax::Head,
        split::{LabeledImage, Subset},
        table::{BACKBONE, Metadata, Table},
    },
    path::RepoPath,
    repo::Repo,
};
use serde::{Deserialize, Serialize};

pub const FORMAT: u64 = 1;
/// File name of the reference table: training images in the format of sealed traffic.
pub const REFERENCE: &str = "reference.parquet";
/// Number of test images on which a new package is verified.
const VERIFIED_IMAGES: usize = 8;
/// Largest allowed difference between the probabilities of the ONNX file and those of backbone and head
/// apart.
const TOLERANCE: f64 = 1e-3;

/// Contents of `model.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    pub classes: Vec<String>,
    pub format: u64,
    pub input: Input,
    pub made_from: Provenance,
    /// Numbers of the metrics file, by their keys joined with dots.
    pub metrics: BTreeMap<String, f64>,
    /// Name of the model's output.
    pub output: String,
}

/// Input of the model: float red, green and blue planes, N×3×H×W, 0–255, after resize and crop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub crop: u32,
    pub filter: crate::model::settings::ResizeFilter,
    pub name: String,
    pub resize: u32,
}

/// Digests of a package's inputs. A commit is not among them: the package is committed only afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    pub backbone: Digest,
    pub data: Digest,
    pub head: Digest,
    /// Digest of the canonical JSON of the preprocessing settings and the head's strength.
    pub params: Digest,
    pub split: Digest,
}

/// Inputs of a package.
pub struct PackageInputs<'p> {
    /// Folder of the feature table.
    pub features: &'p RepoPath,
    pub table: &'p Table,
    pub metadata: &'p Metadata,
    pub head: &'p Head,
    pub head_digest: Digest,
    pub metrics: &'p document::Value,
    pub images: &'p [LabeledImage],
    /// Folder to which relative paths in the parameters refer.
    pub folder: &'p RepoPath,
}

/// Combines backbone and head, verifies the result on test images, and writes the package to the folder
/// `out`.
pub fn build(repo: &Repo, parts: &PackageInputs<'_>, out: &RepoPath) -> Result<Description> {
    let backbone = read_backbone(repo, parts)?;
    let model = if parts.metadata.backbone.file.is_empty() {
        crate::model::onnx::parse(&backbone)?
    } else {
        graph::with_normalization(&backbone, &parts.metadata.backbone)?
    };
    let bytes = graph::encode(&graph::with_head(model, parts.head)?);
    verify(repo, parts, &bytes)
        .context(|| "the packaged model does not predict like its backbone and head".into())?;
    let settings = &parts.metadata.backbone;
    let params = serde_json::json!({"backbone": settings, "strength": parts.head.strength});
    let description = Description {
        classes: parts.head.classes.clone(),
        format: FORMAT,
        input: Input {
            crop: settings.crop,
            filter: settings.filter,
            name: graph::INPUT.to_owned(),
            resize: settings.resize,
        },
        made_from: Provenance {
            backbone: parts.metadata.backbone_digest,
            data: parts.metadata.data_digest,
            head: parts.head_digest,
            params: Digest::of(document::canonical(&params).as_bytes()),
            split: parts.metadata.split_digest,
        },
        metrics: document::leaves(parts.metrics)
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_f64()?)))
            .collect(),
        output: graph::OUTPUT.to_owned(),
    };
    let text = toml::to_string(&description).map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
    repo.files.write(&out.join(b"model.onnx")?, &bytes, Sync::Later)?;
    repo.files.write(&out.join(b"model.toml")?, text.as_bytes(), Sync::Later)?;
    repo.files.write(&out.join(REFERENCE.as_bytes())?, &build_reference(repo, parts)?, Sync::Later)?;
    Ok(description)
}

/// Reads the backbone, and checks that the feature table was computed with it.
fn read_backbone(repo: &Repo, parts: &PackageInputs<'_>) -> Result<Vec<u8>> {
    let file = &parts.metadata.backbone.file;
    let path = if file.is_empty() {
        parts.features.join(BACKBONE.as_bytes())?
    } else {
        RepoPath::parse(file.as_ref(), &parts.folder.on_disk(repo.root()), repo.root())?
    };
    let bytes = repo.files.read(&path)?;
    if Digest::of(&bytes) == parts.metadata.backbone_digest {
        return Ok(bytes);
    }
    let error = Error::new(
        Kind::Conflict,
        format!("`{path}` is not the backbone with which `{}` was computed", parts.features),
    );
    Err(error.hint("compute the features again: `mlx repro`"))
}

/// Verifies the ONNX file on test images: its probabilities must equal those of the head for the features in
/// the table.
fn verify(repo: &Repo, parts: &PackageInputs<'_>, bytes: &[u8]) -> Result<()> {
    let mut engine = engine::load(repo, bytes, graph::INPUT, graph::OUTPUT)?;
    let settings = &parts.metadata.backbone;
    let usable =
        |image: &&LabeledImage| image.subset == Subset::Test && parts.table.rows.contains_key(&image.digest);
    for image in parts.images.iter().filter(usable).take(VERIFIED_IMAGES) {
        let file = repo.files.read(&image.path)?;
        let planes = preprocess::planes(&preprocess::decode(&file)?, settings);
        let found = engine.run(&planes, settings.crop as usize)?;
        let expected = parts.head.predict(&parts.table.rows[&image.digest]);
        let difference =
            found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        if found.len() != expected.len() || difference > TOLERANCE {
            let message = format!("for `{}` the probabilities differ by {difference:.2e}", image.path);
            return Err(Error::new(Kind::Internal, message));
        }
    }
    Ok(())
}

/// Parses the contents of `model.toml`; `name` is how errors call the file.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Description> {
    let text = String::from_utf8_lossy(bytes);
    let description: Description = toml::from_str(&text).map_err(|error| {
        Error::corrupt(format!("`{name}` does not describe a package: {}", error.message()))
    })?;
    if description.format == FORMAT {
        Ok(description)
    } else {
        Err(Error::corrupt(format!("`{name}` was written by a newer mlx")))
    }
}
