//! Looks up a recorded request of a served model by its id, in the sealed days of traffic and in the records
//! of this machine that are not sealed yet.

use std::collections::BTreeSet;

use crate::{
    error::{Error, Result},
    path::RepoPath,
    repo::Repo,
    traffic::{self, Record},
};

/// Record of a request, and the environment that served it.
pub struct FoundRequest {
    pub environment: String,
    pub record: Record,
}

/// Returns the record with this id, if any.
pub fn find(repo: &Repo, id: &str) -> Result<Option<FoundRequest>> {
    for environment in environments(repo)? {
        let mut found = None;
        traffic::for_each_record(repo, &environment, &mut |record| {
            if record.id == id {
                found = Some(record);
            }
            Ok(())
        })?;
        if let Some(record) = found {
            return Ok(Some(FoundRequest { environment, record }));
        }
    }
    Ok(None)
}

/// Returns the environments that have traffic, sealed or not.
fn environments(repo: &Repo) -> Result<BTreeSet<String>> {
    let folder = RepoPath::from_text("traffic")?;
    let mut names = BTreeSet::new();
    for root in [&repo.files, &repo.shared] {
        if root.stat(&folder)?.is_some() {
            let found = root.dir(&folder)?.names()?;
            let folders = found.into_iter().filter(|it| it.1.is_dir());
            names.extend(folders.filter_map(|it| String::from_utf8(it.0).ok()));
        }
    }
    names.retain(|it| traffic::check_environment(it).is_ok());
    Ok(names)
}

/// Returns the image of a request; an error if it was not kept or is not in the store.
pub fn image(repo: &Repo, found: &FoundRequest) -> Result<Vec<u8>> {
    traffic::read_image(repo, &found.environment, &found.record)?.ok_or_else(|| {
        Error::not_found(format!(
            "the image of the request `{}` was not kept or is not in the store",
            found.record.id
        ))
        .hint("`mlx pull traffic/` fetches sealed days; `mlx serve --keep` sets the share of images to keep")
    })
}
