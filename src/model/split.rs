//! Splits labeled images into a training and a test set, deterministically.
//!
//! The set of an image follows from the seed and its digest alone: it does not change when other images are
//! added or removed, and identical images are in the same set. In classes with fewer than 20 images the test
//! share is exact instead: the images with the lowest hashes are the test set.
//!
//! The split file has one line per image: path, digest, class and set (`train` or `test`), separated by tabs.

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

/// Number of images per class below which the test share is exact.
const EXACT_BELOW: usize = 20;
/// Smallest number of images per class; with fewer, a class cannot be trained and evaluated.
const MIN_PER_CLASS: usize = 5;
const EXTENSIONS: [&str; 6] = ["bmp", "gif", "jpeg", "jpg", "png", "webp"];

/// Subset of the images: the training set or the test set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subset {
    Train,
    Test,
}

/// Labeled image with its subset.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabeledImage {
    pub path: RepoPath,
    pub digest: Digest,
    pub class: String,
    pub subset: Subset,
}

/// Images of a folder that has one subfolder per class.
#[derive(Debug, Default)]
pub struct ImageFolder {
    /// Path, digest and class of each image.
    pub images: Vec<(RepoPath, Digest, String)>,
    /// Number of other files, judged by their extensions.
    pub other_files: u64,
}

/// Lists the images of a folder `at` a path. Each subfolder is a class, with all images anywhere below it.
pub fn list_images(folder: &Node, at: &RepoPath) -> Result<ImageFolder> {
    let mut found = ImageFolder::default();
    for class in folder.children() {
        if class.kind != EntryKind::Folder {
            found.other_files += 1;
            continue;
        }
        let name = crate::path::escape_bytes(&class.name);
        for (path, leaf) in class.leaves(&at.join(&class.name)?)? {
            match leaf.kind {
                EntryKind::File | EntryKind::Executable if is_image(&path) => {
                    found.images.push((path, leaf.digest, name.clone()));
                }
                EntryKind::Folder => {}
                _ => found.other_files += 1,
            }
        }
    }
    Ok(found)
}

/// Returns true if a file is an image, judged by its extension.
pub fn is_image(path: &RepoPath) -> bool {
    let name = String::from_utf8_lossy(path.name()).to_lowercase();
    name.rsplit_once('.').is_some_and(|(_, extension)| EXTENSIONS.contains(&extension))
}

/// Splits images into training and test set. Returns them sorted by path. An image in two classes is an
/// error, and so are fewer than two classes or a class with too few images.
pub fn split(found: ImageFolder, settings: &SplitSettings) -> Result<Vec<LabeledImage>> {
    let mut classes: BTreeMap<&str, BTreeSet<Digest>> = BTreeMap::new();
    let mut first_by_digest: BTreeMap<Digest, &(RepoPath, Digest, String)> = BTreeMap::new();
    for image in &found.images {
        let first = first_by_digest.entry(image.1).or_insert(image);
        if first.2 != image.2 {
            let message = format!("`{}` and `{}` are the same image in two classes", first.0, image.0);
            return Err(Error::new(Kind::Conflict, message)
                .hint("an image has one label: remove it from one of the folders"));
        }
        classes.entry(&image.2).or_default().insert(image.1);
    }
    check_classes(&classes)?;
    let mut test = BTreeSet::new();
    for digests in classes.values() {
        test.extend(choose_test_set(digests, settings));
    }
    let subset = |digest: &Digest| if test.contains(digest) { Subset::Test } else { Subset::Train };
    let row = |(path, digest, class): &(RepoPath, Digest, String)| LabeledImage {
        path: path.clone(),
        digest: *digest,
        class: class.clone(),
        subset: subset(digest),
    };
    let mut images: Vec<_> = found.images.iter().map(row).collect();
    images.sort();
    Ok(images)
}

fn check_classes(classes: &BTreeMap<&str, BTreeSet<Digest>>) -> Result<()> {
    if classes.is_empty() {
        return Err(Error::not_found("no images found")
            .hint("make one subfolder per class, with JPEG or PNG files in it"));
    }
    if let Some((name, digests)) = classes.iter().find(|(_, digests)| digests.len() < MIN_PER_CLASS) {
        let message = format!(
            "the class `{name}` has {} different images, but needs at least {MIN_PER_CLASS}",
            digests.len()
        );
        return Err(Error::usage(message).hint("add images of it, or remove its folder"));
    }
    if classes.len() == 1 {
        let name = classes.keys().next().copied().unwrap_or_default();
        let error = Error::usage(format!("`{name}` is the only class"));
        return Err(error.hint("a classifier needs at least two classes: make one subfolder per class"));
    }
    Ok(())
}

/// Returns the images of one class that are in the test set.
fn choose_test_set(digests: &BTreeSet<Digest>, settings: &SplitSettings) -> Vec<Digest> {
    let mut hashed: Vec<(f64, Digest)> =
        digests.iter().map(|digest| (unit_hash(settings.seed, digest), *digest)).collect();
    hashed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let size = if digests.len() < EXACT_BELOW {
        ((digests.len() as f64 * settings.test).round() as usize).clamp(1, digests.len() - 1)
    } else {
        hashed.iter().filter(|it| it.0 < settings.test).count().clamp(1, digests.len() - 1)
    };
    hashed.into_iter().take(size).map(|it| it.1).collect()
}

