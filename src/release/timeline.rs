//! Releases of a model in an environment, in their order.

use crate::{
    error::{Error, Result},
    git::{Git, Tag},
    release::Message,
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

    pub fn name(&self) -> String {
        Self::tag_name(&self.model, &self.environment, self.number)
    }
}

/// All releases, by model, environment and number.
pub fn all(git: &Git) -> Result<Vec<Release>> {
    let mut found: Vec<_> = git.tags("")?.into_iter().filter_map(parse).collect();
    found.sort_by(|a, b| (&a.model, &a.environment, a.number).cmp(&(&b.model, &b.environment, b.number)));
    Ok(found)
}

/// Releases in an environment (of one model), oldest first. A gap or a fork in their order is an error: who
/// serves must not depend on which tags somebody removed.
pub fn releases(git: &Git, model: Option<&str>, environment: &str) -> Result<Vec<Release>> {
    let mut found = all(git)?;
    found.retain(|it| it.environment == environment && model.is_none_or(|model| model == it.model));
    for (at, release) in found.iter().enumerate() {
        let before = at.checked_sub(1).map(|it| &found[it]).filter(|it| it.model == release.model);
        let expected = before.map(Release::name);
        if release.number != before.map_or(0, |it| it.number) + 1 || release.message.previous != expected {
            let named = release.message.previous.as_deref().unwrap_or("nothing");
            let error = Error::corrupt(format!(
                "the release `{}` follows {named}, and that is not here",
                release.name()
            ));
            return Err(error
                .hint("bring all tags with `git fetch --tags`; `mlx audit --verify` says what is missing"));
        }
    }
    Ok(found)
}

fn parse(tag: Tag) -> Option<Release> {
    let message = Message::parse(&tag.message)?;
    let (rest, number) = tag.name.rsplit_once('#')?;
    let (model, environment) = rest.split_once('#')?;
    let number = number.parse().ok().filter(|it| *it > 0)?;
    let own = message.version.split_once('@').is_some_and(|it| it.0 == model);
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
