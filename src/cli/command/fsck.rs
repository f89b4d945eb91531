use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count},
    },
    digest::Digest,
    error::Result,
    upkeep::{self, Checked, Hit, Holder, Source},
    workspace::Workspace,
};

/// Lines of one damaged object.
const LINES: usize = 5;
/// Damaged objects that are named.
const OBJECTS: usize = 20;

/// Compare everything in the store with its digest, and read every pointer of all history
///
/// Says what is damaged and which files of which commits that hits. Damaged bytes are moved to `quarantine/` in the
/// store, never deleted. Exits with 10 when something is damaged.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx fsck\n  mlx fsck --repair\n\n\
JSON: {\"objects\", \"bytes\", \"packs\", \"runs\", \"pointers\", \"commits\", \"absent\", \"faults\": [{\"kind\", \"digest\", \"file\", \"why\"}], \
\"damaged\": [{\"digest\", \"hits\": [{\"path\", \"commit\" or \"worktree\" or \"in\"}], \"from\" or null}], \
\"changed\": [{\"path\", \"digest\"}], \"unreadable\": [{\"place\", \"why\"}], \"repaired\"}")]
pub struct Args {
    /// Bring back what is damaged, from the workspace or the default remote
    #[arg(long)]
    repair: bool,
}

pub struct Examined(Checked);

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Examined> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let checked = upkeep::check(&workspace, args.repair, ctx.progress)?;
    upkeep::renew_if_allowed(&repo, ctx.progress)?;
    Ok(Examined(checked))
}

impl Examined {
    fn hits(&self) -> BTreeMap<Digest, Vec<&Hit>> {
        let mut hits: BTreeMap<Digest, Vec<&Hit>> =
            self.0.damaged.iter().map(|it| (*it, Vec::new())).collect();
        for hit in &self.0.hits {
            hits.entry(hit.object).or_default().push(hit);
        }
        hits
    }

    fn from(&self, digest: &Digest) -> Option<&Source> {
        self.0.mended.as_ref()?.back.get(digest)
    }
}

fn told(hit: &Hit) -> String {
    let path = &hit.place.path;
    match &hit.place.holder {
        Holder::Worktree(_) => format!("{path}"),
        Holder::Index(_) => format!("{path} in Git's index"),
        Holder::Commit(rev) => format!("{path} at {}", rev.short()),
        Holder::Other(what) => what.clone(),
    }
}

impl Report for Examined {
    fn json(&self) -> Value {
        let it = &self.0;
        let hit = |hit: &&Hit| {
            let mut value = json!({"path": hit.place.path});
            match &hit.place.holder {
                Holder::Worktree(root) => value["worktree"] = json!(root.display().to_string()),
                Holder::Index(_) => value["in"] = json!("index"),
                Holder::Commit(rev) => value["commit"] = json!(rev.to_string()),
                Holder::Other(what) => value["in"] = json!(what),
            }
            value
        };
        let from = |digest: &Digest| match self.from(digest) {
            Some(Source::Workspace(path)) => json!({"workspace": path}),
            Some(Source::Remote(name)) => json!({"remote": name}),
            None => Value::Null,
        };
        let damaged = self.hits().into_iter().map(|(digest, hits)| {
            json!({"digest": digest, "hits": hits.iter().map(hit).collect::<Vec<_>>(), "from": from(&digest)})
        });
        let faults = it.verified.faults.iter().map(
            |it| json!({"kind": it.kind.name(), "digest": it.kind.digest(), "file": it.file, "why": it.why}),
        );
        let changed = it.changed.iter().map(|it| json!({"path": it.0, "digest": it.1}));
        let unreadable = it.unreadable.iter().map(|it| json!({"place": it.0, "why": it.1.full_text()}));
        json!({"objects": it.verified.objects, "bytes": it.verified.bytes, "packs": it.verified.packs,
            "runs": it.verified.runs, "pointers": it.pointers, "commits": it.commits, "absent": it.absent.len(),
            "faults": faults.collect::<Vec<_>>(), "damaged": damaged.collect::<Vec<_>>(),
            "changed": changed.collect::<Vec<_>>(), "unreadable": unreadable.collect::<Vec<_>>(),
            "repaired": it.mended.is_some()})
    }

    fn found(&self) -> bool {
        self.0.found()
    }
}

impl fmt::Display for Examined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let it = &self.0;
        for fault in &it.verified.faults {
            writeln!(
                f,
                "{} {}: {} ({})",
                fault.kind.name(),
                fault.kind.digest().short(),
                fault.why,
                fault.file
            )?;
        }
        for (path, digest) in &it.changed {
            writeln!(f, "{path} is linked to {} in the store and was changed all the same", digest.short())?;
        }
        let hits = self.hits();
        for (digest, hits) in hits.iter().take(OBJECTS) {
            self.object(f, digest, hits)?;
        }
        if hits.len() > OBJECTS {
            writeln!(
                f,
                "… and {} more (`--json` lists all)",
                count((hits.len() - OBJECTS) as u64, "object")
            )?;
        }
        for (place, error) in &it.unreadable {
            writeln!(f, "cannot read {place}: {}", error.full_text())?;
        }
        let (objects, pointers) = (count(it.verified.objects, "object"), count(it.pointers, "pointer"));
        writeln!(
            f,
            "checked {objects}, {}, and {pointers} of {}",
            bytes(it.verified.bytes),
            count(it.commits, "commit")
        )?;
        if !it.absent.is_empty() {
            writeln!(
                f,
                "{} not here (`mlx fetch --all-commits` brings them)",
                count(it.absent.len() as u64, "object")
            )?;
        }
        self.end(f)
    }
}

impl Examined {
    fn object(&self, f: &mut fmt::Formatter<'_>, digest: &Digest, hits: &[&Hit]) -> fmt::Result {
        let fate = match (self.from(digest), &self.0.mended) {
            (Some(Source::Workspace(path)), _) => format!("mended from `{path}`"),
            (Some(Source::Remote(name)), _) => format!("mended from the remote `{name}`"),
            (None, Some(_)) => "nobody at hand has it".to_owned(),
            (None, None) => "damaged or lost".to_owned(),
        };
        writeln!(f, "{}: {fate}; needed by", digest.short())?;
        for hit in hits.iter().take(LINES) {
            writeln!(f, "  {}", told(hit))?;
        }
        if hits.len() > LINES {
            writeln!(f, "  … and {} more (`--json` lists all)", hits.len() - LINES)?;
        }
        Ok(())
    }

    fn end(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = self.0.mended.as_ref().and_then(|it| it.trouble.as_ref()) {
            writeln!(f, "the remote was of no help: {}", error.full_text())?;
        }
        match (self.0.found(), &self.0.mended) {
            (false, None) => write!(f, "all is well"),
            (false, Some(_)) => write!(f, "all is well now"),
            (true, None) => write!(f, "next: mlx fsck --repair"),
            (true, Some(_)) => write!(f, "not all could be mended"),
        }
    }
}
