//! The check after a run: were the stage's inputs the same from before its start to after its end?
//!
//! Equal digests do not say so: an input may change and change back, by an editor's undo or a `git stash`,
//! and the command may have read it in between. So the stats of all input files count, too (see [`Stamps`]),
//! and a run with an input that moved is not recorded.
//!
//! Decided against: a reflink copy of the inputs for the command, so that edits during a run could not reach
//! it. Commands read by path, often by one that leads outside the copy, and write beside their inputs; only
//! some file systems share blocks, and elsewhere each run would copy all of its data. To compare stats costs
//! one more walk and holds on every file system. An edit during a run costs that run, and the message says
//! how to accept it.

use std::path::Path;

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs::Sync,
    git::ignore_line,
    path::RepoPath,
    pipeline::{Pipeline, Stage, inputs::Inputs},
    workspace::{Moved, StampChange},
};

/// Suffix of the note on the input because of which the last run of a stage was not recorded.
const MOVED: &str = ".moved";
/// Hint where an input changes during each run.
const OWN_INPUT: &str = "the command seems to write to its own input, and no such run can be recorded";

/// An input that was not the same during a whole run.
pub struct MovedInput {
    /// The dependency or parameter file.
    input: String,
    /// The file or folder, and what happened to it.
    path: String,
    verb: &'static str,
    /// Parts of the file's stat that moved.
    details: String,
    /// Line for `.gitignore` that leaves it out.
    line: Option<String>,
}

impl MovedInput {
    fn new(input: &str, path: &str, verb: &'static str) -> Self {
        Self { input: input.to_owned(), path: path.to_owned(), verb, details: String::new(), line: None }
    }

    fn of(input: &RepoPath, moved: &Moved) -> Self {
        let (input, path) = (input.to_text(), moved.path.to_text());
        match &moved.how {
            StampChange::Appeared { .. } => Self::new(&input, &path, "appeared"),
            StampChange::Vanished => Self::new(&input, &path, "was removed"),
            StampChange::Stat(parts) => Self::changed(&input, &path, &format!(" ({})", parts.join(", "))),
            StampChange::Names => Self::changed(&input, &path, " (a name in it came or went)"),
            StampChange::Place => Self::changed(&input, &path, " (it was moved, or its mode changed)"),
        }
    }

    fn changed(input: &str, path: &str, details: &str) -> Self {
        Self { details: details.to_owned(), ..Self::new(input, path, "changed") }
    }

    /// Returns the error of the run of `stage`, whose outputs were put into the folder `place`. `before` is
    /// the input that was not the same during its last run either.
    pub(super) fn error(self, stage: &str, place: Option<&Path>, before: Option<&String>) -> Error {
        let is_again = before == Some(&self.input);
        let Self { input, path, verb, details, line } = self;
        let again = match is_again {
            false => String::new(),
            true if path == input => ", as during its last run".to_owned(),
            true => format!(", and `{input}` changed during its last run, too"),
        };
        let during = format!("while the stage `{stage}` ran{details}{again}");
        let message = format!("`{path}` {verb} {during}, so the run is not recorded");
        let line = line.map(|line| format!("leave it out with the line `{line}` in `.gitignore`"));
        let remedy = match (is_again, line) {
            (false, None) => "run `mlx repro` again".to_owned(),
            (false, Some(leave)) => format!("if the stage writes it, {leave}, then run `mlx repro` again"),
            (true, None) => format!("{OWN_INPUT}: let it write to an output"),
            (true, Some(leave)) => format!("{OWN_INPUT}: {leave}, or let it write to an output"),
        };
        let back = match place {
            Some(folder) => format!("move them back from {}", folder.display()),
            None => "put them back".to_owned(),
        };
        let accept = format!("to accept its outputs nevertheless, {back} and run `mlx commit {stage}`");
        Error::new(Kind::Conflict, message).hint(format!("{remedy}; {accept}"))
    }
}

impl Pipeline<'_, '_> {
    /// Compares the inputs after a run with those before it; returns the first that moved.
    pub(super) fn moved_input(
        &self,
        name: &str,
        stage: &Stage,
        before: &Inputs,
    ) -> Result<Option<MovedInput>> {
        for path in before.stamps.keys() {
            if self.repo().files.stat(path)?.is_none() {
                let path = path.to_text();
                return Ok(Some(MovedInput::new(&path, &path, "was removed")));
            }
        }
        let after = self.inputs(name, stage, &self.records(), &Default::default(), &|_| false);
        let after =
            after.context(|| format!("cannot check the inputs of the stage `{name}` after its run"))?;
        let Some((input, moved)) = moved_stamp(before, &after) else { return Ok(changed(before, &after)) };
        Ok(Some(MovedInput { line: self.ignore_line(&moved)?, ..MovedInput::of(input, &moved) }))
    }

