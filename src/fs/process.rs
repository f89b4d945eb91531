//! Processes: which one gave a name, and whether it still runs.
//!
//! A process id alone does not tell: another process gets it after the end of the first, and in containers
//! most have the id 1. An identity adds what no two processes of this machine share.

use std::sync::LazyLock;

use crate::{digest::Digest, fs::coarse_now};

/// Position of the start time among the fields of `/proc/PID/stat` behind the name.
const START_TIME: usize = 19;

/// A process on this machine, and not another one that has or had the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// Checksum of the boot, the id namespace and the start time.
    pub identity: u64,
}

impl Process {
    /// Returns this process.
    pub fn current() -> Self {
        static CURRENT: LazyLock<Process> = LazyLock::new(|| {
            let pid = std::process::id();
            // Without `/proc` no other process can tell either.
            Process { pid, identity: identity(pid).unwrap_or_else(|| coarse_now().cast_unsigned()) }
        });
        *CURRENT
    }

    /// Returns false if it has ended, or runs on another machine or in another container. Where processes of
    /// other users are hidden, any of that id counts.
    pub fn is_running(self) -> bool {
        if self.pid == Self::current().pid {
            return self == Self::current();
        }
        identity(self.pid).map_or_else(|| is_alive(self.pid), |identity| identity == self.identity)
    }
}

/// Returns the identity of the process that has this id now; `None` if there is none, or it is hidden.
fn identity(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may contain anything.
    let after_name = stat.rsplit(|&byte| byte == b')').next()?;
    let start = after_name.split(|&byte| byte == b' ').filter(|word| !word.is_empty()).nth(START_TIME)?;
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let text = [&boot[..], namespace.as_os_str().as_encoded_bytes(), start].join(&b'\n');
    Some(u64::from_le_bytes(*Digest::of(&text).bytes().first_chunk()?))
}

/// Returns true if a process with this id is running on this machine.
pub fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|it| !matches!(rustix::process::test_kill_process(it), Err(rustix::io::Errno::SRCH)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_runs_until_it_ends_and_another_one_of_its_id_is_not_it() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process { pid: child.id(), identity: identity(child.id()).unwrap() };
        let other = Process { identity: process.identity ^ 1, ..process };
        assert_eq!([process.is_running(), other.is_running()], [true, false]);
        assert_ne!(process.identity, Process::current().identity);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_running());
        let (mine, earlier) = (Process::current(), Process { identity: 0, ..Process::current() });
        assert_eq!([mine.is_running(), earlier.is_running()], [true, false]);
        // In a container, this has the id of every command.
        assert!(!Process { pid: 1, identity: 0 }.is_running());
    }
}
