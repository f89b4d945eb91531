//! Compares a candidate with the version in production: accuracy of both on the same test images, none of
//! which either was trained on, with an exact `McNemar` test.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    cli::{Context, command::baseline},
    digest::Digest,
    error::{Result, WithContext},
    lineage::content_at,
    model::{
        inference::LoadedPackage,
        registry::Version,
        split::{self, LabeledImage, Subset},
    },
    monitor::statistics::mcnemar_exact,
    path::RepoPath,
    repo::Repo,
};

const SPLIT_FILE: &str = "split.tsv";

/// Accuracy of both versions on the same images.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Source of the images: `test` or `traffic`.
    pub images: &'static str,
    pub count: u64,
    /// Accuracy of the candidate; `None` without images.
    pub candidate: Option<f64>,
    /// Accuracy of production; `None` without images.
    pub production: Option<f64>,
    /// p-value of the exact `McNemar` test; `None` if both are right on the same images.
    pub p: Option<f64>,
}

/// Test images that neither version was trained on.
pub struct TestSet {
    images: Vec<LabeledImage>,
    /// Number of the candidate's test images that were left out because production was trained on them.
    pub left_out: u64,
}

/// Reads the candidate's test set from its worktree, without images that production was trained on: with
/// another seed the split assigns images differently.
pub fn test_set(ctx: &Context<'_>, worktree: &Repo, production: &Version) -> Result<TestSet> {
    let path = RepoPath::from_text(SPLIT_FILE)?;
    let bytes = worktree.files.read(&path).context(|| {
        format!("the pipeline does not write `{SPLIT_FILE}`, so the versions cannot be compared")
    })?;
    let mut images = split::parse(&path, &bytes)?;
    images.retain(|image| image.subset == Subset::Test);
    let known = training_digests(ctx, worktree, production)?;
    Ok(exclude(images, &known))
}

fn exclude(mut images: Vec<LabeledImage>, known: &BTreeSet<Digest>) -> TestSet {
    let before = images.len();
    images.retain(|image| !known.contains(&image.digest));
    TestSet { left_out: (before - images.len()) as u64, images }
}

/// Returns the digests of the images that a version was trained on, from the split file in its commit and
/// from its package. Warns if the split file is missing or unreadable.
fn training_digests(ctx: &Context<'_>, repo: &Repo, version: &Version) -> Result<BTreeSet<Digest>> {
    let mut known: BTreeSet<Digest> =
        baseline::training_records(repo, version)?.into_iter().map(|it| it.input).collect();
    match committed_split(repo, version) {
        Ok(Some(images)) => {
            let train = images.into_iter().filter(|image| image.subset == Subset::Train);
            known.extend(train.map(|it| it.digest));
        }
        Ok(None) => ctx.progress.warn(&format!(
            "{} has no `{SPLIT_FILE}` in its commit: it may have been trained on images that it is \
            compared on",
            version.name()
        )),
        Err(error) => ctx.progress.warn(&error.chain_text()),
    }
    Ok(known)
}

/// Reads the split file from a version's commit, directly or through its pointer; `None` if the commit has
/// none.
fn committed_split(repo: &Repo, version: &Version) -> Result<Option<Vec<LabeledImage>>> {
    let (path, rev) = (RepoPath::from_text(SPLIT_FILE)?, &version.tag.rev);
    let bytes = match repo.git.read(rev, &path)? {
        Some(bytes) => Some(bytes),
        None => content_at(&repo.git, &repo.store, rev, &path)?
            .map(|content| repo.store.read(&content.digest))
            .transpose()?,
    };
    bytes
        .map(|bytes| split::parse(&path, &bytes))
        .transpose()
        .context(|| format!("cannot determine the images that {} was trained on", version.name()))
}

/// Runs both versions on the test set; images from traffic are compared separately.
pub fn compare(
    worktree: &Repo,
    candidate: &Version,
    production: &Version,
    test_set: &TestSet,
    traffic: &BTreeSet<RepoPath>,
) -> Result<Vec<Comparison>> {
    let images = &test_set.images;
    let files = images.iter().map(|it| worktree.files.read(&it.path)).collect::<Result<Vec<_>>>()?;
    let correct = |version: &Version| -> Result<Vec<bool>> {
        let mut loaded = LoadedPackage::load(worktree, version)?;
        let classes = loaded.description.classes.clone();
        let predictions = loaded.predict(&files)?;
        let correct = predictions.iter().zip(images).map(|(prediction, image)| {
            prediction.as_ref().is_ok_and(|prediction| classes[prediction.class] == image.class)
        });
        Ok(correct.collect())
    };
    let (new, old) = (correct(candidate)?, correct(production)?);
    let (from_traffic, original): (Vec<usize>, Vec<usize>) =
        (0..images.len()).partition(|&index| traffic.contains(&images[index].path));
    Ok(vec![comparison("test", &original, &new, &old), comparison("traffic", &from_traffic, &new, &old)])
}

/// Compares both versions on some rows; `new` and `old` tell for each image if candidate and production are
/// right.
fn comparison(images: &'static str, rows: &[usize], new: &[bool], old: &[bool]) -> Comparison {
    let correct = |list: &[bool]| rows.iter().filter(|&&row| list[row]).count() as f64;
    let accuracy = |list: &[bool]| (!rows.is_empty()).then(|| correct(list) / rows.len() as f64);
    let only = |a: &[bool], b: &[bool]| rows.iter().filter(|&&row| a[row] && !b[row]).count() as u64;
    Comparison {
        images,
        count: rows.len() as u64,
        candidate: accuracy(new),
        production: accuracy(old),
        p: mcnemar_exact(only(new, old), only(old, new)),
    }
}

impl Comparison {
    /// Returns the comparison as JSON, as it is printed and stored in the ledger event.
    pub fn json(&self) -> Value {
        json!({"pictures": self.images, "count": self.count, "candidate": self.candidate,
            "production": self.production, "p": self.p})
    }

    /// Returns the comparison as a row of a table.
    pub fn cells(&self) -> Vec<String> {
        let share = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |share| format!("{share:.4}"));
        let p = self.p.map_or_else(|| "no difference".to_owned(), |p| format!("p = {p:.3}"));
        let p = if self.count == 0 { "-".to_owned() } else { p };
        vec![self.images.to_owned(), self.count.to_string(), share(self.candidate), share(self.production), p]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_production_was_trained_on_are_left_out() {
        let image = |name: &str| LabeledImage {
            path: RepoPath::from_text(name).unwrap(),
            digest: Digest::of(name.as_bytes()),
            class: "cat".into(),
            subset: Subset::Test,
        };
        let found = exclude(vec![image("a"), image("b")], &[Digest::of(b"a"), Digest::of(b"c")].into());
        assert_eq!((found.left_out, found.images), (1, vec![image("b")]));
    }

    #[test]
    fn without_images_there_is_no_accuracy() {
        let found = comparison("traffic", &[], &[], &[]);
        assert_eq!((found.candidate, found.production), (None, None));
        assert_eq!(found.cells(), ["traffic", "0", "-", "-", "-"]);
    }
}
