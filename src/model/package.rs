//! A folder with all that serving and watching need: `model.onnx`, `model.toml`, and the training side as
//! `reference.parquet`. What it was made from stands in it by digest alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    digest::Digest,
    document,
    error::{Doing, Error, Kind, Result},
    fs::{Root, Sync},
    model::{
        engine, graph, picture,
        reference::reference,
        softmax::Head,
        split::{Picture, Segment},
        table::{About, BACKBONE, Table},
    },
    path::RepoPath,
    repo::Repo,
};

pub const FORMAT: u64 = 1;
/// The training side, as traffic is kept.
pub const REFERENCE: &str = "reference.parquet";
/// Pictures that the finished file is tried on.
const TRIED: usize = 8;
/// How far its probabilities may be from those of the parts it was made of.
const CLOSE: f64 = 1e-3;

/// `model.toml`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    pub classes: Vec<String>,
    pub format: u64,
    pub input: Input,
    pub made_from: MadeFrom,
    /// Leaves of the metrics file, keys joined by dots.
    pub metrics: BTreeMap<String, f64>,
    pub output: String,
}

/// What the network takes: float red, green and blue planes, N×3×H×W, 0–255, after resize and crop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub crop: u32,
    pub filter: crate::model::settings::Filter,
    pub name: String,
    pub resize: u32,
}

/// Digests of what went in; never a commit, which comes later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeFrom {
    pub backbone: Digest,
    pub data: Digest,
    pub head: Digest,
    /// Of the canonical JSON of the preparation and the head's strength.
    pub params: Digest,
    pub split: Digest,
}

/// The parts a package is made of.
pub struct Parts<'p> {
    pub features: &'p RepoPath,
    pub table: &'p Table,
    pub about: &'p About,
    pub head: &'p Head,
    pub head_digest: Digest,
    pub metrics: &'p Value,
    pub pictures: &'p [Picture],
    /// Where relative names in the parameters start.
    pub folder: &'p RepoPath,
}

/// Puts backbone and head together, tries the result on pictures, and writes the package to `out`.
pub fn package(repo: &Repo, parts: &Parts<'_>, out: &RepoPath) -> Result<Description> {
    let backbone = backbone(repo, parts)?;
    let network = if parts.about.backbone.file.is_empty() {
        crate::model::onnx::parse(&backbone)?
    } else {
        graph::normalized(&backbone, &parts.about.backbone)?
    };
    let bytes = graph::encode(&graph::with_head(network, parts.head)?);
    check(repo, parts, &bytes).doing(|| "the package does not answer as its parts do".into())?;
    let settings = &parts.about.backbone;
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
        made_from: MadeFrom {
            backbone: parts.about.backbone_digest,
            data: parts.about.data_digest,
            head: parts.head_digest,
            params: Digest::of(document::canonical(&params).as_bytes()),
            split: parts.about.split_digest,
        },
        metrics: document::leaves(parts.metrics)
            .into_iter()
            .filter_map(|(key, it)| Some((key, it.as_f64()?)))
            .collect(),
        output: graph::OUTPUT.to_owned(),
    };
    let text = toml::to_string(&description).map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
    repo.files.write(&out.join(b"model.onnx")?, &bytes, Sync::Later)?;
    repo.files.write(&out.join(b"model.toml")?, text.as_bytes(), Sync::Later)?;
    repo.files.write(&out.join(REFERENCE.as_bytes())?, &reference(repo, parts)?, Sync::Later)?;
    Ok(description)
}

fn backbone(repo: &Repo, parts: &Parts<'_>) -> Result<Vec<u8>> {
    let file = &parts.about.backbone.file;
    let path = if file.is_empty() {
        parts.features.join(BACKBONE.as_bytes())?
    } else {
        RepoPath::parse(file.as_ref(), &parts.folder.on_disk(repo.root()), repo.root())?
    };
    let bytes = repo.files.read(&path)?;
    if Digest::of(&bytes) == parts.about.backbone_digest {
        return Ok(bytes);
    }
    let error =
        Error::new(Kind::Conflict, format!("`{path}` is not the backbone that made `{}`", parts.features));
    Err(error.hint("compute the features anew: `mlx repro`"))
}

/// Whole pictures through the finished file give what their features through the head give.
fn check(repo: &Repo, parts: &Parts<'_>, bytes: &[u8]) -> Result<()> {
    let mut engine = engine::load(repo, bytes, graph::INPUT, graph::OUTPUT)?;
    let settings = &parts.about.backbone;
    let tested = parts.pictures.iter().filter(|it| it.segment == Segment::Test);
    for picture in tested.filter(|it| parts.table.rows.contains_key(&it.digest)).take(TRIED) {
        let file = repo.files.read(&picture.path)?;
        let planes = picture::planes(&picture::decode(&file)?, settings);
        let found = engine.run(&planes, settings.crop as usize)?;
        let expected = parts.head.predict(&parts.table.rows[&picture.digest]);
        let apart = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        if found.len() != expected.len() || apart > CLOSE {
            let message = format!("on `{}` its probabilities are {apart:.2e} apart", picture.path);
            return Err(Error::new(Kind::Internal, message));
        }
    }
    Ok(())
}

/// Reads the description in a package's folder.
pub fn describe(files: &Root, folder: &RepoPath) -> Result<Description> {
    let path = folder.join(b"model.toml")?;
    parse(&path.to_text(), &files.read(&path).doing(|| format!("`{folder}` is not a package"))?)
}

/// Reads a description.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Description> {
    let text = String::from_utf8_lossy(bytes);
    let found: Description = toml::from_str(&text)
        .map_err(|it| Error::corrupt(format!("`{name}` describes no package: {}", it.message())))?;
    if found.format == FORMAT {
        Ok(found)
    } else {
        Err(Error::corrupt(format!("`{name}` was written by a newer mlx")))
    }
}
