//! Where traffic lies, in the spool and in the workspace.
//!
//! ```text
//! traffic/ENV/DAY/MACHINE.mlx      pointer of a sealed day of one machine
//! traffic/ENV/DAY/MACHINE/         its content: requests.parquet, telemetry.parquet, pictures/
//! traffic/ENV/DAY/labels.tsv       what people said of that day's pictures later
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
pub const PICTURES: &str = "pictures";
const LABELS: &str = "labels.tsv";

/// Refuses names of environments that are no plain file names.
pub fn check_environment(name: &str) -> Result<()> {
    if is_plain(name) {
        return Ok(());
    }
    let error = Error::usage(format!("`{}` cannot be an environment", crate::path::show(name.as_bytes())));
    Err(error.hint("use letters, digits, `-`, `_` and `.`, up to 64"))
}

fn is_plain(name: &str) -> bool {
    let plain = |it: u8| it.is_ascii_alphanumeric() || b"-_.".contains(&it);
    name.len() <= 64
        && name.bytes().all(plain)
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && !name.ends_with(SUFFIX)
}

/// The traffic of an environment, below the workspace as below the spool's root.
pub fn folder(environment: &str) -> Result<RepoPath> {
    check_environment(environment)?;
    RepoPath::from_text("traffic")?.join(environment.as_bytes())
}

/// The traffic of a day.
pub fn day_folder(environment: &str, day: Day) -> Result<RepoPath> {
    folder(environment)?.join(day.to_string().as_bytes())
}

/// What people said of a day's pictures: a plain file for Git.
pub fn labels_file(environment: &str, day: Day) -> Result<RepoPath> {
    day_folder(environment, day)?.join(LABELS.as_bytes())
}

/// The name that this machine's seals get: the one given, else that of the host, made fit for a file.
pub fn machine(given: Option<&str>) -> Result<String> {
    if let Some(name) = given {
        let wrong = || Error::usage(format!("`{}` cannot be a machine", crate::path::show(name.as_bytes())));
        return if is_plain(name) {
            Ok(name.to_owned())
        } else {
            Err(wrong().hint("use letters, digits, `-`, `_` and `.`, up to 64"))
        };
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let fit: String =
        host.chars().map(|it| if it.is_ascii_alphanumeric() { it } else { '-' }).take(64).collect();
    let fit = fit.trim_matches('-');
    Ok(if fit.is_empty() { "machine".to_owned() } else { fit.to_owned() })
}

/// Folders called by days, in order; none when there is no such folder.
pub fn days_in(root: &Root, folder: &RepoPath) -> Result<Vec<Day>> {
    if root.stamp(folder)?.is_none() {
        return Ok(Vec::new());
    }
    let names = root.dir(folder)?.names()?;
    Ok(names.iter().filter_map(|it| std::str::from_utf8(&it.0).ok()?.parse().ok()).collect())
}

/// Days that the workspace has something of: seals or labels.
pub fn sealed_days(files: &Root, environment: &str) -> Result<Vec<Day>> {
    days_in(files, &folder(environment)?)
}

/// The pointers of a day, of all machines, sorted by machine.
pub fn seals(repo: &Repo, environment: &str, day: Day) -> Result<Vec<Pointer>> {
    let folder = day_folder(environment, day)?;
    if repo.files.stamp(&folder)?.is_none() {
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
    fn names_are_plain() {
        for bad in ["", ".x", "a/b", "a b", "../x", "é", "x.mlx", &"x".repeat(65)] {
            assert!(check_environment(bad).is_err() && machine(Some(bad)).is_err(), "{bad}");
        }
        assert!(check_environment("production-2.eu_1").is_ok());
        assert!(is_plain(&machine(None).unwrap()));
    }
}
