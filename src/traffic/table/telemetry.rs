//! The table of telemetry: one row per sample of the serving machine.

use parquet::data_type::{FloatType, Int64Type};

use crate::{
    error::Result,
    traffic::{
        TelemetrySample,
        table::columns::{self, GroupReader, Parquet, invalid},
    },
};

const SCHEMA: &str = "message telemetry {
    required int64 time (TIMESTAMP(MILLIS,true));
    required float cpu;
    required float memory;
    required int64 resident;
    required float disk;
    optional float temperature;
    required int64 waiting;
    required int64 answers;
    required int64 errors;
    required int64 dropped;
}";

/// Writes telemetry samples as a Parquet file.
pub fn write(samples: &[TelemetrySample]) -> Result<Vec<u8>> {
    columns::write(SCHEMA, samples.len(), |range, group| {
        let rows = || samples[range.clone()].iter();
        group.numbers::<Int64Type>(rows().map(|it| it.time))?;
        group.numbers::<FloatType>(rows().map(|it| it.cpu))?;
        group.numbers::<FloatType>(rows().map(|it| it.memory))?;
        group.numbers::<Int64Type>(rows().map(|it| it.resident.cast_signed()))?;
        group.numbers::<FloatType>(rows().map(|it| it.disk))?;
        group.optional::<FloatType>(rows().map(|it| it.temperature))?;
        group.numbers::<Int64Type>(rows().map(|it| it.waiting.into()))?;
        group.numbers::<Int64Type>(rows().map(|it| it.answers.into()))?;
        group.numbers::<Int64Type>(rows().map(|it| it.errors.into()))?;
        group.numbers::<Int64Type>(rows().map(|it| it.dropped.into()))
    })
}

/// Reads the telemetry samples of a Parquet file.
pub fn read(bytes: &[u8]) -> Result<Vec<TelemetrySample>> {
    columns::read("the table of telemetry", SCHEMA, bytes, rows)
}

fn rows(group: &mut GroupReader<'_>) -> Parquet<Vec<TelemetrySample>> {
    let time = group.numbers::<Int64Type>()?;
    let (cpu, memory) = (group.numbers::<FloatType>()?, group.numbers::<FloatType>()?);
    let resident = group.numbers::<Int64Type>()?;
    let (disk, temperature) = (group.numbers::<FloatType>()?, group.optional::<FloatType>()?);
    let mut counts = Vec::new();
    for _ in 0..4 {
        let column = group.numbers::<Int64Type>()?.into_iter().map(u32::try_from);
        let column = column.collect::<Result<Vec<_>, _>>();
        counts.push(column.map_err(|_| invalid("it contains an invalid count"))?);
    }
    let sample = |row: usize| TelemetrySample {
        time: time[row],
        cpu: cpu[row],
        memory: memory[row],
        resident: resident[row].cast_unsigned(),
        disk: disk[row],
        temperature: temperature[row],
        waiting: counts[0][row],
        answers: counts[1][row],
        errors: counts[2][row],
        dropped: counts[3][row],
    };
    Ok((0..group.rows).map(sample).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    use crate::traffic::samples::sample;

    proptest! {
        #[test]
        fn written_samples_are_read_back(numbers in prop::collection::vec(any::<(i64, u32, u64,
            Option<u16>)>(), 0..20)) {
            let from = |(time, count, resident, warm): (i64, u32, u64, Option<u16>)| TelemetrySample {
                time, cpu: 0.5, memory: count as f32, resident, disk: 0.1, temperature: warm.map(f32::from),
                waiting: count, answers: 1, errors: count / 2, dropped: 0,
            };
            let samples: Vec<_> = numbers.into_iter().map(from).collect();
            prop_assert_eq!(read(&write(&samples).unwrap()).unwrap(), samples);
        }

        #[test]
        fn arbitrary_bytes_are_an_error(bytes: Vec<u8>) {
            prop_assert!(read(&bytes).is_err());
        }
    }

    #[test]
    fn format_1_stays_readable() {
        let golden = include_bytes!("../../../fixtures/formats/telemetry-1.parquet");
        assert_eq!(read(golden).unwrap(), [sample()]);
    }
}