/// Maps a seed and an image's digest to a number in [0, 1), uniformly.
pub fn unit_hash(seed: u64, digest: &Digest) -> f64 {
    let hash = Digest::of(&[&seed.to_le_bytes()[..], digest.bytes()].concat());
    let bits = u64::from_le_bytes(hash.bytes()[..8].try_into().expect("a digest has 8 bytes"));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

impl Subset {
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// Prints a split file.
pub fn print(images: &[LabeledImage]) -> String {
    let line = |image: &LabeledImage| {
        format!("{}\t{}\t{}\t{}\n", image.path.to_text(), image.digest, image.class, image.subset.name())
    };
    images.iter().map(line).collect()
}

/// Parses a split file; `name` is how errors call it.
pub fn parse(name: &RepoPath, bytes: &[u8]) -> Result<Vec<LabeledImage>> {
    let invalid = |line: usize| {
        Error::corrupt(format!(
            "line {line} of `{name}` is not a path, digest, class and `train` or `test`, separated by tabs"
        ))
    };
    let text = std::str::from_utf8(bytes).map_err(|_| invalid(1))?;
    if document::has_conflict_markers(text) {
        return Err(Error::corrupt(format!("`{name}` has merge conflict markers"))
            .hint("write it again: `mlx repro`"));
    }
    let read = |(index, line): (usize, &str)| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [path, digest, class, segment] = fields[..] else { return Err(invalid(index + 1)) };
        let segment = match segment {
            "train" => Subset::Train,
            "test" => Subset::Test,
            _ => return Err(invalid(index + 1)),
        };
        let digest = digest.parse().map_err(|_| invalid(index + 1))?;
        Ok(LabeledImage {
            path: RepoPath::from_text(path)?,
            digest,
            class: class.to_owned(),
            subset: segment,
        })
    };
    text.lines().enumerate().map(read).collect()
}

/// Counts the images of each class: class → (train, test).
pub fn count_by_class(images: &[LabeledImage]) -> BTreeMap<String, (u64, u64)> {
    let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for image in images {
        let row = counts.entry(image.class.clone()).or_default();
        match image.subset {
            Subset::Train => row.0 += 1,
            Subset::Test => row.1 += 1,
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: SplitSettings = SplitSettings { seed: 1, test: 0.2 };

    fn found(classes: &[(&str, std::ops::Range<u32>)]) -> ImageFolder {
        let image = |class: &str, number: u32| {
            let path = RepoPath::from_text(&format!("data/{class}/{number}.jpg")).unwrap();
            (path, Digest::of(format!("{class}{number}").as_bytes()), class.to_owned())
        };
        let images = classes
            .iter()
            .flat_map(|(class, range)| range.clone().map(move |number| image(class, number)))
            .collect();
        ImageFolder { images, other_files: 0 }
    }

    #[test]
    fn an_image_stays_in_its_subset_when_others_are_added() {
        let few = split(found(&[("cat", 0..100), ("dog", 0..100)]), &SETTINGS).unwrap();
        let many = split(found(&[("cat", 0..300), ("dog", 0..250)]), &SETTINGS).unwrap();
        for image in &few {
            assert!(many.contains(image), "{image:?}");
        }
    }

    #[test]
    fn the_test_share_is_approximate_in_large_classes_and_exact_in_small_ones() {
        let images = split(found(&[("cat", 0..2000), ("dog", 0..10)]), &SETTINGS).unwrap();
        let counts = count_by_class(&images);
        assert!((340..460).contains(&counts["cat"].1), "{counts:?}");
        assert_eq!(counts["dog"], (8, 2));
    }

    #[test]
    fn identical_images_are_in_the_same_subset() {
        let mut all = found(&[("cat", 0..50), ("dog", 0..50)]);
        let copies: Vec<_> = all
            .images
            .iter()
            .map(|(path, digest, class)| (path.with_suffix(".jpg"), *digest, class.clone()))
            .collect();
        all.images.extend(copies);
        let images = split(all, &SETTINGS).unwrap();
        let subsets: BTreeMap<Digest, Subset> =
            images.iter().map(|image| (image.digest, image.subset)).collect();
        assert!(images.iter().all(|image| subsets[&image.digest] == image.subset));
    }

    #[test]
    fn unusable_folders_are_errors_that_name_the_culprit() {
        let message = |folder: ImageFolder| split(folder, &SETTINGS).unwrap_err().to_string();
        assert_eq!(message(found(&[("cat", 0..50)])), "`cat` is the only class");
        assert_eq!(
            message(found(&[("cat", 0..50), ("dog", 0..3)])),
            "the class `dog` has 3 different images, but needs at least 5"
        );
        assert_eq!(message(ImageFolder::default()), "no images found");
        let mut twice = found(&[("cat", 0..9), ("dog", 0..9)]);
        twice.images[0].1 = twice.images[9].1;
        assert_eq!(message(twice), "`data/cat/0.jpg` and `data/dog/0.jpg` are the same image in two classes");
    }

    proptest! {
        #[test]
        fn a_printed_split_file_is_parsed_back(names in proptest::collection::btree_set("[^/\\x00]{1,20}",
            1..20)) {
            let image = |name: &String| Some(LabeledImage {
                path: RepoPath::from_bytes(format!("d/{name}").as_bytes()).ok()?,
                digest: Digest::of(name.as_bytes()),
                class: crate::path::escape_bytes(name.as_bytes()),
                subset: Subset::Test,
            });
            let images: Vec<_> = names.iter().filter_map(image).collect();
            let name = RepoPath::from_text("split.tsv").unwrap();
            prop_assert_eq!(parse(&name, print(&images).as_bytes()).unwrap(), images);
        }
    }
}
