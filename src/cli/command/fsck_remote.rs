//! `mlx fsck --remote`: verifies a remote and repairs its damaged packs.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{count, shell_quote},
    },
    error::{Error, Result},
    remote::{self, Access, Remote, RemoteCheck, Sample},
};

/// Number of packs shown of each kind.
const MAX_PACKS: usize = 20;

/// Selects the remote to check, and the packs to read.
#[derive(clap::Args)]
pub struct RemoteArgs {
    /// Verify a remote (default: the default one) instead of the store: names, indexes, lists of roots, and
    /// the packs in which a reader found damage
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    remote: Option<String>,
    /// Also read this share of the remote's packs, others each day
    #[arg(long, value_name = "PERCENT", requires = "remote", conflicts_with = "full")]
    sample: Option<String>,
    /// Also read all packs of the remote
    #[arg(long, requires = "remote")]
    full: bool,
    /// With `--remote` and `--repair`: also take intact objects from this remote
    #[arg(long, value_name = "REMOTE", requires = "remote", requires = "repair")]
    from: Option<String>,
}

/// Report of a check: the remote's location and name, what was found, and whether it was to be repaired.
pub struct RemoteOutput(String, String, RemoteCheck, bool);

impl RemoteArgs {
    /// Returns true if a remote is to be checked.
    pub fn is_given(&self) -> bool {
        self.remote.is_some()
    }

    fn sample(&self) -> Result<Sample> {
        let Some(text) = &self.sample else { return Ok(if self.full { Sample::All } else { Sample::Noted }) };
        let share =
            text.trim_end_matches('%').parse::<f64>().ok().filter(|share| *share > 0.0 && *share <= 100.0);
        let share = share.ok_or_else(|| {
            Error::usage(format!("`{text}` is not a share of packs")).hint("give a percentage, such as `1%`")
        })?;
        Ok(Sample::Share(share / 100.0))
    }
}

/// Checks a remote and, if `repairs`, repairs it.
pub fn run(ctx: &Context<'_>, args: &RemoteArgs, repairs: bool) -> Result<RemoteOutput> {
    let repo = ctx.repo()?;
    let sample = args.sample()?;
    let open = |name: Option<&str>, access| Remote::open(&repo.config.remote(name)?, access);
    let name = args.remote.as_deref().filter(|name| !name.is_empty());
    let remote = open(name, if repairs { Access::Write } else { Access::Read })?;
    let source = args.from.as_deref().map(|name| open(Some(name), Access::Read)).transpose()?;
    let found = remote::check(&repo, &remote, sample, repairs, source.as_ref(), ctx.progress)?;
    Ok(RemoteOutput(remote.location, remote.name, found, repairs))
}

impl Report for RemoteOutput {
    fn json(&self) -> Value {
        let Self(location, _, found, repairs) = self;
        let damaged = found.damaged.iter().map(|(pack, objects)| json!({"pack": pack, "objects": objects}));
        json!({"remote": location, "packs": found.packs, "read": found.read, "lost": found.lost,
            "damaged": damaged.collect::<Vec<_>>(), "damaged_lists": found.damaged_lists,
            "absent_roots": found.absent_roots, "absent": found.absent, "indexes": found.indexes,
            "repairs": repairs, "repaired": found.repaired, "removed": found.removed})
    }

    fn has_findings(&self) -> bool {
        self.2.has_problems()
    }
}

impl fmt::Display for RemoteOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(location, name, found, repairs) = self;
        for (pack, objects) in found.damaged.iter().take(MAX_PACKS) {
            let objects = count(objects.len() as u64, "object");
            writeln!(f, "pack {}: damaged, {objects} without intact bytes", pack.short())?;
        }
        for pack in found.lost.iter().take(MAX_PACKS) {
            writeln!(
                f,
                "pack {}: lost, or its index is damaged; a push sends its objects again",
                pack.short()
            )?;
        }
        for pack in found.indexes.iter().take(MAX_PACKS) {
            let state = if *repairs { "written again" } else { "missing or damaged" };
            writeln!(f, "index of pack {}: {state}", pack.short())?;
        }
        for object in found.absent.iter().take(MAX_PACKS) {
            writeln!(f, "{}: a folder or a list of chunks names it, and it is not there", object.short())?;
        }
        for list in found.damaged_lists.iter().take(MAX_PACKS) {
            writeln!(f, "list of roots {}: damaged", list.short())?;
        }
        for root in found.absent_roots.iter().take(MAX_PACKS) {
            writeln!(f, "{}: a push asked to keep it, and it is not there", root.short())?;
        }
        for pack in found.repaired.iter().take(MAX_PACKS) {
            writeln!(f, "pack {}: repaired", pack.short())?;
        }
        for pack in found.removed.iter().take(MAX_PACKS) {
            writeln!(f, "pack {}: removed, as neither its index nor its end could be read", pack.short())?;
        }
        writeln!(f, "checked {} of {location}, {} of them read", count(found.packs, "pack"), found.read)?;
        match (found.has_problems(), repairs) {
            (false, _) if found.packs == 0 => write!(f, "the remote is empty"),
            (false, _) => write!(f, "no problems found"),
            (true, false) => write!(f, "next: mlx fsck --remote {} --repair", shell_quote(name)),
            (true, true) => write!(f, "next: mlx push, from a clone that has the objects"),
        }
    }
}
