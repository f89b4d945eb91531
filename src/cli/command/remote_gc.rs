//! `mlx remote gc`: removes from a remote what killed pushes left and what newer files replace.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count, shell_quote, table},
    },
    error::Result,
    remote::{Access, Leftover, LeftoverKind, Remote, leftovers},
    store::Amount,
};

/// Remove what is no longer needed at a remote
///
/// Removes what is older than 14 days by the remote's own clock: packs and temporary files of killed pushes,
/// small packs that were merged into others, and lists of roots that newer ones contain. No object that a
/// push completed is removed. A push does the same once a day.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx remote gc --dry-run\n  mlx remote gc backup\n\n\
JSON: {\"remote\", \"done\", \"freed\": {\"total\", \"temporary\", \"packs\", \"replaced\", \"roots\": \
{\"count\", \"bytes\"}}, \"files\": [path]}")]
pub struct Args {
    /// Name of the remote (default: the default one)
    name: Option<String>,
    /// Only list the files that would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Files that were removed from a remote, or would be.
pub struct RemoteGcOutput {
    name: String,
    location: String,
    files: Vec<Leftover>,
    done: bool,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<RemoteGcOutput> {
    let repo = ctx.repo()?;
    let config = repo.config.remote(args.name.as_deref())?;
    // Opened for writing alone, a remote that is not there would be created.
    Remote::open(&config, Access::Read)?;
    let remote = Remote::open(&config, Access::Write)?;
    let found = leftovers(&repo, &remote)?;
    let files = if args.dry_run { found.old } else { found.remove(&remote)? };
    Ok(RemoteGcOutput { name: remote.name, location: remote.location, files, done: !args.dry_run })
}

const KINDS: [(LeftoverKind, &str, &str); 4] = [
    (LeftoverKind::Temporary, "temporary", "temporary files"),
    (LeftoverKind::Pack, "packs", "packs of killed pushes"),
    (LeftoverKind::Replaced, "replaced", "merged packs"),
    (LeftoverKind::Roots, "roots", "lists of roots"),
];

impl RemoteGcOutput {
    /// Returns the number of files and their sizes, of one kind or in total.
    fn amount(&self, kind: Option<LeftoverKind>) -> Amount {
        let of_kind = self.files.iter().filter(|leftover| kind.is_none_or(|kind| leftover.kind == kind));
        let sizes: Vec<u64> = of_kind.flat_map(|leftover| &leftover.files).map(|file| file.1).collect();
        Amount { count: sizes.len() as u64, bytes: sizes.iter().sum() }
    }

    fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(|leftover| &leftover.files).map(|file| file.0.as_str())
    }
}

impl Report for RemoteGcOutput {
    fn json(&self) -> Value {
        let mut freed = json!({"total": self.amount(None)});
        for (kind, key, _) in KINDS {
            freed[key] = json!(self.amount(Some(kind)));
        }
        let files: Vec<_> = self.paths().collect();
        json!({"remote": self.location, "done": self.done, "freed": freed, "files": files})
    }
}

impl fmt::Display for RemoteGcOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.amount(None);
        if total.count == 0 {
            return write!(f, "nothing to free at {}: no leftovers older than 14 days", self.location);
        }
        if !self.done {
            self.paths().try_for_each(|path| writeln!(f, "{path}"))?;
        }
        let rows = KINDS.map(|(kind, _, label)| (label, self.amount(Some(kind))));
        let rows = rows.iter().filter(|row| row.1.count > 0);
        let row = |(label, amount): &(&str, Amount)| {
            vec![(*label).to_owned(), amount.count.to_string(), bytes(amount.bytes)]
        };
        let verb = if self.done { "freed" } else { "would free" };
        let table = table(&[verb, "count", "size"], rows.map(row).collect());
        writeln!(f, "{}", table.to_string().trim_end())?;
        let files = count(total.count, "file");
        writeln!(f, "{verb} {files}, {}, of {}", bytes(total.bytes), self.location)?;
        if self.done { Ok(()) } else { write!(f, "next: mlx remote gc {}", shell_quote(&self.name)) }
    }
}
