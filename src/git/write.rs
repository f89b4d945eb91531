//! Writes commits and tags without refs, and then the refs for them.
//!
//! Thus all objects of an event are complete before any ref makes it visible.

use std::time::Duration;

use gix::{
    objs::{Kind as ObjectKind, Tag as TagObject, Write as _, WriteTo as _},
    refs::{
        Target,
        transaction::{Change, LogChange, PreviousValue, RefEdit, RefLog},
    },
};

use crate::{
    error::{Error, Kind, Result},
    fs::Root,
    git::{Git, RefToFetch, Rev, from_gix, sign::Signer},
    path::RepoPath,
};

/// Interval and number of retries while another process holds the lock of a ref.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
const MAX_RETRIES: u32 = 10;

/// Content of a commit that has a single file, in a chain of such commits.
pub struct SingleFile<'s> {
    pub name: &'s str,
    pub bytes: &'s [u8],
    pub message: &'s str,
}

impl Git {
    /// Writes a commit with one file on top of `parent`. No ref is changed.
    pub fn commit_single(&self, single: &SingleFile<'_>, parent: Option<&Rev>) -> Result<Rev> {
        let context = || "cannot write a commit".to_owned();
        let committer = self.committer()?;
        let blob = from_gix(self.repo.write_blob(single.bytes), context)?.detach();
        let entry = gix::objs::tree::Entry {
            mode: gix::objs::tree::EntryKind::Blob.into(),
            filename: single.name.into(),
            oid: blob,
        };
        let tree =
            from_gix(self.repo.write_object(gix::objs::Tree { entries: vec![entry] }), context)?.detach();
        let parents = parent.map(|it| it.0);
        let mut time = gix::date::parse::TimeBuf::default();
        let committer = committer.to_ref(&mut time);
        let commit = self.repo.new_commit_as(committer, committer, single.message, tree, parents);
        Ok(Rev(from_gix(commit, context)?.id))
    }

    /// Writes the object of an annotated tag on a commit, signed if `signer` is given, and returns its id. No
    /// ref is changed.
    pub fn write_tag(&self, name: &str, rev: &Rev, message: &str, signer: Option<&Signer>) -> Result<String> {
        let context = || format!("cannot write the tag `{name}`");
        let tag = TagObject {
            target: rev.0,
            target_kind: ObjectKind::Commit,
            name: name.into(),
            tagger: Some(self.committer()?),
            message: message.into(),
            signature: None,
        };
        let mut bytes = Vec::new();
        from_gix(tag.write_to(&mut bytes), context)?;
        if !bytes.ends_with(b"\n") {
            bytes.push(b'\n');
        }
        if let Some(signer) = signer {
            bytes.extend(signer.sign(&bytes)?);
        }
        Ok(from_gix(self.repo.objects.write_buf(ObjectKind::Tag, &bytes), context)?.to_string())
    }

    /// Reads the bytes of a tag object.
    pub fn tag_bytes(&self, id: &str) -> Result<Vec<u8>> {
        let context = || format!("cannot read the tag {id}");
        let id = from_gix(gix::ObjectId::from_hex(id.as_bytes()), context)?;
        Ok(from_gix(self.repo.find_object(id), context)?.data.clone())
    }

    /// Updates refs (name, new object, expected old commit) atomically: all of them or none. A lock file of
    /// Git that stays for a second is removed as that of a killed process, since only mlx writes these refs
    /// and it holds its own lock meanwhile.
    pub fn update_refs(&self, updates: &[(String, String, Option<Rev>)]) -> Result<()> {
        let update = |(name, id, before): &(String, String, Option<Rev>)| {
            let expected = before.as_ref().map_or(PreviousValue::MustNotExist, |rev| {
                PreviousValue::MustExistAndMatch(Target::Object(rev.0))
            });
            ref_update(name, id, expected)
        };
        self.edit_refs(&updates.iter().map(update).collect::<Result<Vec<_>>>()?)
    }

