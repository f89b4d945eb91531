//! A request by its id, wherever its record is: sealed, or waiting on this machine.

use std::collections::BTreeSet;

use crate::{
    error::{Error, Result},
    path::RepoPath,
    repo::Repo,
    traffic::{self, Record},
};

/// A record and the environment it is of.
pub struct Found {
    pub environment: String,
    pub record: Record,
}

/// The record of this id, if there is one.
pub fn find(repo: &Repo, id: &str) -> Result<Option<Found>> {
    for environment in environments(repo)? {
        let mut found = None;
        traffic::each(repo, &environment, &mut |record| {
            if record.id == id {
                found = Some(record);
            }
            Ok(())
        })?;
        if let Some(record) = found {
            return Ok(Some(Found { environment, record }));
        }
    }
    Ok(None)
}

/// Environments that have traffic.
fn environments(repo: &Repo) -> Result<BTreeSet<String>> {
    let folder = RepoPath::from_text("traffic")?;
    let mut names = BTreeSet::new();
    for root in [&repo.files, &repo.shared] {
        if root.stamp(&folder)?.is_some() {
            let found = root.dir(&folder)?.names()?;
            names.extend(
                found.into_iter().filter(|it| it.1.is_dir()).filter_map(|it| String::from_utf8(it.0).ok()),
            );
        }
    }
    names.retain(|it| traffic::check_environment(it).is_ok());
    Ok(names)
}

/// The picture that was asked about, if it was kept.
pub fn picture(repo: &Repo, found: &Found) -> Result<Vec<u8>> {
    traffic::picture(repo, &found.environment, &found.record)?.ok_or_else(|| {
        Error::not_found(format!(
            "the picture of the request `{}` was not kept or is not here",
            found.record.id
        ))
        .hint("`mlx pull traffic/` brings sealed days; `mlx serve --keep` says how many pictures are kept")
    })
}
