//! A registered package, run without a service: what it says of pictures, and what its head saw.

use rayon::prelude::*;

use crate::{
    error::{Doing, Error, Kind, Result},
    model::{
        engine::{self, Engine},
        graph, onnx,
        package::{self, Description},
        picture,
        registry::Version,
        settings::Backbone,
        softmax::best,
    },
    path::RepoPath,
    repo::Repo,
    store,
};

/// Pictures that go through the network at once.
const BATCH: usize = 16;

/// A package with its network.
pub struct Offline {
    pub name: String,
    pub description: Description,
    pub engine: Box<dyn Engine>,
}

/// What a package says of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Place in the description's classes.
    pub class: usize,
    pub scores: Vec<f32>,
    /// What the head saw; empty where the network does not show it.
    pub features: Vec<f32>,
}

/// One file of a stored package.
pub fn read(repo: &Repo, version: &Version, name: &str) -> Result<Option<Vec<u8>>> {
    let entry = store::file_at(&repo.store, &version.package.digest, &RepoPath::from_text(name)?)?;
    entry.map(|it| repo.store.read(&it.digest)).transpose()
}

impl Offline {
    /// Loads a package from the store and sees that its network gives finite numbers.
    pub fn load(repo: &Repo, version: &Version) -> Result<Self> {
        let name = version.name();
        let doing = || format!("cannot load `{name}`");
        let need = |file: &str| {
            let missing = || Error::corrupt(format!("the package of `{name}` has no {file}"));
            read(repo, version, file).and_then(|it| it.ok_or_else(missing)).doing(doing)
        };
        let description = package::parse(&format!("{name}/model.toml"), &need("model.toml")?)?;
        let network = graph::encode(&graph::with_features(onnx::parse(&need("model.onnx")?)?));
        let mut engine = engine::load(repo, &network, &description.input.name, graph::BOTH).doing(doing)?;
        let side = description.input.crop as usize;
        let found = engine.run(&vec![0.0; 3 * side * side], side).doing(doing)?;
        if found.len() < description.classes.len() || found.iter().any(|it| !it.is_finite()) {
            return Err(Error::corrupt(format!("`{name}` gives no probabilities for a black picture")));
        }
        Ok(Self { name, description, engine })
    }

    /// How pictures are prepared for this package.
    pub fn settings(&self) -> Backbone {
        let input = &self.description.input;
        Backbone { resize: input.resize, crop: input.crop, filter: input.filter, ..Backbone::default() }
    }

    /// What the package says of pictures (files of the usual kinds); an error for each that cannot be decoded.
    pub fn see(&mut self, pictures: &[Vec<u8>]) -> Result<Vec<Result<Seen>>> {
        let settings = self.settings();
        let mut found = Vec::with_capacity(pictures.len());
        for batch in pictures.chunks(BATCH) {
            let planes: Vec<_> =
                batch.par_iter().map(|it| Ok(picture::planes(&picture::decode(it)?, &settings))).collect();
            let good: Vec<f32> = planes.iter().flatten().flatten().copied().collect();
            let mut rows = self.run(&good)?.into_iter();
            for planes in planes {
                found.push(planes.and_then(|_: Vec<f32>| {
                    rows.next().ok_or_else(|| Error::new(Kind::Internal, "the network gave too few rows"))
                }));
            }
        }
        Ok(found)
    }

    /// What the package says of prepared pictures (3×side×side values each).
    pub fn run(&mut self, planes: &[f32]) -> Result<Vec<Seen>> {
        let side = self.description.input.crop as usize;
        let rows = planes.len() / (3 * side * side);
        if rows == 0 {
            return Ok(Vec::new());
        }
        let values = self.engine.run(planes, side)?;
        let classes = self.description.classes.len();
        let row = |it: &[f32]| {
            let (scores, features) = it.split_at(classes);
            Seen { class: best(scores), scores: scores.to_vec(), features: features.to_vec() }
        };
        Ok(values.chunks(values.len() / rows).map(row).collect())
    }
}
