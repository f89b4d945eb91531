//! Candidate and production on the same pictures, none of which either was trained on.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    cli::{Context, command::reference},
    digest::Digest,
    error::{Doing, Result},
    lineage::content_at,
    model::{
        offline::Offline,
        registry::Version,
        split::{self, Picture, Segment},
    },
    monitor::statistics::mcnemar_exact,
    path::RepoPath,
    repo::Repo,
};

const LIST: &str = "split.tsv";

/// Both versions on the same pictures.
#[derive(Clone, Debug)]
pub struct Compared {
    pub pictures: &'static str,
    pub count: u64,
    /// Accuracy of each; none without pictures.
    pub candidate: Option<f64>,
    pub production: Option<f64>,
    /// That the difference is chance, by the exact test of `McNemar`.
    pub p: Option<f64>,
}

/// The pictures that can tell two versions apart.
pub struct Tested {
    pictures: Vec<Picture>,
    /// Test pictures of the candidate that production was trained on.
    pub left_out: u64,
}

/// The candidate's test side in its worktree, without what production was trained on: another seed of the split
/// puts pictures on other sides.
pub fn tested(ctx: &Context<'_>, tree: &Repo, production: &Version) -> Result<Tested> {
    let list = RepoPath::from_text(LIST)?;
    let bytes = tree
        .files
        .read(&list)
        .doing(|| format!("the pipeline leaves no `{LIST}`, so that the versions cannot be compared"))?;
    let mut pictures = split::parse(&list, &bytes)?;
    pictures.retain(|it| it.segment == Segment::Test);
    let known = taught(ctx, tree, production)?;
    Ok(without(pictures, &known))
}

fn without(mut pictures: Vec<Picture>, known: &BTreeSet<Digest>) -> Tested {
    let before = pictures.len();
    pictures.retain(|it| !known.contains(&it.digest));
    Tested { left_out: (before - pictures.len()) as u64, pictures }
}

/// What a version was trained on, by the list in its commit and the pictures that its package keeps.
fn taught(ctx: &Context<'_>, repo: &Repo, version: &Version) -> Result<BTreeSet<Digest>> {
    let mut known: BTreeSet<Digest> =
        reference::training(repo, version)?.into_iter().map(|it| it.input).collect();
    match sides(repo, version) {
        Ok(Some(pictures)) => {
            let train = pictures.into_iter().filter(|it| it.segment == Segment::Train);
            known.extend(train.map(|it| it.digest));
        }
        Ok(None) => ctx.progress.warn(&format!(
            "{} has no `{LIST}` in its commit: it may have been trained on pictures that it is compared on",
            version.name()
        )),
        Err(error) => ctx.progress.warn(&error.full_text()),
    }
    Ok(known)
}

fn sides(repo: &Repo, version: &Version) -> Result<Option<Vec<Picture>>> {
    let (list, rev) = (RepoPath::from_text(LIST)?, &version.tag.rev);
    let bytes = match repo.git.read(rev, &list)? {
        Some(bytes) => Some(bytes),
        None => content_at(&repo.git, &repo.store, rev, &list)?
            .map(|it| repo.store.read(&it.digest))
            .transpose()?,
    };
    bytes
        .map(|it| split::parse(&list, &it))
        .transpose()
        .doing(|| format!("it is not known which pictures {} was trained on", version.name()))
}

/// Shows the pictures to both; those of traffic apart.
pub fn compare(
    tree: &Repo,
    candidate: &Version,
    production: &Version,
    tested: &Tested,
    traffic: &BTreeSet<RepoPath>,
) -> Result<Vec<Compared>> {
    let pictures = &tested.pictures;
    let files = pictures.iter().map(|it| tree.files.read(&it.path)).collect::<Result<Vec<_>>>()?;
    let right = |version: &Version| -> Result<Vec<bool>> {
        let mut offline = Offline::load(tree, version)?;
        let classes = offline.description.classes.clone();
        let seen = offline.see(&files)?;
        let rows = seen.iter().zip(pictures);
        Ok(rows.map(|(seen, it)| seen.as_ref().is_ok_and(|seen| classes[seen.class] == it.class)).collect())
    };
    let (new, old) = (right(candidate)?, right(production)?);
    let (taken, test): (Vec<usize>, Vec<usize>) =
        (0..pictures.len()).partition(|it| traffic.contains(&pictures[*it].path));
    Ok(vec![compared("test", &test, &new, &old), compared("traffic", &taken, &new, &old)])
}

fn compared(pictures: &'static str, rows: &[usize], new: &[bool], old: &[bool]) -> Compared {
    let right = |list: &[bool]| rows.iter().filter(|it| list[**it]).count() as f64;
    let share = |list: &[bool]| (!rows.is_empty()).then(|| right(list) / rows.len() as f64);
    let only = |a: &[bool], b: &[bool]| rows.iter().filter(|it| a[**it] && !b[**it]).count() as u64;
    Compared {
        pictures,
        count: rows.len() as u64,
        candidate: share(new),
        production: share(old),
        p: mcnemar_exact(only(new, old), only(old, new)),
    }
}

impl Compared {
    pub fn json(&self) -> Value {
        json!({"pictures": self.pictures, "count": self.count, "candidate": self.candidate,
            "production": self.production, "p": self.p})
    }

    /// As a row of a table.
    pub fn cells(&self) -> Vec<String> {
        let share = |it: Option<f64>| it.map_or_else(|| "-".to_owned(), |it| format!("{it:.4}"));
        let p = self.p.map_or_else(|| "no difference".to_owned(), |it| format!("p = {it:.3}"));
        let p = if self.count == 0 { "-".to_owned() } else { p };
        vec![
            self.pictures.to_owned(),
            self.count.to_string(),
            share(self.candidate),
            share(self.production),
            p,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_that_production_was_taught_are_left_out() {
        let picture = |name: &str| Picture {
            path: RepoPath::from_text(name).unwrap(),
            digest: Digest::of(name.as_bytes()),
            class: "cat".into(),
            segment: Segment::Test,
        };
        let found = without(vec![picture("a"), picture("b")], &[Digest::of(b"a"), Digest::of(b"c")].into());
        assert_eq!((found.left_out, found.pictures), (1, vec![picture("b")]));
    }

    #[test]
    fn no_pictures_are_no_accuracy() {
        let found = compared("traffic", &[], &[], &[]);
        assert_eq!((found.candidate, found.production), (None, None));
        assert_eq!(found.cells(), ["traffic", "0", "-", "-", "-"]);
    }
}
