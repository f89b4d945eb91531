//! Synthetic days of traffic for tests: records, labels and machine samples, deterministic from a seed.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Digest,
    monitor::{Day, Reference, Report, Thresholds, measure},
    traffic::{ImageStats, Labels, Record, TelemetrySample},
};

pub const DAY: i64 = 86_400_000;

/// Pseudorandom numbers from a seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1))
    }

    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// Returns a number from the uniform distribution on 0–1.
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Returns a number from an approximately normal distribution with mean 0 and standard deviation 1.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}

/// Parameters of a synthetic day.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub brightness: f32,
    pub sharpness: f32,
    pub red: f32,
    /// Share of cats, 0–1; the others are dogs.
    pub cat_share: f32,
    /// Offset added to a quarter of the features.
    pub feature_shift: f32,
    /// Share of wrong predictions, 0–1.
    pub error_rate: f32,
}

pub const TYPICAL: Scenario = Scenario {
    brightness: 0.45,
    sharpness: 0.6,
    red: 0.34,
    cat_share: 0.5,
    feature_shift: 0.0,
    error_rate: 0.05,
};

pub fn classes() -> Vec<String> {
    vec!["cat".into(), "dog".into()]
}

/// Returns `count` frames of a day, 12 minutes apart from 6:00 UTC, and their labels.
pub fn frames(scenario: Scenario, seed: u64, count: usize) -> (Vec<Record>, Labels) {
    let mut random = Random::new(seed);
    let mut labels = Labels::default();
    let records = (0..count)
        .map(|number| {
            let id = format!("{seed}-{number}");
            let cat = random.uniform() < scenario.cat_share;
            let wrong = random.uniform() < scenario.error_rate;
            let time = (number as i64 * 12 + 360) * 60_000 % DAY;
            let record = record(scenario, &mut random, id, cat != wrong, time);
            labels.insert(&record, classes()[usize::from(!cat)].clone());
            record
        })
        .collect();
    (records, labels)
}

fn record(scenario: Scenario, random: &mut Random, id: String, cat: bool, time: i64) -> Record {
    let brightness = (scenario.brightness + 0.1 * random.normal()).clamp(0.0, 1.0);
    let red = scenario.red + 0.01 * random.normal();
    let score = 0.7 + 0.3 * random.uniform();
    let sign = if cat { 1.0 } else { -1.0 };
    let features = (0..16).map(|feature| {
        let shift = if feature % 4 == 0 { scenario.feature_shift } else { 0.0 };
        sign * 0.3 + random.normal() + shift
    });
    Record {
        input: Digest::of(id.as_bytes()),
        captured: time,
        received: time + 1000,
        version: "pets@v0.1.0".into(),
        package: Digest::of(b"package"),
        name: format!("{id}.jpg"),
        status: 200,
        latency: 20.0,
        class: classes()[usize::from(!cat)].clone(),
        scores: if cat { vec![score, 1.0 - score] } else { vec![1.0 - score, score] },
        features: features.collect(),
        image_stats: Some(ImageStats {
            brightness,
            contrast: 0.2 + 0.03 * random.normal(),
            sharpness: scenario.sharpness * (1.0 + 0.1 * random.normal()),
            colors: [red, 0.33 + 0.01 * random.normal(), 0.33],
            fingerprint: random.next(),
        }),
        kept: false,
        id,
    }
}

/// Returns the machine samples of a day, one every ten minutes.
pub fn samples(seed: u64) -> Vec<TelemetrySample> {
    let mut random = Random::new(seed);
    let sample = |number: i64| TelemetrySample {
        time: number * 600_000,
        cpu: 0.2 + 0.1 * random.uniform(),
        memory: 0.4,
        resident: 150_000_000,
        disk: 0.3,
        temperature: Some(50.0 + 5.0 * random.uniform()),
        waiting: u32::from(random.uniform() < 0.1),
        answers: 1,
        errors: 0,
        dropped: 0,
    };
    (0..144).map(sample).collect()
}

/// Returns a reference of typical frames.
pub fn reference(rows: usize) -> Reference {
    Reference { name: "training side of pets@v0.1.0".into(), rows: frames(TYPICAL, 1_000_003, rows).0 }
}

/// Returns the report of frames without labels.
pub fn report(records: &[Record], reference: &Reference) -> Report {
    labeled(records, &Labels::default(), reference)
}

/// Returns the report of labeled frames.
pub fn labeled(records: &[Record], labels: &Labels, reference: &Reference) -> Report {
    let (no_groups, hours, samples) = (BTreeMap::new(), BTreeSet::from([6, 7, 8, 9, 10]), samples(5));
    let day = Day {
        name: "2026-11-24",
        records,
        samples: &samples,
        labels,
        groups: &no_groups,
        classes: &classes(),
        expected_hours: &hours,
    };
    measure(&day, reference, &Thresholds::default())
}
