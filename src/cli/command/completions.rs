//! `mlx completions`: prints a shell completion script, generated from the argument definitions.

use std::fmt;

use clap::CommandFactory as _;
use clap_complete::Shell;
use serde_json::{Value, json};

use crate::cli::{Cli, Report};

/// Print a shell completion script
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx completions bash > ~/.local/share/bash-completion/completions/mlx\n\n\
JSON: {\"script\": text}"
)]
pub struct Args {
    /// Shell to generate the script for
    shell: Shell,
}

/// Text of the completion script.
pub struct Script(String);

pub fn run(args: &Args) -> Script {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "mlx", &mut script);
    Script(String::from_utf8_lossy(&script).into_owned())
}

impl Report for Script {
    fn json(&self) -> Value {
        json!({"script": self.0})
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
