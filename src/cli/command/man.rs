//! `mlx man`: writes manual pages of every command (section 1) and help topic (section 7).

use std::{fmt, path::PathBuf};

use clap_mangen::{
    Man,
    roff::{Roff, roman},
};
use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        help::{GROUPS, TOPICS, Topic, command_tree},
        report::count,
    },
    error::Result,
    fs::{Root, Sync},
    path::RepoPath,
};

/// Title of the whole manual, at the top of each page.
const MANUAL: &str = "mlx manual";

/// Write manual pages into a folder
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx man man && man man/mlx-add.1\n\n\
JSON: {\"pages\": [FILE…]}")]
pub struct Args {
    /// Folder for the pages; created if it does not exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Names of the files that were written.
pub struct Pages {
    dir: PathBuf,
    names: Vec<String>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Pages> {
    let dir = ctx.cwd.join(&args.dir);
    let root = Root::create(&dir)?;
    let mut tree = command_tree();
    tree.build();
    let mut pages = Vec::new();
    collect_pages(&tree, &mut pages);
    pages.extend(TOPICS.iter().map(|topic| (format!("mlx-{}.7", topic.name), topic_page(topic))));
    for (name, text) in &pages {
        root.write(&RepoPath::from_text(name)?, text, Sync::Later)?;
    }
    Ok(Pages { dir, names: pages.into_iter().map(|page| page.0).collect() })
}

/// Appends the page of a command and of all visible commands below it.
fn collect_pages(command: &clap::Command, pages: &mut Vec<(String, Vec<u8>)>) {
    let name = command.get_display_name().unwrap_or(command.get_name());
    pages.push((format!("{name}.1"), command_page(command)));
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        collect_pages(inner, pages);
    }
}

/// The page of one command. The text behind its options keeps its lines: examples are typed as they are
/// shown.
fn command_page(command: &clap::Command) -> Vec<u8> {
    let man = Man::new(command.clone()).source(source()).manual(MANUAL);
    let mut page = Vec::new();
    let write = |page: &mut Vec<u8>| {
        man.render_title(page)?;
        man.render_name_section(page)?;
        man.render_synopsis_section(page)?;
        man.render_description_section(page)?;
        man.render_options_section(page)?;
        if command.get_name() == "mlx" {
            group_sections(command).iter().try_for_each(|section| section.to_writer(page))?;
        } else if command.has_subcommands() {
            man.render_subcommands_section(page)?;
        }
        let Some(after) = command.get_after_help() else { return Ok(()) };
        section("NOTES", &after.to_string()).to_writer(page)
    };
    write(&mut page).expect("a vector takes every byte");
    page
}

/// The commands in the groups of `mlx --help`, each group in a section.
fn group_sections(mlx: &clap::Command) -> Vec<Roff> {
    let row = |name: &&str| {
        let about = mlx.find_subcommand(name).and_then(clap::Command::get_about);
        format!("{:<20}  {}", format!("mlx-{name}(1)"), about.map(ToString::to_string).unwrap_or_default())
    };
    let text = |names: &[&str]| names.iter().map(row).collect::<Vec<_>>().join("\n");
    GROUPS.iter().map(|(title, names)| section(&format!("COMMANDS: {title}"), &text(names))).collect()
}

fn topic_page(topic: &Topic) -> Vec<u8> {
    let mut page = Roff::default();
    let title = format!("mlx-{}", topic.name);
    page.control("TH", [title.as_str(), "7", "", &source(), MANUAL]);
    page.control("SH", ["NAME"]);
    page.text([roman(format!("{title} - {}", topic.about))]);
    let mut text = page.to_roff().into_bytes();
    text.extend(section("DESCRIPTION", topic.text).to_roff().into_bytes());
    text
}

/// A section whose lines are kept as they are.
fn section(title: &str, text: &str) -> Roff {
    let mut roff = Roff::default();
    roff.control("SH", [title]);
    roff.control("nf", []);
    for line in text.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff
}

fn source() -> String {
    format!("mlx {}", env!("CARGO_PKG_VERSION"))
}

impl Report for Pages {
    fn json(&self) -> Value {
        json!({"pages": self.names})
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in `{}`", count(self.names.len() as u64, "manual page"), self.dir.display())
    }
}
