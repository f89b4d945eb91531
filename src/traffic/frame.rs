//! Frames of a spool's segment: each holds one record or sample and the proof that it is whole.
//!
//! ```text
//! length of kind and body (4 bytes, little end first), kind, body, 8 bytes of the BLAKE3 of kind and body
//! ```

use crate::{
    digest::Digest,
    error::Result,
    traffic::{Looks, Record, Sample},
    wire::{Reader, put_bytes, put_number},
};

const RECORD: u8 = 1;
const SAMPLE: u8 = 2;
/// Bytes of a frame's proof.
const PROOF: usize = 8;
/// No frame is longer: a record is a few kilobytes.
const LONGEST: usize = 64 << 20;
const WHAT: &str = "a frame of the spool";

/// What a frame holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Record(Box<Record>),
    Sample(Sample),
}

/// Appends a record.
pub fn put_record(out: &mut Vec<u8>, record: &Record) {
    let mut body = vec![RECORD];
    put_bytes(&mut body, record.id.as_bytes());
    put_fixed(&mut body, record.captured);
    put_fixed(&mut body, record.received);
    put_bytes(&mut body, record.version.as_bytes());
    body.extend_from_slice(record.package.bytes());
    body.extend_from_slice(record.input.bytes());
    put_bytes(&mut body, record.name.as_bytes());
    put_number(&mut body, record.status.into());
    put_floats(&mut body, &[record.latency]);
    put_bytes(&mut body, record.class.as_bytes());
    put_number(&mut body, record.scores.len() as u64);
    put_floats(&mut body, &record.scores);
    put_number(&mut body, record.features.len() as u64);
    put_floats(&mut body, &record.features);
    body.push(u8::from(record.kept));
    body.push(u8::from(record.looks.is_some()));
    if let Some(looks) = &record.looks {
        put_floats(&mut body, &[looks.brightness, looks.contrast, looks.sharpness]);
        put_floats(&mut body, &looks.colors);
        put_fixed(&mut body, looks.fingerprint.cast_signed());
    }
    put(out, &body);
}

/// Appends a sample.
pub fn put_sample(out: &mut Vec<u8>, sample: &Sample) {
    let mut body = vec![SAMPLE];
    put_fixed(&mut body, sample.time);
    put_floats(&mut body, &[sample.cpu, sample.memory, sample.disk]);
    put_number(&mut body, sample.resident);
    for count in [sample.waiting, sample.answers, sample.errors, sample.dropped] {
        put_number(&mut body, count.into());
    }
    body.push(u8::from(sample.temperature.is_some()));
    put_floats(&mut body, sample.temperature.as_slice());
    put(out, &body);
}

fn put(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(&Digest::of(body).bytes()[..PROOF]);
}

fn put_fixed(out: &mut Vec<u8>, number: i64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_floats(out: &mut Vec<u8>, values: &[f32]) {
    values.iter().for_each(|it| out.extend_from_slice(&it.to_le_bytes()));
}

/// The whole frames of a segment, and in how many places something between them is damaged. A torn end is what a
/// killed process leaves and no damage.
pub fn read(mut bytes: &[u8]) -> (Vec<Frame>, u64) {
    let (mut found, mut damaged) = (Vec::new(), 0);
    while !bytes.is_empty() {
        if let Some((frame, rest)) = first(bytes) {
            found.push(frame);
            bytes = rest;
            continue;
        }
        // Frames prove themselves, so the next sound one is found wherever it starts.
        let Some(next) = (1..bytes.len()).find(|it| first(&bytes[*it..]).is_some()) else { break };
        damaged += 1;
        bytes = &bytes[next..];
    }
    // Whole and proven, yet nothing we know: a newer mlx wrote it.
    damaged += u64::from(is_whole(bytes));
    (found, damaged)
}

fn is_whole(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return false };
    let length = u32::from_le_bytes(*length) as usize;
    let room = length.checked_add(PROOF).is_some_and(|it| it <= rest.len());
    room && length <= LONGEST
}

fn first(bytes: &[u8]) -> Option<(Frame, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let (body, rest) = rest.split_at_checked(length).filter(|_| length <= LONGEST)?;
    let (proof, rest) = rest.split_at_checked(PROOF)?;
    (Digest::of(body).bytes()[..PROOF] == *proof).then(|| Some((parse(body).ok()?, rest)))?
}

