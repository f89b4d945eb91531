//! Timestamps, durations and UTC days, and the one function that reads the clock.
//!
//! `MLX_TIMESTAMP` (seconds since 1970) stops the clock, so that output is reproducible.

use std::{
    fmt,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::error::{Error, Result};

/// Point in time, in seconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Returns the current time, or `MLX_TIMESTAMP` (seconds since 1970) if it is set.
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

    /// Formats as `2026-11-24T02:10:35Z`.
    pub fn to_text(self) -> String {
        jiff::Timestamp::from_second(self.0).map_or_else(|_| format!("@{}", self.0), |it| it.to_string())
    }

    /// Formats the date alone, as `2026-11-24`.
    pub fn day(self) -> String {
        self.to_text().chars().take_while(|&it| it != 'T').collect()
    }

    /// Formats as `20261124T021035Z`, which is safe in a file name.
    pub fn compact(self) -> String {
        self.to_text().replace(['-', ':'], "")
    }

    /// Parses what [`Timestamp::compact`] returned.
    pub fn parse_compact(text: &str) -> Option<Self> {
        let time = text.parse::<jiff::Timestamp>().ok().map(|time| Self(time.as_second()))?;
        (time.compact() == text).then_some(time)
    }
}

/// Returns the current time in milliseconds since 1970, UTC; whole seconds if `MLX_TIMESTAMP` is set.
#[expect(clippy::disallowed_methods, reason = "this is the one clock")]
pub fn now_millis() -> i64 {
    let stopped = std::env::var("MLX_TIMESTAMP").ok().and_then(|it| it.parse::<i64>().ok());
    let since = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_millis());
    stopped.map_or_else(|| i64::try_from(since()).unwrap_or(i64::MAX), |it| it.saturating_mul(1000))
}

/// Parses an RFC 3339 timestamp into milliseconds since 1970.
pub fn parse_millis(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond)
}

/// Formats milliseconds since 1970 as `2026-11-24T02:10:35.5Z`.
pub fn format_millis(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| format!("@{millis} ms"), |it| it.to_string())
}

/// Parses a duration such as `90s`, `30m`, `12h`, `14d` or `2w` into seconds.
pub fn parse_duration(text: &str) -> Result<i64> {
    let wrong =
        || Error::usage(format!("`{text}` is not a duration")).hint("write it like 14d, 12h, 30m or 0s");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(i64::from(number) * seconds)
}

/// Calendar day in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(jiff::civil::Date);

impl Day {
    /// Returns the day of a time in milliseconds since 1970. Times out of range give the first or the last
    /// day.
    pub fn of(millis: i64) -> Self {
        let limit = if millis < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        let moment = jiff::Timestamp::from_millisecond(millis).unwrap_or(limit);
        Self(jiff::tz::Offset::UTC.to_datetime(moment).date())
    }

    /// Returns the current day.
    pub fn today() -> Self {
        Self::of(now_millis())
    }

    /// Returns the hour of the day, 0–23 UTC, of a time in milliseconds since 1970.
    pub fn hour(millis: i64) -> u8 {
        u8::try_from(millis.div_euclid(3_600_000).rem_euclid(24)).unwrap_or(0)
    }

    /// Returns the day `days` later, or earlier if negative.
    pub fn plus(self, days: i64) -> Self {
        Self(self.0.saturating_add(jiff::Span::new().days(days.clamp(-4_000_000, 4_000_000))))
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for Day {
    type Err = Error;

    /// Parses `2026-11-24`; any other spelling is an error.
    fn from_str(text: &str) -> Result<Self> {
        let day = text.parse().ok().map(Self).filter(|day| day.to_string() == text);
        day.ok_or_else(|| Error::usage(format!("`{text}` is not a day")).hint("write it as 2026-11-24"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_one_spelling_and_a_range_of_milliseconds() {
        let day: Day = "2023-11-14".parse().unwrap();
        assert_eq!(Day::of(1_700_000_000_000), day);
        assert_eq!((Day::of(1_699_919_999_999), Day::of(1_699_920_000_000)), (day.plus(-1), day));
        assert_eq!(Day::of(-1).to_string(), "1969-12-31");
        assert!(Day::of(i64::MIN) < Day::of(0) && Day::of(0) < Day::of(i64::MAX));
        for bad in ["", "2023-11", "2023-11-31", "14.11.2023", "2023-11-14T00:00:00Z", " 2023-11-14"] {
            assert!(bad.parse::<Day>().is_err(), "{bad}");
        }
    }

    #[test]
    fn timestamps_are_parsed_in_any_time_zone() {
        assert_eq!(parse_millis("2023-11-14T22:13:20.5Z"), Some(1_700_000_000_500));
        assert_eq!(parse_millis("2023-11-14T23:13:20+01:00"), Some(1_700_000_000_000));
        assert_eq!(parse_millis("yesterday"), None);
    }
}
