//! Tensors of the Open Inference Protocol V2 (REST) and its binary extension, read and written.
//!
//! Everything here takes bytes from strangers: counts are checked before anything is set aside for them, lists have
//! their ends, what is not asked for is read over, and no more than a line of it comes back in an error.

use std::{convert::Infallible, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, SeqAccess, Visitor},
};
use serde_json::json;

use crate::error::{Error, Result};

/// The one datatype that networks here take and give.
pub const DATATYPE: &str = "FP32";
/// The header that says where the JSON ends and bytes begin.
pub const JSON_LENGTH: &str = "inference-header-content-length";
/// An id from outside is no longer than this.
const LONGEST_ID: usize = 128;
/// Characters of the reason why something is no JSON, which may repeat what was sent.
const LONGEST_REASON: usize = 200;
/// Outputs that a request may name.
const OUTPUTS: usize = 8;
/// Of a shape.
const DIMENSIONS: usize = 8;

/// A request for inference.
#[derive(Debug, PartialEq)]
pub struct Request {
    pub id: Option<String>,
    /// Pictures in the input.
    pub rows: usize,
    /// Row by row.
    pub values: Vec<f32>,
    /// The output goes as bytes behind the JSON.
    pub binary: bool,
}

#[derive(Deserialize)]
struct Body {
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    inputs: Few<Input, 1>,
    #[serde(default)]
    outputs: Few<Output, OUTPUTS>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    shape: Few<u64, DIMENSIONS>,
    datatype: String,
    #[serde(default)]
    parameters: Parameters,
    data: Option<Flat>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// Those that mean something here; others are read over, whatever they hold.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    /// Bytes of a tensor behind the JSON.
    #[serde(rename = "binary_data_size")]
    size: Option<usize>,
    /// Whether outputs go as bytes where they do not say themselves.
    #[serde(rename = "binary_data_output")]
    outputs: Option<bool>,
    /// Whether this output goes as bytes.
    #[serde(rename = "binary_data")]
    own: Option<bool>,
}

/// A list that is refused as soon as it is too long.
struct Few<T, const MOST: usize>(Vec<T>);

/// Numbers, however deeply nested, in order.
#[derive(Default)]
struct Flat(Vec<f32>);

/// What a model takes and gives, as its metadata says.
#[derive(Clone, Debug, Serialize)]
pub struct Tensor {
    pub name: String,
    pub datatype: &'static str,
    /// −1 for any.
    pub shape: Vec<i64>,
}

/// Reads a request. `header` is the length of the JSON where bytes follow it.
pub fn parse(body: &[u8], header: Option<usize>, input: &Tensor, output: &Tensor) -> Result<Request> {
    let (text, bytes) = match header {
        None => (body, &[][..]),
        Some(length) if length <= body.len() => body.split_at(length),
        Some(length) => {
            let message = format!("the header says {length} bytes of JSON, and the body has {}", body.len());
            return Err(Error::usage(message));
        }
    };
    let read: Body = serde_json::from_slice(text).map_err(|it| {
        Error::usage(format!("the body is no inference request: {}", cut(&it.to_string(), LONGEST_REASON)))
    })?;
    if let Some(id) = &read.id {
        check_id(id)?;
    }
    if let Some(unknown) = read.outputs.0.iter().find(|it| it.name != output.name) {
        let unknown = short(&unknown.name);
        return Err(Error::usage(format!("there is no output `{unknown}`; it is called `{}`", output.name)));
    }
    let Some(tensor) = read.inputs.0.into_iter().next() else {
        return Err(Error::usage(format!("there is one input, `{}`, and the request has none", input.name)));
    };
    let (rows, values) = numbers(tensor, bytes, input)?;
    let whole = read.parameters.outputs.unwrap_or(false);
    let binary = read.outputs.0.first().and_then(|it| it.parameters.own).unwrap_or(whole);
    Ok(Request { id: read.id, rows, values, binary })
}

