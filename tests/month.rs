//! Tests the alerts of a simulated month of camera images: every change raises an alert on its first day or
//! the day after, and quiet days raise none. Plays twenty months without a service, and the demo's month with
//! one.

use std::collections::{BTreeMap, BTreeSet};

use mlx::{
    alert::{Values, decide},
    demo_data::camera::{self, DAYS},
    git::Rev,
    ledger::{Entry, Event, FORMAT},
    model::{image_stats::measure_image, inference::LoadedPackage, package, preprocess, registry},
    monitor::{Day, Reference, Thresholds, measure},
    policy::Policy,
    repo::Repo,
    traffic::{Labels, Record, read_requests},
};

use crate::{
    model::template_project,
    sandbox::{Sandbox, command_result},
};

/// Days on which no alert may be raised.
const QUIET_DAYS: [std::ops::RangeInclusive<u32>; 4] = [1..=8, 12..=14, 18..=20, 29..=30];
/// Changes, with their first day.
const CHANGES: [(u32, &str); 4] =
    [(9, "fog"), (15, "a new camera"), (21, "many dogs"), (26, "a broken lens")];
/// Camera images per day.
const FRAMES: u32 = 60;

/// Alerts that a month raised: the day and the name of the rule.
type Raised = Vec<(u32, String)>;

/// Lists what is wrong with a month's alerts.
fn find_errors(raised: &Raised) -> Vec<String> {
    let mut errors = Vec::new();
    for (first, change) in CHANGES {
        if !raised.iter().any(|alert| alert.0 == first || alert.0 == first + 1) {
            errors.push(format!("{change} raised no alert"));
        }
    }
    let is_quiet = |day: u32| QUIET_DAYS.iter().any(|days| days.contains(&day));
    for (day, rule) in raised.iter().filter(|alert| is_quiet(alert.0)) {
        errors.push(format!("`{rule}` on the quiet day {day}"));
    }
    errors
}

/// Classifies the images of a day and returns the records that the service would have written.
fn records(loaded: &mut LoadedPackage, seed: u64, day: u32) -> Vec<Record> {
    let frames = camera::frames(seed, day, FRAMES).unwrap();
    let settings = loaded.settings();
    // Each frame is decoded once, and predicted alone: the intermediate tensors of one image stay in the
    // processor's cache, and this test is the slowest of all.
    let rows = frames.iter().enumerate();
    rows.map(|(number, frame)| {
        let planes = preprocess::decode(&frame.jpeg).ok().map(|image| preprocess::planes(&image, &settings));
        let prediction = planes.as_ref().and_then(|planes| loaded.predict_planes(planes).unwrap().pop());
        let (status, class, scores, features) = match prediction {
            Some(it) => (200, loaded.description.classes[it.class].clone(), it.scores, it.features),
            None => (400, String::new(), Vec::new(), Vec::new()),
        };
        Record {
            id: format!("{day}-{number}"),
            captured: i64::from(day) * 86_400_000 + i64::from(frame.second) * 1000,
            received: 0,
            version: "pets@v0.1.0".into(),
            package: mlx::digest::Digest::of(b"package"),
            input: mlx::digest::Digest::of(&frame.jpeg),
            name: String::new(),
            status,
            latency: 5.0,
            class,
            scores,
            features,
            image_stats: planes.map(|planes| measure_image(&planes, settings.crop as usize)),
            kept: true,
        }
    })
    .collect()
}

