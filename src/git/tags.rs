//! Annotated tags: names that are given once and never moved.

use gix::{objs::Kind as ObjectKind, refs::transaction::PreviousValue};

use crate::{
    error::{Error, Kind, Result},
    git::{Git, Rev, ours},
    time::Timestamp,
};

/// An annotated tag on a commit.
#[derive(Clone, Debug)]
pub struct Tag {
    pub name: String,
    /// The object's id, 40 hex digits.
    pub id: String,
    pub rev: Rev,
    pub message: String,
    pub tagger: String,
    pub when: Timestamp,
}

impl Git {
    /// All annotated tags whose name starts so; lightweight ones and those of other things are no events.
    pub fn tags(&self, prefix: &str) -> Result<Vec<Tag>> {
        let doing = || "cannot read Git's tags".into();
        let references = ours(self.repo.references(), doing)?;
        let mut tags = Vec::new();
        for reference in ours(references.tags(), doing)? {
            let Ok(reference) = reference else { continue };
            let name = reference.name().shorten().to_string();
            if name.starts_with(prefix)
                && let Some(tag) = self.read_tag(name, &reference)
            {
                tags.push(tag);
            }
        }
        Ok(tags)
    }

    /// The object that a tag's name stands for, annotated or not.
    pub fn tag_id(&self, name: &str) -> Result<Option<String>> {
        let doing = || format!("cannot read the tag `{name}`");
        let found = ours(self.repo.try_find_reference(&format!("refs/tags/{name}")), doing)?;
        Ok(found.and_then(|it| Some(it.try_id()?.to_string())))
    }

    fn read_tag(&self, name: String, reference: &gix::Reference<'_>) -> Option<Tag> {
        let id = reference.try_id()?.detach();
        let tag = self.repo.find_tag(id).ok()?;
        let decoded = tag.decode().ok()?;
        let tagger = tag.tagger().ok()??;
        if decoded.target_kind != ObjectKind::Commit || decoded.name != name.as_str() {
            return None;
        }
        Some(Tag {
            id: id.to_string(),
            rev: Rev(tag.target_id().ok()?.detach()),
            message: decoded.message.to_string(),
            tagger: format!("{} <{}>", tagger.name, tagger.email),
            when: Timestamp::from_seconds(tagger.time().ok()?.seconds),
            name,
        })
    }

    /// Makes an annotated tag; a name that is taken is refused.
    pub fn tag(&self, name: &str, rev: &Rev, message: &str) -> Result<()> {
        let who = self.repo.committer().and_then(Result::ok).ok_or_else(|| {
            Error::new(Kind::Usage, "Git does not know who you are")
                .hint("git config --global user.name NAME && git config --global user.email ADDRESS")
        })?;
        if self.repo.find_reference(&format!("refs/tags/{name}")).is_ok() {
            let error = Error::new(Kind::Conflict, format!("the tag `{name}` exists already"));
            return Err(error.hint("a version is never moved: register the next one"));
        }
        let made =
            self.repo.tag(name, rev.0, ObjectKind::Commit, Some(who), message, PreviousValue::MustNotExist);
        ours(made.map(drop), || format!("cannot make the tag `{name}`"))
    }
}
