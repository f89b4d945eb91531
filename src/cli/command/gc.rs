//! `mlx gc`: removes stored objects that nothing refers to any more.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count, table},
    },
    error::Result,
    maintenance::{self, CloneNeeds, GcMode, GcReport},
    store::Amount,
    time::parse_duration,
};

/// Remove stored objects that nothing refers to any more
///
/// Keeps everything that the workspace, Git's index, any branch, tag, stash or event, any worktree, or
/// another clone sharing the cache refers to, and everything younger than the grace period. Beside a clone
/// that cannot be read, everything that any clone needed within 30 days is kept, too. Versions that a
/// command replaced, outputs of failed runs and logs are kept for 30 days, whatever the grace period, and the
/// newest log of each stage for ever. Old versions of large files are kept as chunks if that takes less
/// space. Without `--yes`, it only reports what it would delete.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx gc\n  mlx gc --yes\n  mlx gc --grace 2d --yes\n  mlx gc --forget \
    /home/ada/old-clone\n\n\
JSON: {\"done\", \"kept\", \"clones\", \"grace\", \"freed\": {\"total\", \"contents\", \"trees\", \
\"whole\", \"chunked\", \"runs\", \"orphans\", \"duplicates\", \"failed\", \"logs\": \
{\"count\", \"bytes\"}}, \"rewritten\", \"merged\", \"retained\", \"not_compared\": {\"count\", \
\"bytes\"}, \"forgotten\": {\"path\", \"user\"}}")]
pub struct Args {
    /// Delete; without this flag, only report
    #[arg(short, long)]
    yes: bool,
    /// Keep everything younger than this, for example 14d, 12h, 30m or 0s
    #[arg(long, value_name = "SPAN", default_value = "14d")]
    grace: String,
    /// Drop the needs of another clone that shared this cache and no longer exists, by id or path
    #[arg(long, value_name = "CLONE")]
    forget: Option<String>,
}

pub struct GcOutput {
    gc: GcReport,
    grace: String,
    forgotten: Option<CloneNeeds>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<GcOutput> {
    let grace = parse_duration(&args.grace)?;
    let repo = ctx.repo()?;
    let forgotten = args.forget.as_ref().map(|clone| maintenance::forget_clone(&repo, clone)).transpose()?;
    let mode = if args.yes { GcMode::Apply } else { GcMode::DryRun };
    let gc = maintenance::collect(&repo, grace, mode, ctx.progress)?;
    Ok(GcOutput { gc, grace: args.grace.clone(), forgotten })
}

impl GcOutput {
    fn total(&self) -> Amount {
        let mut total = self.gc.freed.total();
        for amount in [self.gc.leftovers.failed, self.gc.leftovers.logs] {
            total.count += amount.count;
            total.bytes += amount.bytes;
        }
        total
    }

    fn classes(&self) -> [(&'static str, &'static str, Amount); 9] {
        let (freed, leftovers) = (&self.gc.freed, &self.gc.leftovers);
        [
            ("contents", "small files", freed.contents),
            ("trees", "stored folders", freed.trees),
            ("whole", "large files", freed.large_files),
            ("chunked", "old versions of large files", freed.chunked),
            ("runs", "cached runs", freed.runs),
            ("orphans", "temporary and orphaned files", freed.orphans),
            ("duplicates", "duplicates", freed.duplicates),
            ("failed", "outputs of failed runs", leftovers.failed),
            ("logs", "logs of runs", leftovers.logs),
        ]
    }
}

impl Report for GcOutput {
    fn json(&self) -> Value {
        let gc = &self.gc;
        let mut freed = json!({"total": self.total()});
        for (name, _, amount) in self.classes() {
            freed[name] = json!(amount);
        }
        let mut value = json!({"done": gc.done, "kept": gc.kept, "clones": gc.clones, "grace": self.grace,
            "freed": freed, "rewritten": gc.rewritten, "merged": gc.merged, "retained": gc.retained,
            "not_compared": gc.not_compared});
        if let Some(clone) = &self.forgotten {
            value["forgotten"] = json!({"path": clone.path, "user": clone.user});
        }
        value
    }
}

impl fmt::Display for GcOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gc = &self.gc;
        if let Some(clone) = &self.forgotten {
            writeln!(f, "forgot the clone {}", clone.path)?;
        }
        let total = self.total();
        if total.count == 0 {
            let kept = count(gc.kept, "object");
            writeln!(f, "nothing to free: {kept} needed or younger than {}", self.grace)?;
        } else {
            let rows = self.classes().into_iter().filter(|it| it.2.count > 0);
            let row = |(_, label, amount): (&str, &str, Amount)| {
                vec![label.to_owned(), amount.count.to_string(), bytes(amount.bytes)]
            };
            let verb = if gc.done { "freed" } else { "would free" };
            let table = table(&[verb, "count", "size"], rows.map(row).collect());
            writeln!(f, "{}", table.to_string().trim_end())?;
        }
        if gc.rewritten.count > 0 {
            let verb = if gc.done { "rewrote" } else { "would rewrite" };
            let (packs, needed) = (count(gc.rewritten.count, "pack"), bytes(gc.rewritten.bytes));
            writeln!(f, "{verb} {packs}, {needed} of them needed")?;
        }
        if gc.merged.count > 0 {
            let verb = if gc.done { "merged" } else { "would merge" };
            let (packs, needed) = (count(gc.merged.count, "small pack"), bytes(gc.merged.bytes));
            writeln!(f, "{verb} {packs}, {needed} of them needed")?;
        }
        if gc.retained.count > 0 {
            let retained = bytes(gc.retained.bytes);
            writeln!(f, "{retained} of unneeded objects stay in packs that are young or mostly needed")?;
        }
        if gc.not_compared.count > 0 {
            let (versions, size) =
                (count(gc.not_compared.count, "old version"), bytes(gc.not_compared.bytes));
            writeln!(f, "{versions} of large files, {size}: what is the same in others will be kept once")?;
        }
        if total.count + gc.merged.count + gc.not_compared.count > 0 && !gc.done {
            writeln!(f, "next: mlx gc --grace {} --yes", self.grace)?;
        }
        Ok(())
    }
}
