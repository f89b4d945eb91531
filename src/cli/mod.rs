//! Arguments in, reports out, exit code back.

mod command;
mod context;
mod report;
mod ui;

pub use self::{context::Context, report::Report};

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser};

use self::{command::Command, ui::Ui};
use crate::{error::Result, fs};

/// Version data, models and metrics with Git, and take a model from pictures to production
#[derive(Parser)]
#[command(name = "mlx", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 internal, 2 usage, 3 not found, 4 conflict, 5 corrupt, 6 denied, \
7 unavailable, 8 a stage failed, 10 a check found something.\nStart with `mlx demo`."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Work in this folder
    #[arg(short = 'C', value_name = "DIR", global = true)]
    work_in: Option<PathBuf>,
    /// Print one JSON document; errors too: {"error": {"kind", "message", "hint"}}
    #[arg(long, global = true)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print the reasons of errors, one a line
    #[arg(short, long, global = true)]
    verbose: bool,
}

pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    fs::raise_open_files();
    let args: Vec<OsString> = args.collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return Ui::refuse(&error, args.iter().any(|it| it == "--json")),
    };
    let ui = Ui::new(&cli.global);
    match run(&cli, &ui) {
        Ok(code) => code,
        Err(error) => ui.fail(&error),
    }
}

fn run(cli: &Cli, ui: &Ui) -> Result<ExitCode> {
    let start = fs::current_dir()?;
    let cwd = match &cli.global.work_in {
        Some(dir) => {
            let missing =
                || crate::error::Error::not_found(format!("there is no folder `{}`", dir.display()));
            fs::canonical(&start.join(dir)).filter(|it| fs::is_dir(it)).ok_or_else(missing)?
        }
        None => start,
    };
    cli.command.run(&Context::new(cwd, ui), ui)
}
