//! The month after: the model is tested, approved and released, watches the park, goes bad twice, and is taught anew.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    cli::command::demo::Stage,
    error::{Doing, Error, Kind, Result},
    fs::{Root, Sync},
    path::RepoPath,
    sketch::camera::{self, DAYS, Frame},
    time::Day,
};

/// The first day; all of them lie behind us, so that each is over.
const FIRST: &str = "2026-03-01";
const QA: &str = "qa@park.example";
/// The days whose truth somebody writes down later.
const LABELED: std::ops::RangeInclusive<u32> = 15..=22;
const PATIENCE: Duration = Duration::from_mins(1);

/// A served model, stopped when dropped.
struct Service {
    child: Child,
    address: String,
}

/// What happened on a day.
#[derive(Clone, Debug)]
pub struct Told {
    pub day: u32,
    pub raised: Vec<String>,
    pub resolved: Vec<String>,
    pub actions: Vec<String>,
}

impl Drop for Service {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It answers what it took, seals what it knows, and ends.
            let _asked = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ended = self.child.wait();
    }
}

impl Stage<'_, '_> {
    /// Plays the month; what each day brought.
    pub(super) fn month(&self, seed: u64, frames: u32) -> Result<Vec<Told>> {
        self.tell(
            "\n9. Before it answers anybody it is tested as an application, and somebody vouches for it.",
        );
        self.vouch("pets@v0.1.0")?;
        self.tell("\n10. In production: the service follows the releases, the camera drops its frames, each day is sealed and looked at.");
        let service =
            self.serve(&["serve", "--env", "production", "--follow", "--every", "1", "--port", "0"])?;
        let mut told = Vec::new();
        for day in 1..=DAYS {
            told.push(self.day(&service, seed, day, frames)?);
            if day == 17 {
                self.accept()?;
            }
            if told.iter().any(|it| it.day == day && !it.actions.is_empty()) {
                self.renew(&told[told.len() - 1])?;
            }
        }
        drop(service);
        self.tell("\n11. Who did what, from the first photo on; and whether the record is whole.");
        self.git(&["add", "."])?;
        self.git(&["commit", "--quiet", "-m", "the month"])?;
        self.mlx(&["alert", "list", "--all"])?;
        self.mlx(&["audit"])?;
        self.mlx(&["audit", "--verify"])?;
        Ok(told)
    }

