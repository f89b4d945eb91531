//! The script of a stage whose command is a list: one shell runs all commands, so that variables and the
//! folder carry over, and each of them must succeed.
//!
//! `sh -e` alone does not see to that: it goes on after `false && x`; `exit 0` and `exec` end it before the
//! next command; an unfinished here-document takes the next commands for text. So each command is parsed and
//! checked on its own, and the script writes how far it came: a shell that ended well before the last command
//! was ended by an earlier one. Decided against: a shell for each command, which would lose variables and the
//! folder, and with that change what recorded stages do.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    error::{Error, Kind},
    pipeline::ended::Ended,
};

/// Shell that runs every command, the same on every machine.
pub const SHELL: [&str; 2] = ["sh", "-ec"];

/// Texts and words without which a command of a list can neither fail unnoticed nor hide the next ones, apart
/// from simple commands that change how the shell goes on.
const HIDING_TEXTS: [&str; 3] = ["&&", "!", "<<"];
const HIDING_WORDS: [&str; 4] = ["exit", "exec", "return", "trap"];

/// Words before the name of a simple command.
const LEADING_WORDS: [&str; 12] =
    ["if", "then", "else", "elif", "while", "until", "do", "{", "time", "command", "builtin", "eval"];

/// Returns the script for these commands. It appends a line to the file `reached` before each but the first.
pub fn script(commands: &[String], reached: &Path) -> OsString {
    if let [command] = commands {
        return command.into();
    }
    let mut script = OsString::new();
    for (at, command) in commands.iter().enumerate() {
        if at > 0 {
            script.push("command echo >>");
            script.push(quote(reached.as_os_str()));
            script.push("\n");
        }
        // The blank keeps it from being read as an option of `eval`; the line end belongs to a here-document.
        script.push("eval ");
        script.push(quote(OsStr::new(&format!(" {command}\n"))));
        script.push("\ncase $? in 0) ;; *) exit $? ;; esac\n");
    }
    script
}

/// Returns the error of a stage whose shell failed, with the command that failed; `reached` is the content of
/// the file.
pub fn failure(stage: &str, commands: &[String], reached: &[u8], ended: Ended, log: &Path) -> Error {
    let failed = commands.get(count(reached)).or(commands.last()).map_or("", |command| command.trim());
    let message = format!("the stage `{stage}` failed ({ended}): `{}`", failed.replace('\n', "; "));
    let mut hint = format!("its output is in {}", log.display());
    if ended == Ended::Killed("SIGKILL") {
        hint.push_str("; the system kills a command in this way when memory runs out");
    }
    if commands.len() > 1 && !can_parse(failed) && can_parse(&commands.join("\n")) {
        hint = format!(
            "each item of the list `cmd` is a command of its own: write one that spans several, such as \
             `if … fi`, as one item, a text of several lines in `'''`; {hint}"
        );
    }
    Error::new(Kind::Stage, message).hint(hint)
}

