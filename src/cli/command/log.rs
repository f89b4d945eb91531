//! `mlx log`: lists the versions of a tracked path.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::transfer::{wants_of_history, with_trees_of},
        report::{bytes, table},
    },
    error::{Error, Result},
    lineage::{State, Version, versions},
    path::escape_bytes,
    pipeline::NOT_RUN,
    workspace::Workspace,
};

/// List the versions of a tracked path
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx log data/\n  mlx log models/pets --rev main\n\n\
JSON: {\"versions\": [{\"commit\", \"when\", \"author\", \"summary\", \"digest\", \"files\", \"size\",\n\
  \"not_run\": bool, \"unreadable\"}]}; digest null where it was removed, and where a pointer or lockfile\n\
  cannot be read, for the reason in unreadable")]
pub struct Args {
    /// Tracked path, or a path within one
    path: PathBuf,
    /// Revision to start from
    #[arg(long, default_value = "HEAD")]
    rev: String,
}

pub struct Versions(Vec<Version>);

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Versions> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let path = ctx.path(&repo, &args.path)?;
    if repo.git.head().is_none() && args.rev == "HEAD" {
        return Err(
            Error::not_found("the repository has no commits yet").hint("create one with `git commit`")
        );
    }
    let from = repo.git.resolve(&args.rev)?;
    let more = || wants_of_history(&repo, &from);
    let find = || versions(&repo.git, &repo.store, &from, &path);
    Ok(Versions(with_trees_of(ctx, &workspace, &more, find)?))
}

impl Report for Versions {
    fn json(&self) -> Value {
        let row = |version: &Version| {
            let Version { commit, state, not_run } = version;
            let content = if let State::Content(content) = state { Some(content) } else { None };
            let unreadable = if let State::Unreadable { why, .. } = state { Some(why) } else { None };
            json!({"commit": commit.rev.to_string(), "when": commit.when.to_text(), "author": commit.author,
                "summary": commit.summary, "digest": content.map(|it| it.digest),
                "files": content.map(|it| it.files), "size": content.map(|it| it.size),
                "not_run": not_run, "unreadable": unreadable})
        };
        json!({"versions": self.0.iter().map(row).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Untrusted text: its control characters must not reach the terminal.
        let escape = |text: &str| escape_bytes(text.as_bytes());
        let cells = |Version { commit, state, not_run }: &Version| {
            let (digest, files, size) = match state {
                State::Content(content) => {
                    (content.digest.short(), content.files.to_string(), bytes(content.size))
                }
                State::Absent => ("removed".to_owned(), String::new(), String::new()),
                State::Unreadable { .. } => ("unreadable".to_owned(), String::new(), String::new()),
            };
            let author = escape(commit.author.split(" <").next().unwrap_or_default());
            let mark = if *not_run { format!("({NOT_RUN}) ") } else { String::new() };
            let summary = format!("{mark}{}", escape(&commit.summary));
            vec![commit.rev.short(), commit.when.day(), author, digest, files, size, summary]
        };
        let head = ["commit", "date", "author", "digest", "files", "size", "message"];
        write!(f, "{}", table(&head, self.0.iter().map(cells).collect()))?;
        for Version { commit, state, .. } in &self.0 {
            if let State::Unreadable { why, .. } = state {
                write!(f, "\n{}: {}", commit.rev.short(), escape(why))?;
            }
        }
        Ok(())
    }
}
