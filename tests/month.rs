//! The camera's month: what happens is alerted on its first day or the day after, quiet days are quiet.

use std::collections::{BTreeMap, BTreeSet};

use mlx::{
    alert::{Values, decide},
    git::Rev,
    ledger::{Entry, Event, FORMAT},
    model::{looks::looks, offline::Offline, package, picture, registry},
    monitor::{Day, Reference, Thresholds, measure},
    policy::Policy,
    repo::Repo,
    sketch::camera::{self, DAYS},
    traffic::{Labels, Record, read_requests},
};

use crate::{
    model::drawn,
    sandbox::{Sandbox, ended},
};

const QUIET: [std::ops::RangeInclusive<u32>; 4] = [1..=8, 12..=14, 18..=20, 29..=30];
/// The first day of each thing that happens.
const HAPPENS: [(u32, &str); 4] =
    [(9, "fog"), (15, "a new camera"), (21, "many dogs"), (26, "a broken lens")];
const FRAMES: u32 = 60;

/// The alerts that a month raised, by day.
type Raised = Vec<(u32, String)>;

/// What is wrong with a month's alerts.
fn judge(raised: &Raised) -> Vec<String> {
    let mut wrong = Vec::new();
    for (first, what) in HAPPENS {
        if !raised.iter().any(|it| it.0 == first || it.0 == first + 1) {
            wrong.push(format!("{what} was not alerted"));
        }
    }
    for (day, rule) in raised.iter().filter(|it| QUIET.iter().any(|quiet| quiet.contains(&it.0))) {
        wrong.push(format!("`{rule}` on the quiet day {day}"));
    }
    wrong
}

/// A day as the service would have recorded it.
fn records(offline: &mut Offline, seed: u64, day: u32) -> Vec<Record> {
    let frames = camera::frames(seed, day, FRAMES).unwrap();
    let files: Vec<Vec<u8>> = frames.iter().map(|it| it.jpeg.clone()).collect();
    let settings = offline.settings();
    let seen = offline.see(&files).unwrap();
    let rows = frames.iter().zip(files).zip(seen).enumerate();
    rows.map(|(at, ((frame, file), seen))| {
        let planes = picture::decode(&file).map(|it| picture::planes(&it, &settings));
        let (status, class, scores, features) = match seen {
            Ok(it) => (200, offline.description.classes[it.class].clone(), it.scores, it.features),
            Err(_) => (400, String::new(), Vec::new(), Vec::new()),
        };
        Record {
            id: format!("{day}-{at}"),
            captured: i64::from(day) * 86_400_000 + i64::from(frame.second) * 1000,
            received: 0,
            version: "pets@v0.1.0".into(),
            package: mlx::digest::Digest::of(b"package"),
            input: mlx::digest::Digest::of(&file),
            name: String::new(),
            status,
            latency: 5.0,
            class,
            scores,
            features,
            looks: planes.ok().map(|it| looks(&it, settings.crop as usize)),
            kept: true,
        }
    })
    .collect()
}

/// Plays a month without a service: the same measures, rules and reference as `mlx monitor run` has.
fn play(offline: &mut Offline, training: &[Record], policy: &Policy, rev: &Rev, seed: u64) -> Raised {
    let (mut days, mut events, mut raised) = (BTreeMap::<String, Values>::new(), Vec::new(), Vec::new());
    let mut accepted: Vec<Record> = Vec::new();
    let (labels, groups) = (Labels::default(), BTreeMap::new());
    let hours: BTreeSet<u8> = (7..20).collect();
    for day in 1..=DAYS {
        let records = records(offline, seed, day);
        let name = format!("2026-03-{day:02}");
        let rows = if day > 17 { accepted.clone() } else { training.to_vec() };
        let reference = Reference { name: String::new(), rows };
        let seen = Day {
            name: &name,
            records: &records,
            samples: &[],
            labels: &labels,
            groups: &groups,
            classes: &offline.description.classes.clone(),
            hours: &hours,
        };
        days.insert(name.clone(), measure(&seen, &reference, &Thresholds::default()).values());
        for it in decide(&policy.rules, "production", &name, &days, &events) {
            if it.kind == mlx::ledger::Kind::Alerted {
                raised.push((day, it.rule.name.clone()));
            }
            let event = Event {
                format: FORMAT,
                number: events.len() as u64 + 1,
                kind: it.kind,
                when: String::new(),
                who: String::new(),
                subject: it.rule.name.clone(),
                environment: Some("production".into()),
                why: None,
                tag: None,
                facts: it.facts(),
            };
            events.push(Entry { rev: rev.clone(), event });
        }
        if (15..=17).contains(&day) {
            accepted.extend(records.into_iter().filter(|it| it.status == 200));
        }
    }
    raised
}

