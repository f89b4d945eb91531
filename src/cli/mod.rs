//! The command line: parses arguments, runs one command, shows its report and returns the exit code.

mod command;
mod context;
mod help;
mod interrupt;
mod report;
mod staging;
mod ui;

pub use self::{context::Context, report::Report};

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{
    ArgAction, Args, FromArgMatches as _, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use self::{
    command::{Command, guard},
    help::GLOBAL_OPTIONS,
    ui::Ui,
};
use crate::{
    error::{Error, Result},
    fs,
    pipeline::runner::SUBCOMMAND,
};

/// Version data, models and metrics with Git, and take a model from raw data to production
#[derive(Parser)]
#[command(name = "mlx", version, arg_required_else_help = true)]
#[command(disable_help_flag = true, disable_help_subcommand = true)]
#[command(after_help = "`mlx COMMAND --help` explains a command, with examples. Start with `mlx demo`.")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = GLOBAL_OPTIONS)]
pub struct Global {
    /// Run as if started in this folder
    #[arg(short = 'C', value_name = "DIR", global = true)]
    work_in: Option<PathBuf>,
    /// Print one JSON document; errors too: {"error": {"kind", "message", "hint"}}
    #[arg(long, global = true)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print the causes of an error, one on each line
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Print help (`-h`: a summary)
    #[arg(short, long, global = true, action = ArgAction::Help)]
    help: Option<bool>,
}

pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    fs::raise_open_files();
    let args: Vec<OsString> = args.collect();
    let cli = match parse(&args) {
        Ok(cli) => cli,
        Err(error) => return Ui::show_clap_error(&error, args.iter().any(|arg| arg == "--json")),
    };
    let ui = Ui::new(&cli.global);
    if !cli.command.handles_signals() {
        interrupt::announce(ui::show_interrupted);
    }
    match run(&cli, &ui) {
        Ok(code) => code,
        Err(error) => ui.show_error(&error),
    }
}

fn parse(args: &[OsString]) -> clap::error::Result<Cli> {
    if let Some(guard) = parse_guard(args) {
        return Ok(guard);
    }
    let parsed = help::command_tree().try_get_matches_from(args).and_then(|it| Cli::from_arg_matches(&it));
    parsed.or_else(|error| help_in_group(args, &error).ok_or(error))
}

/// Parses the arguments of a stage's guard. Each stage starts one, and the arguments of all other commands
/// would take it longer than all else it does.
fn parse_guard(args: &[OsString]) -> Option<Cli> {
    let args = args.get(1..).filter(|args| args.first().is_some_and(|name| name == SUBCOMMAND))?;
    let command = clap::Command::new(SUBCOMMAND).disable_help_flag(true);
    let matches = guard::Args::augment_args(command).try_get_matches_from(args);
    let args = guard::Args::from_arg_matches(&matches.ok()?).ok()?;
    Some(Cli { global: Global::default(), command: Command::Guard(args) })
}

/// Reads `mlx remote help add` as `mlx help remote add`.
fn help_in_group(args: &[OsString], error: &clap::Error) -> Option<Cli> {
    let is_help =
        matches!(error.get(ContextKind::InvalidSubcommand), Some(ContextValue::String(it)) if it == "help");
    if error.kind() != ErrorKind::InvalidSubcommand || !is_help {
        return None;
    }
    let (mut words, mut rest) = (Vec::new(), args.iter().skip(1).filter_map(|arg| arg.to_str()));
    while let Some(arg) = rest.next() {
        match arg {
            "-C" => drop(rest.next()),
            "help" => {}
            option if option.starts_with('-') => {}
            word => words.push(word.to_owned()),
        }
    }
    let global = Global { json: args.iter().any(|arg| arg == "--json"), ..Global::default() };
    Some(Cli { global, command: Command::Help(command::help::Args::of(words)) })
}

fn run(cli: &Cli, ui: &Ui) -> Result<ExitCode> {
    let start = fs::current_dir()?;
    let cwd = match &cli.global.work_in {
        Some(dir) => {
            let missing = || Error::not_found(format!("the folder `{}` does not exist", dir.display()));
            fs::canonicalize(&start.join(dir)).filter(|it| fs::is_dir(it)).ok_or_else(missing)?
        }
        None => start,
    };
    cli.command.run(&Context::new(cwd, ui), ui)
}