/// The rows of the one input and its numbers, which stand in the JSON or are all the bytes behind it.
fn numbers(tensor: Input, mut bytes: &[u8], input: &Tensor) -> Result<(usize, Vec<f32>)> {
    let wrong = |message: String| Err(Error::usage(message));
    if tensor.name != input.name {
        return wrong(format!("there is no input `{}`; it is called `{}`", short(&tensor.name), input.name));
    }
    if tensor.datatype != DATATYPE {
        return wrong(format!("`{}` is {DATATYPE}, not `{}`", input.name, short(&tensor.datatype)));
    }
    let (rows, count) = fits(&tensor.shape.0, input)?;
    let values = match (tensor.parameters.size, tensor.data) {
        (Some(size), None) => take(&mut bytes, size, count)?,
        (None, Some(Flat(values))) => values,
        _ => return wrong(format!("`{}` needs either data or binary_data_size", input.name)),
    };
    if values.len() != count {
        return wrong(format!("the shape asks for {count} numbers, and there are {}", values.len()));
    }
    if !bytes.is_empty() {
        return wrong(format!("{} bytes follow the last tensor", bytes.len()));
    }
    if values.iter().any(|it| !it.is_finite()) {
        return wrong(format!("`{}` holds NaN or infinities", input.name));
    }
    Ok((rows, values))
}

/// An id that may stand in logs, headers and file names of others.
pub fn check_id(id: &str) -> Result<()> {
    let plain = id.bytes().all(|it| it.is_ascii_graphic());
    if plain && !id.is_empty() && id.len() <= LONGEST_ID {
        return Ok(());
    }
    Err(Error::usage(format!("an id is 1 to {LONGEST_ID} visible ASCII characters")))
}

/// The number of rows and of values of a shape, if it is one of the model's.
fn fits(shape: &[u64], input: &Tensor) -> Result<(usize, usize)> {
    let same = shape.len() == input.shape.len()
        && shape.iter().zip(&input.shape).all(|(is, may)| *may < 0 || i64::try_from(*is) == Ok(*may));
    let count = shape.iter().try_fold(1_u64, |product, it| product.checked_mul(*it));
    match count.map(usize::try_from) {
        Some(Ok(count)) if same => Ok((shape[0] as usize, count)),
        _ => Err(Error::usage(format!("the shape {shape:?} does not fit {:?}", input.shape))),
    }
}

fn take(bytes: &mut &[u8], size: usize, count: usize) -> Result<Vec<f32>> {
    if count.checked_mul(4) != Some(size) || size > bytes.len() {
        let message = format!(
            "binary_data_size is {size}, the shape asks for {count} numbers of 4 bytes, {} follow",
            bytes.len()
        );
        return Err(Error::usage(message));
    }
    let (own, rest) = bytes.split_at(size);
    *bytes = rest;
    Ok(own.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it)).collect())
}

/// Writes an answer; the length of the JSON where bytes follow it.
pub fn print(
    model: (&str, &str),
    request: &Request,
    output: &Tensor,
    values: &[f32],
) -> (Vec<u8>, Option<usize>) {
    let width = output.shape.last().copied().unwrap_or(0);
    let mut tensor = json!({"name": output.name, "datatype": DATATYPE, "shape": [request.rows, width]});
    if request.binary {
        tensor["parameters"] = json!({"binary_data_size": values.len() * 4});
    } else {
        tensor["data"] = json!(values);
    }
    let mut body = json!({"model_name": model.0, "model_version": model.1, "outputs": [tensor]});
    if let Some(id) = &request.id {
        body["id"] = json!(id);
    }
    let mut bytes = body.to_string().into_bytes();
    if !request.binary {
        return (bytes, None);
    }
    let length = bytes.len();
    values.iter().for_each(|it| bytes.extend_from_slice(&it.to_le_bytes()));
    (bytes, Some(length))
}

/// As much of a stranger's text as an error repeats.
fn short(text: &str) -> String {
    cut(text, 40)
}

/// The beginning of a text, on one line.
fn cut(text: &str, most: usize) -> String {
    text.chars().filter(|it| !it.is_control()).take(most).collect()
}

