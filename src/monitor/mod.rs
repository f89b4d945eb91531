//! Model monitoring: compares one day of traffic with a reference and reports data quality, drift, accuracy,
//! bias and machine load.
//!
//! [`measure`] is a pure function from a [`Day`] and a [`Reference`] to a [`Report`]. [`findings`] rates what
//! the report contains, [`render_text`] shows it on a terminal and [`render_page`] as an HTML page. Drift is
//! decided in one place, by effect size and statistical significance together; too few rows give no verdict.
//! A value that was not measured is absent, never 0.

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
mod synthetic;

pub use self::{
    findings::{Finding, Level, findings, headline},
    measure::{Day, Reference, measure},
    page::render_page,
    report::{
        Bias, ClassMetrics, ConfidenceInterval, Drift, ErrorRate, FORMAT, Histogram, Hour, Integrity,
        Latency, Machine, MeanMax, Performance, RateGap, Report, TestKind, TestResult, Verdict,
    },
    text::render_text,
    thresholds::Thresholds,
    values::is_value,
};
