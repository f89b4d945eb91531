//! A column of numbers in order, and bins that a reference fixes once.

/// Finite numbers in ascending order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Column {
    values: Vec<f64>,
    /// Rows that were no finite numbers.
    pub set_aside: u64,
}

impl Column {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut column = Self::default();
        for value in values {
            if value.is_finite() {
                // Zero has two spellings that compare equal and sort apart.
                column.values.push(value + 0.0);
            } else {
                column.set_aside += 1;
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

    /// The value below which `share` of the rows lie, between rows on a straight line, as NumPy does.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let last = self.len().checked_sub(1)?;
        let place = last as f64 * share.clamp(0.0, 1.0);
        let (low, part) = (place as usize, place.fract());
        let (one, two) = (self.values[low], self.values[(low + 1).min(last)]);
        // From the nearer side, so that nothing is lost where both are alike.
        Some(if part < 0.5 { one + (two - one) * part } else { two - (two - one) * (1.0 - part) })
    }

    /// Every k-th value, so that at most `most` are left.
    pub fn thinned(&self, most: usize) -> Self {
        if self.len() <= most {
            return self.clone();
        }
        let values = (0..most).map(|it| self.values[it * self.len() / most]).collect();
        Self { values, set_aside: self.set_aside }
    }
}

/// Where one bin ends and the next begins; a value on an edge belongs to the bin above.
#[derive(Clone, Debug, PartialEq)]
pub struct Edges(Vec<f64>);

impl Edges {
    /// Edges between `bins` bins that hold equally many rows of the reference. A value that would fill several
    /// bins has one to itself, so that a constant reference still sees what lies below and above.
    pub fn of(reference: &Column, bins: usize) -> Option<Self> {
        let mut edges: Vec<f64> = Vec::new();
        for at in 1..bins {
            let edge = reference.quantile(at as f64 / bins as f64)?;
            if edges.last().is_none_or(|&it| it < edge) {
                edges.push(edge);
            } else if edges.last() == Some(&edge) {
                edges.push(edge.next_up());
            }
        }
        Some(Self(edges))
    }

    pub fn bins(&self) -> usize {
        self.0.len() + 1
    }

    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// Rows in each bin.
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
    fn what_is_no_number_is_set_aside_and_counted() {
        let column = Column::of([2.0, f64::NAN, 1.0, f64::INFINITY, -0.0]);
        assert_eq!((column.values(), column.set_aside), (&[0.0, 1.0, 2.0][..], 2));
        assert_eq!(Column::of([f64::NAN]).mean(), None);
        assert_eq!(Column::default().quantile(0.5), None);
        assert_eq!(Column::of([7.0]).quantile(0.99), Some(7.0));
    }

    #[test]
    fn a_constant_reference_sees_below_and_above() {
        let edges = Edges::of(&Column::of([3.0; 20]), 10).unwrap();
        assert_eq!(edges.count(&Column::of([2.0, 3.0, 3.0, 3.5])), [1, 2, 1]);
        assert_eq!(Edges::of(&Column::default(), 10), None);
    }

    #[test]
    fn thinning_keeps_order_and_spread() {
        let thin = Column::of((0..25_000).map(f64::from)).thinned(10_000);
        assert_eq!(thin.len(), 10_000);
        assert!(thin.values().is_sorted() && thin.values()[0] == 0.0 && thin.values()[9_999] > 24_990.0);
        assert!((thin.mean().unwrap() - 12_499.0).abs() < 2.0);
    }
}