/// Returns true if the shell can parse a text as a whole script. Nothing of it runs.
fn can_parse(text: &str) -> bool {
    let mut shell = Command::new(SHELL[0]);
    shell.args(["-nc", text]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    shell.status().is_ok_and(|status| status.success())
}

/// Returns the number of commands that the shell went past.
fn count(reached: &[u8]) -> usize {
    reached.iter().filter(|byte| **byte == b'\n').count()
}

/// Checks that the shell, which succeeded, came to the last command.
pub fn check_reached(stage: &str, commands: &[String], reached: &[u8]) -> Result<(), Error> {
    let at = count(reached);
    let (Some(command), Some(next)) = (commands.get(at), commands.get(at + 1)) else { return Ok(()) };
    let message =
        format!("the stage `{stage}` failed: `{command}` ended its shell before `{next}` could run");
    Err(Error::new(Kind::Stage, message)
        .hint("write it in parentheses, which makes it end a subshell, or make it the last command of `cmd`"))
}

/// Returns true if one of these commands, run as lines of one plain script, may have hidden a failure or the
/// next ones.
pub fn may_hide(commands: &[String]) -> bool {
    let is_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
    commands.iter().rev().skip(1).any(|command| {
        HIDING_TEXTS.iter().any(|text| command.contains(text))
            || command.split(|char| !is_word(char)).any(|word| HIDING_WORDS.contains(&word))
            || simple_commands(command).iter().any(|words| changes_shell(words))
    })
}

/// Splits a text into its simple commands, each as its words without quotes. A text in quotes counts as well,
/// since `eval` may run it.
fn simple_commands(text: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\\n", " ");
    let is_leading = |word: &String| LEADING_WORDS.contains(&&word[..]) || word.contains('=');
    let words = |part: &str| -> Vec<String> {
        let plain = part.replace(['"', '\'', '\\'], "");
        plain.split_whitespace().map(str::to_owned).skip_while(is_leading).collect()
    };
    text.split([';', '&', '|', '(', ')', '`', '\n']).map(words).collect()
}

/// Returns true for a simple command after which the shell may go on after failures, skip commands, or have
/// run others: `set +e`, `set -n`, `. FILE` or `source FILE`.
fn changes_shell(words: &[String]) -> bool {
    let Some((name, arguments)) = words.split_first() else { return false };
    let is_option = |word: &String| {
        word.starts_with('+') || word == "noexec" || word.starts_with('-') && word[1..].contains('n')
    };
    match &name[..] {
        "." | "source" => !arguments.is_empty(),
        "set" => arguments.iter().any(is_option),
        _ => false,
    }
}

/// Quotes a text for the shell.
fn quote(text: &OsStr) -> OsString {
    let mut quoted = OsString::from("'");
    for (at, part) in text.as_bytes().split(|byte| *byte == b'\'').enumerate() {
        quoted.push(if at > 0 { "'\\''" } else { "" });
        quoted.push(OsStr::from_bytes(part));
    }
    quoted.push("'");
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(commands: &[&str]) -> Vec<String> {
        commands.iter().map(|command| (*command).to_owned()).collect()
    }

    #[test]
    fn each_command_of_a_list_is_parsed_and_checked_on_its_own() {
        let reached = Path::new("/it's");
        assert_eq!(script(&list(&["a && 'b'"]), reached), "a && 'b'");
        let check = "case $? in 0) ;; *) exit $? ;; esac\n";
        assert_eq!(
            script(&list(&["a 'b' && c", "d"]), reached),
            *format!("eval ' a '\\''b'\\'' && c\n'\n{check}command echo >>'/it'\\''s'\neval ' d\n'\n{check}")
        );
    }

    #[test]
    fn the_command_that_ended_the_shell_is_named() {
        let commands = list(&["a", "exit 0", "c"]);
        let message = |reached: &[u8]| check_reached("s", &commands, reached).err().map(|it| it.to_string());
        let text = |of: &str, next: &str| {
            Some(format!("the stage `s` failed: `{of}` ended its shell before `{next}` could run"))
        };
        assert_eq!(message(b""), text("a", "exit 0"));
        assert_eq!(message(b"\n"), text("exit 0", "c"));
        assert_eq!(message(b"\n\n"), None);
    }

    #[test]
    fn only_what_may_hide_something_makes_a_list_differ_from_its_lines() {
        for plain in [
            &["a && b"][..],
            &["a", "b || c", "d && exit"],
            &["python execute.py", "existing"],
            &["set -eu; reset +x", "find . -name '*.c'", "cp a .", "b"],
            &["set -- a b; cp $(ls) .", "b"],
            &["./source x; resource y; echo source", "b"],
        ] {
            assert!(!may_hide(&list(plain)), "{plain:?}");
        }
        for hiding in [
            "a && b",
            "! a",
            "set +e",
            "set  +e",
            "set\t+e",
            "set \\\n+e",
            "set -x '+e'",
            "cd x; set +o errexit",
            "eval 'set +e'",
            "set -en",
            "set -o noexec",
            ". ./x",
            "if . ./x; then y; fi",
            "A=1 . ./x",
            "a\n.\tx",
            "source x",
            "case $a in b) . x;; esac",
            "cat <<E",
            "exit 0",
            "(exec a)",
            "return",
            "trap 'x' EXIT",
        ] {
            assert!(may_hide(&list(&[hiding, "b"])), "{hiding}");
        }
    }
}