impl<T, const MOST: usize> Default for Few<T, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Few<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_seq(FewOf(PhantomData))
    }
}

struct FewOf<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for FewOf<T, MOST> {
    type Value = Few<T, MOST>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a list of at most {MOST}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Self::Value, A::Error> {
        let mut few = Vec::new();
        while few.len() < MOST {
            let Some(next) = list.next_element()? else { return Ok(Few(few)) };
            few.push(next);
        }
        match list.next_element_seed(OneTooMany(MOST))? {
            None => Ok(Few(few)),
            Some(never) => match never {},
        }
    }
}

/// Refuses whatever comes, before it is read.
struct OneTooMany(usize);

impl<'de> DeserializeSeed<'de> for OneTooMany {
    type Value = Infallible;

    fn deserialize<D: Deserializer<'de>>(self, _: D) -> std::result::Result<Infallible, D::Error> {
        Err(serde::de::Error::custom(format!("this list has at most {}", self.0)))
    }
}

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut flat = Self::default();
        Fill(&mut flat.0).deserialize(deserializer)?;
        Ok(flat)
    }
}

/// Puts numbers at the end of a list.
struct Fill<'f>(&'f mut Vec<f32>);

impl<'de> DeserializeSeed<'de> for Fill<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Fill<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("numbers, or lists of them")
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<(), E> {
        self.0.push(value as f32);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<(), E> {
        self.0.push(value as f32);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<(), E> {
        self.0.push(value as f32);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        while list.next_element_seed(Fill(self.0))?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn tensors() -> (Tensor, Tensor) {
        let tensor =
            |name: &str, shape: &[i64]| Tensor { name: name.into(), datatype: DATATYPE, shape: shape.into() };
        (tensor("pixels", &[-1, 3, 1, 2]), tensor("probabilities", &[-1, 2]))
    }

    fn ask(body: &[u8], header: Option<usize>) -> Result<Request> {
        let (input, output) = tensors();
        parse(body, header, &input, &output)
    }

    #[test]
    fn nested_and_flat_data_are_the_same() {
        let flat = br#"{"id":"a","inputs":[{"name":"pixels","shape":[1,3,1,2],"datatype":"FP32","data":[1,2,3,4,5,6.5]}]}"#;
        let nested = br#"{"id":"a","inputs":[{"name":"pixels","shape":[1,3,1,2],"datatype":"FP32","data":[[[[1,2]],[[3,4]],[[5,6.5]]]]}]}"#;
        let read = ask(flat, None).unwrap();
        assert_eq!(read.values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.5]);
        assert_eq!(read, ask(nested, None).unwrap());
        let none = br#"{"inputs":[{"name":"pixels","shape":[0,3,1,2],"datatype":"FP32","data":[]}]}"#;
        assert_eq!(ask(none, None).unwrap().rows, 0);
    }

    #[test]
    fn bytes_behind_the_json_are_read_and_written() {
        let json = br#"{"parameters":{"binary_data_output":true},"inputs":[{"name":"pixels","shape":[1,3,1,2],"datatype":"FP32","parameters":{"binary_data_size":24}}]}"#;
        let numbers = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let body = [&json[..], &numbers.map(f32::to_le_bytes).concat()].concat();
        let read = ask(&body, Some(json.len())).unwrap();
        assert_eq!((&read.values[..], read.binary), (&numbers[..], true));
        let (answer, length) = print(("pets", "v1"), &read, &tensors().1, &[0.25, 0.75]);
        let (json, bytes) = answer.split_at(length.unwrap());
        let json: Value = serde_json::from_slice(json).unwrap();
        assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 8);
        assert_eq!(bytes, [0.25_f32.to_le_bytes(), 0.75_f32.to_le_bytes()].concat());
        for header in [json.to_string().len() + 100_000, usize::MAX, 0, 5] {
            assert!(ask(&body, Some(header)).is_err(), "{header}");
        }
        assert!(ask(&body[..body.len() - 1], Some(body.len() - 24)).is_err());
        let nan = [&body[..body.len() - 4], &f32::NAN.to_le_bytes()].concat();
        assert_eq!(
            ask(&nan, Some(body.len() - 24)).unwrap_err().to_string(),
            "`pixels` holds NaN or infinities"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (shape, datatype, data) in [
            ("[1,3,1,2]", "FP32", "[1,2]"),
            ("[1,3,1]", "FP32", "[1,2,3]"),
            ("[1,3,1,3]", "FP32", "[1,2,3,4,5,6,7,8,9]"),
            ("[18446744073709551615,3,1,2]", "FP32", "[1]"),
            ("[4611686018427387904,3,1,2]", "FP32", "[]"),
            ("[-1,3,1,2]", "FP32", "[]"),
            ("[1,3,1,2]", "INT8", "[1,2,3,4,5,6]"),
            ("[1,3,1,2]", "FP32", "[1,2,3,4,5,\"6\"]"),
            ("[1,3,1,2]", "FP32", "[1,2,3,4,5,1e999]"),
            ("[1,3,1,2]", "FP32", "{}"),
        ] {
            let body = format!(
                r#"{{"inputs":[{{"name":"pixels","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}"#
            );
            assert!(ask(body.as_bytes(), None).is_err(), "{body}");
        }
        let deep = format!(
            r#"{{"inputs":[{{"name":"pixels","shape":[1,3,1,2],"datatype":"FP32","data":{}"#,
            "[".repeat(100_000)
        );
        assert!(ask(deep.as_bytes(), None).is_err());
        for id in ["", "a b", "a\\nb", &"x".repeat(129)] {
            let body = format!(r#"{{"id":"{id}","inputs":[]}}"#);
            assert!(ask(body.as_bytes(), None).is_err(), "{id}");
        }
    }

    #[test]
    fn lists_without_an_end_are_refused_and_what_is_unknown_is_read_over() {
        let data = "[1,2,3,4,5,6]";
        let tensor = |shape: &str, more: &str| {
            format!(r#"{{"name":"pixels","shape":{shape},"datatype":"FP32","data":{data}{more}}}"#)
        };
        let body = |inputs: &str, more: &str| format!(r#"{{"inputs":[{inputs}]{more}}}"#);
        let good = tensor("[1,3,1,2]", "");
        let large = format!(r#","parameters":{{"x":[{}0]}}"#, "[{\"y\":1}],".repeat(10_000));
        let outputs = |count: usize| {
            format!(r#","outputs":[{}]"#, vec![r#"{"name":"probabilities"}"#; count].join(","))
        };
        for taken in [
            body(&good, &large),
            body(&tensor("[1,3,1,2]", &large), ""),
            body(&good, &outputs(8)),
            body(&good, r#","parameters":{"binary_data_output":null}"#),
        ] {
            assert_eq!(ask(taken.as_bytes(), None).unwrap().rows, 1);
        }
        let long = |what: &str, count: usize| vec![what; count].join(",");
        for (refused, why) in [
            (body(&long(&good, 2), ""), "at most 1"),
            (body(&format!("{good},{{"), ""), "at most 1"),
            (body(&good, &outputs(9)), "at most 8"),
            (body(&tensor(&format!("[{}]", long("1", 10_000)), ""), ""), "at most 8"),
            (body(&tensor(&format!("[{}]", long("1", 1_000_000)), ""), ""), "at most 8"),
            (body(&tensor("[1,1,1,1,1,1,1,1]", ""), ""), "does not fit"),
            (body("", ""), "has none"),
            (format!(r#"{{"inputs":"{}"}}"#, "x".repeat(1_000_000)), "invalid type"),
            (body(&good, r#","parameters":{"binary_data_output":7}"#), "invalid type"),
        ] {
            let text = ask(refused.as_bytes(), None).unwrap_err().full_text();
            assert!(text.contains(why) && text.len() < 300, "{why}: {text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), header in prop::option::of(0_usize..400)) {
            let _any = ask(&bytes, header);
        }
    }
}
