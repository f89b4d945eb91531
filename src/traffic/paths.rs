//! Paths of traffic, in the spool and in the workspace.
//!
//! ```text
//! traffic/ENV/DAY/MACHINE.mlx      pointer of a sealed day of one machine
//! traffic/ENV/DAY/MACHINE/         its content: requests.parquet, telemetry.parquet, pictures/
//! traffic/ENV/DAY/labels.tsv       true labels of that day's images
//! ```

use crate::{
    error::{Error, Result},
    fs::Root,
    path::RepoPath,
    pointer::{Pointer, SUFFIX},
    repo::Repo,
    time::Day,
};

pub const REQUESTS: &str = "requests.parquet";
pub const TELEMETRY: &str = "telemetry.parquet";
pub const IMAGES: &str = "pictures";
const LABELS: &str = "labels.tsv";
const NAME_HINT: &str = "use up to 64 letters, digits, `-`, `_` and `.`, and start with a letter or digit";

/// Checks that the name of an environment is a plain file name.
pub fn check_environment(name: &str) -> Result<()> {
    if is_plain(name) {
        return Ok(());
    }
    let error = Error::usage(format!(
        "`{}` is not a valid environment name",
        crate::path::escape_bytes(name.as_bytes())
    ));
    Err(error.hint(NAME_HINT))
}

fn is_plain(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.len() <= 64
        && name.bytes().all(is_allowed)
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && !name.ends_with(SUFFIX)
}

/// Returns the folder of an environment, relative to the workspace or to the spool's root.
pub fn folder(environment: &str) -> Result<RepoPath> {
    check_environment(environment)?;
    RepoPath::from_text("traffic")?.join(environment.as_bytes())
}

/// Returns the folder of a day.
pub fn day_folder(environment: &str, day: Day) -> Result<RepoPath> {
    folder(environment)?.join(day.to_string().as_bytes())
}

/// Returns the path of a day's true labels, a plain file for Git.
pub fn labels_file(environment: &str, day: Day) -> Result<RepoPath> {
    day_folder(environment, day)?.join(LABELS.as_bytes())
}

/// Returns the name of this machine in its seals: the given one, otherwise the host name with all but letters
/// and digits replaced by `-`.
pub fn machine_name(given: Option<&str>) -> Result<String> {
    if let Some(name) = given {
        let invalid = || {
            Error::usage(format!(
                "`{}` is not a valid machine name",
                crate::path::escape_bytes(name.as_bytes())
            ))
        };
        return if is_plain(name) { Ok(name.to_owned()) } else { Err(invalid().hint(NAME_HINT)) };
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let replace = |char: char| if char.is_ascii_alphanumeric() { char } else { '-' };
    let name: String = host.chars().map(replace).take(64).collect();
    let name = name.trim_matches('-');
    Ok(if name.is_empty() { "machine".to_owned() } else { name.to_owned() })
}

/// Returns the days that have a subfolder here, in order; empty if the folder does not exist.
pub fn days_in(root: &Root, folder: &RepoPath) -> Result<Vec<Day>> {
    if root.stat(folder)?.is_none() {
        return Ok(Vec::new());
    }
    let names = root.dir(folder)?.names()?;
    Ok(names.iter().filter_map(|(name, _)| std::str::from_utf8(name).ok()?.parse().ok()).collect())
}

/// Returns the days with seals or labels in the workspace.
pub fn sealed_days(files: &Root, environment: &str) -> Result<Vec<Day>> {
    days_in(files, &folder(environment)?)
}

/// Returns the pointers of a day's seals, sorted by machine.
pub fn seal_pointers(repo: &Repo, environment: &str, day: Day) -> Result<Vec<Pointer>> {
    let folder = day_folder(environment, day)?;
    if repo.files.stat(&folder)?.is_none() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (name, _) in repo.files.dir(&folder)?.names()? {
        if let Some(path) = folder.join(&name)?.without_suffix(SUFFIX) {
            found.extend(repo.pointer(&path)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_file_names() {
        for bad in ["", ".x", "a/b", "a b", "../x", "é", "x.mlx", &"x".repeat(65)] {
            assert!(check_environment(bad).is_err() && machine_name(Some(bad)).is_err(), "{bad}");
        }
        assert!(check_environment("production-2.eu_1").is_ok());
        assert!(is_plain(&machine_name(None).unwrap()));
    }
}
