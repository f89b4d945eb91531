//! Confidence intervals of a share, and tests whether two shares differ.

/// Number of standard deviations on either side of the mean that cover 95 % of a normal distribution.
const Z_95: f64 = 1.959_963_984_540_054;

/// 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// Difference of two shares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateDifference {
    /// First minus second.
    pub difference: f64,
    /// Newcombe's interval, from two Wilson intervals.
    pub interval: Interval,
    /// Two-sided p-value of the pooled z-test, without continuity correction.
    pub p: f64,
}

/// Computes Wilson's score interval of the share `part` / `total`; `None` if `total` is 0 or less than
/// `part`.
pub fn wilson_interval(part: u64, total: u64) -> Option<Interval> {
    if total == 0 || part > total {
        return None;
    }
    let (rest, squared) = ((total - part) as f64, Z_95 * Z_95);
    let (part, total) = (part as f64, total as f64);
    let center = (part + squared / 2.0) / (total + squared);
    let half = Z_95 / (total + squared) * libm::sqrt(part * rest / total + squared / 4.0);
    let low = if part == 0.0 { 0.0 } else { (center - half).max(0.0) };
    let high = if rest == 0.0 { 1.0 } else { (center + half).min(1.0) };
    Some(Interval { low, high })
}

/// Compares the shares `first` / `n` and `second` / `m`.
pub fn compare_rates(first: u64, n: u64, second: u64, m: u64) -> Option<RateDifference> {
    let (one, two) = (wilson_interval(first, n)?, wilson_interval(second, m)?);
    let (p, q) = (first as f64 / n as f64, second as f64 / m as f64);
    let pooled = (first + second) as f64 / (n + m) as f64;
    let variance = pooled * (1.0 - pooled) * (1.0 / n as f64 + 1.0 / m as f64);
    // Uses erfc directly: 1 - erf would lose small values.
    let p_value = if variance > 0.0 { libm::erfc((p - q).abs() / libm::sqrt(2.0 * variance)) } else { 1.0 };
    let interval = Interval {
        low: p - q - libm::hypot(p - one.low, two.high - q),
        high: p - q + libm::hypot(one.high - p, q - two.low),
    };
    Some(RateDifference { difference: p - q, interval, p: p_value })
}

/// Computes the p-value of the exact `McNemar` test: of the rows on which two models differ, the first is
/// right on `first` and the other on `second`. `None` if they never differ.
pub fn mcnemar_exact(first: u64, second: u64) -> Option<f64> {
    let (smaller, total) = (first.min(second), first + second);
    if total == 0 {
        return None;
    }
    let log_factorial = |number: u64| libm::lgamma(number as f64 + 1.0);
    let log_choices = log_factorial(total) - log_factorial(smaller) - log_factorial(total - smaller);
    let mut term = libm::exp(log_choices - total as f64 * std::f64::consts::LN_2);
    let mut sum = term;
    for count in (1..=smaller).rev() {
        term *= count as f64 / (total - count + 1) as f64;
        sum += term;
    }
    Some((2.0 * sum).min(1.0))
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the ends are exact")]
mod tests {
    use super::*;

    #[test]
    fn empty_samples_have_no_statistic() {
        assert_eq!(wilson_interval(0, 0), None);
        assert_eq!(compare_rates(1, 2, 0, 0), None);
        assert_eq!(mcnemar_exact(0, 0), None);
    }

    #[test]
    fn extreme_shares_have_exact_bounds() {
        assert_eq!(wilson_interval(0, 7).unwrap().low, 0.0);
        assert_eq!(wilson_interval(7, 7).unwrap().high, 1.0);
        assert_eq!(compare_rates(5, 5, 9, 9).unwrap().p, 1.0);
        assert_eq!(mcnemar_exact(4, 4), Some(1.0));
    }
}
