//! Tests help: the recorded text of every command and topic, the groups of `mlx --help`, and manual pages.

use std::{fs, path::Path};

use crate::sandbox::Sandbox;

/// The help of all commands and topics, so that each change of a word is seen in review.
const GOLDEN: &str = "fixtures/help.txt";

#[test]
fn the_help_of_every_command_and_topic_is_the_recorded_one() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    let shown = Sandbox::empty().ok("help --all");
    if std::env::var_os("MLX_UPDATE").is_some() {
        fs::write(&golden, &shown).unwrap();
    }
    let recorded = fs::read_to_string(&golden).unwrap();
    let differs = recorded.lines().zip(shown.lines()).find(|(old, new)| old != new);
    assert!(
        recorded == shown,
        "the help changed: {differs:?}; if it should, run `MLX_UPDATE=1 cargo test help::` and commit \
        {GOLDEN}"
    );
}

#[test]
fn global_options_follow_the_options_of_a_command() {
    let sandbox = Sandbox::empty();
    for command in ["add", "push", "model train", "remote list"] {
        let text = sandbox.ok(&format!("{command} --help"));
        let global = text.find("\nGlobal options:\n").unwrap();
        assert!(text.find("\nOptions:\n").is_none_or(|own| own < global), "{text}");
        for option in ["-C <DIR>", "--json", "--quiet", "--verbose", "--help"] {
            assert!(text[global..].contains(option) && !text[..global].contains(option), "{option}: {text}");
        }
    }
}

#[test]
fn help_takes_commands_and_topics_and_names_both_for_anything_else() {
    let sandbox = Sandbox::empty();
    assert_eq!(sandbox.ok("help remote add"), sandbox.ok("remote add --help"));
    assert_eq!(sandbox.ok("remote help add"), sandbox.ok("remote add --help"));
    assert_eq!(sandbox.ok("help"), sandbox.ok("--help"));
    assert_eq!(sandbox.ok("help pipeline"), include_str!("../src/cli/topics/pipeline.txt"));
    assert_eq!(sandbox.json("help params")["text"], include_str!("../src/cli/topics/params.txt"));
    let error = sandbox.fails("help pipelin", 2);
    assert!(error.contains("`pipelin`") && error.contains("did you mean `mlx help pipeline`?"), "{error}");
    assert!(sandbox.fails("help sttus", 2).contains("did you mean `mlx help status`?"));
    assert!(sandbox.fails("help remote ad", 2).contains("did you mean `mlx help remote add`?"));
    assert!(sandbox.fails("help xyz", 2).contains("the topics are pointers, pipeline, params"));
}

#[test]
fn manual_pages_cover_every_command_and_topic() {
    let sandbox = Sandbox::empty();
    let pages = sandbox.json("man pages")["pages"].as_array().unwrap().len();
    let read = |name: &str| sandbox.read(&format!("pages/{name}"));
    assert_eq!(fs::read_dir(sandbox.repo.join("pages")).unwrap().count(), pages);
    // The lines of examples are kept.
    let add = read("mlx-add.1");
    assert!(add.contains(".nf\n") && add.lines().any(|line| line.trim() == "mlx add data/"), "{add}");
    let all = read("mlx.1");
    assert!(all.contains("mlx\\-remote(1)") && all.contains(".SH \"COMMANDS: Share\""), "{all}");
    assert!(read("mlx-remote-add.1").contains(".TH mlx-remote-add 1"));
    let commands = sandbox.ok("help --all").lines().filter(|line| line.starts_with("$ mlx")).count();
    assert_eq!(pages, commands, "one page for each command and topic");
    assert!(read("mlx-policy.7").contains("Keys of an environment"));
}

#[test]
fn renamed_flags_keep_their_old_names_hidden() {
    let sandbox = Sandbox::empty();
    let renamed = [
        ("serve", "--every", "--poll"),
        ("serve", "--wait", "--batch-wait"),
        ("serve", "--largest", "--max-body"),
        ("serve", "--pixels", "--max-megapixels"),
        ("demo", "--whole", "--full"),
    ];
    for (command, old, new) in renamed {
        let help = sandbox.ok(&format!("{command} --help"));
        assert!(help.contains(new) && !help.contains(&format!("{old} ")), "{command} {old}: {help}");
    }
    // Accepted: the error is about the missing repository, not about the arguments.
    let error = sandbox.fails("serve --follow --every 2 --wait 1 --largest 2 --pixels 3", 3);
    assert!(error.contains("Git repository"), "{error}");
}
