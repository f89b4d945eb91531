//! Releases of models in environments, and which of them serves.

use std::collections::BTreeSet;

use crate::{
    error::{Error, Result},
    git::{Git, Tag},
    ledger::{Event, Kind},
    release::{AuditIndex, Message},
};

/// A release: from here on its version serves in the environment.
#[derive(Clone, Debug)]
pub struct Release {
    pub model: String,
    pub environment: String,
    /// Number in the series of this model and environment, from 1.
    pub number: u64,
    pub message: Message,
    pub tag: Tag,
}

impl Release {
    /// Returns the name of a release's tag, such as `pets#production#7`.
    pub fn tag_name(model: &str, environment: &str, number: u64) -> String {
        format!("{model}#{environment}#{number}")
    }

    /// Returns the kind of its event on the audit chain.
    pub fn kind(&self) -> Kind {
        if self.message.rollback { Kind::RolledBack } else { Kind::Released }
    }

    pub fn name(&self) -> String {
        Self::tag_name(&self.model, &self.environment, self.number)
    }
}

/// Returns all releases that tags claim, whether or not they are on the audit chain, by model, environment
/// and number.
pub fn claimed_releases(git: &Git) -> Result<Vec<Release>> {
    let mut claimed: Vec<_> = git.tags("")?.into_iter().filter_map(parse).collect();
    claimed.sort_by(|a, b| (&a.model, &a.environment, a.number).cmp(&(&b.model, &b.environment, b.number)));
    Ok(claimed)
}

/// Returns all releases that are on the audit chain, by model, environment and number.
pub fn recorded_releases(git: &Git) -> Result<Vec<Release>> {
    recorded(git, &AuditIndex::read(git)?)
}

fn recorded(git: &Git, index: &AuditIndex) -> Result<Vec<Release>> {
    let mut releases = claimed_releases(git)?;
    releases.retain(|release| {
        index.mismatch(&release.tag, &release.message, release.kind(), &release.environment).is_none()
    });
    Ok(releases)
}

/// Returns the releases in an environment, of one model or of all, oldest first. A gap or fork in their order
/// is an error: which version serves must not depend on tags that were removed.
pub fn releases(git: &Git, model: Option<&str>, environment: &str) -> Result<Vec<Release>> {
    let index = AuditIndex::read(git)?;
    let mut releases = recorded(git, &index)?;
    let is_wanted = |name: &str| model.is_none_or(|model| model == name);
    releases.retain(|release| release.environment == environment && is_wanted(&release.model));
    let existing: BTreeSet<&str> = releases.iter().map(|release| release.tag.name.as_str()).collect();
    let is_relevant = |event: &Event| {
        let subject = event.subject.split_once('@').map(|(name, _)| name);
        event.environment.as_deref() == Some(environment) && model.is_none_or(|model| subject == Some(model))
    };
    index.check_tags(&[Kind::Released, Kind::RolledBack], &is_relevant, &existing)?;
    for series in releases.chunk_by(|a, b| a.model == b.model) {
        check_order(series)?;
    }
    Ok(releases)
}

/// Checks that each release names the one before it, and that each rollback returns to the version that
/// served before.
fn check_order(releases: &[Release]) -> Result<()> {
    for (at, release) in releases.iter().enumerate() {
        let before = &releases[..at];
        let expected = before.last().map(Release::name);
        if release.number != at as u64 + 1 || release.message.previous != expected {
            let previous = release.message.previous.as_deref().unwrap_or("nothing");
            let error = Error::corrupt(format!(
                "the release `{}` names {previous} as its predecessor, which does not match the releases \
                found",
                release.name()
            ));
            return Err(error
                .hint("fetch all tags with `git fetch --tags`; `mlx audit --verify` shows what is missing"));
        }
        let target = active_releases(before).into_iter().nth_back(1).map(|release| &release.message);
        let goes_back = target.is_some_and(|message| {
            (&message.version, message.package) == (&release.message.version, release.message.package)
        });
        if release.message.rollback && !goes_back {
            let error = Error::corrupt(format!(
                "the rollback `{}` is to {}, which did not serve before",
                release.name(),
                release.message.version
            ));
            return Err(error.hint("`mlx audit` shows what was released there"));
        }
    }
    Ok(())
}

