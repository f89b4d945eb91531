//! `mlx demo --full`: a month in production. The model is tested, approved and released, each day is sealed
//! and reported on, alerts fire, and a retrained candidate replaces the model.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    cli::command::demo::Player,
    demo_data::camera::{self, DAYS, Frame},
    error::{Error, Kind, Result, WithContext},
    fs::{Root, Sync},
    path::RepoPath,
    time::Day,
};

/// First day of the month; in the past, so that every day is over.
const FIRST: &str = "2026-03-01";
/// Person who approves versions and accepts days.
const APPROVER: &str = "qa@park.example";
/// Days whose frames are labeled later.
const LABELED_DAYS: std::ops::RangeInclusive<u32> = 15..=22;
/// Longest wait for the service's records.
const RECORDS_TIMEOUT: Duration = Duration::from_mins(1);

/// Running `mlx serve`, stopped when dropped.
struct Service {
    child: Child,
    address: String,
}

/// Alerts and actions of one day.
#[derive(Clone, Debug)]
pub struct DayEvents {
    pub day: u32,
    pub raised: Vec<String>,
    pub resolved: Vec<String>,
    pub actions: Vec<String>,
}

impl Drop for Service {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // The service answers pending requests, writes its records and exits.
            let _result = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _status = self.child.wait();
    }
}

impl Player<'_, '_> {
    /// Runs the month and returns the events of each day.
    pub(super) fn month(&self, seed: u64, frames: u32) -> Result<Vec<DayEvents>> {
        self.tell("\n9. Test the model as an application, then approve and release it.");
        self.approve_and_release("pets@v0.1.0")?;
        self.tell(
            "\n10. Run in production: the service follows releases, the camera sends frames, and \
        each day is sealed and reported on.",
        );
        let service =
            self.serve(&["serve", "--env", "production", "--follow", "--poll", "1", "--port", "0"])?;
        let mut month = Vec::new();
        for day in 1..=DAYS {
            let events = self.day(&service, seed, day, frames)?;
            if day == 17 {
                self.accept()?;
            }
            if !events.actions.is_empty() {
                self.release_candidate(&events)?;
            }
            month.push(events);
        }
        drop(service);
        self.tell("\n11. Show who did what, and verify that the audit record is complete.");
        self.git(&["add", "."])?;
        self.git(&["commit", "--quiet", "-m", "a month in production"])?;
        self.mlx(&["alert", "list", "--all"])?;
        self.mlx(&["audit"])?;
        self.mlx(&["audit", "--verify"])?;
        Ok(month)
    }

    /// Tests a version as an application, approves and releases it.
    fn approve_and_release(&self, version: &str) -> Result<()> {
        let service = self.serve(&["serve", version, "--env", "test", "--no-traffic", "--port", "0"])?;
        let address = format!("http://{}", service.address);
        self.mlx(&["apptest", &address, "--data", "test", "--version", version])?;
        drop(service);
        self.mlx(&[
            "approve",
            version,
            "--env",
            "production",
            "--report",
            "apptest/report.json",
            "--as",
            APPROVER,
        ])?;
        self.mlx(&["release", version, "--env", "production"])
    }

    /// Runs one day: sends its frames, seals its traffic and reports on it.
    fn day(&self, service: &Service, seed: u64, day: u32, count: u32) -> Result<DayEvents> {
        let date = date(day)?;
        let frames = self.write_frames(seed, day, count, date)?;
        let folder = format!("camera/{date}");
        let address = format!("http://{}", service.address);
        self.run_json(&["watch", &folder, "--env", "production", "--url", &address, "--once"])?;
        self.wait_for_records(date, frames.len())?;
        let text = date.to_string();
        self.run_json(&["traffic", "seal", "--env", "production", "--day", &text])?;
        if day == *LABELED_DAYS.end() {
            self.label(seed, count)?;
        }
        let value = self.run_json(&["monitor", "run", "--env", "production", "--day", &text])?;
        let events = DayEvents {
            day,
            raised: names(&value["raised"], "rule"),
            resolved: names(&value["resolved"], "rule"),
            actions: value["actions"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|action| action.as_str().map(str::to_owned))
                .collect(),
        };
        self.show(date, &events, frames.len());
        Ok(events)
    }

    fn show(&self, date: Day, events: &DayEvents, frames: usize) {
        let mut line = format!("{date}  {frames} frames");
        for (word, list) in [("ALERT", &events.raised), ("resolved", &events.resolved)] {
            if !list.is_empty() {
                line.push_str(&format!("  {word}: {}", list.join(", ")));
            }
        }
        self.tell(&line);
        events.actions.iter().for_each(|action| self.tell(&format!("            {action}")));
    }

