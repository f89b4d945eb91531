use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::transfer::with_trees_of,
        report::{bytes, table},
    },
    error::{Error, Result},
    lineage::{Version, versions},
    path::show,
    pipeline::contents_at,
    remote::Wants,
    workspace::Workspace,
};

/// List the versions of a tracked path
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx log data/\n  mlx log models/pets --rev main\n\n\
JSON: {\"versions\": [{\"commit\", \"when\", \"author\", \"summary\", \"digest\", \"files\", \"size\"}]}; digest null where it was removed")]
pub struct Args {
    /// The path
    path: PathBuf,
    /// Look back from here
    #[arg(long, default_value = "HEAD")]
    rev: String,
}

pub struct Versions(Vec<Version>);

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Versions> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let path = ctx.path(&repo, &args.path)?;
    if repo.git.head().is_none() && args.rev == "HEAD" {
        return Err(Error::not_found("there are no commits yet").hint("make one with `git commit`"));
    }
    let from = repo.git.resolve(&args.rev)?;
    let more = || {
        let mut wants = Wants::default();
        for commit in repo.git.log(std::slice::from_ref(&from))? {
            wants.contents.extend(contents_at(&repo.git, &commit.rev)?);
        }
        Ok(wants)
    };
    let find = || versions(&repo.git, &repo.store, &from, &path);
    Ok(Versions(with_trees_of(ctx, &workspace, &more, find)?))
}

impl Report for Versions {
    fn json(&self) -> Value {
        let row = |it: &Version| {
            json!({"commit": it.commit.rev.to_string(), "when": it.commit.when.to_text(), "author": it.commit.author,
                "summary": it.commit.summary, "digest": it.content.map(|it| it.digest),
                "files": it.content.map(|it| it.files), "size": it.content.map(|it| it.size)})
        };
        json!({"versions": self.0.iter().map(row).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |it: &Version| {
            let (digest, files, size) = it.content.map_or_else(
                || ("removed".to_owned(), String::new(), String::new()),
                |it| (it.digest.short(), it.files.to_string(), bytes(it.size)),
            );
            // Others wrote these: no control character of theirs reaches the terminal.
            let plain = |text: &str| show(text.as_bytes());
            let author = plain(it.commit.author.split(" <").next().unwrap_or_default());
            vec![
                it.commit.rev.short(),
                it.commit.when.day(),
                author,
                digest,
                files,
                size,
                plain(&it.commit.summary),
            ]
        };
        let head = ["commit", "date", "author", "digest", "files", "size", "message"];
        write!(f, "{}", table(&head, self.0.iter().map(row).collect()))
    }
}