    /// Lets local refs name the objects that were fetched for them. One that another process has written
    /// meanwhile is fine if it names the same object.
    pub(super) fn write_fetched(&self, refs: &[RefToFetch]) -> Result<()> {
        let update = |fetched: &RefToFetch| {
            let same = PreviousValue::ExistingMustMatch(Target::Object(object_id(&fetched.id)?));
            let expected = if fetched.may_move { PreviousValue::Any } else { same };
            ref_update(&fetched.local, &fetched.id, expected)
        };
        self.edit_refs(&refs.iter().map(update).collect::<Result<Vec<_>>>()?)
    }

    /// Deletes a ref that only mlx uses; a missing one is fine.
    pub fn delete_ref(&self, name: &str) -> Result<()> {
        let context = || format!("cannot delete the ref `{name}`");
        if from_gix(self.repo.try_find_reference(name), context)?.is_none() {
            return Ok(());
        }
        let change = Change::Delete { expected: PreviousValue::MustExist, log: RefLog::AndReference };
        let name = from_gix(gix::refs::FullName::try_from(name), context)?;
        self.edit_refs(&[RefEdit { change, name, deref: false }])
    }

    fn edit_refs(&self, edits: &[RefEdit]) -> Result<()> {
        let root = Root::open(&self.common_dir())?;
        let lock_file = |edit: &RefEdit| {
            RepoPath::from_text(&format!("{}.lock", edit.name.to_string().replace('%', "%25")))
        };
        let lock_files = edits.iter().map(lock_file).collect::<Result<Vec<_>>>()?;
        for attempt in 0.. {
            let locked =
                lock_files.iter().filter(|file| matches!(root.stat(file), Ok(Some(_)))).collect::<Vec<_>>();
            match self.repo.edit_references(edits.to_vec()) {
                Ok(_) => return Ok(()),
                Err(_) if attempt < MAX_RETRIES && !locked.is_empty() => std::thread::sleep(RETRY_INTERVAL),
                Err(_) if attempt == MAX_RETRIES && !locked.is_empty() => {
                    locked.into_iter().try_for_each(|file| root.remove(file))?;
                }
                Err(error) => {
                    let message = format!("another process changed Git's refs at the same time: {error}");
                    return Err(Error::new(Kind::Conflict, message).hint("run the same command again"));
                }
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Returns the committer from Git's configuration, whose name and address must be valid in a commit.
    fn committer(&self) -> Result<gix::actor::Signature> {
        let unknown = || {
            Error::new(Kind::Usage, "Git does not know who you are")
                .hint("run `git config --global user.name NAME && git config --global user.email ADDRESS`")
        };
        let found = self.repo.committer().and_then(Result::ok).ok_or_else(unknown)?;
        let invalid = |text: &[u8]| text.iter().any(|byte| b"<>\n\0".contains(byte));
        if invalid(found.name) || invalid(found.email) {
            return Err(Error::usage("your Git user name or email has `<`, `>` or a line break in it")
                .hint("run `git config --global user.name NAME && git config --global user.email ADDRESS`"));
        }
        from_gix(found.to_owned(), || "cannot read your Git user name and email".into())
    }

    /// Returns the committer's name and address, as in `Ada <ada@park.example>`.
    pub fn identity(&self) -> Result<String> {
        self.committer().map(|it| format!("{} <{}>", it.name, it.email))
    }
}

fn ref_update(name: &str, id: &str, expected: PreviousValue) -> Result<RefEdit> {
    let log = LogChange { mode: RefLog::AndReference, force_create_reflog: false, message: "mlx".into() };
    let new = Target::Object(object_id(id)?);
    let name = from_gix(gix::refs::FullName::try_from(name), || format!("cannot update the ref `{name}`"))?;
    Ok(RefEdit { change: Change::Update { log, expected, new }, name, deref: false })
}

fn object_id(hex: &str) -> Result<gix::ObjectId> {
    from_gix(gix::ObjectId::from_hex(hex.as_bytes()), || format!("cannot read the object id `{hex}`"))
}