/// The thresholds hold for months that they were not made for.
#[test]
fn twenty_other_months_are_alerted_as_they_should() {
    let sandbox = drawn(300);
    sandbox.ok("add data");
    sandbox.ok("repro");
    sandbox.commit("first");
    sandbox.ok("model register pets");
    let repo = Repo::discover(&sandbox.repo).unwrap();
    let version = registry::require(&repo.git, "pets").unwrap();
    let training = mlx::model::offline::read(&repo, &version, package::REFERENCE).unwrap().unwrap();
    let training = read_requests(&training).unwrap();
    let policy = Policy::at(&repo.git, repo.git.head().as_ref()).unwrap();
    let rev = repo.git.head().unwrap();
    let months = std::thread::scope(|scope| {
        let part = |seeds: std::ops::RangeInclusive<u64>| {
            let mut offline = Offline::load(&repo, &version).unwrap();
            let (training, policy, rev) = (&training, &policy, &rev);
            scope.spawn(move || {
                let month = |seed| (seed, play(&mut offline, training, policy, rev, seed));
                seeds.map(month).collect::<Vec<_>>()
            })
        };
        let parts = [part(101..=110), part(111..=120)];
        parts.into_iter().flat_map(|it| it.join().unwrap()).collect::<Vec<_>>()
    });
    let wrong: Vec<String> = months
        .iter()
        .flat_map(|(seed, raised)| {
            judge(raised).into_iter().map(move |it| format!("seed {seed}: {it}: {raised:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} months:\n{}", wrong.len(), months.len(), wrong.join("\n"));
}

/// The demo plays the same month with a real service, labels, a retraining, and a record that is whole.
#[test]
fn the_whole_demo_closes_the_loop() {
    let sandbox = Sandbox::bare();
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.root());
    let ran = ended(
        command.env_remove("MLX_TIMESTAMP").args(["demo", "park", "--whole", "--json"]).output().unwrap(),
    );
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    let told: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let month = told["month"].as_array().unwrap();
    let raised: Raised = month
        .iter()
        .flat_map(|it| {
            let day = it["day"].as_u64().unwrap() as u32;
            it["raised"].as_array().unwrap().iter().map(move |rule| (day, rule.as_str().unwrap().to_owned()))
        })
        .collect();
    assert_eq!(judge(&raised), Vec::<String>::new(), "{raised:?}");
    let mut actions = month.iter().filter(|it| !it["actions"].as_array().unwrap().is_empty());
    let retrained = actions.next().unwrap();
    assert_eq!(retrained["day"], 22);
    assert!(retrained["actions"][0].as_str().unwrap().starts_with("retrained: pets@v0."), "{retrained}");
    assert!(actions.next().is_none());
    let park = sandbox.at(&sandbox.root().join("park"));
    assert_eq!(park.json("audit --verify")["sound"], true);
    let rows = park.json("audit");
    let what = |word: &str| rows["rows"].as_array().unwrap().iter().filter(|it| it["what"] == word).count();
    for (word, least) in [
        ("ingested", 30),
        ("trained", 2),
        ("approved", 2),
        ("released", 2),
        ("switched", 2),
        ("alerted", 4),
        ("retrained", 1),
        ("accepted", 1),
    ] {
        assert!(what(word) >= least, "{word}: {}", what(word));
    }
}
