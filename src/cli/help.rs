//! Help texts: the command tree, the groups that `mlx --help` lists, and topics that no single command
//! explains.

use std::fmt::Write as _;

use clap::CommandFactory as _;

use crate::cli::Cli;

/// Heading of the options that every command takes.
pub const GLOBAL_OPTIONS: &str = "Global options";

/// Groups of `mlx --help`, each with its commands in the order in which a newcomer meets them.
pub const GROUPS: [(&str, &[&str]); 8] = [
    ("Track", &["init", "add", "status", "checkout", "commit", "remove", "move", "unprotect", "restore"]),
    ("Run", &["repro"]),
    ("Compare", &["diff", "show"]),
    ("Share", &["remote", "push", "fetch", "pull"]),
    ("History", &["log", "lineage", "audit"]),
    ("Model", &["data", "model", "explain"]),
    (
        "Production",
        &[
            "serve", "apptest", "approve", "reject", "release", "rollback", "watch", "traffic", "feedback",
            "monitor", "alert", "retrain",
        ],
    ),
    ("Maintenance", &["gc", "fsck", "du", "config", "doctor", "completions", "man", "demo", "help"]),
];

/// A text of `mlx help TOPIC`.
pub struct Topic {
    pub name: &'static str,
    /// One line, for lists.
    pub about: &'static str,
    pub text: &'static str,
}

/// All topics, in the order in which `mlx --help` lists them.
pub const TOPICS: [Topic; 7] = [
    Topic {
        name: "pointers",
        about: "Files that Git stores in place of data",
        text: include_str!("topics/pointers.txt"),
    },
    Topic {
        name: "pipeline",
        about: "Stages and all keys of `mlx.toml`",
        text: include_str!("topics/pipeline.txt"),
    },
    Topic {
        name: "params",
        about: "Parameters and how they are compared",
        text: include_str!("topics/params.txt"),
    },
    Topic { name: "revisions", about: "Ways to name a version", text: include_str!("topics/revisions.txt") },
    Topic {
        name: "remotes",
        about: "Folders and buckets for sharing",
        text: include_str!("topics/remotes.txt"),
    },
    Topic {
        name: "policy",
        about: "Gates, approvals and alert rules",
        text: include_str!("topics/policy.txt"),
    },
    Topic {
        name: "exit-codes",
        about: "Meaning of each exit code",
        text: include_str!("topics/exit-codes.txt"),
    },
];

/// The command tree, with the grouped help of `mlx` itself.
pub fn command_tree() -> clap::Command {
    let command = Cli::command().max_term_width(100);
    let styles = command.get_styles().clone();
    let (on, off) = (styles.get_header().render(), styles.get_header().render_reset());
    let mut lists = String::new();
    let about = |name: &str| {
        command.find_subcommand(name).and_then(clap::Command::get_about).cloned().unwrap_or_default()
    };
    let groups = GROUPS.iter().map(|&(title, names)| {
        (title, names.iter().map(|&name| (name, about(name).to_string())).collect::<Vec<_>>())
    });
    let topics = TOPICS.iter().map(|topic| (topic.name, topic.about.to_owned())).collect();
    for (title, rows) in groups.chain([("Topics of `mlx help`", topics)]) {
        let _infallible = write!(lists, "\n{on}{title}:{off}\n");
        for (name, about) in rows {
            let _infallible = writeln!(lists, "  {name:<11}  {about}");
        }
    }
    let template = format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n{lists}\n{on}{GLOBAL_OPTIONS}:{off}\n\
        {{options}}{{after-help}}"
    );
    command.help_template(template)
}

/// The help of the command that `words` name, as `mlx WORDS --help` prints it.
pub fn command_help(words: &[String]) -> Option<String> {
    let tree = command_tree();
    words.iter().try_fold(&tree, |command, word| command.find_subcommand(word))?;
    let args = ["mlx"].into_iter().chain(words.iter().map(String::as_str)).chain(["--help"]);
    let help = tree.try_get_matches_from(args).err()?;
    Some(help.to_string())
}

/// Words that name each visible command, groups of commands included; `mlx` itself has none.
pub fn all_commands() -> Vec<Vec<String>> {
    fn collect(command: &clap::Command, words: &[String], all: &mut Vec<Vec<String>>) {
        all.push(words.to_vec());
        let visible =
            command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help");
        for inner in visible {
            collect(inner, &[words, &[inner.get_name().to_owned()]].concat(), all);
        }
    }
    let mut all = Vec::new();
    collect(&command_tree(), &[], &mut all);
    all.push(vec!["help".to_owned()]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Kind, path::RepoPath, pipeline::Manifest, policy::Policy, repo::OPTIONS};

    #[test]
    fn each_visible_command_is_in_one_group() {
        let mut listed: Vec<&str> = GROUPS.iter().flat_map(|group| group.1).copied().collect();
        listed.sort_unstable();
        let tree = command_tree();
        let mut there: Vec<&str> = tree
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(clap::Command::get_name)
            .collect();
        there.sort_unstable();
        assert_eq!(listed, there);
    }

    /// Keys that serde names in "unknown field `zzz`, expected one of `a`, `b`".
    fn expected_keys(error: &str) -> Vec<String> {
        let list = error.split_once("expected").expect("the error lists the keys").1;
        list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    fn assert_lists(topic: &str, keys: &[String]) {
        let text = TOPICS.iter().find(|known| known.name == topic).unwrap().text;
        assert!(!keys.is_empty());
        for key in keys {
            let listed = text.lines().any(|line| line.trim_start().split(' ').next() == Some(key));
            assert!(listed, "`mlx help {topic}` lacks `{key}`");
        }
    }

    #[test]
    fn the_pipeline_topic_lists_every_key() {
        for table in ["stage", "model"] {
            let text = format!("[{table}.a]\nzzz = 1");
            let path = RepoPath::from_text("mlx.toml").unwrap();
            let error = Manifest::parse(&path, text.as_bytes(), std::path::Path::new("/r")).unwrap_err();
            assert_lists("pipeline", &expected_keys(&error.to_string()));
        }
    }

    #[test]
    fn the_policy_topic_lists_every_key() {
        for table in ["[people.a]", "[env.a]", "[[alert]]"] {
            let error = Policy::parse(format!("format = 1\n{table}\nzzz = 1").as_bytes()).unwrap_err();
            assert_lists("policy", &expected_keys(&error.to_string()));
        }
    }

    #[test]
    fn the_remotes_topic_lists_every_option() {
        let text = TOPICS.iter().find(|topic| topic.name == "remotes").unwrap().text;
        let words: Vec<&str> = text.split([' ', ',', '\n']).collect();
        OPTIONS.iter().for_each(|option| assert!(words.contains(option), "{option}"));
    }

    #[test]
    fn the_exit_codes_topic_lists_every_kind() {
        use Kind::{Conflict, Corrupt, Denied, Internal, NotFound, Stage, Unavailable, Usage};
        let text = TOPICS.iter().find(|topic| topic.name == "exit-codes").unwrap().text;
        for kind in [Internal, Usage, NotFound, Conflict, Corrupt, Denied, Unavailable, Stage] {
            assert!(
                text.contains(&format!("\n  {:>2}  {:<11}  ", kind as u8, kind.name())),
                "{}",
                kind.name()
            );
        }
    }
}