    /// Writes the camera's frames of a day as files of its folder.
    fn write_frames(&self, seed: u64, day: u32, count: u32, date: Day) -> Result<Vec<Frame>> {
        let files = Root::open(&self.project)?;
        let frames = camera::frames(seed, day, count)?;
        for frame in &frames {
            let path = RepoPath::from_text(&format!("camera/{date}/{date}T{}Z.jpg", frame.time()))?;
            files.write(&path, &frame.jpeg, Sync::Later)?;
        }
        Ok(frames)
    }

    /// Waits for the records of a day in the spool: the service writes them up to a second after its answers.
    fn wait_for_records(&self, date: Day, frames: usize) -> Result<()> {
        let end = Instant::now() + RECORDS_TIMEOUT;
        loop {
            let value = self.run_json(&["traffic", "list", "--env", "production"])?;
            let days = value["days"].as_array().cloned().unwrap_or_default();
            let row = days.iter().find(|row| row["day"] == date.to_string().as_str());
            if row.is_some_and(|row| row["waiting"].as_u64().unwrap_or(0) >= frames as u64) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(Error::new(
                    Kind::Internal,
                    format!("timed out waiting for the records of {date}"),
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Accepts the days of the new camera as the reference.
    fn accept(&self) -> Result<()> {
        self.tell("    The new camera stays: its days become the reference.");
        let (from, to) = (date(15)?.to_string(), date(17)?.to_string());
        self.mlx(&[
            "monitor",
            "accept",
            "--from",
            &from,
            "--to",
            &to,
            "--env",
            "production",
            "--as",
            APPROVER,
            "--why",
            "a new camera",
        ])
    }

    /// Records the true labels of some days.
    fn label(&self, seed: u64, count: u32) -> Result<()> {
        let mut text = "digest,class\n".to_owned();
        for day in LABELED_DAYS {
            for frame in camera::frames(seed, day, count)? {
                text.push_str(&format!("{},{}\n", crate::digest::Digest::of(&frame.jpeg), frame.pet.name()));
            }
        }
        Root::open(&self.project)?.write(
            &RepoPath::from_text("labels.csv")?,
            text.as_bytes(),
            Sync::Later,
        )?;
        self.mlx(&["feedback", "labels.csv", "--env", "production"])?;
        self.git(&["add", "."])?;
        self.git(&["commit", "--quiet", "-m", "labels of days 15 to 22"])
    }

    /// Tests, approves and releases the retrained candidate, if there is one.
    fn release_candidate(&self, events: &DayEvents) -> Result<()> {
        let candidate = events.actions.iter().find_map(|action| action.strip_prefix("retrained: "));
        let Some(candidate) = candidate.and_then(|text| text.split(' ').next()) else { return Ok(()) };
        self.tell("    There is a new candidate. A person approves it:");
        self.approve_and_release(candidate)
    }

    /// Starts `mlx serve` and waits for its address.
    fn serve(&self, args: &[&str]) -> Result<Service> {
        self.tell(&format!("$ mlx {} &", args.join(" ")));
        let mut command = Command::new(&self.exe);
        command.args(args).current_dir(&self.project).stdout(Stdio::null()).stderr(Stdio::piped());
        self.set_default_identity(&mut command);
        let mut child = command.spawn().context(|| "cannot start the service".into())?;
        let mut lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let mut stderr = String::new();
        for line in lines.by_ref().map_while(std::result::Result::ok) {
            if let Some(rest) = line.split(" at http://").nth(1) {
                let address = rest.split(' ').next().unwrap_or_default().to_owned();
                // The rest is read, too: a full pipe would block the service.
                std::thread::spawn(move || lines.map_while(std::result::Result::ok).for_each(drop));
                return Ok(Service { child, address });
            }
            stderr.push_str(&line);
        }
        let _status = child.wait();
        Err(Error::new(Kind::Stage, format!("the service exited: {stderr}")))
    }

    /// Runs mlx without printing it and returns its JSON; exit code 10 is a success, too.
    fn run_json(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.exe);
        command.args(args).arg("--json").current_dir(&self.project);
        self.set_default_identity(&mut command);
        let output = command.output().context(|| "cannot run mlx".into())?;
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if matches!(output.status.code(), Some(0 | 10)) {
            return Ok(value);
        }
        let message = value["error"]["message"]
            .as_str()
            .map_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned(), str::to_owned);
        Err(Error::new(Kind::Stage, format!("`mlx {}` failed: {message}", args.join(" "))))
    }
}

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|row| row[key].as_str().map(str::to_owned)).collect()
}

/// Returns the date of a day of the month, 1 to 30.
fn date(day: u32) -> Result<Day> {
    Ok(FIRST.parse::<Day>()?.plus(i64::from(day) - 1))
}
