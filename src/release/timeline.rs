//! Releases of a model in an environment, in their order.

use std::collections::BTreeSet;

use crate::{
    error::{Error, Result},
    git::{Git, Tag},
    ledger::{Event, Kind},
    release::{Message, Record},
};

/// From here on a version serves.
#[derive(Clone, Debug)]
pub struct Release {
    pub model: String,
    pub environment: String,
    /// 1 for the first.
    pub number: u64,
    pub message: Message,
    pub tag: Tag,
}

impl Release {
    /// `pets#production#7`
    pub fn tag_name(model: &str, environment: &str, number: u64) -> String {
        format!("{model}#{environment}#{number}")
    }

    /// The event that it is.
    pub fn kind(&self) -> Kind {
        if self.message.rollback { Kind::RolledBack } else { Kind::Released }
    }

    pub fn name(&self) -> String {
        Self::tag_name(&self.model, &self.environment, self.number)
    }
}

/// All releases that tags claim, by model, environment and number.
pub fn claimed(git: &Git) -> Result<Vec<Release>> {
    let mut found: Vec<_> = git.tags("")?.into_iter().filter_map(parse).collect();
    found.sort_by(|a, b| (&a.model, &a.environment, a.number).cmp(&(&b.model, &b.environment, b.number)));
    Ok(found)
}

/// All releases on the record, by model, environment and number.
pub fn all(git: &Git) -> Result<Vec<Release>> {
    on_record(git, &Record::read(git)?)
}

fn on_record(git: &Git, record: &Record) -> Result<Vec<Release>> {
    let mut found = claimed(git)?;
    found.retain(|it| record.objection(&it.tag, &it.message, it.kind(), &it.environment).is_none());
    Ok(found)
}

/// Releases in an environment (of one model), oldest first. A gap or a fork in their order is an error: who
/// serves must not depend on which tags somebody removed.
pub fn releases(git: &Git, model: Option<&str>, environment: &str) -> Result<Vec<Release>> {
    let record = Record::read(git)?;
    let mut found = on_record(git, &record)?;
    found.retain(|it| it.environment == environment && model.is_none_or(|model| model == it.model));
    let there: BTreeSet<&str> = found.iter().map(|it| it.tag.name.as_str()).collect();
    let about = |it: &Event| {
        let of = it.subject.split_once('@').map(|it| it.0);
        it.environment.as_deref() == Some(environment) && model.is_none_or(|it| of == Some(it))
    };
    record.check_tags(&[Kind::Released, Kind::RolledBack], &about, &there)?;
    for one in found.chunk_by(|a, b| a.model == b.model) {
        check_order(one)?;
    }
    Ok(found)
}

/// Each names the one before it, and a rollback goes back to what served before.
fn check_order(releases: &[Release]) -> Result<()> {
    for (at, release) in releases.iter().enumerate() {
        let before = &releases[..at];
        let expected = before.last().map(Release::name);
        if release.number != at as u64 + 1 || release.message.previous != expected {
            let named = release.message.previous.as_deref().unwrap_or("nothing");
            let error = Error::corrupt(format!(
                "the release `{}` follows {named}, and that is not here",
                release.name()
            ));
            return Err(error
                .hint("bring all tags with `git fetch --tags`; `mlx audit --verify` says what is missing"));
        }
        let target = serving(before).into_iter().nth_back(1).map(|it| &it.message);
        let back = target.is_some_and(|it| {
            (&it.version, it.package) == (&release.message.version, release.message.package)
        });
        if release.message.rollback && !back {
            let error = Error::corrupt(format!(
                "the rollback `{}` goes to {}, which did not serve before",
                release.name(),
                release.message.version
            ));
            return Err(error.hint("`mlx audit` shows what was released there"));
        }
    }
    Ok(())
}

fn parse(tag: Tag) -> Option<Release> {
    let message = Message::parse(&tag.message)?;
    let (rest, number) = tag.name.rsplit_once('#')?;
    let (model, environment) = rest.split_once('#')?;
    let number = number.parse().ok().filter(|it| *it > 0)?;
    let own = message.version.split_once('@').is_some_and(|it| it.0 == model)
        && tag.name == Release::tag_name(model, environment, number);
    let (model, environment) = (model.to_owned(), environment.to_owned());
    own.then_some(Release { model, environment, number, message, tag })
}

/// The releases that stand, oldest first: each rollback takes the last one back. The last of them serves.
pub fn serving(releases: &[Release]) -> Vec<&Release> {
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
