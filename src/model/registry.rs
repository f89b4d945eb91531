//! Names and numbers for packages, kept in Git: `pets@v0.1.0` is an annotated tag on the commit that holds the
//! package, and its message says which package that is. A tag is never moved.

use std::{cmp::Ordering, collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Kind, Result},
    git::{Git, Rev, Tag},
    path::RepoPath,
    pointer::Content,
};

/// The number of a version: major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(pub u64, pub u64, pub u64);

/// Which part of the number the next version raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bump {
    Major,
    Minor,
    Patch,
}

/// A registered package.
#[derive(Clone, Debug)]
pub struct Version {
    pub model: String,
    pub number: Number,
    pub package: Content,
    pub path: RepoPath,
    pub metrics: BTreeMap<String, f64>,
    pub tag: Tag,
}

/// What a tag's message says, below its first line.
#[derive(Serialize, Deserialize)]
struct Message {
    format: u64,
    path: RepoPath,
    package: Content,
    /// The version before this one, so that order follows from the chain and not from a clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<String>,
    #[serde(default)]
    metrics: BTreeMap<String, f64>,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}.{}", self.0, self.1, self.2)
    }
}

impl FromStr for Number {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::usage(format!("`{text}` is no version number")).hint("write it like v0.2.0");
        let parts: Vec<&str> = text.strip_prefix('v').unwrap_or(text).split('.').collect();
        let plain = |it: &&str| {
            !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit()) && (*it == "0" || !it.starts_with('0'))
        };
        let [major, minor, patch] = parts[..] else { return Err(wrong()) };
        if ![major, minor, patch].iter().all(plain) {
            return Err(wrong());
        }
        let number = |it: &str| it.parse::<u64>().map_err(|_| wrong());
        Ok(Self(number(major)?, number(minor)?, number(patch)?))
    }
}

impl Number {
    /// The number after this one.
    pub fn next(self, bump: Bump) -> Result<Self> {
        let full = || Error::usage(format!("there is no number after {self}"));
        let one_more = |it: u64| it.checked_add(1).ok_or_else(full);
        Ok(match bump {
            Bump::Major => Self(one_more(self.0)?, 0, 0),
            Bump::Minor => Self(self.0, one_more(self.1)?, 0),
            Bump::Patch => Self(self.0, self.1, one_more(self.2)?),
        })
    }
}

impl Version {
    pub fn name(&self) -> String {
        format!("{}@{}", self.model, self.number)
    }
}

/// Versions of a model (of all, without one), by name and number. Tags that are shaped like ours but say
/// something else are none.
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
    let Message { format: 1, path, package, metrics, .. } = toml::from_str(body).ok()? else { return None };
    Some(Version { model, number, package, path, metrics, tag })
}

/// The version of this name (`pets@v0.1.0`), if there is one; `pets` alone is the newest.
pub fn find(git: &Git, name: &str) -> Result<Option<Version>> {
    let (model, number) = name.split_once('@').map_or((name, None), |(model, it)| (model, Some(it)));
    let mut all = versions(git, Some(model))?;
    match number {
        None => Ok(all.pop()),
        Some(number) => {
            let number: Number = number.parse()?;
            Ok(all.into_iter().find(|it| it.number == number))
        }
    }
}

/// As [`find`], where there has to be one.
pub fn require(git: &Git, name: &str) -> Result<Version> {
    find(git, name)?.ok_or_else(|| {
        Error::not_found(format!("there is no registered version `{name}`"))
            .hint("`mlx model list` shows them; `git fetch --tags` brings others'")
    })
}

/// Gives the package at `path`, as committed in `rev`, the next number (or `number`).
pub fn register(
    git: &Git,
    model: &str,
    rev: &Rev,
    path: &RepoPath,
    package: Content,
    metrics: BTreeMap<String, f64>,
    choice: Result<Number, Bump>,
) -> Result<Version> {
    let known = versions(git, Some(model))?;
    if let Some(same) = known.iter().find(|it| it.package.digest == package.digest) {
        let error =
            Error::new(Kind::Conflict, format!("this package is registered already, as `{}`", same.name()));
        return Err(error.hint("a package has one number: change it, or use that version"));
    }
    let newest = known.last().map(|it| it.number);
    let number = match choice {
        Ok(number) => number,
        Err(bump) => newest.unwrap_or(Number(0, 0, 0)).next(bump)?,
    };
    let name = format!("{model}@{number}");
    let previous = known.last().map(Version::name);
    let message = Message { format: 1, path: path.clone(), package, previous, metrics };
    let body = toml::to_string(&message).map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
    git.tag(&name, rev, &format!("{model} {number}\n\n{body}"))?;
    require(git, &name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_spelling_and_an_order() {
        let number = |text: &str| text.parse::<Number>();
        assert_eq!(number("v0.10.2").unwrap(), Number(0, 10, 2));
        assert_eq!(number("1.2.3").unwrap().to_string(), "v1.2.3");
        assert!(number("v0.10.0").unwrap() > number("v0.9.9").unwrap());
        for bad in ["", "v1", "v1.2", "v1.2.3.4", "v01.2.3", "v1.2.x", "v1.2.-3"] {
            assert!(number(bad).is_err(), "{bad}");
        }
        assert_eq!(Number(1, 2, 3).next(Bump::Minor).unwrap(), Number(1, 3, 0));
    }
}
