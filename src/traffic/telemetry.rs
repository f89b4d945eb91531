//! Measures the serving machine: processor, memory, disk and temperature.

use std::path::{Path, PathBuf};

use sysinfo::{Components, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::{fs, traffic::TelemetrySample};

/// Telemetry source of this machine. Processor load is the average since the previous sample.
pub struct Probe {
    system: System,
    sensors: Components,
    /// Path whose file system is measured.
    disk: PathBuf,
}

impl Probe {
    pub fn new(disk: &Path) -> Self {
        let mut system = System::new();
        system.refresh_cpu_usage();
        Self { system, sensors: Components::new_with_refreshed_list(), disk: disk.to_owned() }
    }

    /// Takes a sample. Time and counts are left at 0, for the caller to fill in.
    pub fn sample(&mut self) -> TelemetrySample {
        let process = Pid::from_u32(std::process::id());
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        let memory = ProcessRefreshKind::nothing().with_memory();
        self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&[process]), true, memory);
        self.sensors.refresh(false);
        let (total, free) = (self.system.total_memory(), self.system.available_memory());
        let degrees = self.sensors.iter().filter_map(sysinfo::Component::temperature);
        TelemetrySample {
            cpu: (self.system.global_cpu_usage() / 100.0).clamp(0.0, 1.0),
            memory: if total == 0 { 0.0 } else { 1.0 - free as f32 / total as f32 },
            resident: self.system.process(process).map_or(0, sysinfo::Process::memory),
            disk: fs::used_share(&self.disk).unwrap_or(0.0) as f32,
            temperature: degrees.filter(|it| it.is_finite()).reduce(f32::max),
            ..TelemetrySample::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_plausible_values() {
        let found = Probe::new(Path::new("/")).sample();
        assert!(found.resident > 1_000_000, "{found:?}");
        for share in [found.memory, found.disk] {
            assert!(share > 0.0 && share <= 1.0, "{found:?}");
        }
        assert!((0.0..=1.0).contains(&found.cpu), "{found:?}");
    }
}