    /// Notes the input that made a run go unrecorded, for the error of the next run.
    pub(super) fn note_moved(&self, name: &str, moved: &MovedInput) -> Result<()> {
        self.repo().private.write(&self.running_file(name, MOVED)?, moved.input.as_bytes(), Sync::Later)
    }

    /// Returns the input that the last run noted, and removes the note.
    pub(super) fn take_moved(&self, name: &str) -> Result<Option<String>> {
        let (private, file) = (&self.repo().private, self.running_file(name, MOVED)?);
        let noted = private.read_if_exists(&file)?;
        private.remove(&file)?;
        Ok(noted.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Returns the line for `.gitignore` that would leave out a file or folder in a dependency. Paths that
    /// Git tracks or mlx keeps cannot be left out, and neither can a dependency itself.
    fn ignore_line(&self, moved: &Moved) -> Result<Option<String>> {
        let (path, is_folder) = match &moved.how {
            StampChange::Appeared { top, is_folder } => (top, *is_folder),
            StampChange::Names | StampChange::Place => return Ok(None),
            _ => (&moved.path, false),
        };
        let kept = self.reads.kept()?;
        let is_declared = self.manifest.stages.values().any(|stage| {
            stage.dependencies.contains(path) || stage.params.iter().any(|(file, _)| file == path)
        });
        let can_be_left_out = !is_declared
            && self.repo().git.tracked_within(path)?.is_none()
            && !path.ancestors().any(|path| kept.contains(&path));
        Ok(can_be_left_out.then(|| ignore_line(path, is_folder)))
    }
}

/// Returns the first file or folder whose stat moved, with the input that it is in.
fn moved_stamp<'i>(before: &'i Inputs, after: &Inputs) -> Option<(&'i RepoPath, Moved)> {
    before.stamps.iter().find_map(|(path, old)| Some((path, old.moved(after.stamps.get(path)?)?)))
}

/// Returns the first input whose value differs.
fn changed(before: &Inputs, after: &Inputs) -> Option<MovedInput> {
    let mut dependencies = before.dependencies.iter();
    let dependency = dependencies.find(|(path, content)| after.dependencies.get(*path) != Some(content));
    let mut params = before.params.iter();
    let param = || params.find(|(key, value)| after.params.get(*key) != Some(value)).map(|it| it.0.clone());
    let changed = dependency.map(|it| it.0).map(RepoPath::to_text).or_else(param);
    changed.map(|input| MovedInput::new(&input, &input, "changed"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        digest::Digest,
        document::Value,
        fs::{FileKind, FileStat},
        pointer::{Content, ContentKind},
        workspace::Stamps,
    };

    fn path(text: &str) -> RepoPath {
        RepoPath::from_text(text).unwrap()
    }

    fn inputs() -> Inputs {
        let content = Content { digest: Digest::of(b"x"), files: 1, kind: ContentKind::File, size: 1 };
        let stat = |inode| FileStat {
            kind: FileKind::File,
            executable: false,
            size: 1,
            mtime: 2,
            ctime: 3,
            inode,
            links: 1,
        };
        let stamps = [("a", 7), ("p.toml", 8)]
            .map(|(name, inode)| (path(name), Stamps::of_file(path(name), stat(inode))));
        Inputs {
            dependencies: BTreeMap::from([(path("a"), content)]),
            params: BTreeMap::from([("p.toml:x".to_owned(), Value::Bool(true))]),
            stamps: BTreeMap::from(stamps),
            ..Inputs::default()
        }
    }

    fn message(change: impl Fn(&mut Inputs)) -> Option<String> {
        let mut after = inputs();
        change(&mut after);
        let before = inputs();
        let moved = moved_stamp(&before, &after).map(|(input, moved)| MovedInput::of(input, &moved));
        Some(moved.or_else(|| changed(&before, &after))?.error("s", None, None).to_string())
    }

    #[test]
    fn every_kind_of_input_that_moved_is_named() {
        assert_eq!(message(|_| {}), None);
        let text = |event: &str| Some(format!("{event}, so the run is not recorded"));
        let stamp = |name: &'static str, mtime| {
            let stat = FileStat {
                kind: FileKind::File,
                executable: false,
                size: 1,
                mtime,
                ctime: 3,
                inode: 8,
                links: 1,
            };
            move |after: &mut Inputs| drop(after.stamps.insert(path(name), Stamps::of_file(path(name), stat)))
        };
        let ran = "while the stage `s` ran";
        assert_eq!(message(stamp("p.toml", 9)), text(&format!("`p.toml` changed {ran} (mtime)")));
        assert_eq!(message(stamp("a", 2)), text(&format!("`a` changed {ran} (inode)")));
        let param = |after: &mut Inputs| drop(after.params.insert("p.toml:x".to_owned(), Value::Bool(false)));
        assert_eq!(message(param), text(&format!("`p.toml:x` changed {ran}")));
        let content = |after: &mut Inputs| after.dependencies.values_mut().for_each(|it| it.size = 2);
        assert_eq!(message(content), text(&format!("`a` changed {ran}")));
    }
}
