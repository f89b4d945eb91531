//! Builds the reference table of a package: statistics, features and scores of a sample of the training
//! images.
//!
//! The table has the format of sealed traffic and is part of the package, so that traffic can be compared
//! with the training images wherever the package serves.

use rayon::prelude::*;

use crate::{
    error::Result,
    fs::Root,
    model::{
        image_stats::measure_image,
        package::PackageInputs,
        preprocess::{decode, planes},
        split::{LabeledImage, Subset, unit_hash},
    },
    repo::Repo,
    traffic::{Record, write_requests},
};

/// Largest number of rows. The images with the lowest hashes are taken, which is an unbiased sample.
const MAX_ROWS: usize = 1000;

/// Builds the reference table as a Parquet file.
pub fn build_reference(repo: &Repo, parts: &PackageInputs<'_>) -> Result<Vec<u8>> {
    let mut chosen: Vec<&LabeledImage> = parts
        .images
        .iter()
        .filter(|image| image.subset == Subset::Train && parts.table.rows.contains_key(&image.digest))
        .collect();
    chosen.sort_by(|a, b| {
        unit_hash(0, &a.digest).total_cmp(&unit_hash(0, &b.digest)).then(a.digest.cmp(&b.digest))
    });
    chosen.dedup_by_key(|image| image.digest);
    chosen.truncate(MAX_ROWS);
    chosen.sort_by_key(|image| image.digest);
    let files = &repo.files;
    let rows = chosen.par_iter().map(|image| row(files, parts, image)).collect::<Result<Vec<_>>>()?;
    write_requests(&rows)
}

fn row(files: &Root, parts: &PackageInputs<'_>, image: &LabeledImage) -> Result<Record> {
    let settings = &parts.metadata.backbone;
    let planes = planes(&decode(&files.read(&image.path)?)?, settings);
    let features = parts.table.rows[&image.digest].clone();
    let scores: Vec<f32> = parts.head.predict(&features).into_iter().map(|it| it as f32).collect();
    Ok(Record {
        id: image.digest.to_string(),
        captured: 0,
        received: 0,
        version: String::new(),
        // The package's digest is not known yet, so that of the head is stored.
        package: parts.head_digest,
        input: image.digest,
        name: image.path.to_text(),
        status: 200,
        latency: 0.0,
        class: image.class.clone(),
        scores,
        features,
        image_stats: Some(measure_image(&planes, settings.crop as usize)),
        kept: false,
    })
}
