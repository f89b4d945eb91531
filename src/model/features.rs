//! Computes the features of images with a frozen backbone, or with filters learned from the training images.
//!
//! Each image is computed once: features are cached by image digest for each combination of backbone,
//! preprocessing settings and engine. Images that cannot be decoded are reported and left out of the table.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use serde_json::json;

use crate::{
    digest::Digest,
    document::canonical,
    error::{Error, Kind, Result, WithContext},
    fs::{Root, Sync},
    model::{
        engine, filters, graph,
        preprocess::{decode, planes},
        settings::{Backbone, FilterSettings},
        split::{LabeledImage, Subset},
        table::{BACKBONE, FORMAT, Metadata, Table, write},
    },
    path::RepoPath,
    progress::{Event, Progress},
    repo::Repo,
};

/// Number of images per call of the model.
const BATCH: usize = 16;
/// Largest number of images from which filters are learned.
const MAX_FILTER_IMAGES: usize = 2000;

/// Summary of a feature computation.
#[derive(Clone, Debug)]
pub struct FeatureSummary {
    /// Number of images in the table.
    pub images: u64,
    /// Number of images that were not in the cache.
    pub computed: u64,
    /// Number of features per image.
    pub width: u64,
    /// Name and version of the engine.
    pub engine: String,
    /// Images that could not be decoded.
    pub damaged: Vec<RepoPath>,
}

/// Input and output paths of a feature computation.
pub struct FeaturePaths<'p> {
    /// Folder of the images.
    pub data: &'p RepoPath,
    /// The split file.
    pub split: &'p RepoPath,
    /// Folder of the feature table.
    pub out: &'p RepoPath,
    /// Folder to which relative paths in the parameters refer.
    pub folder: &'p RepoPath,
}

/// Computes the feature table of all images in the split file. Without `filters`, the backbone is the file
/// that the settings name.
pub fn compute(
    repo: &Repo,
    places: &FeaturePaths<'_>,
    backbone: &Backbone,
    filters: Option<&FilterSettings>,
    data_digest: Digest,
    progress: &dyn Progress,
) -> Result<FeatureSummary> {
    backbone.check()?;
    let list = repo.files.read(places.split)?;
    let images = crate::model::split::parse(places.split, &list)?;
    let mut extractor = Extractor { repo, progress, damaged: BTreeSet::new() };
    let (settings, file, model) = extractor.prepare_model(places, backbone, filters, &images)?;
    let key = json!({"backbone": Digest::of(&file), "settings": settings, "engine": engine::id(repo)?});
    let key = Digest::of(canonical(&key).as_bytes());
    let mut cache = Cache::load(&repo.shared, &key)?;
    let wanted: BTreeMap<Digest, &RepoPath> =
        images.iter().map(|image| (image.digest, &image.path)).collect();
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(digest, _)| !cache.rows.contains_key(*digest))
        .map(|(digest, path)| (*digest, *path))
        .collect();
    let computed = missing.len() as u64;
    let id = extractor.compute_missing(&model, &settings, &missing, &mut cache)?;
    let rows: BTreeMap<_, _> =
        wanted.keys().filter_map(|digest| Some((*digest, cache.rows.get(digest)?.clone()))).collect();
    let width = rows.values().next().map_or(0, Vec::len);
    // Each digest is decoded once, but all paths with a damaged digest are reported.
    let damaged: Vec<RepoPath> = images
        .iter()
        .filter(|image| !rows.contains_key(&image.digest))
        .map(|image| image.path.clone())
        .collect();
    let metadata = Metadata {
        format: FORMAT,
        engine: id.clone(),
        backbone_digest: Digest::of(&file),
        data_digest,
        split_digest: Digest::of(&list),
        damaged: damaged.clone(),
        backbone: settings,
    };
    if rows.is_empty() {
        return Err(Error::new(Kind::Corrupt, "none of the images can be decoded")
            .hint("check that the files are JPEG, PNG or other images"));
    }
    let table = Table { width, rows };
    write(&repo.files, places.out, &table, &metadata)?;
    if filters.is_some() {
        repo.files.write(&places.out.join(BACKBONE.as_bytes())?, &file, Sync::Later)?;
    }
    Ok(FeatureSummary { images: table.rows.len() as u64, computed, width: width as u64, engine: id, damaged })
}