fn parse(body: &[u8]) -> Result<Frame> {
    let mut reader = Reader::new(body, WHAT);
    let frame = match reader.byte()? {
        RECORD => Frame::Record(Box::new(record(&mut reader)?)),
        SAMPLE => Frame::Sample(sample(&mut reader)?),
        _ => return Err(reader.broken("is of a newer version")),
    };
    reader.end()?;
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
        status: reader.number()?.try_into().map_err(|_| reader.broken("holds no status"))?,
        latency: float(reader)?,
        class: text(reader)?,
        scores: floats(reader)?,
        features: floats(reader)?,
        kept: reader.byte()? != 0,
        looks: if reader.byte()? == 0 { None } else { Some(looks(reader)?) },
    })
}

fn looks(reader: &mut Reader<'_>) -> Result<Looks> {
    Ok(Looks {
        brightness: float(reader)?,
        contrast: float(reader)?,
        sharpness: float(reader)?,
        colors: [float(reader)?, float(reader)?, float(reader)?],
        fingerprint: fixed(reader)?.cast_unsigned(),
    })
}

fn sample(reader: &mut Reader<'_>) -> Result<Sample> {
    let mut sample = Sample { time: fixed(reader)?, ..Sample::default() };
    (sample.cpu, sample.memory, sample.disk) = (float(reader)?, float(reader)?, float(reader)?);
    sample.resident = reader.number()?;
    for count in [&mut sample.waiting, &mut sample.answers, &mut sample.errors, &mut sample.dropped] {
        *count = u32::try_from(reader.number()?).unwrap_or(u32::MAX);
    }
    sample.temperature = if reader.byte()? == 0 { None } else { Some(float(reader)?) };
    Ok(sample)
}

fn text(reader: &mut Reader<'_>) -> Result<String> {
    String::from_utf8(reader.bytes()?.to_vec()).map_err(|_| reader.broken("holds no text"))
}

fn fixed(reader: &mut Reader<'_>) -> Result<i64> {
    Ok(i64::from_le_bytes(reader.take(8)?.try_into().expect("we took 8 bytes")))
}

fn float(reader: &mut Reader<'_>) -> Result<f32> {
    Ok(f32::from_le_bytes(reader.take(4)?.try_into().expect("we took 4 bytes")))
}

fn floats(reader: &mut Reader<'_>) -> Result<Vec<f32>> {
    let bytes = usize::try_from(reader.number()?).ok().and_then(|it| it.checked_mul(4));
    let bytes = reader.take(bytes.unwrap_or(usize::MAX))?;
    Ok(bytes
        .chunks_exact(4)
        .map(|it| f32::from_le_bytes(it.try_into().expect("it is cut in fours")))
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::traffic::samples::{record as one, records, sample as taken};

    proptest! {
        #[test]
        fn a_cut_segment_gives_its_whole_frames(records in records(8), cut: prop::sample::Index, flip: u8) {
            let mut bytes = Vec::new();
            let mut ends = Vec::new();
            for record in &records {
                put_record(&mut bytes, record);
                ends.push(bytes.len());
            }
            let sample = taken();
            put_sample(&mut bytes, &sample);
            let all: Vec<_> = records.into_iter().map(|it| Frame::Record(it.into())).chain([Frame::Sample(sample)]).collect();
            prop_assert_eq!(read(&bytes), (all.clone(), 0));
            let cut = cut.index(bytes.len());
            let whole = ends.iter().filter(|it| **it <= cut).count();
            prop_assert_eq!(read(&bytes[..cut]), (all[..whole].to_vec(), 0));
            bytes[cut] ^= flip.max(1);
            // Damage costs its own frame and no other; behind it nothing is left of the last one to tell it by.
            let (found, damaged) = read(&bytes);
            prop_assert_eq!(&found, &[&all[..whole], &all[whole + 1..]].concat());
            prop_assert!(damaged == 1 || whole + 1 == all.len());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let mut framed = Vec::new();
            put(&mut framed, &bytes);
            let _any = (read(&bytes), read(&framed));
        }
    }

    #[test]
    fn the_first_format_is_read_for_ever() {
        let golden = include_bytes!("../../fixtures/formats/spool-1.log");
        let bare = Record { looks: None, ..one("b", 2, b"y") };
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
