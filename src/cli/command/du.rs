//! `mlx du`: shows disk usage of the store.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count, table},
    },
    error::Result,
    maintenance::{self, ClassUsage, Revision, Share, Usage},
    path::RepoPath,
    workspace::KeptVersion,
};

/// Number of revisions shown.
const MAX_REVISIONS: usize = 20;
/// Number of kept versions shown.
const MAX_KEPT: usize = 20;

/// Show disk usage of the store
///
/// Lists usage by kind of object, by pointer and by revision, and the versions that commands replaced, which
/// `mlx restore` brings back. The column `only` is the space that would be freed if that pointer or revision
/// did not exist.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx du\n  mlx du --json\n\n\
JSON: {\"classes\": {\"contents\", \"trees\", \"whole\", \"chunked\", \"runs\", \"quarantine\", \"failed\", \
\"logs\": {\"objects\", \"bytes\", \"stored\"}}, \
\"kept\": [{\"digest\", \"path\", \"size\", \"when\", \"until\", \"why\", \"command\"}], \
\"unneeded\": {\"count\", \"bytes\"}, \"versions\", \"distinct\", \"stored\", \"saved\": \
{\"deduplication\", \"compression\"}, \
\"pointers\": [{\"path\", \"versions\", \"size\", \"only\"}], \"revisions\": [{\"commit\" or null, \
\"commits\", \"summary\", \"pointers\", \"size\", \"only\"}]}")]
pub struct Args {}

pub struct DuOutput(Usage);

pub fn run(ctx: &Context<'_>, _: &Args) -> Result<DuOutput> {
    maintenance::usage(&ctx.repo()?).map(DuOutput)
}

impl DuOutput {
    /// Returns the bytes saved by deduplication and by compression.
    fn saved(&self) -> (u64, u64) {
        let usage = &self.0;
        (usage.versions.saturating_sub(usage.distinct), usage.distinct.saturating_sub(usage.stored))
    }

    fn classes(&self) -> [(&'static str, &'static str, ClassUsage); 8] {
        let usage = &self.0;
        [
            ("contents", "small files", usage.contents),
            ("trees", "stored folders", usage.trees),
            ("whole", "large files", usage.large_files),
            ("chunked", "old versions, as chunks", usage.chunked),
            ("runs", "cached runs", usage.runs),
            ("quarantine", "quarantine", usage.quarantine),
            ("failed", "outputs of failed runs", usage.failed),
            ("logs", "logs of runs", usage.logs),
        ]
    }
}

impl Report for DuOutput {
    fn json(&self) -> Value {
        let usage = &self.0;
        let (deduplication, compression) = self.saved();
        let mut classes = json!({});
        for (name, _, class) in self.classes() {
            classes[name] = json!(class);
        }
        let pointers = usage.pointers.iter().map(|share| {
            json!({"path": share.subject, "versions": share.count, "size": share.size,
                "only": share.exclusive})
        });
        let revisions = usage.revisions.iter().map(|share| {
            let newest = share.subject.newest.as_ref();
            json!({"commit": newest.map(|it| it.rev.to_string()), "commits": share.subject.commits,
                "summary": newest.map(|it| &it.summary), "pointers": share.count, "size": share.size,
                "only": share.exclusive})
        });
        let kept = usage.kept.iter().map(|version| {
            json!({"digest": version.content.digest, "path": version.path, "size": version.content.size,
                "when": version.when.to_text(), "until": version.until().to_text(), "why": version.why,
                "command": version.command()})
        });
        json!({"classes": classes, "kept": kept.collect::<Vec<_>>(), "unneeded": usage.unneeded,
            "versions": usage.versions, "distinct": usage.distinct, "stored": usage.stored,
            "saved": {"deduplication": deduplication, "compression": compression},
            "pointers": pointers.collect::<Vec<_>>(), "revisions": revisions.collect::<Vec<_>>()})
    }
}

fn name(share: &Share<Revision>) -> String {
    let more =
        |commits: u64| if commits > 1 { format!(" (and {} more)", commits - 1) } else { String::new() };
    match &share.subject.newest {
        Some(commit) => format!("{} {}{}", commit.rev.short(), commit.summary, more(share.subject.commits)),
        None => "not in any commit".to_owned(),
    }
}

fn write_kept(f: &mut fmt::Formatter<'_>, kept: &[KeptVersion]) -> fmt::Result {
    let row = |version: &KeptVersion| {
        let (size, until) = (bytes(version.content.size), version.until().day());
        vec![until, size, version.path.to_string(), version.why.clone(), version.command()]
    };
    let head = ["kept until", "size", "path", "why", "brought back by"];
    let rows = kept.iter().take(MAX_KEPT).map(row).collect();
    writeln!(f, "{}", table(&head, rows).to_string().trim_end())?;
    if kept.len() > MAX_KEPT {
        writeln!(f, "… and {} more (`--json` lists all)", kept.len() - MAX_KEPT)?;
    }
    writeln!(f)
}

impl fmt::Display for DuOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usage = &self.0;
        let rows = self.classes().into_iter().filter(|it| it.2.objects > 0);
        let row = |(_, label, class): (&str, &str, ClassUsage)| {
            vec![label.to_owned(), class.objects.to_string(), bytes(class.bytes), bytes(class.stored)]
        };
        let head = ["kind", "objects", "size", "on disk"];
        writeln!(f, "{}\n", table(&head, rows.map(row).collect()).to_string().trim_end())?;
        if !usage.kept.is_empty() {
            write_kept(f, &usage.kept)?;
        }
        let row = |share: &Share<RepoPath>| {
            let (size, only) = (bytes(share.size), bytes(share.exclusive.bytes));
            vec![share.count.to_string(), size, only, share.subject.to_string()]
        };
        let rows = usage.pointers.iter().map(row).collect();
        writeln!(f, "{}\n", table(&["versions", "size", "only", "pointer"], rows).to_string().trim_end())?;
        let row = |share: &Share<_>| vec![bytes(share.size), bytes(share.exclusive.bytes), name(share)];
        let rows = usage.revisions.iter().take(MAX_REVISIONS).map(row).collect();
        writeln!(f, "{}", table(&["size", "only", "revision"], rows).to_string().trim_end())?;
        if usage.revisions.len() > MAX_REVISIONS {
            writeln!(f, "… and {} more (`--json` lists all)", usage.revisions.len() - MAX_REVISIONS)?;
        }
        let (deduplication, compression) = self.saved();
        let (once, packed) = (bytes(deduplication), bytes(compression));
        let how = if usage.chunked.objects > 0 { "compression and chunks" } else { "compression" };
        writeln!(f, "\nsaved {once} by deduplication and {packed} by {how}")?;
        if usage.unneeded.count > 0 {
            let (objects, size) = (count(usage.unneeded.count, "object"), bytes(usage.unneeded.bytes));
            writeln!(
                f,
                "{objects}, {size}, not needed any more (`mlx gc --yes` removes those that are old enough)"
            )?;
        }
        Ok(())
    }
}
