//! Sorted columns of numbers with means and quantiles, and bins whose edges come from a reference column.

/// Finite numbers in ascending order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Column {
    values: Vec<f64>,
    /// Number of values that were dropped because they are not finite.
    pub non_finite: u64,
}

impl Column {
    /// Sorts the finite values and counts the others.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut column = Self::default();
        for value in values {
            if value.is_finite() {
                // -0.0 becomes 0.0: both compare equal, but `total_cmp` separates them.
                column.values.push(value + 0.0);
            } else {
                column.non_finite += 1;
            }
        }
        column.values.sort_by(f64::total_cmp);
        column
    }

    pub fn values(&self) -> &[f64] {
        &self.values
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub fn mean(&self) -> Option<f64> {
        (!self.is_empty()).then(|| self.values.iter().sum::<f64>() / self.len() as f64)
    }

    /// Returns the value below which `share` of the rows are, interpolated linearly between rows, as in
    /// NumPy.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let last = self.len().checked_sub(1)?;
        let position = last as f64 * share.clamp(0.0, 1.0);
        let (low, part) = (position as usize, position.fract());
        let (one, two) = (self.values[low], self.values[(low + 1).min(last)]);
        // Interpolates from the nearer row, so that equal rows give exactly their value.
        Some(if part < 0.5 { one + (two - one) * part } else { two - (two - one) * (1.0 - part) })
    }

    /// Returns at most `limit` values, taken at equal steps.
    pub fn thinned(&self, limit: usize) -> Self {
        if self.len() <= limit {
            return self.clone();
        }
        let values = (0..limit).map(|index| self.values[index * self.len() / limit]).collect();
        Self { values, non_finite: self.non_finite }
    }
}

/// Edges between bins, ascending; a value on an edge belongs to the bin above it.
#[derive(Clone, Debug, PartialEq)]
pub struct BinEdges(Vec<f64>);

impl BinEdges {
    /// Computes edges of `bins` bins that hold equally many rows of the reference. A value that would fill
    /// several bins gets one bin to itself, so that even a constant reference separates values below and
    /// above it.
    pub fn of(reference: &Column, bins: usize) -> Option<Self> {
        let mut edges: Vec<f64> = Vec::new();
        for bin in 1..bins {
            let edge = reference.quantile(bin as f64 / bins as f64)?;
            if edges.last().is_none_or(|&last| last < edge) {
                edges.push(edge);
            } else if edges.last() == Some(&edge) {
                edges.push(edge.next_up());
            }
        }
        Some(Self(edges))
    }

    /// Returns the number of bins, one more than edges.
    pub fn bins(&self) -> usize {
        self.0.len() + 1
    }

    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// Counts the rows of a column in each bin.
    pub fn count(&self, column: &Column) -> Vec<u64> {
        let mut counts = vec![0; self.bins()];
        for value in column.values() {
            counts[self.0.partition_point(|edge| edge <= value)] += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_not_finite_are_dropped_and_counted() {
        let column = Column::of([2.0, f64::NAN, 1.0, f64::INFINITY, -0.0]);
        assert_eq!((column.values(), column.non_finite), (&[0.0, 1.0, 2.0][..], 2));
        assert_eq!(Column::of([f64::NAN]).mean(), None);
        assert_eq!(Column::default().quantile(0.5), None);
        assert_eq!(Column::of([7.0]).quantile(0.99), Some(7.0));
    }

    #[test]
    fn a_constant_reference_separates_values_below_and_above() {
        let edges = BinEdges::of(&Column::of([3.0; 20]), 10).unwrap();
        assert_eq!(edges.count(&Column::of([2.0, 3.0, 3.0, 3.5])), [1, 2, 1]);
        assert_eq!(BinEdges::of(&Column::default(), 10), None);
    }

    #[test]
    fn thinning_keeps_order_and_spread() {
        let thin = Column::of((0..25_000).map(f64::from)).thinned(10_000);
        assert_eq!(thin.len(), 10_000);
        assert!(thin.values().is_sorted() && thin.values()[0] == 0.0 && thin.values()[9_999] > 24_990.0);
        assert!((thin.mean().unwrap() - 12_499.0).abs() < 2.0);
    }
}
