//! How the machine is doing.

use std::path::{Path, PathBuf};

use sysinfo::{Components, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::{fs, traffic::Sample};

/// Looks at this machine now and then; loads are of the time since the look before.
pub struct Machine {
    system: System,
    sensors: Components,
    /// Where the disk is looked at.
    disk: PathBuf,
}

impl Machine {
    pub fn new(disk: &Path) -> Self {
        let mut system = System::new();
        system.refresh_cpu_usage();
        Self { system, sensors: Components::new_with_refreshed_list(), disk: disk.to_owned() }
    }

    /// What is seen now; the counts are for others to fill in.
    pub fn look(&mut self) -> Sample {
        let process = Pid::from_u32(std::process::id());
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        let memory = ProcessRefreshKind::nothing().with_memory();
        self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&[process]), true, memory);
        self.sensors.refresh(false);
        let (total, free) = (self.system.total_memory(), self.system.available_memory());
        let degrees = self.sensors.iter().filter_map(sysinfo::Component::temperature);
        Sample {
            cpu: (self.system.global_cpu_usage() / 100.0).clamp(0.0, 1.0),
            memory: if total == 0 { 0.0 } else { 1.0 - free as f32 / total as f32 },
            resident: self.system.process(process).map_or(0, sysinfo::Process::memory),
            disk: fs::used_space(&self.disk).unwrap_or(0.0) as f32,
            temperature: degrees.filter(|it| it.is_finite()).reduce(f32::max),
            ..Sample::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_finds_a_machine_at_work() {
        let found = Machine::new(Path::new("/")).look();
        assert!(found.resident > 1_000_000, "{found:?}");
        for share in [found.memory, found.disk] {
            assert!(share > 0.0 && share <= 1.0, "{found:?}");
        }
        assert!((0.0..=1.0).contains(&found.cpu), "{found:?}");
    }
}
