//! The table of requests: one row per record.
//!
//! Times are UTC, digests are text as everywhere, and the bits of the fingerprint are an integer.

use parquet::data_type::{BoolType, FloatType, Int32Type, Int64Type};

use crate::{
    digest::Digest,
    error::Result,
    traffic::{
        ImageStats, Record,
        table::columns::{self, GroupReader, Parquet, invalid},
    },
};

const SCHEMA: &str = "message requests {
    required binary id (STRING);
    required int64 captured (TIMESTAMP(MILLIS,true));
    required int64 received (TIMESTAMP(MILLIS,true));
    required binary version (STRING);
    required binary package (STRING);
    required binary input (STRING);
    required binary name (STRING);
    required int32 status;
    required float latency;
    required binary class (STRING);
    required group scores (LIST) { repeated group list { required float element; } }
    required group features (LIST) { repeated group list { required float element; } }
    optional float brightness;
    optional float contrast;
    optional float sharpness;
    optional float red;
    optional float green;
    optional float blue;
    optional int64 fingerprint;
    required boolean kept;
}";

/// Writes records as a Parquet file.
pub fn write(records: &[Record]) -> Result<Vec<u8>> {
    columns::write(SCHEMA, records.len(), |range, group| {
        let rows = || records[range.clone()].iter();
        let statistic =
            |field: fn(&ImageStats) -> f32| rows().map(move |record| record.image_stats.as_ref().map(field));
        group.texts(rows().map(|it| it.id.clone()))?;
        group.numbers::<Int64Type>(rows().map(|it| it.captured))?;
        group.numbers::<Int64Type>(rows().map(|it| it.received))?;
        group.texts(rows().map(|it| it.version.clone()))?;
        group.texts(rows().map(|it| it.package.to_string()))?;
        group.texts(rows().map(|it| it.input.to_string()))?;
        group.texts(rows().map(|it| it.name.clone()))?;
        group.numbers::<Int32Type>(rows().map(|it| it.status.into()))?;
        group.numbers::<FloatType>(rows().map(|it| it.latency))?;
        group.texts(rows().map(|it| it.class.clone()))?;
        group.lists(rows().map(|it| &it.scores[..]))?;
        group.lists(rows().map(|it| &it.features[..]))?;
        group.optional::<FloatType>(statistic(|it| it.brightness))?;
        group.optional::<FloatType>(statistic(|it| it.contrast))?;
        group.optional::<FloatType>(statistic(|it| it.sharpness))?;
        group.optional::<FloatType>(statistic(|it| it.colors[0]))?;
        group.optional::<FloatType>(statistic(|it| it.colors[1]))?;
        group.optional::<FloatType>(statistic(|it| it.colors[2]))?;
        let fingerprint = |stats: ImageStats| stats.fingerprint.cast_signed();
        group.optional::<Int64Type>(rows().map(|it| it.image_stats.map(fingerprint)))?;
        group.numbers::<BoolType>(rows().map(|it| it.kept))
    })
}

/// Reads the records of a Parquet file.
pub fn read(bytes: &[u8]) -> Result<Vec<Record>> {
    columns::read("the table of requests", SCHEMA, bytes, rows)
}

fn rows(group: &mut GroupReader<'_>) -> Parquet<Vec<Record>> {
    let digests = |texts: Vec<String>| -> Parquet<Vec<Digest>> {
        texts.iter().map(|text| text.parse().map_err(|_| invalid("it contains an invalid digest"))).collect()
    };
    let mut records: Vec<Record> = group.texts()?.into_iter().map(empty).collect();
    let for_each = |records: &mut Vec<Record>, set: &mut dyn FnMut(usize, &mut Record)| {
        records.iter_mut().enumerate().for_each(|(row, record)| set(row, record));
    };
    let (captured, received) = (group.numbers::<Int64Type>()?, group.numbers::<Int64Type>()?);
    let mut version = group.texts()?;
    let (package, input) = (digests(group.texts()?)?, digests(group.texts()?)?);
    let mut name = group.texts()?;
    let status = group.numbers::<Int32Type>()?.into_iter().map(u16::try_from);
    let status =
        status.collect::<Result<Vec<_>, _>>().map_err(|_| invalid("it contains an invalid status"))?;
    let latency = group.numbers::<FloatType>()?;
    let mut class = group.texts()?;
    let (mut scores, mut features) = (group.lists()?, group.lists()?);
    let stats = image_stats(group)?;
    let kept = group.numbers::<BoolType>()?;
    for_each(&mut records, &mut |row, record| {
        (record.captured, record.received, record.status) = (captured[row], received[row], status[row]);
        (record.package, record.input, record.latency) = (package[row], input[row], latency[row]);
        (record.version, record.name) = (std::mem::take(&mut version[row]), std::mem::take(&mut name[row]));
        (record.class, record.scores) = (std::mem::take(&mut class[row]), std::mem::take(&mut scores[row]));
        (record.features, record.image_stats) = (std::mem::take(&mut features[row]), stats[row]);
        record.kept = kept[row];
    });
    Ok(records)
}

