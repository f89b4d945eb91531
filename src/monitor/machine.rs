//! Latency and machine load of a day: quantiles of the answer time, and means and maxima of machine samples.

use crate::{
    monitor::{Latency, Machine, MeanMax, measure::is_answered, statistics::Column},
    traffic::{Record, TelemetrySample},
};

/// Returns quantiles of the latency of answered requests, in milliseconds; `None` without any.
pub fn latency(records: &[Record]) -> Option<Latency> {
    let times = Column::of(records.iter().filter(|it| is_answered(it)).map(|it| f64::from(it.latency)));
    Some(Latency {
        p50: times.quantile(0.5)?,
        p95: times.quantile(0.95)?,
        p99: times.quantile(0.99)?,
        max: times.quantile(1.0)?,
    })
}

/// Returns means, maxima and totals of a day's machine samples; `None` without any.
pub fn machine(samples: &[TelemetrySample]) -> Option<Machine> {
    let mean = |value: &dyn Fn(&TelemetrySample) -> f64| {
        let column = Column::of(samples.iter().map(value));
        Some(MeanMax { mean: column.mean()?, max: column.quantile(1.0)? })
    };
    let sum =
        |value: &dyn Fn(&TelemetrySample) -> u32| samples.iter().map(|it| u64::from(value(it))).sum::<u64>();
    (!samples.is_empty()).then(|| Machine {
        samples: samples.len() as u64,
        cpu: mean(&|sample| sample.cpu.into()),
        memory: mean(&|sample| sample.memory.into()),
        resident: mean(&|sample| sample.resident as f64),
        disk: mean(&|sample| sample.disk.into()),
        temperature: mean(&|sample| sample.temperature.map_or(f64::NAN, f64::from)),
        answers: sum(&|sample| sample.answers),
        errors: sum(&|sample| sample.errors),
        dropped: sum(&|sample| sample.dropped),
        largest_queue: samples.iter().map(|it| u64::from(it.waiting)).max().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::synthetic::{TYPICAL, frames, reference, report, samples};

    #[test]
    fn a_value_the_machine_does_not_expose_is_absent() {
        let mut samples = samples(1);
        samples.iter_mut().for_each(|sample| sample.temperature = None);
        samples[7].waiting = 9;
        samples[7].dropped = 2;
        let load = machine(&samples).unwrap();
        assert_eq!((load.temperature, load.largest_queue, load.dropped), (None, 9, 2));
        assert_eq!(machine(&[]), None);
        assert_eq!(latency(&[]), None);
    }

    #[test]
    fn latency_counts_only_answered_requests() {
        let mut records = frames(TYPICAL, 1, 60).0;
        records[0].status = 503;
        records[0].latency = 9000.0;
        records[1].latency = 50.0;
        let report = report(&records, &reference(60));
        assert_eq!(
            (report.values()["telemetry.latency_p50"], report.values()["telemetry.latency_max"]),
            (20.0, 50.0)
        );
        assert_eq!(report.hours[6].latency_p95, Some(45.5));
    }
}
