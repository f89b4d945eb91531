use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count, table},
    },
    error::Result,
    store::Amount,
    time::parse_span,
    upkeep::{self, Collected, List},
};

/// Free what nothing needs any more
///
/// Kept is what the workspace, Git's index, any branch, tag, stash, experiment or event, and any worktree leads to,
/// what other clones that share the cache need, and what is younger than the grace period. Without `--yes` it only
/// says what would go.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx gc\n  mlx gc --yes\n  mlx gc --grace 2d --yes\n  mlx gc --forget /home/ada/old-clone\n\n\
JSON: {\"done\", \"kept\", \"clones\", \"grace\", \"freed\": {\"total\", \"contents\", \"trees\", \"whole\", \"runs\", \"leavings\", \"doubles\": \
{\"count\", \"bytes\"}}, \"rewritten\", \"gathered\": {\"count\", \"bytes\"}, \"stays\": {\"count\", \"bytes\"}, \"forgotten\": {\"path\", \"user\"}}"
)]
pub struct Args {
    /// Really do it
    #[arg(short, long)]
    yes: bool,
    /// Keep what is younger: 14d, 12h, 30m, 0s
    #[arg(long, value_name = "SPAN", default_value = "14d")]
    grace: String,
    /// First remove the list of another clone that shared this cache and is gone for good
    #[arg(long, value_name = "CLONE")]
    forget: Option<String>,
}

pub struct Swept {
    collected: Collected,
    grace: String,
    forgotten: Option<List>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Swept> {
    let grace = parse_span(&args.grace)?;
    let repo = ctx.repo()?;
    let forgotten = args.forget.as_ref().map(|it| upkeep::forget(&repo, it)).transpose()?;
    let collected = upkeep::collect(&repo, grace, args.yes, ctx.progress)?;
    Ok(Swept { collected, grace: args.grace.clone(), forgotten })
}

impl Swept {
    fn classes(&self) -> [(&'static str, &'static str, Amount); 6] {
        let freed = &self.collected.freed;
        [
            ("contents", "small files", freed.contents),
            ("trees", "lists of folders", freed.trees),
            ("whole", "large files", freed.large_files),
            ("runs", "records of runs", freed.runs),
            ("leavings", "leavings of killed commands", freed.orphans),
            ("doubles", "second copies", freed.duplicates),
        ]
    }
}

impl Report for Swept {
    fn json(&self) -> Value {
        let it = &self.collected;
        let mut freed = json!({"total": it.freed.total()});
        for (name, _, amount) in self.classes() {
            freed[name] = json!(amount);
        }
        let mut value = json!({"done": it.done, "kept": it.kept, "clones": it.clones, "grace": self.grace,
            "freed": freed, "rewritten": it.rewritten, "gathered": it.gathered, "stays": it.stays});
        if let Some(list) = &self.forgotten {
            value["forgotten"] = json!({"path": list.path, "user": list.user});
        }
        value
    }
}

impl fmt::Display for Swept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let it = &self.collected;
        if let Some(list) = &self.forgotten {
            writeln!(f, "forgot the clone {}", list.path)?;
        }
        let total = it.freed.total();
        if total.count == 0 {
            writeln!(
                f,
                "nothing to free: {} needed or younger than {}",
                count(it.kept, "object"),
                self.grace
            )?;
        } else {
            let rows = self.classes().into_iter().filter(|it| it.2.count > 0);
            let row =
                |it: (&str, &str, Amount)| vec![it.1.to_owned(), it.2.count.to_string(), bytes(it.2.bytes)];
            let verb = if it.done { "freed" } else { "would free" };
            writeln!(
                f,
                "{}",
                table(&[verb, "count", "size"], rows.map(row).collect()).to_string().trim_end()
            )?;
        }
        if it.rewritten.count > 0 {
            let verb = if it.done { "rewrote" } else { "would rewrite" };
            writeln!(
                f,
                "{verb} {}, {} of them needed",
                count(it.rewritten.count, "pack"),
                bytes(it.rewritten.bytes)
            )?;
        }
        if it.gathered.count > 0 {
            let verb = if it.done { "gathered" } else { "would gather" };
            writeln!(
                f,
                "{verb} {}, {} of them needed, into few",
                count(it.gathered.count, "small pack"),
                bytes(it.gathered.bytes)
            )?;
        }
        if it.stays.count > 0 {
            writeln!(
                f,
                "{} that nothing needs stay in packs that are young or mostly needed",
                bytes(it.stays.bytes)
            )?;
        }
        if total.count + it.gathered.count > 0 && !it.done {
            writeln!(f, "next: mlx gc --grace {} --yes", self.grace)?;
        }
        Ok(())
    }
}
