//! Puts pictures on sides, the same way every time.
//!
//! A picture's side follows from the seed and its digest alone, so it never changes when others come or go,
//! and equal pictures stay together. In a class with fewer than twenty pictures the share is kept exactly
//! instead: those with the lowest numbers go to the test.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Digest,
    document,
    error::{Error, Kind, Result},
    model::settings::SplitSettings,
    path::RepoPath,
    store::EntryKind,
    workspace::Node,
};

const FEW: usize = 20;
/// A class with fewer pictures can be neither taught nor examined.
const FEWEST: usize = 5;
const ENDINGS: [&str; 6] = ["bmp", "gif", "jpeg", "jpg", "png", "webp"];

/// The side of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    Train,
    Test,
}

/// A picture with its side.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Picture {
    pub path: RepoPath,
    pub digest: Digest,
    pub class: String,
    pub segment: Segment,
}

/// What was found in a folder with one subfolder a class.
#[derive(Debug, Default)]
pub struct Found {
    /// Path, digest and class.
    pub pictures: Vec<(RepoPath, Digest, String)>,
    /// Files that are no pictures by their names.
    pub others: u64,
}

/// Gathers the pictures of each class: those anywhere below a folder at the top.
pub fn gather(folder: &Node, at: &RepoPath) -> Result<Found> {
    let mut found = Found::default();
    for class in folder.children() {
        if class.kind != EntryKind::Folder {
            found.others += 1;
            continue;
        }
        let name = crate::path::show(&class.name);
        for (path, leaf) in class.leaves(&at.join(&class.name)?)? {
            match leaf.kind {
                EntryKind::File | EntryKind::Executable if is_picture(&path) => {
                    found.pictures.push((path, leaf.digest, name.clone()));
                }
                EntryKind::Folder => {}
                _ => found.others += 1,
            }
        }
    }
    Ok(found)
}

/// Whether a file is a picture by its name.
pub fn is_picture(path: &RepoPath) -> bool {
    let name = String::from_utf8_lossy(path.name()).to_lowercase();
    name.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&ending))
}

/// Puts each picture on a side, sorted by path.
pub fn split(found: Found, settings: &SplitSettings) -> Result<Vec<Picture>> {
    let mut classes: BTreeMap<&str, BTreeSet<Digest>> = BTreeMap::new();
    let mut class_of: BTreeMap<Digest, &(RepoPath, Digest, String)> = BTreeMap::new();
    for picture in &found.pictures {
        let first = class_of.entry(picture.1).or_insert(picture);
        if first.2 != picture.2 {
            let message = format!("`{}` and `{}` are the same picture in two classes", first.0, picture.0);
            return Err(Error::new(Kind::Conflict, message)
                .hint("a picture has one label: remove it from one of the folders"));
        }
        classes.entry(&picture.2).or_default().insert(picture.1);
    }
    check_classes(&classes)?;
    let mut test = BTreeSet::new();
    for digests in classes.values() {
        test.extend(chosen(digests, settings));
    }
    let segment = |digest: &Digest| if test.contains(digest) { Segment::Test } else { Segment::Train };
    let row = |(path, digest, class): &(RepoPath, Digest, String)| Picture {
        path: path.clone(),
        digest: *digest,
        class: class.clone(),
        segment: segment(digest),
    };
    let mut pictures: Vec<_> = found.pictures.iter().map(row).collect();
    pictures.sort();
    Ok(pictures)
}

fn check_classes(classes: &BTreeMap<&str, BTreeSet<Digest>>) -> Result<()> {
    if classes.is_empty() {
        return Err(Error::not_found("there are no pictures")
            .hint("one subfolder a class, with JPEG or PNG files in it"));
    }
    if let Some((name, digests)) = classes.iter().find(|it| it.1.len() < FEWEST) {
        let message =
            format!("the class `{name}` has {} different pictures; {FEWEST} are the least", digests.len());
        return Err(Error::usage(message).hint("add pictures of it, or remove its folder"));
    }
    if classes.len() == 1 {
        let name = classes.keys().next().copied().unwrap_or_default();
        let error = Error::usage(format!("there is one class only, `{name}`"));
        return Err(error.hint("telling apart needs two: one subfolder a class"));
    }
    Ok(())
}

/// The pictures of one class that go to the test.
fn chosen(digests: &BTreeSet<Digest>, settings: &SplitSettings) -> Vec<Digest> {
    let mut drawn: Vec<(f64, Digest)> = digests.iter().map(|it| (draw(settings.seed, it), *it)).collect();
    drawn.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let few = if digests.len() < FEW {
        ((digests.len() as f64 * settings.test).round() as usize).clamp(1, digests.len() - 1)
    } else {
        drawn.iter().filter(|it| it.0 < settings.test).count().clamp(1, digests.len() - 1)
    };
    drawn.into_iter().take(few).map(|it| it.1).collect()
}

