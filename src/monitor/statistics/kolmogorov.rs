//! The two-sample test of Kolmogorov and Smirnov, exact.

use crate::monitor::statistics::Column;

/// Longer columns are thinned to this by whoever asks: the exact sum takes time by rows × rows.
pub const MOST: usize = 10_000;

/// How far two distributions are apart, and how often chance alone takes them as far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ks {
    /// The largest difference of the two cumulative shares, 0–1.
    pub statistic: f64,
    /// Two-sided; larger than the truth where values are tied.
    pub p: f64,
}

/// Compares two columns; `None` where one of them has fewer than two rows.
pub fn ks(first: &Column, second: &Column) -> Option<Ks> {
    if first.len() < 2 || second.len() < 2 {
        return None;
    }
    let (n, m) = (first.len() as u64, second.len() as u64);
    let apart = apart(first.values(), second.values());
    Some(Ks { statistic: apart as f64 / (n * m) as f64, p: chance(n, m, apart) })
}

/// The largest difference of the cumulative shares times the rows of both, a whole number.
fn apart(first: &[f64], second: &[f64]) -> u64 {
    let (mut one, mut two, mut largest) = (0, 0, 0);
    while one < first.len() && two < second.len() {
        // All rows with the same value are passed together: a tie is no difference.
        let value = first[one].min(second[two]);
        one += first[one..].iter().take_while(|&&it| it <= value).count();
        two += second[two..].iter().take_while(|&&it| it <= value).count();
        largest = largest.max((one * second.len()).abs_diff(two * first.len()));
    }
    largest as u64
}

/// The chance that a path of `n` steps right and `m` steps up in random order somewhere strays as far as `apart`.
///
/// A path that ends in (x, y) came from the left with chance x/(x+y), else from below. Only chances are added
/// and multiplied, never subtracted, so that small ones keep their digits.
fn chance(n: u64, m: u64, apart: u64) -> f64 {
    if apart == 0 {
        return 1.0;
    }
    // Outside of the band around the diagonal every chance is 1; only the band is walked.
    let mut column = vec![1.0; m as usize + 1];
    let mut bottom = 0;
    for x in 0..=n {
        let first = (x * m + 1).saturating_sub(apart).div_ceil(n);
        let last = ((x * m + apart - 1) / n).min(m);
        while bottom < first {
            column[bottom as usize] = 1.0;
            bottom += 1;
        }
        for y in first..=last {
            let at = y as usize;
            let left = if x == 0 { 0.0 } else { column[at] * x as f64 };
            let below = if y == 0 { 0.0 } else { column[at - 1] * y as f64 };
            column[at] = (left + below) / (x + y).max(1) as f64;
        }
    }
    column[m as usize].min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(values: &[f64]) -> Column {
        Column::of(values.iter().copied())
    }

    #[test]
    fn one_row_says_nothing() {
        assert_eq!(ks(&column(&[1.0]), &column(&[1.0, 2.0])), None);
        assert_eq!(ks(&column(&[]), &column(&[])), None);
    }

    #[test]
    fn of_six_orders_of_two_and_two_rows_two_are_apart() {
        let found = ks(&column(&[1.0, 2.0]), &column(&[3.0, 4.0])).unwrap();
        assert!((found.statistic - 1.0).abs() < 1e-15 && (found.p - 2.0 / 6.0).abs() < 1e-15, "{found:?}");
    }

    #[test]
    fn the_order_of_the_two_does_not_matter() {
        let (one, two) = (column(&[1.0, 2.0, 2.0, 9.0, 9.5]), column(&[2.0, 3.0, 3.5]));
        let (here, there) = (ks(&one, &two).unwrap(), ks(&two, &one).unwrap());
        assert!((here.p - there.p).abs() < 1e-15 && (here.statistic - there.statistic).abs() < 1e-15);
    }

    #[test]
    fn far_apart_keeps_its_digits() {
        let low = Column::of((0..200).map(f64::from));
        let high = Column::of((0..300).map(|it| f64::from(it) + 1e6));
        let found = ks(&low, &high).unwrap();
        // One path of all 500 over 200.
        let ways = libm::lgamma(501.0) - libm::lgamma(201.0) - libm::lgamma(301.0);
        assert!((found.p / (2.0 * libm::exp(-ways)) - 1.0).abs() < 1e-9, "{found:?}");
    }
}
