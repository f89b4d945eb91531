//! Embedding distances: how far each image's feature vector is from the mean of the reference, in standard
//! deviations per feature.
//!
//! Rows of the reference are measured against the mean of all other rows, so that both sides compare fairly.

/// Distances of both sides to the mean of the reference, in standard deviations of the reference.
pub struct Distances {
    pub reference: Vec<f64>,
    pub day: Vec<f64>,
    /// Distance between the means of both sides; `None` without rows.
    pub shift: Option<f64>,
    /// Distance between the means that chance alone gives; `None` without rows.
    pub shift_expected: Option<f64>,
}

/// Mean and spread of one feature in the reference.
struct Feature {
    index: usize,
    mean: f64,
    /// Sum of squared deviations.
    squares: f64,
}

/// Computes the distances of all rows. Left out are rows whose width differs from the reference's first row,
/// rows with a number that is not finite, and features that are constant in the reference.
pub fn distances(reference: &[&[f32]], day: &[&[f32]]) -> Distances {
    let width = reference.iter().find(|it| !it.is_empty()).map_or(0, |it| it.len());
    let usable = |rows: &[&[f32]]| -> Vec<Vec<f64>> {
        let rows = rows.iter().filter(|row| row.len() == width && row.iter().all(|it| it.is_finite()));
        rows.map(|row| row.iter().map(|&value| value.into()).collect()).collect()
    };
    let (reference, day) = (usable(reference), usable(day));
    let features: Vec<_> = (0..width).filter_map(|index| feature(&reference, index)).collect();
    if features.is_empty() || reference.len() < 3 {
        return Distances { reference: Vec::new(), day: Vec::new(), shift: None, shift_expected: None };
    }
    let count = reference.len() as f64;
    let of_day = |row: &Vec<f64>| {
        root_mean(features.iter().map(|feature| squared_distance(feature, row[feature.index], count)))
    };
    Distances {
        reference: reference.iter().filter_map(|row| leave_one_out_distance(&features, row, count)).collect(),
        day: day.iter().filter_map(of_day).collect(),
        shift: shift(&features, &day, count),
        shift_expected: (!day.is_empty()).then(|| libm::sqrt(1.0 / count + 1.0 / day.len() as f64)),
    }
}

/// Returns mean and spread of one feature; `None` if it is constant up to rounding errors.
fn feature(rows: &[Vec<f64>], index: usize) -> Option<Feature> {
    let count = rows.len() as f64;
    let mean = rows.iter().map(|row| row[index]).sum::<f64>() / count;
    let squares = rows.iter().map(|row| (row[index] - mean) * (row[index] - mean)).sum::<f64>();
    let largest = rows.iter().map(|row| row[index].abs()).fold(0.0, f64::max);
    (squares / count > 1e-12 * largest * largest).then_some(Feature { index, mean, squares })
}

/// Returns the squared distance, in variances, of a value that is not part of the reference's `count` rows.
fn squared_distance(feature: &Feature, value: f64, count: f64) -> f64 {
    let offset = value - feature.mean;
    offset * offset * (count - 1.0) / feature.squares
}

/// Returns the distance of a reference row to the mean of all other rows. A row is too close to a mean that
/// includes it, so that every day would seem to have drifted.
fn leave_one_out_distance(features: &[Feature], row: &[f64], count: f64) -> Option<f64> {
    root_mean(features.iter().filter_map(|feature| {
        let index = feature.index;
        let offset = row[index] - feature.mean;
        let squares = feature.squares - offset * offset * count / (count - 1.0);
        // A feature that only this row made vary is constant in the others.
        let varies = squares > 1e-9 * feature.squares;
        let others = Feature { index, mean: feature.mean - offset / (count - 1.0), squares };
        varies.then(|| squared_distance(&others, row[index], count - 1.0))
    }))
}

fn shift(features: &[Feature], day: &[Vec<f64>], count: f64) -> Option<f64> {
    if day.is_empty() {
        return None;
    }
    let mean = |index: usize| day.iter().map(|row| row[index]).sum::<f64>() / day.len() as f64;
    root_mean(features.iter().map(|feature| squared_distance(feature, mean(feature.index), count)))
}

fn root_mean(squares: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = squares.fold((0.0, 0), |(sum, count), square| (sum + square, count + 1));
    (count > 0).then(|| libm::sqrt(sum / f64::from(count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_left_out_row_has_the_distance_of_a_new_row() {
        let rows: [&[f32]; 4] = [&[1.0, 5.0], &[2.0, 7.0], &[4.0, 5.5], &[9.0, 1.0]];
        let all = distances(&rows, &[]);
        let (last, others) = rows.split_last().unwrap();
        let separate = distances(others, &[last]);
        let (left_out, new) = (all.reference[3], separate.day[0]);
        assert!((left_out - new).abs() < 1e-9, "{left_out} {new}");
        assert_eq!((all.shift, all.shift_expected), (None, None));
    }

    #[test]
    fn constant_features_and_rows_of_another_width_are_left_out() {
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
