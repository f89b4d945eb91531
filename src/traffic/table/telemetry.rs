//! One row a sample of the machine.

use parquet::data_type::{FloatType, Int64Type};

use crate::{
    error::Result,
    traffic::{
        Sample,
        table::columns::{self, Parquet, Source, wrong},
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

/// The samples as a Parquet file.
pub fn write(samples: &[Sample]) -> Result<Vec<u8>> {
    columns::write(SCHEMA, samples.len(), |range, sink| {
        let rows = || samples[range.clone()].iter();
        sink.numbers::<Int64Type>(rows().map(|it| it.time))?;
        sink.numbers::<FloatType>(rows().map(|it| it.cpu))?;
        sink.numbers::<FloatType>(rows().map(|it| it.memory))?;
        sink.numbers::<Int64Type>(rows().map(|it| it.resident.cast_signed()))?;
        sink.numbers::<FloatType>(rows().map(|it| it.disk))?;
        sink.optional::<FloatType>(rows().map(|it| it.temperature))?;
        sink.numbers::<Int64Type>(rows().map(|it| it.waiting.into()))?;
        sink.numbers::<Int64Type>(rows().map(|it| it.answers.into()))?;
        sink.numbers::<Int64Type>(rows().map(|it| it.errors.into()))?;
        sink.numbers::<Int64Type>(rows().map(|it| it.dropped.into()))
    })
}

/// Reads what [`write`] wrote.
pub fn read(bytes: &[u8]) -> Result<Vec<Sample>> {
    columns::read("the table of telemetry", SCHEMA, bytes, rows)
}

fn rows(source: &mut Source<'_>) -> Parquet<Vec<Sample>> {
    let time = source.numbers::<Int64Type>()?;
    let (cpu, memory) = (source.numbers::<FloatType>()?, source.numbers::<FloatType>()?);
    let resident = source.numbers::<Int64Type>()?;
    let (disk, temperature) = (source.numbers::<FloatType>()?, source.optional::<FloatType>()?);
    let mut counts = Vec::new();
    for _ in 0..4 {
        let column = source.numbers::<Int64Type>()?.into_iter().map(u32::try_from);
        counts
            .push(column.collect::<Result<Vec<_>, _>>().map_err(|_| wrong("it holds a count that is none"))?);
    }
    let row = |at: usize| Sample {
        time: time[at],
        cpu: cpu[at],
        memory: memory[at],
        resident: resident[at].cast_unsigned(),
        disk: disk[at],
        temperature: temperature[at],
        waiting: counts[0][at],
        answers: counts[1][at],
        errors: counts[2][at],
        dropped: counts[3][at],
    };
    Ok((0..source.rows).map(row).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    use crate::traffic::samples::sample;

    proptest! {
        #[test]
        fn it_reads_what_it_writes(numbers in prop::collection::vec(any::<(i64, u32, u64, Option<u16>)>(), 0..20)) {
            let from = |(time, count, resident, warm): (i64, u32, u64, Option<u16>)| Sample {
                time, cpu: 0.5, memory: count as f32, resident, disk: 0.1, temperature: warm.map(f32::from),
                waiting: count, answers: 1, errors: count / 2, dropped: 0,
            };
            let samples: Vec<_> = numbers.into_iter().map(from).collect();
            prop_assert_eq!(read(&write(&samples).unwrap()).unwrap(), samples);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            prop_assert!(read(&bytes).is_err());
        }
    }

    #[test]
    fn the_first_format_is_read_for_ever() {
        let golden = include_bytes!("../../../fixtures/formats/telemetry-1.parquet");
        assert_eq!(read(golden).unwrap(), [sample()]);
    }
}
