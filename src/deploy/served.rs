//! A package, ready to answer.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    deploy::{
        batch::{Batcher, Limits},
        protocol::{DATATYPE, Tensor},
    },
    digest::Digest,
    error::{Error, Kind, Result},
    model::{
        offline::Offline, package::Description, picture, registry::Version, settings::Backbone, softmax::best,
    },
    repo::Repo,
};

/// A version with its network, running.
pub struct Served {
    /// `pets`
    pub model: String,
    /// `v0.1.0`
    pub number: String,
    pub package: Digest,
    pub description: Description,
    pub engine: String,
    pub batcher: Batcher,
}

/// What a model says of one picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    pub class: String,
    pub probability: f32,
    /// By class, in the package's order.
    pub scores: Vec<f32>,
    /// What the head saw; empty where the network does not show it.
    #[serde(skip)]
    pub features: Vec<f32>,
}

impl Served {
    /// Loads a package from the store, and runs its network once.
    pub fn load(repo: &Repo, version: &Version, limits: Limits) -> Result<Arc<Self>> {
        let Offline { description, engine, .. } = Offline::load(repo, version)?;
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

    /// What it takes and gives.
    pub(super) fn tensors(&self) -> (Tensor, Tensor) {
        let (input, side) = (&self.description.input, i64::from(self.description.input.crop));
        let tensor = |name: &str, shape| Tensor { name: name.to_owned(), datatype: DATATYPE, shape };
        let classes = self.description.classes.len() as i64;
        (tensor(&input.name, vec![-1, 3, side, side]), tensor(&self.description.output, vec![-1, classes]))
    }

    /// Planes of one picture, as the network takes them.
    pub fn planes(&self, bytes: &[u8]) -> Result<Vec<f32>> {
        let input = &self.description.input;
        let settings =
            Backbone { resize: input.resize, crop: input.crop, filter: input.filter, ..Backbone::default() };
        Ok(picture::planes(&picture::decode(bytes)?, &settings))
    }

    /// Values of one planes' set.
    pub fn values(&self) -> usize {
        let side = self.description.input.crop as usize;
        3 * side * side
    }

    /// Splits what the network gave into answers, one a picture.
    pub fn answers(&self, values: &[f32], rows: usize) -> Result<Vec<Answer>> {
        if rows == 0 {
            return Ok(Vec::new());
        }
        let classes = &self.description.classes;
        let answer = |row: &[f32]| {
            let (scores, features) = row.split_at(classes.len());
            let best = best(scores);
            if scores.iter().any(|it| !it.is_finite()) {
                return Err(Error::new(
                    Kind::Usage,
                    "the network gives no finite probabilities for this input",
                ));
            }
            Ok(Answer {
                class: classes[best].clone(),
                probability: scores[best],
                scores: scores.to_vec(),
                features: features.to_vec(),
            })
        };
        values.chunks(values.len() / rows).map(answer).collect()
    }
}
