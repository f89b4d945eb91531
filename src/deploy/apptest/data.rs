//! The pictures of an application test: the test segment of a version's own split, or a folder.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result},
    fs::{self, Entry, Everything, Form, Root},
    git::Git,
    model::{
        registry::Version,
        split::{self, Segment, is_picture},
    },
    path::{RepoPath, show},
    store::Store,
};

/// Where `mlx data split` of the template puts the list.
const SPLIT: &str = "split.tsv";

/// What a service is asked about: each picture once, sorted by digest.
pub struct Data {
    pub name: String,
    pub cases: Vec<Case>,
}

/// A picture with what it shows.
#[derive(Clone, Debug)]
pub struct Case {
    pub digest: Digest,
    pub label: String,
    /// Below the folder of its class, where it does not lie there directly.
    pub folder: Option<String>,
    pub source: Source,
}

/// Where the bytes are.
#[derive(Clone, Debug)]
pub enum Source {
    /// In the store; this is its path in the repository.
    Store(RepoPath),
    File(PathBuf),
}

impl Case {
    pub fn bytes(&self, store: &Store) -> Result<Vec<u8>> {
        match &self.source {
            Source::Store(_) => store.read(&self.digest),
            Source::File(path) => fs::read_outside(path),
        }
    }
}

/// The test side of the split that a version's commit holds.
pub fn segment(git: &Git, version: &Version) -> Result<Data> {
    let path = RepoPath::from_text(SPLIT)?;
    let bytes = git.read(&version.tag.rev, &path)?.ok_or_else(|| {
        Error::not_found(format!("the commit of `{}` has no `{SPLIT}`", version.name()))
            .hint("keep the split in Git, beside mlx.toml, or name a folder: `--data FOLDER`")
    })?;
    let pictures = split::parse(&path, &bytes)?;
    let cases = pictures.into_iter().filter(|it| it.segment == Segment::Test).map(|it| Case {
        digest: it.digest,
        folder: below_class(&it.path, &it.class),
        label: it.class,
        source: Source::Store(it.path),
    });
    once("test", cases)
}

/// The pictures of a folder with one subfolder a class; links are not followed.
pub fn folder(name: &str, place: &Path) -> Result<Data> {
    let root = Root::open(place)?;
    let mut cases = Vec::new();
    for class in root.entries(&RepoPath::root(), &Everything)?.iter() {
        let path = RepoPath::root().join(class.name)?;
        let mut found = Vec::new();
        files(class, &path, &mut found)?;
        for file in found.into_iter().filter(|it| *it != path && is_picture(it)) {
            cases.push(Case {
                digest: Digest::of(&root.read(&file)?),
                label: show(class.name),
                folder: below_class(&file, &show(class.name)),
                source: Source::File(file.on_disk(place)),
            });
        }
    }
    once(name, cases)
}

fn files(entry: Entry<'_>, path: &RepoPath, found: &mut Vec<RepoPath>) -> Result<()> {
    if entry.stamp.form == Form::File {
        found.push(path.clone());
    }
    entry.children.iter().try_for_each(|it| files(it, &path.join(it.name)?, found))
}

/// `night/rain` of `data/cat/night/rain/1.jpg`.
fn below_class(path: &RepoPath, class: &str) -> Option<String> {
    let names: Vec<String> = path.components().map(show).collect();
    let at = names.iter().position(|it| it == class)?;
    let between = names.get(at + 1..names.len() - 1).filter(|it| !it.is_empty())?;
    Some(between.join("/"))
}

fn once(name: &str, cases: impl IntoIterator<Item = Case>) -> Result<Data> {
    let mut kept: BTreeMap<Digest, Case> = BTreeMap::new();
    for case in cases {
        let first = kept.entry(case.digest).or_insert_with(|| case.clone());
        if first.label != case.label {
            let message = format!("one picture is `{}` and `{}`: {:?}", first.label, case.label, case.source);
            return Err(Error::new(Kind::Conflict, message).hint("a picture has one label"));
        }
    }
    if kept.is_empty() {
        let error = Error::not_found(format!("there are no pictures in `{name}`"));
        return Err(error.hint("one subfolder a class, with JPEG or PNG files in it"));
    }
    Ok(Data { name: name.to_owned(), cases: kept.into_values().collect() })
}

impl Data {
    /// Over the sorted digests of the pictures: the same set has the same.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.cases.iter().flat_map(|it| *it.digest.bytes()).collect::<Vec<u8>>())
    }

    /// A picture that no class of the model could be right about is a mistake of the set.
    pub fn check(&self, classes: &[String]) -> Result<()> {
        let Some(odd) = self.cases.iter().find(|it| !classes.contains(&it.label)) else { return Ok(()) };
        let error = Error::usage(format!("the model knows no class `{}`", odd.label));
        Err(error.hint(format!("it knows {}: one subfolder each", classes.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subfolders_of_a_class_are_groups() {
        let group = |path: &str, class: &str| below_class(&RepoPath::from_text(path).unwrap(), class);
        assert_eq!(group("data/cat/night/rain/1.jpg", "cat").as_deref(), Some("night/rain"));
        assert_eq!(group("cat/1.jpg", "cat"), None);
        assert_eq!(group("elsewhere/1.jpg", "cat"), None);
    }

    #[test]
    fn equal_pictures_count_once_and_have_one_label() {
        let case = |label: &str| Case {
            digest: Digest::of(b"x"),
            label: label.into(),
            folder: None,
            source: Source::File(label.into()),
        };
        assert_eq!(once("x", [case("cat"), case("cat")]).unwrap().cases.len(), 1);
        assert_eq!(once("x", [case("cat"), case("dog")]).map(drop).unwrap_err().kind(), Kind::Conflict);
        assert_eq!(once("x", []).map(drop).unwrap_err().kind(), Kind::NotFound);
    }
}
