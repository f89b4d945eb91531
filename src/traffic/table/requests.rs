//! One row a record. Times are UTC; digests are texts as everywhere; the fingerprint's bits are an integer.

use parquet::data_type::{BoolType, FloatType, Int32Type, Int64Type};

use crate::{
    digest::Digest,
    error::Result,
    traffic::{
        Looks, Record,
        table::columns::{self, Parquet, Source, wrong},
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

/// The records as a Parquet file.
pub fn write(records: &[Record]) -> Result<Vec<u8>> {
    columns::write(SCHEMA, records.len(), |range, sink| {
        let rows = || records[range.clone()].iter();
        let looks = |pick: fn(&Looks) -> f32| rows().map(move |it| it.looks.as_ref().map(pick));
        sink.texts(rows().map(|it| it.id.clone()))?;
        sink.numbers::<Int64Type>(rows().map(|it| it.captured))?;
        sink.numbers::<Int64Type>(rows().map(|it| it.received))?;
        sink.texts(rows().map(|it| it.version.clone()))?;
        sink.texts(rows().map(|it| it.package.to_string()))?;
        sink.texts(rows().map(|it| it.input.to_string()))?;
        sink.texts(rows().map(|it| it.name.clone()))?;
        sink.numbers::<Int32Type>(rows().map(|it| it.status.into()))?;
        sink.numbers::<FloatType>(rows().map(|it| it.latency))?;
        sink.texts(rows().map(|it| it.class.clone()))?;
        sink.lists(rows().map(|it| &it.scores[..]))?;
        sink.lists(rows().map(|it| &it.features[..]))?;
        sink.optional::<FloatType>(looks(|it| it.brightness))?;
        sink.optional::<FloatType>(looks(|it| it.contrast))?;
        sink.optional::<FloatType>(looks(|it| it.sharpness))?;
        sink.optional::<FloatType>(looks(|it| it.colors[0]))?;
        sink.optional::<FloatType>(looks(|it| it.colors[1]))?;
        sink.optional::<FloatType>(looks(|it| it.colors[2]))?;
        sink.optional::<Int64Type>(rows().map(|it| it.looks.map(|it| it.fingerprint.cast_signed())))?;
        sink.numbers::<BoolType>(rows().map(|it| it.kept))
    })
}

/// Reads what [`write`] wrote.
pub fn read(bytes: &[u8]) -> Result<Vec<Record>> {
    columns::read("the table of requests", SCHEMA, bytes, rows)
}

fn rows(source: &mut Source<'_>) -> Parquet<Vec<Record>> {
    let digests = |texts: Vec<String>| -> Parquet<Vec<Digest>> {
        texts.iter().map(|it| it.parse().map_err(|_| wrong("it holds a digest that is none"))).collect()
    };
    let mut records: Vec<Record> = source.texts()?.into_iter().map(empty).collect();
    let set = |records: &mut Vec<Record>, put: &mut dyn FnMut(usize, &mut Record)| {
        records.iter_mut().enumerate().for_each(|(at, it)| put(at, it));
    };
    let (captured, received) = (source.numbers::<Int64Type>()?, source.numbers::<Int64Type>()?);
    let mut version = source.texts()?;
    let (package, input) = (digests(source.texts()?)?, digests(source.texts()?)?);
    let mut name = source.texts()?;
    let status = source.numbers::<Int32Type>()?.into_iter().map(u16::try_from);
    let status =
        status.collect::<Result<Vec<_>, _>>().map_err(|_| wrong("it holds a status that is none"))?;
    let latency = source.numbers::<FloatType>()?;
    let mut class = source.texts()?;
    let (mut scores, mut features) = (source.lists()?, source.lists()?);
    let looks = looks(source)?;
    let kept = source.numbers::<BoolType>()?;
    set(&mut records, &mut |at, it| {
        (it.captured, it.received, it.status) = (captured[at], received[at], status[at]);
        (it.package, it.input, it.latency) = (package[at], input[at], latency[at]);
        (it.version, it.name) = (std::mem::take(&mut version[at]), std::mem::take(&mut name[at]));
        (it.class, it.scores) = (std::mem::take(&mut class[at]), std::mem::take(&mut scores[at]));
        (it.features, it.looks) = (std::mem::take(&mut features[at]), looks[at]);
        it.kept = kept[at];
    });
    Ok(records)
}

fn looks(source: &mut Source<'_>) -> Parquet<Vec<Option<Looks>>> {
    let mut floats = Vec::new();
    for _ in 0..6 {
        floats.push(source.optional::<FloatType>()?);
    }
    let fingerprints = source.optional::<Int64Type>()?;
    let row = |(at, bits): (usize, Option<i64>)| {
        let values: Vec<f32> = floats.iter().filter_map(|it| it[at]).collect();
        match (&values[..], bits) {
            ([], None) => Ok(None),
            (&[brightness, contrast, sharpness, red, green, blue], Some(bits)) => Ok(Some(Looks {
                brightness,
                contrast,
                sharpness,
                colors: [red, green, blue],
                fingerprint: bits.cast_unsigned(),
            })),
            _ => Err(wrong("what a picture looks like is there in part")),
        }
    };
    fingerprints.into_iter().enumerate().map(row).collect()
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
        looks: None,
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
        fn it_reads_what_it_writes(records in records(30)) {
            let bytes = write(&records).unwrap();
            prop_assert_eq!(write(&records).unwrap(), bytes.clone());
            prop_assert_eq!(read(&bytes).unwrap(), records);
        }

        #[test]
        fn damaged_bytes_are_an_error_or_rows(records in records(5), at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
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
        let record =
            |at: usize| Record { captured: at as i64, scores: vec![0.5; at % 3], ..empty(format!("r{at}")) };
        let records: Vec<_> = (0..100_001).map(record).collect();
        assert_eq!(read(&write(&records).unwrap()).unwrap(), records);
    }

    /// Each byte in turn takes the values that lengths, counts and kinds trip over.
    #[test]
    fn any_byte_can_be_wrong_and_nothing_breaks() {
        let bytes = write(&[record("a", 1, b"x"), record("b", 2, b"y")]).unwrap();
        std::panic::set_hook(Box::new(|_| ()));
        let mut refused = 0;
        for at in 0..bytes.len() {
            for value in [0, 0x7f, 0x80, 0xff, bytes[at] ^ 1, bytes[at].wrapping_add(0x10)] {
                let mut other = bytes.clone();
                other[at] = value;
                refused += usize::from(read(&other).is_err());
            }
        }
        drop(std::panic::take_hook());
        assert!(refused > bytes.len(), "{refused} of {} changes were seen", bytes.len() * 6);
    }

    #[test]
    fn the_first_format_is_read_for_ever() {
        let golden = include_bytes!("../../../fixtures/formats/requests-1.parquet");
        let bare = Record { looks: None, scores: Vec::new(), status: 400, ..record("b", 2, b"y") };
        assert_eq!(read(golden).unwrap(), [record("a", 1, b"x"), bare]);
    }

    #[test]
    fn other_files_are_refused() {
        let telemetry = crate::traffic::table::write_telemetry(&[]).unwrap();
        let error = read(&telemetry).unwrap_err().full_text();
        assert!(error.contains("its columns are others"), "{error}");
        for bytes in [&b""[..], b"PAR1", b"PAR1PAR1", b"PAR1\xff\xff\xff\xffPAR1", b"id,class\n"] {
            assert_eq!(read(bytes).unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
