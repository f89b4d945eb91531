//! How sure a share is, and whether two differ.

/// 95 % of a normal distribution lie within so many deviations.
const DEVIATIONS: f64 = 1.959_963_984_540_054;

/// Where the truth lies in 95 of 100 cases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// How two shares differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// First less second.
    pub difference: f64,
    /// Newcombe's interval, made of two Wilson intervals.
    pub interval: Interval,
    /// Two-sided, from the pooled share, uncorrected.
    pub p: f64,
}

/// Wilson's interval of `part` in `whole`.
pub fn wilson(part: u64, whole: u64) -> Option<Interval> {
    if whole == 0 || part > whole {
        return None;
    }
    let (rest, squared) = ((whole - part) as f64, DEVIATIONS * DEVIATIONS);
    let (part, whole) = (part as f64, whole as f64);
    let center = (part + squared / 2.0) / (whole + squared);
    let half = DEVIATIONS / (whole + squared) * libm::sqrt(part * rest / whole + squared / 4.0);
    let low = if part == 0.0 { 0.0 } else { (center - half).max(0.0) };
    let high = if rest == 0.0 { 1.0 } else { (center + half).min(1.0) };
    Some(Interval { low, high })
}

/// Compares `first` in `n` with `second` in `m`.
pub fn difference(first: u64, n: u64, second: u64, m: u64) -> Option<Difference> {
    let (one, two) = (wilson(first, n)?, wilson(second, m)?);
    let (p, q) = (first as f64 / n as f64, second as f64 / m as f64);
    let pooled = (first + second) as f64 / (n + m) as f64;
    let variance = pooled * (1.0 - pooled) * (1.0 / n as f64 + 1.0 / m as f64);
    // By the complement of the error function: 1 less a distribution loses small values.
    let chance = if variance > 0.0 { libm::erfc((p - q).abs() / libm::sqrt(2.0 * variance)) } else { 1.0 };
    let interval = Interval {
        low: p - q - libm::hypot(p - one.low, two.high - q),
        high: p - q + libm::hypot(one.high - p, q - two.low),
    };
    Some(Difference { difference: p - q, interval, p: chance })
}

/// The exact test of `McNemar`: of the rows on which two models differ, the first was right on `first`, the other on
/// `second`.
pub fn mcnemar_exact(first: u64, second: u64) -> Option<f64> {
    let (few, all) = (first.min(second), first + second);
    if all == 0 {
        return None;
    }
    let factorial = |it: u64| libm::lgamma(it as f64 + 1.0);
    let ways = factorial(all) - factorial(few) - factorial(all - few);
    let mut term = libm::exp(ways - all as f64 * std::f64::consts::LN_2);
    let mut sum = term;
    for at in (1..=few).rev() {
        term *= at as f64 / (all - at + 1) as f64;
        sum += term;
    }
    Some((2.0 * sum).min(1.0))
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the ends are exact")]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_nothing_says_nothing() {
        assert_eq!(wilson(0, 0), None);
        assert_eq!(difference(1, 2, 0, 0), None);
        assert_eq!(mcnemar_exact(0, 0), None);
    }

    #[test]
    fn the_ends_are_closed() {
        assert_eq!(wilson(0, 7).unwrap().low, 0.0);
        assert_eq!(wilson(7, 7).unwrap().high, 1.0);
        assert_eq!(difference(5, 5, 9, 9).unwrap().p, 1.0);
        assert_eq!(mcnemar_exact(4, 4), Some(1.0));
    }
}
