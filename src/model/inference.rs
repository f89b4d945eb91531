//! Runs a registered package in this process, without a service: class, scores and features of images.

use rayon::prelude::*;

use crate::{
    error::{Error, Kind, Result, WithContext},
    model::{
        engine::{self, Engine},
        graph, onnx,
        package::{self, Description},
        preprocess,
        registry::Version,
        settings::Backbone,
        softmax::argmax,
    },
    path::RepoPath,
    repo::Repo,
    store,
};

/// Number of images per call of the model.
const BATCH: usize = 16;

/// A package whose model is loaded into an engine.
pub struct LoadedPackage {
    pub name: String,
    pub description: Description,
    pub engine: Box<dyn Engine>,
}

/// A package's prediction for one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Index of the most probable class in the description's classes.
    pub class: usize,
    /// Probability of each class.
    pub scores: Vec<f32>,
    /// Features that the head received; empty if the model does not return them.
    pub features: Vec<f32>,
}

/// Reads one file of a stored package; None if the package does not have it.
pub fn read_file(repo: &Repo, version: &Version, name: &str) -> Result<Option<Vec<u8>>> {
    let entry = store::entry_at(&repo.store, &version.package.digest, &RepoPath::from_text(name)?)?;
    entry.map(|it| repo.store.read(&it.digest)).transpose()
}

impl LoadedPackage {
    /// Loads a package from the store and checks that its model returns finite numbers for a black image.
    pub fn load(repo: &Repo, version: &Version) -> Result<Self> {
        let name = version.name();
        let context = || format!("cannot load `{name}`");
        let require = |file: &str| {
            let missing = || Error::corrupt(format!("the package of `{name}` has no `{file}`"));
            read_file(repo, version, file).and_then(|bytes| bytes.ok_or_else(missing)).context(context)
        };
        let description = package::parse(&format!("{name}/model.toml"), &require("model.toml")?)?;
        let model = graph::encode(&graph::with_features(onnx::parse(&require("model.onnx")?)?));
        let mut engine =
            engine::load(repo, &model, &description.input.name, graph::COMBINED).context(context)?;
        let side = description.input.crop as usize;
        let found = engine.run(&vec![0.0; 3 * side * side], side).context(context)?;
        if found.len() < description.classes.len() || found.iter().any(|it| !it.is_finite()) {
            return Err(Error::corrupt(format!("`{name}` returns no probabilities for a black image")));
        }
        Ok(Self { name, description, engine })
    }

    /// Returns the preprocessing settings of this package.
    pub fn settings(&self) -> Backbone {
        let input = &self.description.input;
        Backbone { resize: input.resize, crop: input.crop, filter: input.filter, ..Backbone::default() }
    }

    /// Predicts encoded images (JPEG, PNG and others); an image that cannot be decoded has an error in its
    /// place.
    pub fn predict(&mut self, images: &[Vec<u8>]) -> Result<Vec<Result<Prediction>>> {
        let settings = self.settings();
        let mut found = Vec::with_capacity(images.len());
        for batch in images.chunks(BATCH) {
            let planes: Vec<_> = batch
                .par_iter()
                .map(|bytes| Ok(preprocess::planes(&preprocess::decode(bytes)?, &settings)))
                .collect();
            let decoded: Vec<f32> = planes.iter().flatten().flatten().copied().collect();
            let mut rows = self.predict_planes(&decoded)?.into_iter();
            for planes in planes {
                found.push(planes.and_then(|_: Vec<f32>| {
                    rows.next().ok_or_else(|| Error::new(Kind::Internal, "the model returned too few rows"))
                }));
            }
        }
        Ok(found)
    }

    /// Predicts preprocessed images (3×side×side values each).
    pub fn predict_planes(&mut self, planes: &[f32]) -> Result<Vec<Prediction>> {
        let side = self.description.input.crop as usize;
        let rows = planes.len() / (3 * side * side);
        if rows == 0 {
            return Ok(Vec::new());
        }
        let values = self.engine.run(planes, side)?;
        let classes = self.description.classes.len();
        let row = |values: &[f32]| {
            let (scores, features) = values.split_at(classes);
            Prediction { class: argmax(scores), scores: scores.to_vec(), features: features.to_vec() }
        };
        Ok(values.chunks(values.len() / rows).map(row).collect())
    }
}
