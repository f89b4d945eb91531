//! End of a stage's command: with an exit code, or killed by a signal, which is reported by name.

use std::{fmt, os::unix::process::ExitStatusExt as _, process::ExitStatus};

/// Exit code of a shell whose command was killed, less the number of the signal.
const SIGNAL_BASE: i32 = 128;

/// Signals that end a process, with their numbers on Linux.
const SIGNALS: [(i32, &str); 18] = [
    (1, "SIGHUP"),
    (2, "SIGINT"),
    (3, "SIGQUIT"),
    (4, "SIGILL"),
    (5, "SIGTRAP"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (10, "SIGUSR1"),
    (11, "SIGSEGV"),
    (12, "SIGUSR2"),
    (13, "SIGPIPE"),
    (14, "SIGALRM"),
    (15, "SIGTERM"),
    (24, "SIGXCPU"),
    (25, "SIGXFSZ"),
    (31, "SIGSYS"),
];

/// End of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    /// Killed by the signal of this name.
    Killed(&'static str),
}

impl Ended {
    /// Interprets an exit status. The guard and the shell report a command that a signal killed with 128 plus
    /// the signal's number.
    pub fn of(status: ExitStatus) -> Self {
        Self::from_code(exit_code(status))
    }

    fn from_code(code: i32) -> Self {
        let known = SIGNALS.iter().find(|(number, _)| SIGNAL_BASE + number == code);
        known.map_or(Self::Code(code), |(_, name)| Self::Killed(name))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Killed(name) => write!(f, "killed by {name}"),
        }
    }
}

/// Returns the exit code of a status, as a shell reports it.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| Some(SIGNAL_BASE + status.signal()?)).unwrap_or(SIGNAL_BASE)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_killed_command_is_reported_with_the_name_of_the_signal() {
        let ended = |script: &str| {
            let status = Command::new("sh").args(["-ec", script]).status().unwrap();
            Ended::of(status).to_string()
        };
        assert_eq!(ended("exit 3"), "exit code 3");
        assert_eq!(ended("exit 128"), "exit code 128");
        assert_eq!(ended("kill -9 $$"), "killed by SIGKILL");
        assert_eq!(ended("sh -c 'kill -11 $$'; true"), "killed by SIGSEGV");
        assert_eq!(Ended::from_code(SIGNAL_BASE + 15).to_string(), "killed by SIGTERM");
        assert_eq!(Ended::from_code(255).to_string(), "exit code 255");
    }
}
