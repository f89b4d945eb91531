//! Comparison of two rows of counts over the same bins or classes: χ² test, population stability index,
//! Jensen–Shannon distance, and the adjustment of p-values for many tests.

/// Result of a χ² test of two rows of counts for equal shares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChiSquare {
    pub statistic: f64,
    /// Degrees of freedom.
    pub degrees: u64,
    pub p: f64,
}

/// Computes Pearson's χ² test on the 2×k table, without continuity correction. Columns with no count are left
/// out.
pub fn chi_square(first: &[u64], second: &[u64]) -> Option<ChiSquare> {
    let (n, m) = totals(first, second)?;
    let (mut statistic, mut columns) = (0.0, 0);
    for (&one, &two) in first.iter().zip(second).filter(|&(one, two)| one + two > 0) {
        columns += 1;
        for (count, total) in [(one, n), (two, m)] {
            let expected = total * (one + two) as f64 / (n + m);
            let deviation = count as f64 - expected;
            statistic += deviation * deviation / expected;
        }
    }
    let degrees = columns - 1;
    Some(ChiSquare { statistic, degrees, p: upper_tail(statistic, degrees) })
}

/// Returns the probability of a χ² at least as large: a finite sum, as the degrees of freedom are an integer.
fn upper_tail(statistic: f64, degrees: u64) -> f64 {
    if degrees == 0 || statistic <= 0.0 {
        return 1.0;
    }
    let half = statistic / 2.0;
    let odd = degrees % 2 == 1;
    let mut sum = if odd { libm::erfc(libm::sqrt(half)) } else { libm::exp(-half) };
    let mut power = if odd { 0.5 } else { 1.0 };
    while power < degrees as f64 / 2.0 {
        sum += libm::exp(power * libm::log(half) - half - libm::lgamma(power + 1.0));
        power += 1.0;
    }
    sum.min(1.0)
}

/// Computes the population stability index with the natural logarithm. An empty bin counts as half a row.
pub fn psi(reference: &[u64], current: &[u64]) -> Option<f64> {
    let (n, m) = totals(reference, current)?;
    let share = |count: u64, total: f64| (count as f64).max(0.5) / total;
    let both = reference.iter().zip(current).filter(|&(one, two)| one + two > 0);
    Some(
        both.map(|(&one, &two)| (share(one, n), share(two, m)))
            .map(|(one, two)| (one - two) * libm::log(one / two))
            .sum(),
    )
}

/// Approximates the mean of the population stability index if nothing has changed.
pub fn psi_expected(bins: usize, reference: u64, current: u64) -> Option<f64> {
    let rows = 1.0 / reference as f64 + 1.0 / current as f64;
    (reference > 0 && current > 0).then(|| bins.saturating_sub(1) as f64 * rows)
}

/// Computes the Jensen–Shannon distance (the square root of the divergence) with the natural logarithm: at
/// most √ln 2.
pub fn js_distance_natural(first: &[u64], second: &[u64]) -> Option<f64> {
    let (n, m) = totals(first, second)?;
    let mut divergence = 0.0;
    for (&one, &two) in first.iter().zip(second) {
        let (one, two) = (one as f64 / n, two as f64 / m);
        for share in [one, two].into_iter().filter(|&share| share > 0.0) {
            divergence += share * libm::log(2.0 * share / (one + two)) / 2.0;
        }
    }
    Some(libm::sqrt(divergence.max(0.0)))
}

/// Computes the Jensen–Shannon distance (the square root of the divergence) with the logarithm of base 2: at
/// most 1.
pub fn js_distance_base2(first: &[u64], second: &[u64]) -> Option<f64> {
    Some(js_distance_natural(first, second)? / libm::sqrt(std::f64::consts::LN_2))
}

/// Returns the index of the share that changed most, and its change: second minus first.
pub fn largest_change(first: &[u64], second: &[u64]) -> Option<(usize, f64)> {
    let (n, m) = totals(first, second)?;
    let changes = first.iter().zip(second).map(|(&one, &two)| two as f64 / m - one as f64 / n);
    changes.enumerate().reduce(|best, next| if next.1.abs() > best.1.abs() { next } else { best })
}

/// Adjusts p-values to control the false discovery rate (Benjamini–Hochberg), in the order given: of all
/// results below a limit, at most that share is expected to be due to chance.
pub fn benjamini_hochberg(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<_> = (0..values.len()).collect();
    order.sort_by(|&one, &two| values[one].total_cmp(&values[two]));
    let mut adjusted = vec![1.0; values.len()];
    let mut smallest: f64 = 1.0;
    for (rank, &index) in order.iter().enumerate().rev() {
        smallest = smallest.min(values[index] * values.len() as f64 / (rank + 1) as f64);
        adjusted[index] = smallest;
    }
    adjusted
}

/// Returns the sums of two rows; `None` if one is zero or the lengths differ.
fn totals(first: &[u64], second: &[u64]) -> Option<(f64, f64)> {
    let (n, m) = (first.iter().sum::<u64>(), second.iter().sum::<u64>());
    (first.len() == second.len() && n > 0 && m > 0).then_some((n as f64, m as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_counts_have_no_statistic() {
        assert_eq!(chi_square(&[0, 0], &[1, 2]), None);
        assert_eq!(psi(&[], &[]), None);
        assert_eq!(js_distance_natural(&[1], &[1, 2]), None);
        assert_eq!(psi_expected(10, 0, 5), None);
        assert_eq!(largest_change(&[1, 1], &[0, 0]), None);
        assert_eq!(benjamini_hochberg(&[]), Vec::<f64>::new());
    }

    #[test]
    fn a_single_class_on_both_sides_is_no_change() {
        assert_eq!(chi_square(&[9, 0], &[4, 0]), Some(ChiSquare { statistic: 0.0, degrees: 0, p: 1.0 }));
    }

    #[test]
    fn a_class_on_one_side_only_stays_finite() {
        let found = psi(&[10, 0], &[0, 10]).unwrap();
        assert!(found.is_finite() && found > 5.0, "{found}");
        assert!((js_distance_base2(&[10, 0], &[0, 10]).unwrap() - 1.0).abs() < 1e-15);
        assert_eq!(largest_change(&[10, 0], &[5, 5]), Some((0, -0.5)));
    }
}
