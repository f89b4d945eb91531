//! `mlx fsck`: verifies the store and all pointers, reports what damage affects, and repairs it.

use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::fsck_remote::RemoteArgs,
        report::{bytes, count},
    },
    digest::Digest,
    error::Result,
    maintenance::{self, AffectedPath, CheckReport, Referrer, RepairSource},
    workspace::Workspace,
};

/// Number of affected paths shown per damaged object.
const MAX_PATHS: usize = 5;
/// Number of damaged objects shown.
const MAX_OBJECTS: usize = 20;

/// Verify everything in the store and every pointer in history
///
/// Compares all stored bytes with their digests, and reports damage with the files and commits it affects.
/// Damaged files are moved to `quarantine/` in the store and never deleted. Exits with 10 if anything
/// is damaged or cannot be read; a merge conflict is not damage.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx fsck\n  mlx fsck --repair\n  mlx fsck --remote --sample 1%\n  \
mlx fsck --remote backup --full --repair --from origin\n\n\
JSON: {\"objects\", \"bytes\", \"packs\", \"runs\", \"pointers\", \"commits\", \"absent\", \"faults\": \
[{\"kind\", \"digest\", \"file\", \"why\"}], \
\"damaged\": [{\"digest\", \"hits\": [{\"path\", \"commit\" or \"worktree\" or \"in\"}], \"from\" or null}], \
\"changed\": [{\"path\", \"digest\"}], \"unreadable\": [{\"place\", \"why\", \"conflict\"}], \"repaired\"}\n\
With --remote: {\"remote\", \"packs\", \"read\", \"lost\": [pack], \"damaged\": [{\"pack\", \"objects\"}], \
\"damaged_lists\", \"absent_roots\", \"absent\": [object], \"indexes\": [pack], \"repairs\", \
\"repaired\": [pack], \"removed\": [pack]}")]
pub struct Args {
    /// Restore damaged objects from the workspace or the default remote; with `--remote`, damaged packs there
    /// from the local store
    #[arg(long)]
    pub repair: bool,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

pub struct FsckOutput(CheckReport);

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<FsckOutput> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let checked = maintenance::check(&workspace, args.repair, ctx.progress)?;
    maintenance::publish_needs_if_allowed(&repo, ctx.progress)?;
    Ok(FsckOutput(checked))
}

impl FsckOutput {
    fn affected_paths(&self) -> BTreeMap<Digest, Vec<&AffectedPath>> {
        let mut paths: BTreeMap<Digest, Vec<&AffectedPath>> =
            self.0.damaged.iter().map(|it| (*it, Vec::new())).collect();
        for affected in &self.0.affected {
            paths.entry(affected.object).or_default().push(affected);
        }
        paths
    }

    fn from(&self, digest: &Digest) -> Option<&RepairSource> {
        self.0.repair.as_ref()?.restored.get(digest)
    }
}

fn describe(affected: &AffectedPath) -> String {
    let path = &affected.reference.path;
    match &affected.reference.referrer {
        Referrer::Worktree(_) => format!("{path}"),
        Referrer::Index(_) => format!("{path} in Git's index"),
        Referrer::Commit(rev) => format!("{path} at {}", rev.short()),
        Referrer::Other(what) => what.clone(),
    }
}

impl Report for FsckOutput {
    fn json(&self) -> Value {
        let report = &self.0;
        let location = |affected: &&AffectedPath| {
            let mut value = json!({"path": affected.reference.path});
            match &affected.reference.referrer {
                Referrer::Worktree(root) => value["worktree"] = json!(root.display().to_string()),
                Referrer::Index(_) => value["in"] = json!("index"),
                Referrer::Commit(rev) => value["commit"] = json!(rev.to_string()),
                Referrer::Other(what) => value["in"] = json!(what),
            }
            value
        };
        let from = |digest: &Digest| match self.from(digest) {
            Some(RepairSource::Workspace(path)) => json!({"workspace": path}),
            Some(RepairSource::Remote(name)) => json!({"remote": name}),
            Some(RepairSource::Chunks) => json!({"chunks": true}),
            None => Value::Null,
        };
        let damaged = self.affected_paths().into_iter().map(|(digest, paths)| {
            let hits: Vec<_> = paths.iter().map(location).collect();
            json!({"digest": digest, "hits": hits, "from": from(&digest)})
        });
        let faults = report.verified.faults.iter().map(|fault| {
            let (kind, digest) = (fault.kind.name(), fault.kind.digest());
            json!({"kind": kind, "digest": digest, "file": fault.file, "why": fault.why})
        });
        let changed = report.changed.iter().map(|(path, digest)| json!({"path": path, "digest": digest}));
        let unreadable = report.unreadable.iter().chain(&report.misstated);
        let unreadable = unreadable.map(|(place, error)| {
            let conflict = report.conflicts.contains(place);
            json!({"place": place, "why": error.chain_text(), "conflict": conflict})
        });
        let verified = &report.verified;
        json!({"objects": verified.objects, "bytes": verified.bytes, "packs": verified.packs,
            "runs": verified.runs, "pointers": report.pointers, "commits": report.commits,
            "absent": report.absent.len(),
            "faults": faults.collect::<Vec<_>>(), "damaged": damaged.collect::<Vec<_>>(),
            "changed": changed.collect::<Vec<_>>(), "unreadable": unreadable.collect::<Vec<_>>(),
            "repaired": report.repair.is_some()})
    }

