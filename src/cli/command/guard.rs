use std::{path::PathBuf, process::ExitCode};

use crate::{error::Result, pipeline::runner};

/// Run a stage's command and end it when mlx goes away
#[derive(clap::Args)]
pub struct Args {
    folder: PathBuf,
    lock: String,
    #[arg(allow_hyphen_values = true)]
    command: String,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let code = runner::guard(&args.folder, &args.lock, &args.command)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
