//! Records and telemetry samples for tests.

use proptest::prelude::*;

use crate::{
    digest::Digest,
    traffic::{ImageStats, Record, TelemetrySample},
};

/// Creates a record of an image that was captured at a time.
pub fn record(id: &str, captured: i64, image: &[u8]) -> Record {
    Record {
        id: id.to_owned(),
        captured,
        received: captured + 5,
        version: "pets@v0.1.0".to_owned(),
        package: Digest::of(b"package"),
        input: Digest::of(image),
        name: format!("{id}.jpg"),
        status: 200,
        latency: 1.5,
        class: "cat".to_owned(),
        scores: vec![0.75, 0.25],
        features: vec![1.0, -2.0],
        image_stats: Some(ImageStats { brightness: 0.5, fingerprint: 1 << 63, ..ImageStats::default() }),
        kept: false,
    }
}

/// Creates a telemetry sample with all fields set.
pub fn sample() -> TelemetrySample {
    TelemetrySample {
        time: -1,
        cpu: 0.5,
        memory: 0.25,
        resident: 1 << 40,
        disk: 0.75,
        temperature: Some(40.5),
        waiting: 3,
        answers: u32::MAX,
        errors: 2,
        dropped: 1,
    }
}

/// Generates arbitrary records, fewer than `limit`.
pub fn records(limit: usize) -> impl Strategy<Value = Vec<Record>> {
    let floats = || prop::collection::vec(-1e9_f32..1e9, 0..5);
    let one =
        ("[!-~]{0,20}", any::<(i64, i64, u16)>(), "\\PC{0,9}", floats(), floats(), any::<(bool, u64)>());
    let record =
        one.prop_map(|(id, (captured, received, status), class, scores, features, (kept, bits))| Record {
            captured,
            received,
            status,
            kept,
            input: Digest::of(&bits.to_le_bytes()),
            name: class.clone(),
            latency: scores.iter().sum(),
            class,
            features,
            image_stats: (bits % 3 > 0).then(|| ImageStats {
                brightness: bits as f32,
                colors: [0.5, 0.25, scores.len() as f32],
                fingerprint: bits,
                ..ImageStats::default()
            }),
            scores,
            ..record(&id, 0, b"")
        });
    prop::collection::vec(record, 0..limit)
}
