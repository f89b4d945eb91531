//! What a model knows of its training pictures, kept in its package in the form of traffic: what comes later is
//! held against it, wherever the package serves.

use rayon::prelude::*;

use crate::{
    error::Result,
    fs::Root,
    model::{
        looks::looks,
        package::Parts,
        picture::{decode, planes},
        split::{Picture, Segment, draw},
    },
    repo::Repo,
    traffic::{Record, write_requests},
};

/// Pictures that are kept, at most: those with the lowest numbers drawn, so that any part is a fair one.
const KEPT: usize = 1000;

/// The training side as a table of traffic: what each picture looks like, its features, and what the model says.
pub fn reference(repo: &Repo, parts: &Parts<'_>) -> Result<Vec<u8>> {
    let mut chosen: Vec<&Picture> = parts
        .pictures
        .iter()
        .filter(|it| it.segment == Segment::Train && parts.table.rows.contains_key(&it.digest))
        .collect();
    chosen.sort_by(|a, b| draw(0, &a.digest).total_cmp(&draw(0, &b.digest)).then(a.digest.cmp(&b.digest)));
    chosen.dedup_by_key(|it| it.digest);
    chosen.truncate(KEPT);
    chosen.sort_by_key(|it| it.digest);
    let files = &repo.files;
    let rows = chosen.par_iter().map(|it| row(files, parts, it)).collect::<Result<Vec<_>>>()?;
    write_requests(&rows)
}

fn row(files: &Root, parts: &Parts<'_>, picture: &Picture) -> Result<Record> {
    let settings = &parts.about.backbone;
    let planes = planes(&decode(&files.read(&picture.path)?)?, settings);
    let features = parts.table.rows[&picture.digest].clone();
    let scores: Vec<f32> = parts.head.predict(&features).into_iter().map(|it| it as f32).collect();
    Ok(Record {
        id: picture.digest.to_string(),
        captured: 0,
        received: 0,
        version: String::new(),
        // The package has no digest yet; the head has.
        package: parts.head_digest,
        input: picture.digest,
        name: picture.path.to_text(),
        status: 200,
        latency: 0.0,
        class: picture.class.clone(),
        scores,
        features,
        looks: Some(looks(&planes, settings.crop as usize)),
        kept: false,
    })
}
