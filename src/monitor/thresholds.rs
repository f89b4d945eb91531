//! Thresholds of a day's report: which values count as dark, blurred, drifted, slow or otherwise bad.

use serde::{Deserialize, Serialize};

/// Limits that a day is judged by. They are stored in its report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Significance level of drift tests: the rate at which unchanged days may be called drifted. 0.0001 is
    /// one day in 27 years.
    #[serde(rename = "chance")]
    pub significance: f64,
    /// Smallest Kolmogorov–Smirnov distance that matters, 0–1.
    #[serde(rename = "distance")]
    pub min_ks_distance: f64,
    /// Smallest change of a class's share that matters, 0–1.
    #[serde(rename = "change")]
    pub min_share_change: f64,
    /// Smallest number of rows of the day for a verdict.
    pub day_rows: u64,
    /// Smallest number of rows of the reference for a verdict.
    pub reference_rows: u64,
    /// Mean gray below which an image is dark.
    pub dark: f64,
    /// Mean gray above which an image is overexposed.
    pub overexposed: f64,
    /// Sharpness below which an image is blurred, as a share of the reference's 1 % quantile of sharpness.
    pub blurred: f64,
    /// Number of consecutive look-alike images from which a camera counts as frozen.
    pub frozen_run: u64,
    /// Largest number of bits in which the fingerprints of near duplicates differ.
    pub near_bits: u32,
    /// Largest acceptable share of damaged images.
    pub damaged_share: f64,
    /// Largest acceptable share of images that are dark, overexposed, blurred, frozen or duplicates, each.
    pub poor_share: f64,
    /// Largest acceptable share of requests that end in a server error.
    pub error_share: f64,
    /// Accuracy is bad if its whole confidence interval is below this value.
    pub accuracy: f64,
    /// Smallest number of labels of a class or group for its error rate to be compared.
    pub group_rows: u64,
    /// Largest acceptable difference of error rates.
    #[serde(rename = "difference")]
    pub max_rate_difference: f64,
    /// Largest acceptable 99 % quantile of the latency, in milliseconds.
    pub latency: f64,
    /// Largest acceptable share of memory and of disk in use.
    #[serde(rename = "full")]
    pub max_usage: f64,
    /// Largest acceptable temperature, in degrees Celsius.
    #[serde(rename = "hot")]
    pub max_temperature: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            significance: 0.0001,
            min_ks_distance: 0.2,
            min_share_change: 0.15,
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
            max_rate_difference: 0.15,
            latency: 1000.0,
            max_usage: 0.9,
            max_temperature: 80.0,
        }
    }
}
