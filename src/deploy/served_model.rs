//! A registered version, loaded and ready to serve: prepares images and turns model output into predictions.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    deploy::{
        batch::{BatchLimits, Batcher},
        protocol::{DATATYPE, Tensor},
    },
    digest::Digest,
    error::{Error, Kind, Result},
    model::{
        inference::LoadedPackage, package::Description, preprocess, registry::Version, settings::Backbone,
        softmax::argmax,
    },
    repo::Repo,
};

/// A version whose model runs on a thread of its own.
pub struct ServedModel {
    /// `pets`
    pub model: String,
    /// `v0.1.0`
    pub number: String,
    pub package: Digest,
    pub description: Description,
    /// Name of the inference engine.
    pub engine: String,
    pub batcher: Batcher,
}

/// A model's output for one image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    pub class: String,
    pub probability: f32,
    /// Probability of each class, in the package's order.
    pub scores: Vec<f32>,
    /// Input of the head; empty if the model does not expose it.
    #[serde(skip)]
    pub features: Vec<f32>,
}

impl ServedModel {
    /// Loads a package from the store and runs its model once.
    pub fn load(repo: &Repo, version: &Version, limits: BatchLimits) -> Result<Arc<Self>> {
        let LoadedPackage { description, engine, .. } = LoadedPackage::load(repo, version)?;
        let (id, side) = (engine.id(), description.input.crop as usize);
        let batcher = Batcher::start(engine, side, limits)?;
        Ok(Arc::new(Self {
            model: version.model.clone(),
            number: version.number.to_string(),
            package: version.package.digest,
            description,
            engine: id,
            batcher,
        }))
    }

    /// `pets@v0.1.0`
    pub fn name(&self) -> String {
        format!("{}@{}", self.model, self.number)
    }

    /// Returns the metadata of the input and the output tensor.
    pub(super) fn tensors(&self) -> (Tensor, Tensor) {
        let (input, side) = (&self.description.input, i64::from(self.description.input.crop));
        let tensor = |name: &str, shape| Tensor { name: name.to_owned(), datatype: DATATYPE, shape };
        let classes = self.description.classes.len() as i64;
        (tensor(&input.name, vec![-1, 3, side, side]), tensor(&self.description.output, vec![-1, classes]))
    }

    /// Decodes one image and returns its 3×side×side values, as the model takes them.
    pub fn planes(&self, bytes: &[u8]) -> Result<Vec<f32>> {
        let input = &self.description.input;
        let settings =
            Backbone { resize: input.resize, crop: input.crop, filter: input.filter, ..Backbone::default() };
        Ok(preprocess::planes(&preprocess::decode(bytes)?, &settings))
    }

    /// Returns the number of input values per image.
    pub fn values(&self) -> usize {
        let side = self.description.input.crop as usize;
        3 * side * side
    }

    /// Splits model output into predictions, one per image.
    pub fn predictions(&self, values: &[f32], rows: usize) -> Result<Vec<Prediction>> {
        if rows == 0 {
            return Ok(Vec::new());
        }
        let classes = &self.description.classes;
        let prediction = |row: &[f32]| {
            let (scores, features) = row.split_at(classes.len());
            let best = argmax(scores);
            if scores.iter().any(|it| !it.is_finite()) {
                return Err(Error::new(
                    Kind::Usage,
                    "the model gives no finite probabilities for this input",
                ));
            }
            Ok(Prediction {
                class: classes[best].clone(),
                probability: scores[best],
                scores: scores.to_vec(),
                features: features.to_vec(),
            })
        };
        values.chunks(values.len() / rows).map(prediction).collect()
    }
}
