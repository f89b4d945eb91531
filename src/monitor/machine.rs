//! How fast it answered, and what the machine looked like.

use crate::{
    monitor::{Latency, Machine, Mean, measure::answered, statistics::Column},
    traffic::{Record, Sample},
};

/// Quantiles of the time to an answer.
pub fn latency(records: &[Record]) -> Option<Latency> {
    let times = Column::of(records.iter().filter(|it| answered(it)).map(|it| f64::from(it.latency)));
    Some(Latency {
        p50: times.quantile(0.5)?,
        p95: times.quantile(0.95)?,
        p99: times.quantile(0.99)?,
        max: times.quantile(1.0)?,
    })
}

/// Means and largest values of a day's samples.
pub fn machine(samples: &[Sample]) -> Option<Machine> {
    let mean = |value: &dyn Fn(&Sample) -> f64| {
        let column = Column::of(samples.iter().map(value));
        Some(Mean { mean: column.mean()?, max: column.quantile(1.0)? })
    };
    let sum = |value: &dyn Fn(&Sample) -> u32| samples.iter().map(|it| u64::from(value(it))).sum::<u64>();
    (!samples.is_empty()).then(|| Machine {
        samples: samples.len() as u64,
        cpu: mean(&|it| it.cpu.into()),
        memory: mean(&|it| it.memory.into()),
        resident: mean(&|it| it.resident as f64),
        disk: mean(&|it| it.disk.into()),
        temperature: mean(&|it| it.temperature.map_or(f64::NAN, f64::from)),
        answers: sum(&|it| it.answers),
        errors: sum(&|it| it.errors),
        dropped: sum(&|it| it.dropped),
        largest_queue: samples.iter().map(|it| u64::from(it.waiting)).max().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::drawn::{USUAL, frames, reference, report, samples};

    #[test]
    fn what_the_machine_does_not_show_is_absent() {
        let mut samples = samples(1);
        samples.iter_mut().for_each(|it| it.temperature = None);
        samples[7].waiting = 9;
        samples[7].dropped = 2;
        let found = machine(&samples).unwrap();
        assert_eq!((found.temperature, found.largest_queue, found.dropped), (None, 9, 2));
        assert_eq!(machine(&[]), None);
        assert_eq!(latency(&[]), None);
    }

    #[test]
    fn only_answers_have_a_time() {
        let mut records = frames(USUAL, 1, 60).0;
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
