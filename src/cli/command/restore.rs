//! `mlx restore`: brings back a version that a command replaced.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count, shell_quote},
    },
    error::{Error, Kind, Result},
    maintenance,
    pointer::Pointer,
    workspace::{Workspace, find_version, place_parts, unknown_version},
};

/// Bring back a version that a command replaced
///
/// Before `mlx repro` replaces content that no run recorded, it stores it and prints the command that brings
/// it back. Such versions are kept for 30 days, and `mlx du` lists them. The digest of any other content in
/// the local store works, too, with `--to`: ten digits, as commands print them, are enough. Files that are
/// not stored anywhere are never overwritten.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx restore b3:1f2e3d4c5b\n  mlx restore b3:1f2e3d4c5b --to \
    old/model.bin\n\n\
JSON: {\"digest\", \"path\", \"files\", \"size\", \"written\"}")]
pub struct Args {
    /// Version, as `mlx du` lists it: `b3:` and the first digits of its digest
    version: String,
    /// File or folder to write (default: where the version was)
    #[arg(long, value_name = "PATH")]
    to: Option<PathBuf>,
}

/// Report of `mlx restore`.
pub struct Restored {
    pointer: Pointer,
    written: u64,
    /// Command that records it at its path, as typed in the current folder; `None` if Git tracks the path.
    next: Option<String>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Restored> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let (content, place) = find_version(&repo, &args.version)?;
    let to = args.to.as_ref().map(|path| repo.path(path.as_os_str(), &ctx.cwd)).transpose()?;
    let path = to.or(place).ok_or_else(|| {
        Error::usage(format!("it is not known where `{}` was", args.version))
            .hint("say where to write it with `--to PATH`")
    })?;
    if path.is_root() {
        return Err(Error::usage("a version cannot replace the whole repository")
            .hint("name a file or folder in it with `--to PATH`"));
    }
    // Otherwise a gc could take it away, once the version is older than 30 days.
    if !repo.store.pin_complete(&content)? {
        return Err(unknown_version(&args.version));
    }
    let pointer = Pointer { path, content };
    let placed = place_parts(&workspace, &[(&pointer, &pointer.path)], |_| true, false, ctx.progress);
    let placed = placed.map_err(|error| match error.kind() {
        Kind::Conflict => error.hint("choose another place with `--to PATH`"),
        _ => error,
    })?;
    workspace.save(ctx.progress)?;
    maintenance::publish_needs_if_allowed(&repo, ctx.progress)?;
    let at_top = ctx.cwd == repo.root();
    let typed = match &args.to {
        Some(path) => path.clone(),
        None if at_top => pointer.path.on_disk(Path::new("")),
        None => pointer.path.on_disk(repo.root()),
    };
    let next = next_command(ctx, &workspace, &pointer)?.map(|command| command_line(command, &typed));
    Ok(Restored { pointer, written: placed.iter().map(|row| row.1.written).sum(), next })
}

fn next_command(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    pointer: &Pointer,
) -> Result<Option<&'static str>> {
    if workspace.repo.git.tracked_within(&pointer.path)?.is_some() {
        return Ok(None);
    }
    let tracked = ctx.tracked(workspace)?.pointers;
    let is_tracked = tracked.iter().any(|other| pointer.path.is_within(&other.path));
    Ok(Some(if is_tracked { "commit" } else { "add" }))
}

/// Formats a command with a path, such that a shell reads both as meant.
fn command_line(command: &str, path: &Path) -> String {
    let text = path.display().to_string();
    let text = if text.starts_with('-') { format!("./{text}") } else { text };
    format!("mlx {command} {}", shell_quote(&text))
}

impl Report for Restored {
    fn json(&self) -> Value {
        let Pointer { path, content } = &self.pointer;
        json!({"digest": content.digest, "path": path, "files": content.files, "size": content.size,
            "written": self.written})
    }
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pointer { path, content } = &self.pointer;
        let (files, size) = (count(content.files, "file"), bytes(content.size));
        writeln!(f, "{path}: {files}, {size}, {}", content.digest.short())?;
        self.next.iter().try_for_each(|command| writeln!(f, "next: {command}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_command_can_be_typed() {
        assert_eq!(command_line("add", Path::new("a/b")), "mlx add a/b");
        assert_eq!(command_line("add", Path::new("-x")), "mlx add ./-x");
        assert_eq!(command_line("commit", Path::new("a b")), "mlx commit 'a b'");
    }
}
