//! `mlx help`: the help of a command, a topic, or everything at once.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Report,
        help::{TOPICS, all_commands, command_help},
    },
    error::{Error, Result, closest},
};

/// Show the help of a command or a topic
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx help add\n  mlx help remote add\n  mlx help pipeline\n\n\
JSON: {\"text\": text}")]
pub struct Args {
    /// A command or a topic (default: the list of both)
    #[arg(value_name = "COMMAND|TOPIC")]
    words: Vec<String>,
    /// Show the help of every command and every topic
    #[arg(long, conflicts_with = "words")]
    all: bool,
}

/// Text to show.
pub struct Help(String);

impl Args {
    /// Arguments that ask for the help of a command.
    pub fn of(words: Vec<String>) -> Self {
        Self { words, all: false }
    }
}

pub fn run(args: &Args) -> Result<Help> {
    if args.all {
        return Ok(Help(everything()));
    }
    let topic = TOPICS.iter().find(|topic| args.words == [topic.name]);
    let text = topic.map(|topic| topic.text.to_owned()).or_else(|| command_help(&args.words));
    text.map(Help).ok_or_else(|| {
        let typed = args.words.join(" ");
        let commands: Vec<String> = all_commands().iter().map(|words| words.join(" ")).collect();
        let topics = TOPICS.iter().map(|topic| topic.name);
        let near = closest(&typed, commands.iter().map(String::as_str).chain(topics.clone()));
        let error = Error::usage(format!("`{typed}` is neither a command nor a help topic"));
        error.hint(match near {
            Some(near) => format!("did you mean `mlx help {near}`?"),
            None => {
                let topics = topics.collect::<Vec<_>>().join(", ");
                format!("the topics are {topics}; `mlx help` lists the commands")
            }
        })
    })
}

/// Help of each command and topic, under a line that shows how to ask for it.
fn everything() -> String {
    let commands = all_commands().into_iter().map(|words| {
        let text = command_help(&words).expect("the tree lists the command");
        ([&["mlx".to_owned()], &words[..], &["--help".to_owned()]].concat().join(" "), text)
    });
    let topics = TOPICS.iter().map(|topic| (format!("mlx help {}", topic.name), topic.text.to_owned()));
    let parts = commands.chain(topics).map(|(typed, text)| format!("$ {typed}\n{}\n", text.trim_end()));
    parts.collect::<Vec<_>>().join("\n")
}

impl Report for Help {
    fn json(&self) -> Value {
        json!({"text": self.0})
    }
}

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