/// Runs images through the backbone and collects those that cannot be decoded.
struct Extractor<'m> {
    repo: &'m Repo,
    progress: &'m dyn Progress,
    damaged: BTreeSet<RepoPath>,
}

impl Extractor<'_> {
    /// Returns the effective settings, the backbone's file, and the ONNX model to run, from pixels to
    /// features.
    fn prepare_model(
        &mut self,
        places: &FeaturePaths<'_>,
        backbone: &Backbone,
        filters: Option<&FilterSettings>,
        images: &[LabeledImage],
    ) -> Result<(Backbone, Vec<u8>, Vec<u8>)> {
        let Some(filter_settings) = filters else {
            let path = RepoPath::parse(
                backbone.file.as_ref(),
                &places.folder.on_disk(self.repo.root()),
                self.repo.root(),
            )?;
            let file = self.repo.files.read_if_exists(&path)?.ok_or_else(|| {
                Error::not_found(format!("the backbone `{path}` does not exist"))
                    .hint("get it with `mlx pull`, or correct `backbone.file` in `params.toml`")
            })?;
            let model = graph::with_normalization(&file, backbone)
                .context(|| format!("cannot use the backbone `{path}`"))?;
            return Ok((backbone.clone(), file, graph::encode(&model)));
        };
        filter_settings.check()?;
        let settings = Backbone {
            file: String::new(),
            resize: filter_settings.image_size,
            crop: filter_settings.image_size,
            mean: [0.0; 3],
            scale: [1.0; 3],
            input: graph::INPUT.to_owned(),
            output: graph::FEATURES.to_owned(),
            filter: backbone.filter,
        };
        let training: BTreeMap<Digest, &RepoPath> = images
            .iter()
            .filter(|image| image.subset == Subset::Train)
            .map(|image| (image.digest, &image.path))
            .collect();
        let training: Vec<_> = training.into_iter().take(MAX_FILTER_IMAGES).collect();
        let decoded = self.read_images(&training, &settings)?;
        let decoded: Vec<Vec<f32>> = decoded.into_iter().map(|(_, planes)| planes).collect();
        if decoded.is_empty() {
            return Err(Error::new(Kind::Corrupt, "none of the training images can be decoded"));
        }
        let file = graph::encode(&filters::learn(&decoded, filter_settings));
        Ok((settings, file.clone(), file))
    }

    /// Reads and preprocesses images. Images that cannot be decoded are skipped with a warning.
    fn read_images(
        &mut self,
        images: &[(Digest, &RepoPath)],
        settings: &Backbone,
    ) -> Result<Vec<(Digest, Vec<f32>)>> {
        let files = &self.repo.files;
        let read = images.par_iter().map(|(digest, path)| -> Result<_> {
            let bytes = files.read(path)?;
            if Digest::of(&bytes) != *digest {
                let error = Error::new(
                    Kind::Conflict,
                    format!("`{path}` has changed since the split file was written"),
                );
                return Err(error.hint("write the split file again: `mlx repro` or `mlx data split`"));
            }
            Ok((*digest, *path, decode(&bytes).map(|image| planes(&image, settings))))
        });
        let mut found = Vec::with_capacity(images.len());
        for row in read.collect::<Vec<_>>() {
            let (digest, path, planes) = row?;
            match planes {
                Ok(planes) => found.push((digest, planes)),
                Err(error) => {
                    if self.damaged.insert(path.clone()) {
                        self.progress.warn(&format!("`{path}` is skipped: {}", error.chain_text()));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Computes the missing features, batch by batch, into the cache. Returns the engine's name and version.
    fn compute_missing(
        &mut self,
        model: &[u8],
        settings: &Backbone,
        missing: &[(Digest, &RepoPath)],
        cache: &mut Cache,
    ) -> Result<String> {
        if missing.is_empty() {
            return engine::id(self.repo);
        }
        let mut engine = engine::load(self.repo, model, graph::INPUT, graph::FEATURES)?;
        self.progress.event(Event::Started { task: "features", total: Some(missing.len() as u64) });
        for batch in missing.chunks(BATCH) {
            let images = self.read_images(batch, settings)?;
            let planes: Vec<f32> = images.iter().flat_map(|(_, planes)| planes.iter().copied()).collect();
            if !images.is_empty() {
                let values = engine.run(&planes, settings.crop as usize)?;
                let width = values.len() / images.len();
                let rows = images.iter().zip(values.chunks(width));
                cache.append(rows.map(|((digest, _), row)| (*digest, row.to_vec())).collect())?;
            }
            self.progress.event(Event::Advanced { by: batch.len() as u64 });
        }
        self.progress.event(Event::Finished);
        Ok(engine.id())
    }
}

/// This machine's cache of the features of one backbone, preprocessing and engine: a file of records, to
/// which rows are appended. A torn end, left by a killed process, is cut off.
///
/// ```text
/// digest of the image (32 bytes), number of features (u64), features (f32 each), checksum of these (8 bytes)
/// ```
struct Cache<'c> {
    root: &'c Root,
    path: RepoPath,
    rows: BTreeMap<Digest, Vec<f32>>,
}

impl<'c> Cache<'c> {
    fn load(root: &'c Root, key: &Digest) -> Result<Self> {
        let path = RepoPath::from_text(&format!("features/{}", key.hex()))?;
        let bytes = root.read_if_exists(&path)?.unwrap_or_default();
        let mut rows = BTreeMap::new();
        let mut rest = &bytes[..];
        while let Some((digest, row, after)) = parse(rest) {
            rows.insert(digest, row);
            rest = after;
        }
        if !rest.is_empty() {
            let valid = bytes.len() - rest.len();
            root.write(&path, &bytes[..valid], Sync::Later)?;
        }
        Ok(Self { root, path, rows })
    }

    fn append(&mut self, rows: Vec<(Digest, Vec<f32>)>) -> Result<()> {
        use std::io::Write as _;

        let mut out = Vec::new();
        for (digest, row) in &rows {
            let start = out.len();
            out.extend_from_slice(digest.bytes());
            out.extend_from_slice(&(row.len() as u64).to_le_bytes());
            row.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
            let checksum = Digest::of(&out[start..]);
            out.extend_from_slice(&checksum.bytes()[..8]);
        }
        let mut file = self.root.open_append(&self.path)?;
        file.write_all(&out).context(|| "cannot write the feature cache".into())?;
        self.rows.extend(rows);
        Ok(())
    }
}

/// Parses the first record of a cache file: digest, features and the remaining bytes. None when it is
/// incomplete or its checksum is wrong.
fn parse(bytes: &[u8]) -> Option<(Digest, Vec<f32>, &[u8])> {
    let digest = Digest::from_bytes(bytes.get(..32)?.try_into().ok()?);
    let width = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
    let end = 40_usize.checked_add(width.checked_mul(4)?)?;
    let checksum = bytes.get(end..end.checked_add(8)?)?;
    let values = bytes.get(40..end)?;
    if Digest::of(&bytes[..end]).bytes()[..8] != *checksum {
        return None;
    }
    let row = values.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
    Some((digest, row, &bytes[end + 8..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_end_of_the_cache_is_cut_off() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let key = Digest::of(b"key");
        let rows: Vec<_> = (0..5_u8).map(|value| (Digest::of(&[value]), vec![f32::from(value); 3])).collect();
        Cache::load(&root, &key).unwrap().append(rows.clone()).unwrap();
        let path = Cache::load(&root, &key).unwrap().path;
        let bytes = root.read(&path).unwrap();
        root.write(&path, &bytes[..bytes.len() - 5], Sync::Later).unwrap();
        let mut cache = Cache::load(&root, &key).unwrap();
        assert_eq!(cache.rows.len(), 4);
        cache.append(vec![rows[4].clone()]).unwrap();
        assert_eq!(Cache::load(&root, &key).unwrap().rows.into_iter().collect::<Vec<_>>().len(), 5);
        assert_eq!(root.read(&path).unwrap(), bytes);
    }
}
