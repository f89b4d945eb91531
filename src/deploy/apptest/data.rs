//! Test images of an application test: the test set of the version's own split, or a labeled folder.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result},
    fs::{self, Entry, FileKind, NoFilter, Root},
    git::Git,
    model::{
        registry::Version,
        split::{self, Subset, is_image},
    },
    path::{RepoPath, escape_bytes},
    store::Store,
};

/// Split file, where the template's `mlx data split` writes it.
const SPLIT: &str = "split.tsv";

/// Test set: each image once, sorted by digest.
pub struct Data {
    pub name: String,
    pub cases: Vec<Case>,
}

/// Image with its true class.
#[derive(Clone, Debug)]
pub struct Case {
    pub digest: Digest,
    pub label: String,
    /// Path of its subfolder below the class folder; `None` if the image is in the class folder itself.
    pub folder: Option<String>,
    pub source: Source,
}

/// Location of an image's bytes.
#[derive(Clone, Debug)]
pub enum Source {
    /// In the store, tracked at this path in the repository.
    Store(RepoPath),
    /// File on disk.
    File(PathBuf),
}

impl Case {
    /// Reads the image file.
    pub fn bytes(&self, store: &Store) -> Result<Vec<u8>> {
        match &self.source {
            Source::Store(_) => store.read(&self.digest),
            Source::File(path) => fs::read_user_file(path),
        }
    }
}

/// Loads the test set of the split file in a version's commit.
pub fn test_set(git: &Git, version: &Version) -> Result<Data> {
    let path = RepoPath::from_text(SPLIT)?;
    let bytes = git.read(&version.tag.rev, &path)?.ok_or_else(|| {
        Error::not_found(format!("the commit of `{}` has no `{SPLIT}`", version.name()))
            .hint("commit the split file next to mlx.toml, or pass a folder: `--data FOLDER`")
    })?;
    let images = split::parse(&path, &bytes)?;
    let cases = images.into_iter().filter(|it| it.subset == Subset::Test).map(|image| Case {
        digest: image.digest,
        folder: subfolder(&image.path, &image.class),
        label: image.class,
        source: Source::Store(image.path),
    });
    deduplicate("test", cases)
}

/// Loads the images of a folder with one subfolder per class. Symbolic links are not followed.
pub fn folder(name: &str, dir: &Path) -> Result<Data> {
    let root = Root::open(dir)?;
    let mut cases = Vec::new();
    for class in root.entries(&RepoPath::root(), &NoFilter)?.iter() {
        let path = RepoPath::root().join(class.name)?;
        let mut found = Vec::new();
        collect_files(class, &path, &mut found)?;
        for file in found.into_iter().filter(|it| *it != path && is_image(it)) {
            cases.push(Case {
                digest: Digest::of(&root.read(&file)?),
                label: escape_bytes(class.name),
                folder: subfolder(&file, &escape_bytes(class.name)),
                source: Source::File(file.on_disk(dir)),
            });
        }
    }
    deduplicate(name, cases)
}

fn collect_files(entry: Entry<'_>, path: &RepoPath, found: &mut Vec<RepoPath>) -> Result<()> {
    if entry.stat.kind == FileKind::File {
        found.push(path.clone());
    }
    entry.children.iter().try_for_each(|child| collect_files(child, &path.join(child.name)?, found))
}

/// Returns the folders between class and file: `night/rain` for `data/cat/night/rain/1.jpg`.
fn subfolder(path: &RepoPath, class: &str) -> Option<String> {
    let names: Vec<String> = path.components().map(escape_bytes).collect();
    let at = names.iter().position(|it| it == class)?;
    let between = names.get(at + 1..names.len() - 1).filter(|it| !it.is_empty())?;
    Some(between.join("/"))
}

/// Drops repeated images and sorts the rest by digest. Fails if an image has two labels or none is left.
fn deduplicate(name: &str, cases: impl IntoIterator<Item = Case>) -> Result<Data> {
    let mut kept: BTreeMap<Digest, Case> = BTreeMap::new();
    for case in cases {
        let first = kept.entry(case.digest).or_insert_with(|| case.clone());
        if first.label != case.label {
            let labels = (&first.label, &case.label);
            let message =
                format!("an image is labeled both `{}` and `{}`: {:?}", labels.0, labels.1, case.source);
            return Err(Error::new(Kind::Conflict, message).hint("an image must have one label"));
        }
    }
    if kept.is_empty() {
        let error = Error::not_found(format!("no images found in `{name}`"));
        return Err(error.hint("the folder needs one subfolder per class, with JPEG or PNG files"));
    }
    Ok(Data { name: name.to_owned(), cases: kept.into_values().collect() })
}

impl Data {
    /// Returns the digest of the sorted image digests, which identifies the set.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.cases.iter().flat_map(|it| *it.digest.bytes()).collect::<Vec<u8>>())
    }

    /// Fails if an image has a label that is not a class of the model.
    pub fn check(&self, classes: &[String]) -> Result<()> {
        let unknown = self.cases.iter().find(|it| !classes.contains(&it.label));
        let Some(unknown) = unknown else { return Ok(()) };
        let error = Error::usage(format!("`{}` is not a class of the model", unknown.label));
        Err(error.hint(format!("the classes are {}: one subfolder each", classes.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subfolders_of_a_class_are_groups() {
        let group = |path: &str, class: &str| subfolder(&RepoPath::from_text(path).unwrap(), class);
        assert_eq!(group("data/cat/night/rain/1.jpg", "cat").as_deref(), Some("night/rain"));
        assert_eq!(group("cat/1.jpg", "cat"), None);
        assert_eq!(group("elsewhere/1.jpg", "cat"), None);
    }

    #[test]
    fn equal_images_count_once_and_must_have_one_label() {
        let case = |label: &str| Case {
            digest: Digest::of(b"x"),
            label: label.into(),
            folder: None,
            source: Source::File(label.into()),
        };
        assert_eq!(deduplicate("x", [case("cat"), case("cat")]).unwrap().cases.len(), 1);
        assert_eq!(
            deduplicate("x", [case("cat"), case("dog")]).map(drop).unwrap_err().kind(),
            Kind::Conflict
        );
        assert_eq!(deduplicate("x", []).map(drop).unwrap_err().kind(), Kind::NotFound);
    }
}
