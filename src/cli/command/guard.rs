//! The hidden command that runs a stage's shell command and kills it when the mlx that started it ends.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use crate::{error::Result, pipeline::runner};

/// Run a stage's command and kill it when standard input closes
#[derive(clap::Args)]
pub struct Args {
    folder: PathBuf,
    lock: String,
    #[arg(allow_hyphen_values = true)]
    command: OsString,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let code = runner::guard(&args.folder, &args.lock, &args.command)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