    /// Tests a version as an application, approves and releases it.
    fn vouch(&self, version: &str) -> Result<()> {
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
            QA,
        ])?;
        self.mlx(&["release", version, "--env", "production"])
    }

    /// One day: frames, answers, a seal, a report.
    fn day(&self, service: &Service, seed: u64, day: u32, count: u32) -> Result<Told> {
        let date = date(day)?;
        let taken = self.take(seed, day, count, date)?;
        let folder = format!("camera/{date}");
        let address = format!("http://{}", service.address);
        self.quietly(&["watch", &folder, "--env", "production", "--url", &address, "--once"])?;
        self.wait_for_records(date, taken.len())?;
        let text = date.to_string();
        self.quietly(&["traffic", "seal", "--env", "production", "--day", &text])?;
        if day == *LABELED.end() {
            self.label(seed, count)?;
        }
        let value = self.quietly(&["monitor", "run", "--env", "production", "--day", &text])?;
        let told = Told {
            day,
            raised: names(&value["raised"], "rule"),
            resolved: names(&value["resolved"], "rule"),
            actions: value["actions"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|it| it.as_str().map(str::to_owned))
                .collect(),
        };
        self.show(date, &told, taken.len());
        Ok(told)
    }

    fn show(&self, date: Day, told: &Told, frames: usize) {
        let mut line = format!("{date}  {frames} frames");
        for (word, list) in [("ALERT", &told.raised), ("over", &told.resolved)] {
            if !list.is_empty() {
                line.push_str(&format!("  {word}: {}", list.join(", ")));
            }
        }
        self.tell(&line);
        told.actions.iter().for_each(|it| self.tell(&format!("            {it}")));
    }

    /// What the camera takes on a day, as files of its folder.
    fn take(&self, seed: u64, day: u32, count: u32, date: Day) -> Result<Vec<Frame>> {
        let files = Root::open(&self.project)?;
        let frames = camera::frames(seed, day, count)?;
        for frame in &frames {
            let path = RepoPath::from_text(&format!("camera/{date}/{date}T{}Z.jpg", frame.time()))?;
            files.write(&path, &frame.jpeg, Sync::Later)?;
        }
        Ok(frames)
    }

    /// Records are in the spool within a second of their answers.
    fn wait_for_records(&self, date: Day, frames: usize) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let value = self.quietly(&["traffic", "list", "--env", "production"])?;
            let days = value["days"].as_array().cloned().unwrap_or_default();
            let here = days.iter().find(|it| it["day"] == date.to_string().as_str());
            if here.is_some_and(|it| it["waiting"].as_u64().unwrap_or(0) >= frames as u64) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(Error::new(Kind::Internal, format!("the records of {date} did not arrive")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn accept(&self) -> Result<()> {
        self.tell("    The new camera is there to stay: its days become the reference.");
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
            QA,
            "--why",
            "a new camera",
        ])
    }

    /// Somebody looked through the pictures of some days and wrote down who is on them.
    fn label(&self, seed: u64, count: u32) -> Result<()> {
        let mut text = "digest,class\n".to_owned();
        for day in LABELED {
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

    /// The retrained candidate is tested, approved and released like any other.
    fn renew(&self, told: &Told) -> Result<()> {
        let candidate = told.actions.iter().find_map(|it| it.strip_prefix("retrained: "));
        let Some(candidate) = candidate.and_then(|it| it.split(' ').next()) else { return Ok(()) };
        self.tell("    A candidate came out of it. A person decides:");
        self.vouch(candidate)
    }

    fn serve(&self, args: &[&str]) -> Result<Service> {
        self.tell(&format!("$ mlx {} &", args.join(" ")));
        let mut command = Command::new(&self.exe);
        command.args(args).current_dir(&self.project).stdout(Stdio::null()).stderr(Stdio::piped());
        self.lend_name(&mut command);
        let mut child = command.spawn().doing(|| "cannot start the service".into())?;
        let mut lines = BufReader::new(child.stderr.take().expect("it was asked for")).lines();
        let mut said = String::new();
        for line in lines.by_ref().map_while(std::result::Result::ok) {
            if let Some(rest) = line.split(" at http://").nth(1) {
                let address = rest.split(' ').next().unwrap_or_default().to_owned();
                // Whatever else it says is read, so that it never waits for us.
                std::thread::spawn(move || lines.map_while(std::result::Result::ok).for_each(drop));
                return Ok(Service { child, address });
            }
            said.push_str(&line);
        }
        let _ended = child.wait();
        Err(Error::new(Kind::Stage, format!("the service ended: {said}")))
    }

    /// Runs mlx for its JSON; exit 10 is an answer, too.
    fn quietly(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.exe);
        command.args(args).arg("--json").current_dir(&self.project);
        self.lend_name(&mut command);
        let output = command.output().doing(|| "cannot run mlx".into())?;
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if matches!(output.status.code(), Some(0 | 10)) {
            return Ok(value);
        }
        let said = value["error"]["message"]
            .as_str()
            .map_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned(), str::to_owned);
        Err(Error::new(Kind::Stage, format!("`mlx {}` failed: {said}", args.join(" "))))
    }
}

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|it| it[key].as_str().map(str::to_owned)).collect()
}

/// The date of a day of the month.
fn date(day: u32) -> Result<Day> {
    Ok(FIRST.parse::<Day>()?.plus(i64::from(day) - 1))
}
