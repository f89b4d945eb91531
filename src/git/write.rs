//! Commits and tags that nothing names yet, and names for them: an event is made whole first and shown after.

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
    git::{Git, Rev, ours, sign::Signer},
    path::RepoPath,
};

/// How long a lock of somebody else is waited for.
const STEP: Duration = Duration::from_millis(100);
const PATIENCE: u32 = 10;

/// A file that stands alone in a commit of its own chain.
pub struct Single<'s> {
    pub name: &'s str,
    pub bytes: &'s [u8],
    pub message: &'s str,
}

impl Git {
    /// A commit that holds one file, on top of another of its kind; no name is given to it.
    pub fn commit_single(&self, single: &Single<'_>, parent: Option<&Rev>) -> Result<Rev> {
        let doing = || "cannot write a commit".to_owned();
        let who = self.committer()?;
        let blob = ours(self.repo.write_blob(single.bytes), doing)?.detach();
        let entry = gix::objs::tree::Entry {
            mode: gix::objs::tree::EntryKind::Blob.into(),
            filename: single.name.into(),
            oid: blob,
        };
        let tree = ours(self.repo.write_object(gix::objs::Tree { entries: vec![entry] }), doing)?.detach();
        let parents = parent.map(|it| it.0);
        let mut time = gix::date::parse::TimeBuf::default();
        let who = who.to_ref(&mut time);
        let made = self.repo.new_commit_as(who, who, single.message, tree, parents);
        Ok(Rev(ours(made, doing)?.id))
    }

    /// An annotated tag on a commit, signed where there is a signer; no name is given to it. Its id.
    pub fn write_tag(&self, name: &str, rev: &Rev, message: &str, signer: Option<&Signer>) -> Result<String> {
        let doing = || format!("cannot write the tag `{name}`");
        let tag = TagObject {
            target: rev.0,
            target_kind: ObjectKind::Commit,
            name: name.into(),
            tagger: Some(self.committer()?),
            message: message.into(),
            signature: None,
        };
        let mut bytes = Vec::new();
        ours(tag.write_to(&mut bytes), doing)?;
        if !bytes.ends_with(b"\n") {
            bytes.push(b'\n');
        }
        if let Some(signer) = signer {
            bytes.extend(signer.sign(&bytes)?);
        }
        Ok(ours(self.repo.objects.write_buf(ObjectKind::Tag, &bytes), doing)?.to_string())
    }

    /// The bytes of a tag.
    pub fn tag_bytes(&self, id: &str) -> Result<Vec<u8>> {
        let doing = || format!("cannot read the tag {id}");
        let id = ours(gix::ObjectId::from_hex(id.as_bytes()), doing)?;
        Ok(ours(self.repo.find_object(id), doing)?.data.clone())
    }

    /// Gives names (name, object, what it stood for before), all or none. A lock that a killed process left is
    /// waited for a while, then taken away: only mlx writes these names, and it holds its own lock meanwhile.
    pub fn name_objects(&self, names: &[(String, String, Option<Rev>)]) -> Result<()> {
        let edits = names
            .iter()
            .map(|(name, id, before)| edit(name, id, before.as_ref()))
            .collect::<Result<Vec<_>>>()?;
        self.edit(&edits)
    }

    /// Takes away a name that only mlx uses; one that is not there is fine.
    pub fn forget(&self, name: &str) -> Result<()> {
        let doing = || format!("cannot forget `{name}`");
        if ours(self.repo.try_find_reference(name), doing)?.is_none() {
            return Ok(());
        }
        let change = Change::Delete { expected: PreviousValue::MustExist, log: RefLog::AndReference };
        let name = ours(gix::refs::FullName::try_from(name), doing)?;
        self.edit(&[RefEdit { change, name, deref: false }])
    }

    fn edit(&self, edits: &[RefEdit]) -> Result<()> {
        let root = Root::open(&self.common_dir())?;
        let lock =
            |it: &RefEdit| RepoPath::from_text(&format!("{}.lock", it.name.to_string().replace('%', "%25")));
        let locks = edits.iter().map(lock);
        let locks = locks.collect::<Result<Vec<_>>>()?;
        for turn in 0.. {
            let locked = locks.iter().filter(|it| matches!(root.stamp(it), Ok(Some(_)))).collect::<Vec<_>>();
            match self.repo.edit_references(edits.to_vec()) {
                Ok(_) => return Ok(()),
                Err(_) if turn < PATIENCE && !locked.is_empty() => std::thread::sleep(STEP),
                Err(_) if turn == PATIENCE && !locked.is_empty() => {
                    locked.into_iter().try_for_each(|it| root.remove(it))?;
                }
                Err(error) => {
                    let message = format!("somebody else wrote Git's references at the same time: {error}");
                    return Err(Error::new(Kind::Conflict, message).hint("run the same command again"));
                }
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Who this is, as Git is told.
    fn committer(&self) -> Result<gix::actor::Signature> {
        let unknown = || {
            Error::new(Kind::Usage, "Git does not know who you are")
                .hint("git config --global user.name NAME && git config --global user.email ADDRESS")
        };
        let found = self.repo.committer().and_then(Result::ok).ok_or_else(unknown)?;
        let odd = |it: &[u8]| it.iter().any(|it| b"<>\n\0".contains(it));
        if odd(found.name) || odd(found.email) {
            return Err(Error::usage(
                "your name or address, as Git knows it, has `<`, `>` or a line's end in it",
            )
            .hint("git config --global user.name NAME && git config --global user.email ADDRESS"));
        }
        ours(found.to_owned(), || "cannot tell who you are".into())
    }

    /// `Ada <ada@park.example>`
    pub fn whoami(&self) -> Result<String> {
        self.committer().map(|it| format!("{} <{}>", it.name, it.email))
    }
}

fn edit(name: &str, id: &str, before: Option<&Rev>) -> Result<RefEdit> {
    let doing = || format!("cannot name `{name}`");
    let expected = match before {
        Some(rev) => PreviousValue::MustExistAndMatch(Target::Object(rev.0)),
        None => PreviousValue::MustNotExist,
    };
    let log = LogChange { mode: RefLog::AndReference, force_create_reflog: false, message: "mlx".into() };
    let new = Target::Object(ours(gix::ObjectId::from_hex(id.as_bytes()), doing)?);
    let name = ours(gix::refs::FullName::try_from(name), doing)?;
    Ok(RefEdit { change: Change::Update { log, expected, new }, name, deref: false })
}
