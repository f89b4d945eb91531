//! Binary frame format of spool segments: each frame holds one record or telemetry sample, with a checksum.
//!
//! ```text
//! length     4 bytes, little-endian: length of kind and body
//! kind       1 byte: 1 record, 2 telemetry sample
//! body
//! checksum   first 8 bytes of the BLAKE3 of kind and body
//! ```
//!
//! A segment is read past damaged frames: reading resumes at the next frame whose checksum is right.

use crate::{
    digest::Digest,
    error::Result,
    traffic::{ImageStats, Record, TelemetrySample},
    wire::{Reader, put_bytes, put_varint},
};

const RECORD: u8 = 1;
const SAMPLE: u8 = 2;
/// Size of a frame's checksum, in bytes.
const CHECKSUM: usize = 8;
/// Largest length of kind and body, in bytes; a record has a few kilobytes.
const MAX_LENGTH: usize = 64 << 20;
/// Name of a frame in error messages.
const LABEL: &str = "a frame of the spool";

/// Contents of a frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Record(Box<Record>),
    Sample(TelemetrySample),
}

/// Appends a record to a segment.
pub fn put_record(out: &mut Vec<u8>, record: &Record) {
    let mut body = vec![RECORD];
    put_bytes(&mut body, record.id.as_bytes());
    put_fixed(&mut body, record.captured);
    put_fixed(&mut body, record.received);
    put_bytes(&mut body, record.version.as_bytes());
    body.extend_from_slice(record.package.bytes());
    body.extend_from_slice(record.input.bytes());
    put_bytes(&mut body, record.name.as_bytes());
    put_varint(&mut body, record.status.into());
    put_floats(&mut body, &[record.latency]);
    put_bytes(&mut body, record.class.as_bytes());
    put_varint(&mut body, record.scores.len() as u64);
    put_floats(&mut body, &record.scores);
    put_varint(&mut body, record.features.len() as u64);
    put_floats(&mut body, &record.features);
    body.push(u8::from(record.kept));
    body.push(u8::from(record.image_stats.is_some()));
    if let Some(looks) = &record.image_stats {
        put_floats(&mut body, &[looks.brightness, looks.contrast, looks.sharpness]);
        put_floats(&mut body, &looks.colors);
        put_fixed(&mut body, looks.fingerprint.cast_signed());
    }
    put(out, &body);
}

/// Appends a telemetry sample to a segment.
pub fn put_sample(out: &mut Vec<u8>, sample: &TelemetrySample) {
    let mut body = vec![SAMPLE];
    put_fixed(&mut body, sample.time);
    put_floats(&mut body, &[sample.cpu, sample.memory, sample.disk]);
    put_varint(&mut body, sample.resident);
    for count in [sample.waiting, sample.answers, sample.errors, sample.dropped] {
        put_varint(&mut body, count.into());
    }
    body.push(u8::from(sample.temperature.is_some()));
    put_floats(&mut body, sample.temperature.as_slice());
    put(out, &body);
}

fn put(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(&Digest::of(body).bytes()[..CHECKSUM]);
}

