//! Sums over columns and counts, each checked against `fixtures/statistics.json`, which scipy and scikit-learn made.
//!
//! Nothing here divides by nothing: what says nothing is `None`. Rows that are no numbers are set aside and
//! counted when a [`Column`] is made. Logarithms and powers come from `libm`, so that all machines agree.

mod counts;
mod kolmogorov;
mod quantiles;
mod rates;

pub use self::{
    counts::{
        ChiSquare, benjamini_hochberg, chi_square, js_distance_base2, js_distance_natural, largest_change,
        psi, psi_expected,
    },
    kolmogorov::{Ks, MOST, ks},
    quantiles::{Column, Edges},
    rates::{Difference, Interval, difference, mcnemar_exact, wilson},
};

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::model::evaluate::Confusion;

    fn cases(section: &str) -> Vec<Value> {
        let all: Value = serde_json::from_str(include_str!("../../../fixtures/statistics.json")).unwrap();
        let found = all[section].as_array().unwrap().clone();
        assert!(!found.is_empty());
        found
    }

    /// To 1e-9 of the value; what is below 1e-12 to 1e-12.
    fn close(found: f64, expected: &Value, what: &Value) {
        let expected = expected.as_f64().unwrap();
        let apart = (found - expected).abs();
        assert!(apart <= 1e-9 * expected.abs().max(1e-3), "{found} is not {expected} of {what}");
    }

    fn whole(list: &Value) -> Vec<u64> {
        list.as_array().unwrap().iter().map(|it| it.as_u64().unwrap()).collect()
    }

    fn numbers(list: &Value) -> Vec<f64> {
        list.as_array().unwrap().iter().map(|it| it.as_f64().unwrap_or(f64::NAN)).collect()
    }

    fn column(case: &Value, side: &str) -> Column {
        let formula = &case[format!("{side}_formula")];
        if formula.is_null() {
            return Column::of(numbers(&case[side]));
        }
        let (rows, factor, steps) = (formula[0].as_u64(), formula[1].as_u64(), formula[4].as_u64());
        let (shift, scale) = (formula[2].as_f64().unwrap(), formula[3].as_f64().unwrap());
        let row = |it: u64| scale * ((it * factor.unwrap()) % steps.unwrap()) as f64 / steps.unwrap() as f64;
        Column::of((0..rows.unwrap()).map(|it| shift + row(it)))
    }

    #[test]
    fn kolmogorov_is_as_scipy_has_it() {
        for case in cases("ks") {
            let found = ks(&column(&case, "first"), &column(&case, "second")).unwrap();
            close(found.statistic, &case["statistic"], &case["name"]);
            let p = case["p"].as_f64().unwrap();
            assert!((found.p / p - 1.0).abs() < 1e-9, "{} is not {p} of {}", found.p, case["name"]);
        }
    }

    #[test]
    fn bins_are_as_numpy_has_them() {
        for case in cases("bins") {
            let (reference, current) = (column(&case, "reference"), column(&case, "current"));
            let edges = Edges::of(&reference, 10).unwrap();
            let expected = case["edges"].as_array().unwrap();
            assert_eq!(edges.bins(), expected.len() + 1, "{}", case["name"]);
            edges.values().iter().zip(expected).for_each(|(it, edge)| close(*it, edge, &case["name"]));
            assert_eq!(edges.count(&reference), whole(&case["counts"][0]), "{}", case["name"]);
            assert_eq!(edges.count(&current), whole(&case["counts"][1]), "{}", case["name"]);
        }
    }

    #[test]
    fn counts_are_as_scipy_has_them() {
        for case in cases("counts") {
            let (one, two) = (whole(&case["first"]), whole(&case["second"]));
            let found = chi_square(&one, &two).unwrap();
            close(found.statistic, &case["chi_square"], &case["name"]);
            assert_eq!(found.degrees, case["degrees"].as_u64().unwrap());
            let p = case["p"].as_f64().unwrap();
            assert!(p < 1e-300 || (found.p / p - 1.0).abs() < 1e-9, "{} is not {p}", found.p);
            close(psi(&one, &two).unwrap(), &case["psi"], &case["name"]);
            close(js_distance_natural(&one, &two).unwrap(), &case["js_natural"], &case["name"]);
            close(js_distance_base2(&one, &two).unwrap(), &case["js_base2"], &case["name"]);
        }
    }

    #[test]
    fn rates_are_as_scipy_has_them() {
        let pair = |it: &Interval, case: &Value| {
            close(it.low, &case["interval"][0], case);
            close(it.high, &case["interval"][1], case);
        };
        for case in cases("wilson") {
            let given = whole(&case["in"]);
            pair(&wilson(given[0], given[1]).unwrap(), &case);
        }
        for case in cases("mcnemar") {
            let given = whole(&case["in"]);
            close(mcnemar_exact(given[0], given[1]).unwrap(), &case["p"], &case);
        }
        for case in cases("differences") {
            let given = whole(&case["in"]);
            let found = difference(given[0], given[1], given[2], given[3]).unwrap();
            close(found.difference, &case["difference"], &case);
            close(found.p, &case["p"], &case);
            pair(&found.interval, &case);
        }
        for case in cases("benjamini_hochberg") {
            let found = benjamini_hochberg(&numbers(&case["in"]));
            found.iter().zip(case["out"].as_array().unwrap()).for_each(|(it, out)| close(*it, out, &case));
        }
    }

    #[test]
    fn metrics_are_as_scikit_learn_has_them() {
        for case in cases("metrics") {
            let words = |name: &str| -> Vec<String> { serde_json::from_value(case[name].clone()).unwrap() };
            let classes = words("classes");
            let mut counts = vec![vec![0; classes.len()]; classes.len()];
            let place = |it: &String| classes.iter().position(|class| class == it).unwrap();
            words("actual")
                .iter()
                .zip(&words("predicted"))
                .for_each(|(a, b)| counts[place(a)][place(b)] += 1);
            assert_eq!(serde_json::json!(counts), case["confusion"]);
            let found = Confusion { classes: classes.clone(), counts, loss: 0.0 };
            close(found.accuracy(), &case["accuracy"], &case["name"]);
            let metrics = found.metrics(0);
            for (at, measure) in ["precision", "recall", "f1"].iter().enumerate() {
                for (class, expected) in classes.iter().zip(case["by_class"][at].as_array().unwrap()) {
                    close(metrics["class"][class][measure].as_f64().unwrap(), expected, &case["name"]);
                }
                let average = &metrics["average"]["weighted"][measure];
                close(average.as_f64().unwrap(), &case["weighted"][at], &case["name"]);
            }
        }
    }
}
