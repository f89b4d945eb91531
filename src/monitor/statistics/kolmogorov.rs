//! Exact two-sample Kolmogorov–Smirnov test.

use crate::monitor::statistics::Column;

/// Largest number of rows per side that callers should pass: the exact p-value takes time proportional to the
/// product of both. Longer columns are thinned before.
pub const MAX_KS_ROWS: usize = 10_000;

/// Result of a Kolmogorov–Smirnov test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ks {
    /// Largest difference of the two cumulative shares, 0–1.
    pub statistic: f64,
    /// Two-sided p-value; an upper bound if values are tied.
    pub p: f64,
}

/// Tests whether two columns have the same distribution; `None` if one of them has fewer than two rows.
pub fn ks(first: &Column, second: &Column) -> Option<Ks> {
    if first.len() < 2 || second.len() < 2 {
        return None;
    }
    let (n, m) = (first.len() as u64, second.len() as u64);
    let difference = max_difference(first.values(), second.values());
    Some(Ks { statistic: difference as f64 / (n * m) as f64, p: p_value(n, m, difference) })
}

/// Returns the largest difference of the cumulative shares, multiplied by the rows of both sides: an integer.
fn max_difference(first: &[f64], second: &[f64]) -> u64 {
    let (mut one, mut two, mut largest) = (0, 0, 0);
    while one < first.len() && two < second.len() {
        // All rows with the same value advance together: a tie is not a difference.
        let value = first[one].min(second[two]);
        one += first[one..].iter().take_while(|&&row| row <= value).count();
        two += second[two..].iter().take_while(|&&row| row <= value).count();
        largest = largest.max((one * second.len()).abs_diff(two * first.len()));
    }
    largest as u64
}

/// Returns the probability that a path of `n` steps right and `m` steps up in random order deviates from the
/// diagonal by at least `difference` somewhere.
///
/// A path through (x, y) came from the left with probability x/(x+y), else from below. Probabilities are
/// added and multiplied, never subtracted, so that small ones keep their digits.
fn p_value(n: u64, m: u64, difference: u64) -> f64 {
    if difference == 0 {
        return 1.0;
    }
    // Outside the band around the diagonal every probability is 1; only the band is computed.
    let mut column = vec![1.0; m as usize + 1];
    let mut bottom = 0;
    for x in 0..=n {
        let first = (x * m + 1).saturating_sub(difference).div_ceil(n);
        let last = ((x * m + difference - 1) / n).min(m);
        while bottom < first {
            column[bottom as usize] = 1.0;
            bottom += 1;
        }
        for y in first..=last {
            let row = y as usize;
            let left = if x == 0 { 0.0 } else { column[row] * x as f64 };
            let below = if y == 0 { 0.0 } else { column[row - 1] * y as f64 };
            column[row] = (left + below) / (x + y).max(1) as f64;
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
    fn a_single_row_has_no_result() {
        assert_eq!(ks(&column(&[1.0]), &column(&[1.0, 2.0])), None);
        assert_eq!(ks(&column(&[]), &column(&[])), None);
    }

    #[test]
    fn two_of_six_orders_separate_two_and_two_rows() {
        let found = ks(&column(&[1.0, 2.0]), &column(&[3.0, 4.0])).unwrap();
        assert!((found.statistic - 1.0).abs() < 1e-15 && (found.p - 2.0 / 6.0).abs() < 1e-15, "{found:?}");
    }

    #[test]
    fn the_order_of_the_sides_does_not_matter() {
        let (one, two) = (column(&[1.0, 2.0, 2.0, 9.0, 9.5]), column(&[2.0, 3.0, 3.5]));
        let (forward, back) = (ks(&one, &two).unwrap(), ks(&two, &one).unwrap());
        assert!((forward.p - back.p).abs() < 1e-15 && (forward.statistic - back.statistic).abs() < 1e-15);
    }

    #[test]
    fn a_tiny_p_value_keeps_its_digits() {
        let low = Column::of((0..200).map(f64::from));
        let high = Column::of((0..300).map(|row| f64::from(row) + 1e6));
        let found = ks(&low, &high).unwrap();
        // One of the `500 choose 200` paths, on each side.
        let log_paths = libm::lgamma(501.0) - libm::lgamma(201.0) - libm::lgamma(301.0);
        assert!((found.p / (2.0 * libm::exp(-log_paths)) - 1.0).abs() < 1e-9, "{found:?}");
    }
}
