//! What counts as much, in one place.

use serde::{Deserialize, Serialize};

/// Limits that a day is held against. They are written into its report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// How often a day without any change may be called drifted: 0.0001 is one day in 27 years.
    pub chance: f64,
    /// The least difference of cumulative shares that matters, 0–1.
    pub distance: f64,
    /// The least change of a class's share that matters, 0–1.
    pub change: f64,
    /// Fewer rows of a day give no verdict.
    pub day_rows: u64,
    /// Fewer rows of the reference give no verdict.
    pub reference_rows: u64,
    /// A picture with less mean gray is dark.
    pub dark: f64,
    /// A picture with more mean gray is overexposed.
    pub overexposed: f64,
    /// A picture is blurred below so much of the sharpness that 1 % of the reference fall short of.
    pub blurred: f64,
    /// So many pictures in a row that look alike are a frozen camera.
    pub frozen_run: u64,
    /// Bits in which the fingerprints of near duplicates may differ.
    pub near_bits: u32,
    /// The largest good share of damaged pictures.
    pub damaged_share: f64,
    /// The largest good share of pictures that are dark, overexposed, blurred, frozen or duplicates, each.
    pub poor_share: f64,
    /// The largest good share of answers that are errors of ours.
    pub error_share: f64,
    /// Accuracy that is surely below is bad.
    pub accuracy: f64,
    /// Fewer labels in a class or group are too few for a rate to be compared.
    pub group_rows: u64,
    /// The largest good difference of error rates.
    pub difference: f64,
    /// The longest good answer in milliseconds, of 99 in 100.
    pub latency: f64,
    /// The largest good share of memory and of disk.
    pub full: f64,
    /// The hottest good temperature in degrees Celsius.
    pub hot: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            chance: 0.0001,
            distance: 0.2,
            change: 0.15,
            day_rows: 10,
            reference_rows: 30,
            dark: 0.1,
            overexposed: 0.9,
            blurred: 0.8,
            frozen_run: 3,
            near_bits: 2,
            damaged_share: 0.05,
            poor_share: 0.1,
            error_share: 0.01,
            accuracy: 0.8,
            group_rows: 10,
            difference: 0.15,
            latency: 1000.0,
            full: 0.9,
            hot: 80.0,
        }
    }
}