/// Plays a month without a service, with the measures, rules and reference of `mlx monitor run`, and returns
/// its alerts.
fn play(loaded: &mut LoadedPackage, training: &[Record], policy: &Policy, rev: &Rev, seed: u64) -> Raised {
    let (mut days, mut events, mut raised) = (BTreeMap::<String, Values>::new(), Vec::new(), Vec::new());
    let mut accepted: Vec<Record> = Vec::new();
    let (labels, groups) = (Labels::default(), BTreeMap::new());
    let hours: BTreeSet<u8> = (7..20).collect();
    for day in 1..=DAYS {
        let records = records(loaded, seed, day);
        let name = format!("2026-03-{day:02}");
        let rows = if day > 17 { accepted.clone() } else { training.to_vec() };
        let reference = Reference { name: String::new(), rows };
        let measured = Day {
            name: &name,
            records: &records,
            samples: &[],
            labels: &labels,
            groups: &groups,
            classes: &loaded.description.classes.clone(),
            expected_hours: &hours,
        };
        days.insert(name.clone(), measure(&measured, &reference, &Thresholds::default()).values());
        for change in decide(&policy.rules, "production", &name, &days, &events) {
            if change.kind == mlx::ledger::Kind::Alerted {
                raised.push((day, change.rule.name.clone()));
            }
            let event = Event {
                format: FORMAT,
                number: events.len() as u64 + 1,
                kind: change.kind,
                when: String::new(),
                who: String::new(),
                subject: change.rule.name.clone(),
                environment: Some("production".into()),
                why: None,
                tag: None,
                facts: change.facts(),
            };
            events.push(Entry { rev: rev.clone(), event });
        }
        if (15..=17).contains(&day) {
            accepted.extend(records.into_iter().filter(|record| record.status == 200));
        }
    }
    raised
}

/// The thresholds also work for months that they were not tuned on.
#[test]
fn twenty_other_months_raise_the_right_alerts() {
    let sandbox = template_project(300);
    sandbox.ok("add data");
    sandbox.ok("repro");
    sandbox.commit("first");
    sandbox.ok("model register pets");
    let repo = Repo::discover(&sandbox.repo).unwrap();
    let version = registry::require(&repo.git, "pets").unwrap();
    let training = mlx::model::inference::read_file(&repo, &version, package::REFERENCE).unwrap().unwrap();
    let training = read_requests(&training).unwrap();
    let policy = Policy::at(&repo.git, repo.git.head().as_ref()).unwrap();
    let rev = repo.git.head().unwrap();
    let months = std::thread::scope(|scope| {
        let part = |seeds: std::ops::RangeInclusive<u64>| {
            let mut loaded = LoadedPackage::load(&repo, &version).unwrap();
            let (training, policy, rev) = (&training, &policy, &rev);
            scope.spawn(move || {
                let month = |seed| (seed, play(&mut loaded, training, policy, rev, seed));
                seeds.map(month).collect::<Vec<_>>()
            })
        };
        let parts = [part(101..=110), part(111..=120)];
        parts.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let errors: Vec<String> = months
        .iter()
        .flat_map(|(seed, raised)| {
            find_errors(raised).into_iter().map(move |error| format!("seed {seed}: {error}: {raised:?}"))
        })
        .collect();
    assert!(errors.is_empty(), "{} of {} months:\n{}", errors.len(), months.len(), errors.join("\n"));
}

/// The demo plays the same month with a real service, labels and one retraining; its audit record is
/// complete.
#[test]
fn the_full_demo_detects_retrains_and_recovers() {
    let sandbox = Sandbox::empty();
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.root());
    let ran = command_result(
        command.env_remove("MLX_TIMESTAMP").args(["demo", "park", "--whole", "--json"]).output().unwrap(),
    );
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    let demo: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let month = demo["month"].as_array().unwrap();
    let raised: Raised = month
        .iter()
        .flat_map(|row| {
            let day = row["day"].as_u64().unwrap() as u32;
            row["raised"].as_array().unwrap().iter().map(move |rule| (day, rule.as_str().unwrap().to_owned()))
        })
        .collect();
    assert_eq!(find_errors(&raised), Vec::<String>::new(), "{raised:?}");
    let mut actions = month.iter().filter(|row| !row["actions"].as_array().unwrap().is_empty());
    let retrained = actions.next().unwrap();
    assert_eq!(retrained["day"], 22);
    assert!(retrained["actions"][0].as_str().unwrap().starts_with("retrained: pets@v0."), "{retrained}");
    assert!(actions.next().is_none());
    let park = sandbox.at(&sandbox.root().join("park"));
    assert_eq!(park.json("audit --verify")["sound"], true);
    let rows = park.json("audit");
    let count = |event: &str| {
        let rows = rows["rows"].as_array().unwrap();
        rows.iter().filter(|row| row["what"] == event).count()
    };
    for (event, least) in [
        ("ingested", 30),
        ("trained", 2),
        ("approved", 2),
        ("released", 2),
        ("switched", 2),
        ("alerted", 4),
        ("retrained", 1),
        ("accepted", 1),
    ] {
        assert!(count(event) >= least, "{event}: {}", count(event));
    }
}
