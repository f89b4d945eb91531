//! Pictures through a frozen backbone, each once: what was computed before, for this backbone and this
//! preparation, is taken from the cache.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use serde_json::json;

use crate::{
    digest::Digest,
    document::canonical,
    error::{Doing, Error, Kind, Result},
    fs::{Root, Sync},
    model::{
        engine, filters, graph,
        picture::{decode, planes},
        settings::{Backbone, FilterSettings},
        split::{Picture, Segment},
        table::{About, BACKBONE, FORMAT, Table, write},
    },
    path::RepoPath,
    progress::{Event, Progress},
    repo::Repo,
};

/// Pictures that go through the network at once.
const BATCH: usize = 16;
/// Pictures that filters are learnt from, at most.
const TEACHERS: usize = 2000;

/// What a run of the stage did.
#[derive(Clone, Debug)]
pub struct Computed {
    pub pictures: u64,
    /// Those not taken from the cache.
    pub computed: u64,
    pub width: u64,
    pub engine: String,
    pub damaged: Vec<RepoPath>,
}

/// Where things are: the pictures' folder, the list of sides, the table's folder.
pub struct Places<'p> {
    pub data: &'p RepoPath,
    pub split: &'p RepoPath,
    pub out: &'p RepoPath,
    /// Where relative names in the parameters start.
    pub folder: &'p RepoPath,
}

/// Computes the feature table of all pictures in the list of sides.
pub fn compute(
    repo: &Repo,
    places: &Places<'_>,
    backbone: &Backbone,
    filters: Option<&FilterSettings>,
    data_digest: Digest,
    progress: &dyn Progress,
) -> Result<Computed> {
    backbone.check()?;
    let list = repo.files.read(places.split)?;
    let pictures = crate::model::split::parse(places.split, &list)?;
    let mut maker = Maker { repo, progress, damaged: BTreeSet::new() };
    let (settings, file, network) = maker.network(places, backbone, filters, &pictures)?;
    let key = json!({"backbone": Digest::of(&file), "settings": settings, "engine": engine::id(repo)?});
    let key = Digest::of(canonical(&key).as_bytes());
    let mut cache = Cache::load(&repo.shared, &key)?;
    let wanted: BTreeMap<Digest, &RepoPath> = pictures.iter().map(|it| (it.digest, &it.path)).collect();
    let missing: Vec<_> =
        wanted.iter().filter(|it| !cache.rows.contains_key(it.0)).map(|it| (*it.0, *it.1)).collect();
    let computed = missing.len() as u64;
    let id = maker.run(&network, &settings, &missing, &mut cache)?;
    let rows: BTreeMap<_, _> =
        wanted.keys().filter_map(|it| Some((*it, cache.rows.get(it)?.clone()))).collect();
    let width = rows.values().next().map_or(0, Vec::len);
    // A cached picture's copy may be damaged under another name only if its bytes are, so names follow digests.
    let damaged: Vec<RepoPath> =
        pictures.iter().filter(|it| !rows.contains_key(&it.digest)).map(|it| it.path.clone()).collect();
    let about = About {
        format: FORMAT,
        engine: id.clone(),
        backbone_digest: Digest::of(&file),
        data_digest,
        split_digest: Digest::of(&list),
        damaged: damaged.clone(),
        backbone: settings,
    };
    if rows.is_empty() {
        return Err(Error::new(Kind::Corrupt, "no picture can be decoded")
            .hint("look at the files: are they photos?"));
    }
    let table = Table { width, rows };
    write(&repo.files, places.out, &table, &about)?;
    if filters.is_some() {
        repo.files.write(&places.out.join(BACKBONE.as_bytes())?, &file, Sync::Later)?;
    }
    Ok(Computed { pictures: table.rows.len() as u64, computed, width: width as u64, engine: id, damaged })
}

struct Maker<'m> {
    repo: &'m Repo,
    progress: &'m dyn Progress,
    damaged: BTreeSet<RepoPath>,
}