/// A number between 0 and 1 that belongs to a seed and a picture.
pub fn draw(seed: u64, digest: &Digest) -> f64 {
    let hash = Digest::of(&[&seed.to_le_bytes()[..], digest.bytes()].concat());
    let bits = u64::from_le_bytes(hash.bytes()[..8].try_into().expect("a digest has 8 bytes"));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

impl Segment {
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// A line a picture: path, digest, class, segment, with tabs between them.
pub fn print(pictures: &[Picture]) -> String {
    let line =
        |it: &Picture| format!("{}\t{}\t{}\t{}\n", it.path.to_text(), it.digest, it.class, it.segment.name());
    pictures.iter().map(line).collect()
}

/// Reads what [`print`] wrote.
pub fn parse(name: &RepoPath, bytes: &[u8]) -> Result<Vec<Picture>> {
    let broken =
        |line: usize| Error::corrupt(format!("line {line} of `{name}` is not a picture with its side"));
    let text = std::str::from_utf8(bytes).map_err(|_| broken(1))?;
    if document::has_conflict_marks(text) {
        return Err(
            Error::corrupt(format!("`{name}` has merge-conflict marks")).hint("`mlx repro` makes it anew")
        );
    }
    let read = |(at, line): (usize, &str)| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [path, digest, class, segment] = fields[..] else { return Err(broken(at + 1)) };
        let segment = match segment {
            "train" => Segment::Train,
            "test" => Segment::Test,
            _ => return Err(broken(at + 1)),
        };
        let digest = digest.parse().map_err(|_| broken(at + 1))?;
        Ok(Picture { path: RepoPath::from_text(path)?, digest, class: class.to_owned(), segment })
    };
    text.lines().enumerate().map(read).collect()
}

/// How many pictures of each class lie on each side: class → (train, test).
pub fn counts(pictures: &[Picture]) -> BTreeMap<String, (u64, u64)> {
    let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for picture in pictures {
        let row = counts.entry(picture.class.clone()).or_default();
        match picture.segment {
            Segment::Train => row.0 += 1,
            Segment::Test => row.1 += 1,
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: SplitSettings = SplitSettings { seed: 1, test: 0.2 };

    fn found(classes: &[(&str, std::ops::Range<u32>)]) -> Found {
        let picture = |class: &str, it: u32| {
            let path = RepoPath::from_text(&format!("data/{class}/{it}.jpg")).unwrap();
            (path, Digest::of(format!("{class}{it}").as_bytes()), class.to_owned())
        };
        let pictures = classes
            .iter()
            .flat_map(|(class, range)| range.clone().map(move |it| picture(class, it)))
            .collect();
        Found { pictures, others: 0 }
    }

    #[test]
    fn a_picture_keeps_its_side_when_others_come() {
        let few = split(found(&[("cat", 0..100), ("dog", 0..100)]), &SETTINGS).unwrap();
        let many = split(found(&[("cat", 0..300), ("dog", 0..250)]), &SETTINGS).unwrap();
        for picture in &few {
            assert!(many.contains(picture), "{picture:?}");
        }
    }

    #[test]
    fn shares_are_near_a_fifth_and_exact_when_few() {
        let pictures = split(found(&[("cat", 0..2000), ("dog", 0..10)]), &SETTINGS).unwrap();
        let counts = counts(&pictures);
        assert!((340..460).contains(&counts["cat"].1), "{counts:?}");
        assert_eq!(counts["dog"], (8, 2));
    }

    #[test]
    fn equal_pictures_stay_together() {
        let mut all = found(&[("cat", 0..50), ("dog", 0..50)]);
        let copies: Vec<_> =
            all.pictures.iter().map(|it| (it.0.with_suffix(".jpg"), it.1, it.2.clone())).collect();
        all.pictures.extend(copies);
        let pictures = split(all, &SETTINGS).unwrap();
        let sides: BTreeMap<Digest, Segment> = pictures.iter().map(|it| (it.digest, it.segment)).collect();
        assert!(pictures.iter().all(|it| sides[&it.digest] == it.segment));
    }

    #[test]
    fn too_little_is_named() {
        let message = |it: Found| split(it, &SETTINGS).unwrap_err().to_string();
        assert_eq!(message(found(&[("cat", 0..50)])), "there is one class only, `cat`");
        assert_eq!(
            message(found(&[("cat", 0..50), ("dog", 0..3)])),
            "the class `dog` has 3 different pictures; 5 are the least"
        );
        assert_eq!(message(Found::default()), "there are no pictures");
        let mut twice = found(&[("cat", 0..9), ("dog", 0..9)]);
        twice.pictures[0].1 = twice.pictures[9].1;
        assert_eq!(
            message(twice),
            "`data/cat/0.jpg` and `data/dog/0.jpg` are the same picture in two classes"
        );
    }

    proptest! {
        #[test]
        fn it_reads_what_it_prints(names in proptest::collection::btree_set("[^/\\x00]{1,20}", 1..20)) {
            let picture = |name: &String| Some(Picture {
                path: RepoPath::from_bytes(format!("d/{name}").as_bytes()).ok()?,
                digest: Digest::of(name.as_bytes()),
                class: crate::path::show(name.as_bytes()),
                segment: Segment::Test,
            });
            let pictures: Vec<_> = names.iter().filter_map(picture).collect();
            let name = RepoPath::from_text("split.tsv").unwrap();
            prop_assert_eq!(parse(&name, print(&pictures).as_bytes()).unwrap(), pictures);
        }
    }
}
