//! Days drawn from a seed, for tests.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Digest,
    monitor::{Day, Reference, Report, Thresholds, measure},
    traffic::{Labels, Looks, Record, Sample},
};

pub const DAY: i64 = 86_400_000;

/// Numbers that follow from a seed.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1))
    }

    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        it ^ (it >> 31)
    }

    /// Between 0 and 1.
    pub fn even(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Around 0 with deviation 1, nearly normal.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.even()).sum::<f32>() - 6.0
    }
}

/// What a day is drawn from.
#[derive(Clone, Copy)]
pub struct World {
    pub light: f32,
    pub sharpness: f32,
    pub red: f32,
    pub cats: f32,
    /// Added to a quarter of the features.
    pub strange: f32,
    pub wrong: f32,
}

pub const USUAL: World =
    World { light: 0.45, sharpness: 0.6, red: 0.34, cats: 0.5, strange: 0.0, wrong: 0.05 };

pub fn classes() -> Vec<String> {
    vec!["cat".into(), "dog".into()]
}

/// `count` frames of a day from six in the morning on, and their labels.
pub fn frames(world: World, seed: u64, count: usize) -> (Vec<Record>, Labels) {
    let mut chance = Chance::new(seed);
    let mut labels = Labels::default();
    let records = (0..count)
        .map(|at| {
            let id = format!("{seed}-{at}");
            let cat = chance.even() < world.cats;
            let wrong = chance.even() < world.wrong;
            let record = record(world, &mut chance, id, cat != wrong, (at as i64 * 12 + 360) * 60_000 % DAY);
            labels.insert(&record, classes()[usize::from(!cat)].clone());
            record
        })
        .collect();
    (records, labels)
}

fn record(world: World, chance: &mut Chance, id: String, cat: bool, time: i64) -> Record {
    let brightness = (world.light + 0.1 * chance.normal()).clamp(0.0, 1.0);
    let red = world.red + 0.01 * chance.normal();
    let sure = 0.7 + 0.3 * chance.even();
    let kind = if cat { 1.0 } else { -1.0 };
    let features = (0..16).map(|it| {
        let strange = if it % 4 == 0 { world.strange } else { 0.0 };
        kind * 0.3 + chance.normal() + strange
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
        scores: if cat { vec![sure, 1.0 - sure] } else { vec![1.0 - sure, sure] },
        features: features.collect(),
        looks: Some(Looks {
            brightness,
            contrast: 0.2 + 0.03 * chance.normal(),
            sharpness: world.sharpness * (1.0 + 0.1 * chance.normal()),
            colors: [red, 0.33 + 0.01 * chance.normal(), 0.33],
            fingerprint: chance.next(),
        }),
        kept: false,
        id,
    }
}

pub fn samples(seed: u64) -> Vec<Sample> {
    let mut chance = Chance::new(seed);
    let sample = |at: i64| Sample {
        time: at * 600_000,
        cpu: 0.2 + 0.1 * chance.even(),
        memory: 0.4,
        resident: 150_000_000,
        disk: 0.3,
        temperature: Some(50.0 + 5.0 * chance.even()),
        waiting: u32::from(chance.even() < 0.1),
        answers: 1,
        errors: 0,
        dropped: 0,
    };
    (0..144).map(sample).collect()
}

pub fn reference(rows: usize) -> Reference {
    Reference { name: "training side of pets@v0.1.0".into(), rows: frames(USUAL, 1_000_003, rows).0 }
}

/// The report of frames without labels.
pub fn report(records: &[Record], reference: &Reference) -> Report {
    labeled(records, &Labels::default(), reference)
}

pub fn labeled(records: &[Record], labels: &Labels, reference: &Reference) -> Report {
    let (none, hours, samples) = (BTreeMap::new(), BTreeSet::from([6, 7, 8, 9, 10]), samples(5));
    let day = Day {
        name: "2026-11-24",
        records,
        samples: &samples,
        labels,
        groups: &none,
        classes: &classes(),
        hours: &hours,
    };
    measure(&day, reference, &Thresholds::default())
}