fn put_fixed(out: &mut Vec<u8>, number: i64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_floats(out: &mut Vec<u8>, values: &[f32]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

/// Returns the intact frames of a segment, and the number of places with damage. A torn end, left by a killed
/// process, does not count as damage.
pub fn read(mut bytes: &[u8]) -> (Vec<Frame>, u64) {
    let (mut found, mut damaged) = (Vec::new(), 0);
    while !bytes.is_empty() {
        if let Some((frame, rest)) = first_frame(bytes) {
            found.push(frame);
            bytes = rest;
            continue;
        }
        // Lengths may be damaged, so the next frame is searched for at every offset.
        let Some(next) = (1..bytes.len()).find(|start| first_frame(&bytes[*start..]).is_some()) else {
            break;
        };
        damaged += 1;
        bytes = &bytes[next..];
    }
    // A last frame that is complete but invalid is damaged, or of a newer version of mlx.
    damaged += u64::from(is_complete(bytes));
    (found, damaged)
}

fn is_complete(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return false };
    let length = u32::from_le_bytes(*length) as usize;
    let fits = length.checked_add(CHECKSUM).is_some_and(|end| end <= rest.len());
    fits && length <= MAX_LENGTH
}

/// Parses the first frame, if it is valid, and returns it with the remaining bytes.
fn first_frame(bytes: &[u8]) -> Option<(Frame, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let (body, rest) = rest.split_at_checked(length).filter(|_| length <= MAX_LENGTH)?;
    let (checksum, rest) = rest.split_at_checked(CHECKSUM)?;
    (Digest::of(body).bytes()[..CHECKSUM] == *checksum).then(|| Some((parse(body).ok()?, rest)))?
}

fn parse(body: &[u8]) -> Result<Frame> {
    let mut reader = Reader::new(body, LABEL);
    let frame = match reader.byte()? {
        RECORD => Frame::Record(Box::new(record(&mut reader)?)),
        SAMPLE => Frame::Sample(sample(&mut reader)?),
        _ => return Err(reader.corrupt("has an unknown kind")),
    };
    reader.expect_end()?;
    Ok(frame)
}

fn record(reader: &mut Reader<'_>) -> Result<Record> {
    Ok(Record {
        id: text(reader)?,
        captured: fixed(reader)?,
        received: fixed(reader)?,
        version: text(reader)?,
        package: reader.digest()?,
        input: reader.digest()?,
        name: text(reader)?,
        status: reader.varint()?.try_into().map_err(|_| reader.corrupt("has an invalid status"))?,
        latency: float(reader)?,
        class: text(reader)?,
        scores: floats(reader)?,
        features: floats(reader)?,
        kept: reader.byte()? != 0,
        image_stats: if reader.byte()? == 0 { None } else { Some(looks(reader)?) },
    })
}

fn looks(reader: &mut Reader<'_>) -> Result<ImageStats> {
    Ok(ImageStats {
        brightness: float(reader)?,
        contrast: float(reader)?,
        sharpness: float(reader)?,
        colors: [float(reader)?, float(reader)?, float(reader)?],
        fingerprint: fixed(reader)?.cast_unsigned(),
    })
}

fn sample(reader: &mut Reader<'_>) -> Result<TelemetrySample> {
    let mut sample = TelemetrySample { time: fixed(reader)?, ..TelemetrySample::default() };
    (sample.cpu, sample.memory, sample.disk) = (float(reader)?, float(reader)?, float(reader)?);
    sample.resident = reader.varint()?;
    for count in [&mut sample.waiting, &mut sample.answers, &mut sample.errors, &mut sample.dropped] {
        *count = u32::try_from(reader.varint()?).unwrap_or(u32::MAX);
    }
    sample.temperature = if reader.byte()? == 0 { None } else { Some(float(reader)?) };
    Ok(sample)
}

fn text(reader: &mut Reader<'_>) -> Result<String> {
    String::from_utf8(reader.bytes()?.to_vec()).map_err(|_| reader.corrupt("has invalid UTF-8"))
}

fn fixed(reader: &mut Reader<'_>) -> Result<i64> {
    Ok(i64::from_le_bytes(reader.take(8)?.try_into().expect("we took 8 bytes")))
}

fn float(reader: &mut Reader<'_>) -> Result<f32> {
    Ok(f32::from_le_bytes(reader.take(4)?.try_into().expect("we took 4 bytes")))
}

fn floats(reader: &mut Reader<'_>) -> Result<Vec<f32>> {
    let bytes = usize::try_from(reader.varint()?).ok().and_then(|count| count.checked_mul(4));
    let bytes = reader.take(bytes.unwrap_or(usize::MAX))?;
    Ok(bytes
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("chunks have 4 bytes")))
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::traffic::samples::{record as one, records, sample as taken};

    proptest! {
        #[test]
        fn a_truncated_or_damaged_segment_gives_its_intact_frames(records in records(8),
            cut: prop::sample::Index, flip: u8) {
            let mut bytes = Vec::new();
            let mut ends = Vec::new();
            for record in &records {
                put_record(&mut bytes, record);
                ends.push(bytes.len());
            }
            let sample = taken();
            put_sample(&mut bytes, &sample);
            let records = records.into_iter().map(|it| Frame::Record(it.into()));
            let all: Vec<_> = records.chain([Frame::Sample(sample)]).collect();
            prop_assert_eq!(read(&bytes), (all.clone(), 0));
            let cut = cut.index(bytes.len());
            let whole = ends.iter().filter(|it| **it <= cut).count();
            prop_assert_eq!(read(&bytes[..cut]), (all[..whole].to_vec(), 0));
            bytes[cut] ^= flip.max(1);
            // Damage loses its own frame only. Damage to the last frame cannot be told from a torn end.
            let (found, damaged) = read(&bytes);
            prop_assert_eq!(&found, &[&all[..whole], &all[whole + 1..]].concat());
            prop_assert!(damaged == 1 || whole + 1 == all.len());
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let mut framed = Vec::new();
            put(&mut framed, &bytes);
            let _any = (read(&bytes), read(&framed));
        }
    }

    #[test]
    fn format_1_stays_readable() {
        let golden = include_bytes!("../../fixtures/formats/spool-1.log");
        let bare = Record { image_stats: None, ..one("b", 2, b"y") };
        let expected = [
            Frame::Record(one("a", 1, b"x").into()),
            Frame::Record(bare.clone().into()),
            Frame::Sample(taken()),
        ];
        assert_eq!(read(golden), (expected.to_vec(), 0));
        let mut again = Vec::new();
        put_record(&mut again, &one("a", 1, b"x"));
        put_record(&mut again, &bare);
        put_sample(&mut again, &taken());
        assert_eq!(again, golden);
    }
}
