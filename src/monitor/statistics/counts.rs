//! Two rows of counts over the same bins or classes.

/// Whether two rows of counts have the same shares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChiSquare {
    pub statistic: f64,
    pub degrees: u64,
    pub p: f64,
}

/// Pearson's test on the 2×k table, uncorrected. Columns that both rows lack are left out.
pub fn chi_square(first: &[u64], second: &[u64]) -> Option<ChiSquare> {
    let (n, m) = totals(first, second)?;
    let (mut statistic, mut columns) = (0.0, 0);
    for (&one, &two) in first.iter().zip(second).filter(|&(one, two)| one + two > 0) {
        columns += 1;
        for (count, total) in [(one, n), (two, m)] {
            let expected = total * (one + two) as f64 / (n + m);
            let off = count as f64 - expected;
            statistic += off * off / expected;
        }
    }
    let degrees = columns - 1;
    Some(ChiSquare { statistic, degrees, p: tail(statistic, degrees) })
}

/// The chance of a χ² at least as large: a finite sum, as the degrees are whole.
fn tail(statistic: f64, degrees: u64) -> f64 {
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

/// Population stability index, natural logarithm. A bin without rows counts as half a row.
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

/// What the index is about on average where nothing changed.
pub fn psi_expected(bins: usize, reference: u64, current: u64) -> Option<f64> {
    let rows = 1.0 / reference as f64 + 1.0 / current as f64;
    (reference > 0 && current > 0).then(|| bins.saturating_sub(1) as f64 * rows)
}

/// Jensen–Shannon distance with the natural logarithm: the root, at most √ln 2.
pub fn js_distance_natural(first: &[u64], second: &[u64]) -> Option<f64> {
    let (n, m) = totals(first, second)?;
    let mut divergence = 0.0;
    for (&one, &two) in first.iter().zip(second) {
        let (one, two) = (one as f64 / n, two as f64 / m);
        for share in [one, two].into_iter().filter(|&it| it > 0.0) {
            divergence += share * libm::log(2.0 * share / (one + two)) / 2.0;
        }
    }
    Some(libm::sqrt(divergence.max(0.0)))
}

/// Jensen–Shannon distance with the logarithm of base 2: the root, at most 1.
pub fn js_distance_base2(first: &[u64], second: &[u64]) -> Option<f64> {
    Some(js_distance_natural(first, second)? / libm::sqrt(std::f64::consts::LN_2))
}

/// Which share changed most, and by how much: second less first.
pub fn largest_change(first: &[u64], second: &[u64]) -> Option<(usize, f64)> {
    let (n, m) = totals(first, second)?;
    let changes = first.iter().zip(second).map(|(&one, &two)| two as f64 / m - one as f64 / n);
    changes.enumerate().reduce(|best, it| if it.1.abs() > best.1.abs() { it } else { best })
}

/// Values of p raised so that of all that stay below a limit, at most that share is there by chance.
pub fn benjamini_hochberg(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<_> = (0..values.len()).collect();
    order.sort_by(|&one, &two| values[one].total_cmp(&values[two]));
    let mut raised = vec![1.0; values.len()];
    let mut least: f64 = 1.0;
    for (rank, &at) in order.iter().enumerate().rev() {
        least = least.min(values[at] * values.len() as f64 / (rank + 1) as f64);
        raised[at] = least;
    }
    raised
}

/// The sums of two rows, where both have one and they are of the same length.
fn totals(first: &[u64], second: &[u64]) -> Option<(f64, f64)> {
    let (n, m) = (first.iter().sum::<u64>(), second.iter().sum::<u64>());
    (first.len() == second.len() && n > 0 && m > 0).then_some((n as f64, m as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_says_nothing() {
        assert_eq!(chi_square(&[0, 0], &[1, 2]), None);
        assert_eq!(psi(&[], &[]), None);
        assert_eq!(js_distance_natural(&[1], &[1, 2]), None);
        assert_eq!(psi_expected(10, 0, 5), None);
        assert_eq!(largest_change(&[1, 1], &[0, 0]), None);
        assert_eq!(benjamini_hochberg(&[]), Vec::<f64>::new());
    }

    #[test]
    fn one_class_on_both_sides_is_the_same() {
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
