//! A model watched: one day of traffic against what the model was trained on.
//!
//! [`measure`] is a pure function of a [`Day`] and a [`Reference`] and gives a [`Report`]; [`findings`] says what in
//! it is good or bad, [`text`] shows it on a terminal and [`page`] in a browser. Whether something has drifted is
//! decided in one place, from the size of the change and from chance; too few rows give no verdict. What was not
//! measured is absent, never 0.

mod chart;
mod drift;
mod embedding;
mod findings;
mod integrity;
mod machine;
mod measure;
mod page;
mod performance;
mod report;
pub mod statistics;
mod text;
mod thresholds;
mod values;

#[cfg(test)]
mod drawn;

pub use self::{
    findings::{Finding, Level, findings, headline},
    measure::{Day, Reference, measure},
    page::page,
    report::{
        Bias, Class, Drift, FORMAT, Gap, Histogram, Hour, Integrity, Latency, Machine, Mean, Performance,
        Rate, Report, Span, Test, Tested, Verdict,
    },
    text::text,
    thresholds::Thresholds,
    values::is_value,
};
