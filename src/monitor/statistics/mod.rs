//! Statistical tests and distances over columns and counts, checked against `fixtures/statistics.json`, which
//! was computed with scipy and scikit-learn.
//!
//! Functions return `None` where the data is too small to define the result; none divides by zero. A
//! [`Column`] drops and counts values that are not finite. Logarithms and powers come from `libm`, so that
//! all machines agree.

mod counts;
mod kolmogorov;
mod quantiles;
mod rates;

pub use self::{
    counts::{
        ChiSquare, benjamini_hochberg, chi_square, js_distance_base2, js_distance_natural, largest_change,
        psi, psi_expected,
    },
    kolmogorov::{Ks, MAX_KS_ROWS, ks},
    quantiles::{BinEdges, Column},
    rates::{Interval, RateDifference, compare_rates, mcnemar_exact, wilson_interval},
};

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::model::evaluate::ConfusionMatrix;

    fn cases(section: &str) -> Vec<Value> {
        let all: Value = serde_json::from_str(include_str!("../../../fixtures/statistics.json")).unwrap();
        let cases = all[section].as_array().unwrap().clone();
        assert!(!cases.is_empty());
        cases
    }

    /// Asserts equality up to 1e-9 of the value; of values below 1e-3, up to 1e-12.
    fn assert_close(found: f64, expected: &Value, case: &Value) {
        let expected = expected.as_f64().unwrap();
        let error = (found - expected).abs();
        assert!(error <= 1e-9 * expected.abs().max(1e-3), "{found} is not {expected} in {case}");
    }

    fn integers(list: &Value) -> Vec<u64> {
        list.as_array().unwrap().iter().map(|it| it.as_u64().unwrap()).collect()
    }

    fn numbers(list: &Value) -> Vec<f64> {
        list.as_array().unwrap().iter().map(|value| value.as_f64().unwrap_or(f64::NAN)).collect()
    }

    fn column(case: &Value, side: &str) -> Column {
        let formula = &case[format!("{side}_formula")];
        if formula.is_null() {
            return Column::of(numbers(&case[side]));
        }
        let (rows, factor, steps) = (formula[0].as_u64(), formula[1].as_u64(), formula[4].as_u64());
        let (shift, scale) = (formula[2].as_f64().unwrap(), formula[3].as_f64().unwrap());
        let row =
            |index: u64| scale * ((index * factor.unwrap()) % steps.unwrap()) as f64 / steps.unwrap() as f64;
        Column::of((0..rows.unwrap()).map(|index| shift + row(index)))
    }

    #[test]
    fn the_kolmogorov_smirnov_test_matches_scipy() {
        for case in cases("ks") {
            let found = ks(&column(&case, "first"), &column(&case, "second")).unwrap();
            assert_close(found.statistic, &case["statistic"], &case["name"]);
            let p = case["p"].as_f64().unwrap();
            assert!((found.p / p - 1.0).abs() < 1e-9, "{} is not {p} in {}", found.p, case["name"]);
        }
    }

    #[test]
    fn bins_match_numpy() {
        for case in cases("bins") {
            let (reference, current) = (column(&case, "reference"), column(&case, "current"));
            let edges = BinEdges::of(&reference, 10).unwrap();
            let expected = case["edges"].as_array().unwrap();
            assert_eq!(edges.bins(), expected.len() + 1, "{}", case["name"]);
            for (edge, expected) in edges.values().iter().zip(expected) {
                assert_close(*edge, expected, &case["name"]);
            }
            assert_eq!(edges.count(&reference), integers(&case["counts"][0]), "{}", case["name"]);
            assert_eq!(edges.count(&current), integers(&case["counts"][1]), "{}", case["name"]);
        }
    }

    #[test]
    fn count_statistics_match_scipy() {
        for case in cases("counts") {
            let (one, two) = (integers(&case["first"]), integers(&case["second"]));
            let found = chi_square(&one, &two).unwrap();
            assert_close(found.statistic, &case["chi_square"], &case["name"]);
            assert_eq!(found.degrees, case["degrees"].as_u64().unwrap());
            let p = case["p"].as_f64().unwrap();
            assert!(p < 1e-300 || (found.p / p - 1.0).abs() < 1e-9, "{} is not {p}", found.p);
            assert_close(psi(&one, &two).unwrap(), &case["psi"], &case["name"]);
            assert_close(js_distance_natural(&one, &two).unwrap(), &case["js_natural"], &case["name"]);
            assert_close(js_distance_base2(&one, &two).unwrap(), &case["js_base2"], &case["name"]);
        }
    }

    #[test]
    fn rate_statistics_match_scipy() {
        let assert_interval = |interval: &Interval, case: &Value| {
            assert_close(interval.low, &case["interval"][0], case);
            assert_close(interval.high, &case["interval"][1], case);
        };
        for case in cases("wilson") {
            let given = integers(&case["in"]);
            assert_interval(&wilson_interval(given[0], given[1]).unwrap(), &case);
        }
        for case in cases("mcnemar") {
            let given = integers(&case["in"]);
            assert_close(mcnemar_exact(given[0], given[1]).unwrap(), &case["p"], &case);
        }
        for case in cases("differences") {
            let given = integers(&case["in"]);
            let found = compare_rates(given[0], given[1], given[2], given[3]).unwrap();
            assert_close(found.difference, &case["difference"], &case);
            assert_close(found.p, &case["p"], &case);
            assert_interval(&found.interval, &case);
        }
        for case in cases("benjamini_hochberg") {
            let adjusted = benjamini_hochberg(&numbers(&case["in"]));
            for (found, expected) in adjusted.iter().zip(case["out"].as_array().unwrap()) {
                assert_close(*found, expected, &case);
            }
        }
    }

    #[test]
    fn metrics_match_scikit_learn() {
        for case in cases("metrics") {
            let names = |name: &str| -> Vec<String> { serde_json::from_value(case[name].clone()).unwrap() };
            let classes = names("classes");
            let mut counts = vec![vec![0; classes.len()]; classes.len()];
            let index = |name: &String| classes.iter().position(|class| class == name).unwrap();
            names("actual")
                .iter()
                .zip(&names("predicted"))
                .for_each(|(label, predicted)| counts[index(label)][index(predicted)] += 1);
            assert_eq!(serde_json::json!(counts), case["confusion"]);
            let found = ConfusionMatrix { classes: classes.clone(), counts, loss: 0.0 };
            assert_close(found.accuracy(), &case["accuracy"], &case["name"]);
            let metrics = found.metrics(0);
            for (position, measure) in ["precision", "recall", "f1"].iter().enumerate() {
                for (class, expected) in classes.iter().zip(case["by_class"][position].as_array().unwrap()) {
                    assert_close(metrics["class"][class][measure].as_f64().unwrap(), expected, &case["name"]);
                }
                let average = &metrics["average"]["weighted"][measure];
                assert_close(average.as_f64().unwrap(), &case["weighted"][position], &case["name"]);
            }
        }
    }
}