fn image_stats(group: &mut GroupReader<'_>) -> Parquet<Vec<Option<ImageStats>>> {
    let mut floats = Vec::new();
    for _ in 0..6 {
        floats.push(group.optional::<FloatType>()?);
    }
    let fingerprints = group.optional::<Int64Type>()?;
    let to_stats = |(row, bits): (usize, Option<i64>)| {
        let values: Vec<f32> = floats.iter().filter_map(|column| column[row]).collect();
        match (&values[..], bits) {
            ([], None) => Ok(None),
            (&[brightness, contrast, sharpness, red, green, blue], Some(bits)) => Ok(Some(ImageStats {
                brightness,
                contrast,
                sharpness,
                colors: [red, green, blue],
                fingerprint: bits.cast_unsigned(),
            })),
            _ => Err(invalid("the statistics of an image are incomplete")),
        }
    };
    fingerprints.into_iter().enumerate().map(to_stats).collect()
}

fn empty(id: String) -> Record {
    let none = Digest::from_bytes([0; 32]);
    Record {
        id,
        captured: 0,
        received: 0,
        version: String::new(),
        package: none,
        input: none,
        name: String::new(),
        status: 0,
        latency: 0.0,
        class: String::new(),
        scores: Vec::new(),
        features: Vec::new(),
        image_stats: None,
        kept: false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        error::Kind,
        traffic::samples::{record, records},
    };

    proptest! {
        #[test]
        fn written_records_are_read_back(records in records(30)) {
            let bytes = write(&records).unwrap();
            prop_assert_eq!(write(&records).unwrap(), bytes.clone());
            prop_assert_eq!(read(&bytes).unwrap(), records);
        }

        #[test]
        fn damaged_bytes_are_an_error_or_rows(records in records(5), at: prop::sample::Index, byte: u8,
            cut: prop::sample::Index) {
            let bytes = write(&records).unwrap();
            let mut other = bytes.clone();
            other[at.index(bytes.len())] = byte;
            let _any = read(&other);
            let error = read(&bytes[..cut.index(bytes.len())]).unwrap_err();
            prop_assert_eq!(error.kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn more_rows_than_one_group_are_read_in_order() {
        let record = |number: usize| Record {
            captured: number as i64,
            scores: vec![0.5; number % 3],
            ..empty(format!("r{number}"))
        };
        let records: Vec<_> = (0..100_001).map(record).collect();
        assert_eq!(read(&write(&records).unwrap()).unwrap(), records);
    }

    /// Sets each byte in turn to values that are critical for lengths, counts and types.
    #[test]
    fn any_byte_may_be_wrong_without_a_panic() {
        let bytes = write(&[record("a", 1, b"x"), record("b", 2, b"y")]).unwrap();
        std::panic::set_hook(Box::new(|_| ()));
        let mut rejected = 0;
        for at in 0..bytes.len() {
            for value in [0, 0x7f, 0x80, 0xff, bytes[at] ^ 1, bytes[at].wrapping_add(0x10)] {
                let mut other = bytes.clone();
                other[at] = value;
                rejected += usize::from(read(&other).is_err());
            }
        }
        drop(std::panic::take_hook());
        assert!(rejected > bytes.len(), "{rejected} of {} changes were detected", bytes.len() * 6);
    }

    #[test]
    fn format_1_stays_readable() {
        let golden = include_bytes!("../../../fixtures/formats/requests-1.parquet");
        let bare = Record { image_stats: None, scores: Vec::new(), status: 400, ..record("b", 2, b"y") };
        assert_eq!(read(golden).unwrap(), [record("a", 1, b"x"), bare]);
    }

    #[test]
    fn other_files_are_rejected() {
        let telemetry = crate::traffic::table::write_telemetry(&[]).unwrap();
        let error = read(&telemetry).unwrap_err().chain_text();
        assert!(error.contains("it has other columns"), "{error}");
        for bytes in [&b""[..], b"PAR1", b"PAR1PAR1", b"PAR1\xff\xff\xff\xffPAR1", b"id,class\n"] {
            assert_eq!(read(bytes).unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