impl Maker<'_> {
    /// Settings in force, the backbone's file, and the network to run: pixels in, features out.
    fn network(
        &mut self,
        places: &Places<'_>,
        backbone: &Backbone,
        filters: Option<&FilterSettings>,
        pictures: &[Picture],
    ) -> Result<(Backbone, Vec<u8>, Vec<u8>)> {
        let Some(filter_settings) = filters else {
            let path = RepoPath::parse(
                backbone.file.as_ref(),
                &places.folder.on_disk(self.repo.root()),
                self.repo.root(),
            )?;
            let file = self.repo.files.read_if_there(&path)?.ok_or_else(|| {
                Error::not_found(format!("the backbone `{path}` is not there"))
                    .hint("`mlx pull` it, or correct backbone.file in params.toml")
            })?;
            let network =
                graph::normalized(&file, backbone).doing(|| format!("cannot use the backbone `{path}`"))?;
            return Ok((backbone.clone(), file, graph::encode(&network)));
        };
        filter_settings.check()?;
        let settings = Backbone {
            file: String::new(),
            resize: filter_settings.picture,
            crop: filter_settings.picture,
            mean: [0.0; 3],
            scale: [1.0; 3],
            input: graph::INPUT.to_owned(),
            output: graph::FEATURES.to_owned(),
            filter: backbone.filter,
        };
        let teachers: BTreeMap<Digest, &RepoPath> = pictures
            .iter()
            .filter(|it| it.segment == Segment::Train)
            .map(|it| (it.digest, &it.path))
            .collect();
        let teachers: Vec<_> = teachers.into_iter().take(TEACHERS).collect();
        let read = self.read(&teachers, &settings)?;
        let read: Vec<Vec<f32>> = read.into_iter().map(|it| it.1).collect();
        if read.is_empty() {
            return Err(Error::new(Kind::Corrupt, "no picture of the training side can be decoded"));
        }
        let file = graph::encode(&filters::learn(&read, filter_settings));
        Ok((settings, file.clone(), file))
    }

    /// Pictures as planes; damaged ones are named and set aside.
    fn read(
        &mut self,
        pictures: &[(Digest, &RepoPath)],
        settings: &Backbone,
    ) -> Result<Vec<(Digest, Vec<f32>)>> {
        let files = &self.repo.files;
        let read = pictures.par_iter().map(|(digest, path)| -> Result<_> {
            let bytes = files.read(path)?;
            if Digest::of(&bytes) != *digest {
                let error = Error::new(
                    Kind::Conflict,
                    format!("`{path}` is not the picture that the list of sides means"),
                );
                return Err(error.hint("make the list anew: `mlx repro` or `mlx data split`"));
            }
            Ok((*digest, *path, decode(&bytes).map(|it| planes(&it, settings))))
        });
        let mut found = Vec::with_capacity(pictures.len());
        for row in read.collect::<Vec<_>>() {
            let (digest, path, planes) = row?;
            match planes {
                Ok(planes) => found.push((digest, planes)),
                Err(error) => {
                    if self.damaged.insert(path.clone()) {
                        self.progress.warn(&format!("`{path}` is set aside: {}", error.full_text()));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Computes what is missing, batch by batch, into the cache; the engine's name.
    fn run(
        &mut self,
        network: &[u8],
        settings: &Backbone,
        missing: &[(Digest, &RepoPath)],
        cache: &mut Cache,
    ) -> Result<String> {
        if missing.is_empty() {
            return engine::id(self.repo);
        }
        let mut engine = engine::load(self.repo, network, graph::INPUT, graph::FEATURES)?;
        self.progress.event(Event::Started { task: "features", total: Some(missing.len() as u64) });
        for batch in missing.chunks(BATCH) {
            let pictures = self.read(batch, settings)?;
            let planes: Vec<f32> = pictures.iter().flat_map(|it| it.1.iter().copied()).collect();
            if !pictures.is_empty() {
                let values = engine.run(&planes, settings.crop as usize)?;
                let width = values.len() / pictures.len();
                let rows = pictures.iter().zip(values.chunks(width)).map(|(it, row)| (it.0, row.to_vec()));
                cache.append(rows.collect())?;
            }
            self.progress.event(Event::Advanced { by: batch.len() as u64 });
        }
        self.progress.event(Event::Finished);
        Ok(engine.id())
    }
}

/// Rows of one backbone and preparation on this machine: digest, numbers, a check. A torn end is cut.
struct Cache<'c> {
    root: &'c Root,
    path: RepoPath,
    rows: BTreeMap<Digest, Vec<f32>>,
}

impl<'c> Cache<'c> {
    fn load(root: &'c Root, key: &Digest) -> Result<Self> {
        let path = RepoPath::from_text(&format!("features/{}", key.hex()))?;
        let bytes = root.read_if_there(&path)?.unwrap_or_default();
        let mut rows = BTreeMap::new();
        let mut rest = &bytes[..];
        while let Some((digest, row, after)) = parse(rest) {
            rows.insert(digest, row);
            rest = after;
        }
        if !rest.is_empty() {
            let good = bytes.len() - rest.len();
            root.write(&path, &bytes[..good], Sync::Later)?;
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
            row.iter().for_each(|it| out.extend_from_slice(&it.to_le_bytes()));
            let check = Digest::of(&out[start..]);
            out.extend_from_slice(&check.bytes()[..8]);
        }
        let mut file = self.root.append(&self.path)?;
        file.write_all(&out).doing(|| "cannot write the cache of features".into())?;
        self.rows.extend(rows);
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Option<(Digest, Vec<f32>, &[u8])> {
    let digest = Digest::from_bytes(bytes.get(..32)?.try_into().ok()?);
    let width = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
    let end = 40_usize.checked_add(width.checked_mul(4)?)?;
    let check = bytes.get(end..end.checked_add(8)?)?;
    let values = bytes.get(40..end)?;
    if Digest::of(&bytes[..end]).bytes()[..8] != *check {
        return None;
    }
    let row = values.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it)).collect();
    Some((digest, row, &bytes[end + 8..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_end_of_the_cache_is_cut_and_the_rest_kept() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let key = Digest::of(b"key");
        let rows: Vec<_> = (0..5_u8).map(|it| (Digest::of(&[it]), vec![f32::from(it); 3])).collect();
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
