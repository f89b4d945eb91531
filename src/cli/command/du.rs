use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count, table},
    },
    error::Result,
    upkeep::{self, Share, Usage},
};

/// Lines of revisions that are shown.
const LINES: usize = 20;

/// Say what takes the room
///
/// By kind of object, by pointer and by revision: `only` is what would be free if that one were gone.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx du\n  mlx du --json\n\n\
JSON: {\"classes\": {\"contents\", \"trees\", \"whole\", \"runs\", \"quarantine\": {\"objects\", \"bytes\", \"stored\"}}, \
\"unneeded\": {\"count\", \"bytes\"}, \"versions\", \"distinct\", \"stored\", \"saved\": {\"deduplication\", \"compression\"}, \
\"pointers\": [{\"path\", \"versions\", \"size\", \"only\"}], \"revisions\": [{\"commit\" or null, \"commits\", \"summary\", \"pointers\", \"size\", \"only\"}]}")]
pub struct Args {}

pub struct Room(Usage);

pub fn run(ctx: &Context<'_>, _: &Args) -> Result<Room> {
    upkeep::usage(&ctx.repo()?).map(Room)
}

impl Room {
    /// By keeping equal bytes once, and by compression.
    fn saved(&self) -> (u64, u64) {
        let it = &self.0;
        (it.versions.saturating_sub(it.distinct), it.distinct.saturating_sub(it.stored))
    }

    fn classes(&self) -> [(&'static str, upkeep::Class); 5] {
        let it = &self.0;
        [
            ("contents", it.contents),
            ("trees", it.trees),
            ("whole", it.whole),
            ("runs", it.runs),
            ("quarantine", it.quarantine),
        ]
    }
}

impl Report for Room {
    fn json(&self) -> Value {
        let it = &self.0;
        let (deduplication, compression) = self.saved();
        let mut classes = json!({});
        for (name, class) in self.classes() {
            classes[name] = json!(class);
        }
        let pointers = it
            .pointers
            .iter()
            .map(|it| json!({"path": it.of, "versions": it.count, "size": it.size, "only": it.only}));
        let revisions = it.revisions.iter().map(|it| {
            let newest = it.of.newest.as_ref();
            json!({"commit": newest.map(|it| it.rev.to_string()), "commits": it.of.commits,
                "summary": newest.map(|it| &it.summary), "pointers": it.count, "size": it.size, "only": it.only})
        });
        json!({"classes": classes, "unneeded": it.unneeded, "versions": it.versions, "distinct": it.distinct,
            "stored": it.stored, "saved": {"deduplication": deduplication, "compression": compression},
            "pointers": pointers.collect::<Vec<_>>(), "revisions": revisions.collect::<Vec<_>>()})
    }
}

fn name(share: &Share<upkeep::Revision>) -> String {
    let more =
        |commits: u64| if commits > 1 { format!(" (and {} more)", commits - 1) } else { String::new() };
    match &share.of.newest {
        Some(it) => format!("{} {}{}", it.rev.short(), it.summary, more(share.of.commits)),
        None => "what is in no commit".to_owned(),
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let it = &self.0;
        let rows = self.classes().into_iter().filter(|it| it.1.objects > 0);
        let row = |(name, it): (&str, upkeep::Class)| {
            vec![name.to_owned(), it.objects.to_string(), bytes(it.bytes), bytes(it.stored)]
        };
        let head = ["kind", "objects", "size", "on disk"];
        writeln!(f, "{}\n", table(&head, rows.map(row).collect()).to_string().trim_end())?;
        let row = |it: &Share<_>| {
            vec![it.count.to_string(), bytes(it.size), bytes(it.only.bytes), format!("{}", it.of)]
        };
        let rows = it.pointers.iter().map(row).collect();
        writeln!(f, "{}\n", table(&["versions", "size", "only", "pointer"], rows).to_string().trim_end())?;
        let row = |it: &Share<_>| vec![bytes(it.size), bytes(it.only.bytes), name(it)];
        let rows = it.revisions.iter().take(LINES).map(row).collect();
        writeln!(f, "{}", table(&["size", "only", "revision"], rows).to_string().trim_end())?;
        if it.revisions.len() > LINES {
            writeln!(f, "… and {} more (`--json` lists all)", it.revisions.len() - LINES)?;
        }
        let (deduplication, compression) = self.saved();
        let (once, packed) = (bytes(deduplication), bytes(compression));
        writeln!(f, "\nsaved {once} by keeping equal files once, {packed} by compression")?;
        if it.unneeded.count > 0 {
            let (objects, size) = (count(it.unneeded.count, "object"), bytes(it.unneeded.bytes));
            writeln!(f, "{objects}, {size}, that nothing needs (`mlx gc`)")?;
        }
        Ok(())
    }
}
