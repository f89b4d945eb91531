//! How far from the reference's middle a picture lies, as the network sees it.

/// Distances to the middle of a reference, in its own deviations.
pub struct Distances {
    pub reference: Vec<f64>,
    pub day: Vec<f64>,
    /// How far the day's middle is from the reference's; none without rows.
    pub shift: Option<f64>,
    pub shift_expected: Option<f64>,
}

/// What is known of one feature of the reference.
struct Feature {
    at: usize,
    mean: f64,
    /// Sum of squared deviations.
    squares: f64,
}

/// Rows of another width than the reference's first are left out, as are features that are constant in it.
pub fn distances(reference: &[&[f32]], day: &[&[f32]]) -> Distances {
    let width = reference.iter().find(|it| !it.is_empty()).map_or(0, |it| it.len());
    let usable = |rows: &[&[f32]]| -> Vec<Vec<f64>> {
        let rows = rows.iter().filter(|it| it.len() == width && it.iter().all(|it| it.is_finite()));
        rows.map(|it| it.iter().map(|&it| it.into()).collect()).collect()
    };
    let (reference, day) = (usable(reference), usable(day));
    let features: Vec<_> = (0..width).filter_map(|at| feature(&reference, at)).collect();
    if features.is_empty() || reference.len() < 3 {
        return Distances { reference: Vec::new(), day: Vec::new(), shift: None, shift_expected: None };
    }
    let count = reference.len() as f64;
    let of_day = |row: &Vec<f64>| root_mean(features.iter().map(|it| outside(it, row[it.at], count)));
    Distances {
        reference: reference.iter().filter_map(|row| without_itself(&features, row, count)).collect(),
        day: day.iter().filter_map(of_day).collect(),
        shift: shift(&features, &day, count),
        shift_expected: (!day.is_empty()).then(|| libm::sqrt(1.0 / count + 1.0 / day.len() as f64)),
    }
}

/// None where it is constant but for rounding.
fn feature(rows: &[Vec<f64>], at: usize) -> Option<Feature> {
    let count = rows.len() as f64;
    let mean = rows.iter().map(|it| it[at]).sum::<f64>() / count;
    let squares = rows.iter().map(|it| (it[at] - mean) * (it[at] - mean)).sum::<f64>();
    let largest = rows.iter().map(|it| it[at].abs()).fold(0.0, f64::max);
    (squares / count > 1e-12 * largest * largest).then_some(Feature { at, mean, squares })
}

/// Squared distance of a value that the reference has not seen.
fn outside(feature: &Feature, value: f64, count: f64) -> f64 {
    let off = value - feature.mean;
    off * off * (count - 1.0) / feature.squares
}

/// A row of the reference is measured against all others, as a row of the day is against all of them. Against a
/// middle that it helped to make it would look nearer than it is, and every day would seem to have drifted.
fn without_itself(features: &[Feature], row: &[f64], count: f64) -> Option<f64> {
    root_mean(features.iter().filter_map(|it| {
        let off = row[it.at] - it.mean;
        let squares = it.squares - off * off * count / (count - 1.0);
        // What only this row made vary is constant in the others.
        let varies = squares > 1e-9 * it.squares;
        let others = Feature { at: it.at, mean: it.mean - off / (count - 1.0), squares };
        varies.then(|| outside(&others, row[it.at], count - 1.0))
    }))
}

fn shift(features: &[Feature], day: &[Vec<f64>], count: f64) -> Option<f64> {
    if day.is_empty() {
        return None;
    }
    let mean = |at: usize| day.iter().map(|it| it[at]).sum::<f64>() / day.len() as f64;
    root_mean(features.iter().map(|it| outside(it, mean(it.at), count)))
}

fn root_mean(squares: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = squares.fold((0.0, 0), |(sum, count), it| (sum + it, count + 1));
    (count > 0).then(|| libm::sqrt(sum / f64::from(count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_left_out_is_measured_as_if_it_had_never_been_there() {
        let rows: [&[f32]; 4] = [&[1.0, 5.0], &[2.0, 7.0], &[4.0, 5.5], &[9.0, 1.0]];
        let whole = distances(&rows, &[]);
        let (last, others) = rows.split_last().unwrap();
        let apart = distances(others, &[last]);
        assert!((whole.reference[3] - apart.day[0]).abs() < 1e-9, "{} {}", whole.reference[3], apart.day[0]);
        assert_eq!((whole.shift, whole.shift_expected), (None, None));
    }

    #[test]
    fn constant_features_and_foreign_rows_are_left_out() {
        let found = distances(
            &[&[1.0, 3.0], &[1.0, 4.0], &[1.0, 5.0]],
            &[&[99.0, 4.0], &[1.0], &[], &[1.0, f32::NAN]],
        );
        assert_eq!((found.day, found.shift), (vec![0.0], Some(0.0)));
        let nothing = distances(&[&[1.0], &[1.0], &[1.0]], &[&[2.0]]);
        assert!(nothing.day.is_empty() && nothing.shift.is_none());
        assert!(distances(&[], &[]).reference.is_empty());
    }
}
