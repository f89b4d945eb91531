//! The clock, in one place so that tests can stop it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Now, or `MLX_TIMESTAMP` (seconds since 1970) when set.
    #[expect(clippy::disallowed_methods, reason = "this is the one clock")]
    pub fn now() -> Self {
        let stopped = std::env::var("MLX_TIMESTAMP").ok().and_then(|it| it.parse().ok());
        let since = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
        Self(stopped.unwrap_or_else(|| i64::try_from(since()).unwrap_or(i64::MAX)))
    }

    pub fn from_seconds(seconds: i64) -> Self {
        Self(seconds)
    }

    pub fn seconds(self) -> i64 {
        self.0
    }

    /// `2026-11-24T02:10:35Z`
    pub fn to_text(self) -> String {
        jiff::Timestamp::from_second(self.0).map_or_else(|_| format!("@{}", self.0), |it| it.to_string())
    }

    /// `2026-11-24`
    pub fn day(self) -> String {
        self.to_text().chars().take_while(|&it| it != 'T').collect()
    }

    /// `20261124T021035Z`, fit for a file name.
    pub fn compact(self) -> String {
        self.to_text().replace(['-', ':'], "")
    }
}
