//! Reads and creates annotated tags. A tag is never moved or overwritten.

use gix::objs::Kind as ObjectKind;

use crate::{
    error::{Error, Kind, Result},
    git::{Git, Rev, from_gix},
    time::Timestamp,
};

/// Annotated tag on a commit.
#[derive(Clone, Debug)]
pub struct Tag {
    pub name: String,
    /// Id of the tag object, 40 hex digits.
    pub id: String,
    pub rev: Rev,
    pub message: String,
    pub tagger: String,
    pub when: Timestamp,
}

impl Git {
    /// Lists the annotated tags of commits whose name starts with `prefix`. Lightweight tags and tags of
    /// other objects are left out, since mlx does not create such tags.
    pub fn tags(&self, prefix: &str) -> Result<Vec<Tag>> {
        let context = || "cannot read Git's tags".into();
        let references = from_gix(self.repo.references(), context)?;
        let mut tags = Vec::new();
        for reference in from_gix(references.tags(), context)? {
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

    /// Returns the id of the object that a tag, annotated or not, refers to; `None` if the tag does not
    /// exist.
    pub fn tag_id(&self, name: &str) -> Result<Option<String>> {
        let context = || format!("cannot read the tag `{name}`");
        let found = from_gix(self.repo.try_find_reference(&format!("refs/tags/{name}")), context)?;
        Ok(found.and_then(|reference| Some(reference.try_id()?.to_string())))
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

    /// Creates an annotated tag. A tag of that name must not exist.
    pub fn tag(&self, name: &str, rev: &Rev, message: &str) -> Result<()> {
        if self.repo.find_reference(&format!("refs/tags/{name}")).is_ok() {
            let error = Error::new(Kind::Conflict, format!("the tag `{name}` already exists"));
            return Err(error.hint("a version is never moved: register the next one"));
        }
        let id = self.write_tag(name, rev, message, None)?;
        self.update_refs(&[(format!("refs/tags/{name}"), id, None)])
    }
}