/// Parses a release's tag; none if it is another tag.
fn parse(tag: Tag) -> Option<Release> {
    let message = Message::parse(&tag.message)?;
    let (rest, number) = tag.name.rsplit_once('#')?;
    let (model, environment) = rest.split_once('#')?;
    let number = number.parse().ok().filter(|it| *it > 0)?;
    let is_canonical = message.version.split_once('@').is_some_and(|(name, _)| name == model)
        && tag.name == Release::tag_name(model, environment, number);
    let (model, environment) = (model.to_owned(), environment.to_owned());
    is_canonical.then_some(Release { model, environment, number, message, tag })
}

/// Returns the releases that were not rolled back, oldest first; the last of them serves. Each rollback
/// removes the last one.
pub fn active_releases(releases: &[Release]) -> Vec<&Release> {
    let mut stack: Vec<&Release> = Vec::new();
    for release in releases {
        if release.message.rollback {
            stack.pop();
        } else {
            stack.push(release);
        }
    }
    stack
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{digest::Digest, git::Rev, time::Timestamp};

    /// A release with this number and predecessor; `back` makes it a rollback to the version.
    fn release(number: u64, previous: Option<u64>, version: &str, back: bool) -> Release {
        let (package, policy) = (Digest::of(version.as_bytes()), Digest::of(b"policy"));
        let mut message = Message::new(version, package, policy, "qa@park.example");
        message.previous = previous.map(|number| Release::tag_name("pets", "production", number));
        message.rollback = back;
        let name = Release::tag_name("pets", "production", number);
        let rev = Rev::from_hex("0123456789abcdef0123456789abcdef01234567").unwrap();
        let (tagger, when) = (String::new(), Timestamp::from_seconds(0));
        let tag = Tag { name, id: String::new(), rev, message: String::new(), tagger, when };
        Release { model: "pets".into(), environment: "production".into(), number, message, tag }
    }

    fn check(releases: &[Release]) -> Result<(), String> {
        check_order(releases).map_err(|error| error.to_string())
    }

    #[test]
    fn releases_in_order_and_rollbacks_to_what_served_before_are_accepted() {
        let order = [
            release(1, None, "pets@v0.1.0", false),
            release(2, Some(1), "pets@v0.2.0", false),
            release(3, Some(2), "pets@v0.1.0", true),
        ];
        assert_eq!(check(&order), Ok(()));
        assert_eq!(active_releases(&order).last().unwrap().message.version, "pets@v0.1.0");
    }

    #[test]
    fn a_gap_a_fork_and_a_lost_start_are_errors() {
        let first = || release(1, None, "pets@v0.1.0", false);
        let gap = [first(), release(3, Some(2), "pets@v0.3.0", false)];
        let gap_that_names_the_first = [first(), release(3, Some(1), "pets@v0.3.0", false)];
        let fork = [first(), release(2, Some(1), "a@1", false), release(3, Some(1), "b@1", false)];
        let no_predecessor = [first(), release(2, None, "pets@v0.2.0", false)];
        let lost_start = [release(2, Some(1), "pets@v0.2.0", false)];
        let lost_start_that_hides_it = [release(2, None, "pets@v0.2.0", false)];
        let too_many = [release(1, Some(1), "pets@v0.1.0", false)];
        for releases in [
            &gap[..],
            &gap_that_names_the_first,
            &fork,
            &no_predecessor,
            &lost_start,
            &lost_start_that_hides_it,
            &too_many,
        ] {
            let error = check(releases).unwrap_err();
            assert!(error.contains(&releases.last().unwrap().name()), "{error}");
            assert!(error.contains("does not match the releases found"), "{error}");
        }
    }

    #[test]
    fn a_rollback_to_a_version_that_did_not_serve_before_is_an_error() {
        let served = [release(1, None, "pets@v0.1.0", false), release(2, Some(1), "pets@v0.2.0", false)];
        let mut other_package = release(3, Some(2), "pets@v0.1.0", true);
        other_package.message.package = Digest::of(b"other");
        for wrong in [release(3, Some(2), "pets@v0.2.0", true), other_package] {
            let error = check(&[&served[..], &[wrong]].concat()).unwrap_err();
            assert!(error.contains("which did not serve before"), "{error}");
        }
        assert!(check(&[release(1, None, "pets@v0.1.0", true)]).is_err());
    }
}