    fn has_findings(&self) -> bool {
        self.0.has_problems()
    }
}

impl fmt::Display for FsckOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.0;
        for fault in &report.verified.faults {
            writeln!(
                f,
                "{} {}: {} ({})",
                fault.kind.name(),
                fault.kind.digest().short(),
                fault.why,
                fault.file
            )?;
        }
        for (path, digest) in &report.changed {
            writeln!(
                f,
                "{path} is linked to {} in the store, which was changed through the link",
                digest.short()
            )?;
        }
        let affected = self.affected_paths();
        for (digest, paths) in affected.iter().take(MAX_OBJECTS) {
            self.write_object(f, digest, paths)?;
        }
        if affected.len() > MAX_OBJECTS {
            writeln!(
                f,
                "… and {} more (`--json` lists all)",
                count((affected.len() - MAX_OBJECTS) as u64, "object")
            )?;
        }
        let unreadable = report.unreadable.iter().map(|row| {
            let conflict = report.conflicts.contains(&row.0);
            (row, if conflict { "" } else { " cannot be read" })
        });
        let misstated = report.misstated.iter().map(|row| (row, " is wrong"));
        for ((place, error), state) in unreadable.chain(misstated) {
            writeln!(f, "{place}{state}: {}", error.chain_text())?;
            error.hint_text().map_or(Ok(()), |hint| writeln!(f, "  hint: {hint}"))?;
        }
        let (objects, pointers) =
            (count(report.verified.objects, "object"), count(report.pointers, "pointer"));
        writeln!(
            f,
            "checked {objects}, {}, and {pointers} of {}",
            bytes(report.verified.bytes),
            count(report.commits, "commit")
        )?;
        if !report.absent.is_empty() {
            writeln!(
                f,
                "{} not stored here (`mlx fetch --all-commits` fetches them)",
                count(report.absent.len() as u64, "object")
            )?;
        }
        self.write_outcome(f)
    }
}

impl FsckOutput {
    fn write_object(
        &self,
        f: &mut fmt::Formatter<'_>,
        digest: &Digest,
        paths: &[&AffectedPath],
    ) -> fmt::Result {
        let status = match (self.from(digest), &self.0.repair) {
            (Some(RepairSource::Workspace(path)), _) => format!("restored from `{path}`"),
            (Some(RepairSource::Remote(name)), _) => format!("restored from the remote `{name}`"),
            (Some(RepairSource::Chunks), _) => "restored from chunks of other versions".to_owned(),
            (None, Some(_)) => "no intact copy found".to_owned(),
            (None, None) => "damaged or lost".to_owned(),
        };
        writeln!(f, "{}: {status}; needed by", digest.short())?;
        for affected in paths.iter().take(MAX_PATHS) {
            writeln!(f, "  {}", describe(affected))?;
        }
        if paths.len() > MAX_PATHS {
            writeln!(f, "  … and {} more (`--json` lists all)", paths.len() - MAX_PATHS)?;
        }
        Ok(())
    }

    fn write_outcome(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = self.0.repair.as_ref().and_then(|it| it.remote_error.as_ref()) {
            writeln!(f, "the remote could not help: {}", error.chain_text())?;
        }
        match (self.0.has_problems(), &self.0.repair) {
            (false, None) => write!(f, "no problems found"),
            (false, Some(_)) => write!(f, "no problems left"),
            (true, None) if self.0.is_damaged() => write!(f, "next: mlx fsck --repair"),
            (true, _) if !self.0.is_damaged() => write!(f, "the stored objects are intact"),
            (true, _) => write!(f, "some damage could not be repaired"),
        }
    }
}
