//! Model registry: registered packages are annotated Git tags such as `pets@v0.1.0`.
//!
//! The tag is on the commit that contains the package, and its message names the package by path and digest.
//! A tag is never moved.

use std::{cmp::Ordering, collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Kind, Result},
    git::{Git, Rev, Tag},
    path::RepoPath,
    pointer::Content,
};

/// Version number: major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VersionNumber(pub u64, pub u64, pub u64);

/// Part of the version number that the next version increments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bump {
    Major,
    Minor,
    Patch,
}

/// Registered package.
#[derive(Clone, Debug)]
pub struct Version {
    pub model: String,
    pub number: VersionNumber,
    pub package: Content,
    /// Path of the package in the tagged commit.
    pub path: RepoPath,
    pub metrics: BTreeMap<String, f64>,
    pub tag: Tag,
}

/// Body of a tag's message, as TOML below the subject line.
#[derive(Serialize, Deserialize)]
struct TagMessage {
    format: u64,
    path: RepoPath,
    package: Content,
    /// Name of the previous version, so that the order follows from the chain and not from clocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<String>,
    #[serde(default)]
    metrics: BTreeMap<String, f64>,
}

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}.{}", self.0, self.1, self.2)
    }
}

impl FromStr for VersionNumber {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid =
            || Error::usage(format!("`{text}` is not a version number")).hint("write it as in `v0.2.0`");
        let parts: Vec<&str> = text.strip_prefix('v').unwrap_or(text).split('.').collect();
        let is_canonical = |part: &&str| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            digits && (*part == "0" || !part.starts_with('0'))
        };
        let [major, minor, patch] = parts[..] else { return Err(invalid()) };
        if ![major, minor, patch].iter().all(is_canonical) {
            return Err(invalid());
        }
        let number = |part: &str| part.parse::<u64>().map_err(|_| invalid());
        Ok(Self(number(major)?, number(minor)?, number(patch)?))
    }
}

impl VersionNumber {
    /// Returns the next version number. Lower parts become 0.
    pub fn next(self, bump: Bump) -> Result<Self> {
        let overflow = || Error::usage(format!("the version number {self} cannot be incremented"));
        let increment = |part: u64| part.checked_add(1).ok_or_else(overflow);
        Ok(match bump {
            Bump::Major => Self(increment(self.0)?, 0, 0),
            Bump::Minor => Self(self.0, increment(self.1)?, 0),
            Bump::Patch => Self(self.0, self.1, increment(self.2)?),
        })
    }
}

impl Version {
    /// Returns the full name, such as `pets@v0.1.0`.
    pub fn name(&self) -> String {
        format!("{}@{}", self.model, self.number)
    }
}

/// Returns the versions of a model, or of all models, sorted by name and number. Tags with a matching name
/// whose message is not a registration are ignored.
pub fn versions(git: &Git, model: Option<&str>) -> Result<Vec<Version>> {
    let prefix = model.map(|it| format!("{it}@v")).unwrap_or_default();
    let mut found: Vec<_> = git.tags(&prefix)?.into_iter().filter_map(read).collect();
    found.sort_by(|a, b| match a.model.cmp(&b.model) {
        Ordering::Equal => a.number.cmp(&b.number),
        other => other,
    });
    Ok(found)
}

fn read(tag: Tag) -> Option<Version> {
    let (model, number) = tag.name.split_once('@')?;
    let (model, number) = (model.to_owned(), number.parse().ok()?);
    let body = tag.message.split_once('\n')?.1;
    let body = body.split("-----BEGIN").next().unwrap_or(body);
    let TagMessage { format: 1, path, package, metrics, .. } = toml::from_str(body).ok()? else {
        return None;
    };
    Some(Version { model, number, package, path, metrics, tag })
}

/// Returns the version with this name, such as `pets@v0.1.0`; a model name alone means its newest version.
pub fn find(git: &Git, name: &str) -> Result<Option<Version>> {
    let (model, number) = name.split_once('@').map_or((name, None), |(model, number)| (model, Some(number)));
    let mut all = versions(git, Some(model))?;
    match number {
        None => Ok(all.pop()),
        Some(number) => {
            let number: VersionNumber = number.parse()?;
            Ok(all.into_iter().find(|version| version.number == number))
        }
    }
}

/// Returns the version like [`find`], but an unknown version is an error.
pub fn require(git: &Git, name: &str) -> Result<Version> {
    find(git, name)?.ok_or_else(|| {
        Error::not_found(format!("version `{name}` is not registered"))
            .hint("list versions with `mlx model list`, fetch others' with `git fetch --tags`")
    })
}

/// Registers the package at `path`, as committed in `rev`, under a given or the next version number. A
/// package can be registered once per model.
pub fn register(
    git: &Git,
    model: &str,
    rev: &Rev,
    path: &RepoPath,
    package: Content,
    metrics: BTreeMap<String, f64>,
    choice: Result<VersionNumber, Bump>,
) -> Result<Version> {
    let known = versions(git, Some(model))?;
    if let Some(same) = known.iter().find(|version| version.package.digest == package.digest) {
        let error =
            Error::new(Kind::Conflict, format!("this package is already registered as `{}`", same.name()));
        return Err(error.hint("use that version, or change the package first"));
    }
    let newest = known.last().map(|it| it.number);
    let number = match choice {
        Ok(number) => number,
        Err(bump) => newest.unwrap_or(VersionNumber(0, 0, 0)).next(bump)?,
    };
    let name = format!("{model}@{number}");
    let previous = known.last().map(Version::name);
    let message = TagMessage { format: 1, path: path.clone(), package, previous, metrics };
    let body = toml::to_string(&message).map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
    git.tag(&name, rev, &format!("{model} {number}\n\n{body}"))?;
    require(git, &name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_numbers_have_one_spelling_and_an_order() {
        let number = |text: &str| text.parse::<VersionNumber>();
        assert_eq!(number("v0.10.2").unwrap(), VersionNumber(0, 10, 2));
        assert_eq!(number("1.2.3").unwrap().to_string(), "v1.2.3");
        assert!(number("v0.10.0").unwrap() > number("v0.9.9").unwrap());
        for bad in ["", "v1", "v1.2", "v1.2.3.4", "v01.2.3", "v1.2.x", "v1.2.-3"] {
            assert!(number(bad).is_err(), "{bad}");
        }
        assert_eq!(VersionNumber(1, 2, 3).next(Bump::Minor).unwrap(), VersionNumber(1, 3, 0));
    }
}
