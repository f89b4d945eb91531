//! Open Inference Protocol V2 (REST) with its binary tensor extension: parses requests and encodes responses.
//!
//! The input is untrusted: counts are checked before memory is allocated for them, lists are bounded, unknown
//! fields are skipped, and an error repeats at most one short line of the input.

use std::{convert::Infallible, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, SeqAccess, Visitor},
};
use serde_json::json;

use crate::error::{Error, Result};

/// The only datatype that models take and return.
pub const DATATYPE: &str = "FP32";
/// Header with the length of the JSON, after which the binary data starts.
pub const JSON_LENGTH_HEADER: &str = "inference-header-content-length";
/// Largest length of a request id, in bytes.
const MAX_ID_LENGTH: usize = 128;
/// Largest length of a JSON error in characters; it may repeat parts of the input.
const MAX_REASON_LENGTH: usize = 200;
/// Largest number of outputs that a request may name.
const MAX_OUTPUTS: usize = 8;
/// Largest number of dimensions of a shape.
const MAX_DIMENSIONS: usize = 8;

/// Inference request.
#[derive(Debug, PartialEq)]
pub struct InferRequest {
    pub id: Option<String>,
    /// Number of images in the input.
    pub rows: usize,
    /// Input values, row by row.
    pub values: Vec<f32>,
    /// True if the output is to be sent as bytes after the JSON.
    pub binary: bool,
}

#[derive(Deserialize)]
struct Body {
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    inputs: BoundedList<Input, 1>,
    #[serde(default)]
    outputs: BoundedList<Output, MAX_OUTPUTS>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    shape: BoundedList<u64, MAX_DIMENSIONS>,
    datatype: String,
    #[serde(default)]
    parameters: Parameters,
    data: Option<FlatNumbers>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// Supported parameters of a request or a tensor; others are skipped, whatever their type.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    /// Size in bytes of a tensor that is sent after the JSON.
    #[serde(rename = "binary_data_size")]
    size: Option<usize>,
    /// True if outputs without a setting of their own are to be sent as bytes.
    #[serde(rename = "binary_data_output")]
    all_binary: Option<bool>,
    /// True if this output is to be sent as bytes.
    #[serde(rename = "binary_data")]
    binary: Option<bool>,
}

/// List that is rejected as soon as it has more than `MAX` items.
struct BoundedList<T, const MAX: usize>(Vec<T>);

/// Numbers of an arbitrarily nested array, in order.
#[derive(Default)]
struct FlatNumbers(Vec<f32>);

/// Metadata of a model's input or output.
#[derive(Clone, Debug, Serialize)]
pub struct Tensor {
    pub name: String,
    pub datatype: &'static str,
    /// Size of each dimension; -1 for any.
    pub shape: Vec<i64>,
}

/// Parses a request. `json_length` is the length of the JSON where binary data follows it.
pub fn parse(
    body: &[u8],
    json_length: Option<usize>,
    input: &Tensor,
    output: &Tensor,
) -> Result<InferRequest> {
    let (text, bytes) = match json_length {
        None => (body, &[][..]),
        Some(length) if length <= body.len() => body.split_at(length),
        Some(length) => {
            let message =
                format!("`{JSON_LENGTH_HEADER}` is {length}, but the body has only {} bytes", body.len());
            return Err(Error::usage(message));
        }
    };
    let request: Body = serde_json::from_slice(text).map_err(|error| {
        let reason = one_line(&error.to_string(), MAX_REASON_LENGTH);
        Error::usage(format!("the body is not an inference request: {reason}"))
    })?;
    if let Some(id) = &request.id {
        check_id(id)?;
    }
    if let Some(unknown) = request.outputs.0.iter().find(|it| it.name != output.name) {
        let unknown = excerpt(&unknown.name);
        return Err(Error::usage(format!(
            "unknown output `{unknown}`: the model's output is `{}`",
            output.name
        )));
    }
    let Some(tensor) = request.inputs.0.into_iter().next() else {
        return Err(Error::usage(format!("the request has no input; the model takes one, `{}`", input.name)));
    };
    let (rows, values) = read_input(tensor, bytes, input)?;
    let default = request.parameters.all_binary.unwrap_or(false);
    let binary = request.outputs.0.first().and_then(|it| it.parameters.binary).unwrap_or(default);
    Ok(InferRequest { id: request.id, rows, values, binary })
}

/// Returns the number of rows of the input and its values, from the JSON or from the bytes after it.
fn read_input(tensor: Input, mut bytes: &[u8], input: &Tensor) -> Result<(usize, Vec<f32>)> {
    let invalid = |message: String| Err(Error::usage(message));
    if tensor.name != input.name {
        return invalid(format!(
            "unknown input `{}`: the model takes `{}`",
            excerpt(&tensor.name),
            input.name
        ));
    }
    if tensor.datatype != DATATYPE {
        return invalid(format!("`{}` is {DATATYPE}, not `{}`", input.name, excerpt(&tensor.datatype)));
    }
    let (rows, count) = check_shape(&tensor.shape.0, input)?;
    let values = match (tensor.parameters.size, tensor.data) {
        (Some(size), None) => take_values(&mut bytes, size, count)?,
        (None, Some(FlatNumbers(values))) => values,
        _ => return invalid(format!("`{}` needs either `data` or `binary_data_size`", input.name)),
    };
    if values.len() != count {
        return invalid(format!("the shape needs {count} numbers, but the input has {}", values.len()));
    }
    if !bytes.is_empty() {
        return invalid(format!("{} unexpected bytes follow the tensor", bytes.len()));
    }
    if values.iter().any(|it| !it.is_finite()) {
        return invalid(format!("`{}` contains NaN or infinity", input.name));
    }
    Ok((rows, values))
}

/// Checks a request id, so that it is safe in logs and headers.
pub fn check_id(id: &str) -> Result<()> {
    let plain = id.bytes().all(|it| it.is_ascii_graphic());
    if plain && !id.is_empty() && id.len() <= MAX_ID_LENGTH {
        return Ok(());
    }
    Err(Error::usage(format!("a request id must be 1 to {MAX_ID_LENGTH} visible ASCII characters")))
}

/// Returns the number of rows and of values of a shape; an error if the model does not take it.
fn check_shape(shape: &[u64], input: &Tensor) -> Result<(usize, usize)> {
    let same = shape.len() == input.shape.len()
        && shape
            .iter()
            .zip(&input.shape)
            .all(|(is, expected)| *expected < 0 || i64::try_from(*is) == Ok(*expected));
    let count = shape.iter().try_fold(1_u64, |product, it| product.checked_mul(*it));
    match count.map(usize::try_from) {
        Some(Ok(count)) if same => Ok((shape[0] as usize, count)),
        _ => Err(Error::usage(format!("the shape {shape:?} does not match {:?}", input.shape))),
    }
}

/// Splits `count` little-endian floats off `bytes`.
fn take_values(bytes: &mut &[u8], size: usize, count: usize) -> Result<Vec<f32>> {
    if count.checked_mul(4) != Some(size) || size > bytes.len() {
        let message = format!(
            "`binary_data_size` is {size}, the shape needs {count} numbers of 4 bytes, and {} bytes follow",
            bytes.len()
        );
        return Err(Error::usage(message));
    }
    let (head, rest) = bytes.split_at(size);
    *bytes = rest;
    Ok(head.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it)).collect())
}

/// Encodes a response for the model's name and version. The length is that of the JSON, if binary data
/// follows it.
pub fn encode(
    model: (&str, &str),
    request: &InferRequest,
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

/// Returns the part of a client's text that an error may repeat.
fn excerpt(text: &str) -> String {
    one_line(text, 40)
}

/// Returns the first `max` characters of a text without control characters.
fn one_line(text: &str, max: usize) -> String {
    text.chars().filter(|it| !it.is_control()).take(max).collect()
}

impl<T, const MAX: usize> Default for BoundedList<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for BoundedList<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_seq(BoundedListVisitor(PhantomData))
    }
}

struct BoundedListVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for BoundedListVisitor<T, MAX> {
    type Value = BoundedList<T, MAX>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a list of at most {MAX} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while items.len() < MAX {
            let Some(next) = list.next_element()? else { return Ok(BoundedList(items)) };
            items.push(next);
        }
        match list.next_element_seed(RejectItem(MAX))? {
            None => Ok(BoundedList(items)),
            Some(never) => match never {},
        }
    }
}

/// Rejects an item beyond the limit before it is parsed.
struct RejectItem(usize);

impl<'de> DeserializeSeed<'de> for RejectItem {
    type Value = Infallible;

    fn deserialize<D: Deserializer<'de>>(self, _: D) -> std::result::Result<Infallible, D::Error> {
        Err(serde::de::Error::custom(format!("the list may have at most {} items", self.0)))
    }
}

impl<'de> Deserialize<'de> for FlatNumbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut flat = Self::default();
        AppendNumbers(&mut flat.0).deserialize(deserializer)?;
        Ok(flat)
    }
}

/// Appends every number of a nested array to a list.
struct AppendNumbers<'f>(&'f mut Vec<f32>);

impl<'de> DeserializeSeed<'de> for AppendNumbers<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AppendNumbers<'_> {
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
        while list.next_element_seed(AppendNumbers(self.0))?.is_some() {}
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

    fn parse_body(body: &[u8], header: Option<usize>) -> Result<InferRequest> {
        let (input, output) = tensors();
        parse(body, header, &input, &output)
    }

    #[test]
    fn nested_and_flat_data_are_the_same() {
        let flat = br#"{"id":"a",
            "inputs":[{"name":"pixels","shape":[1,3,1,2],"datatype":"FP32","data":[1,2,3,4,5,6.5]}]}"#;
        let nested = br#"{"id":"a",
            "inputs":[{"name":"pixels","shape":[1,3,1,2],"datatype":"FP32",
            "data":[[[[1,2]],[[3,4]],[[5,6.5]]]]}]}"#;
        let read = parse_body(flat, None).unwrap();
        assert_eq!(read.values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.5]);
        assert_eq!(read, parse_body(nested, None).unwrap());
        let none = br#"{"inputs":[{"name":"pixels","shape":[0,3,1,2],"datatype":"FP32","data":[]}]}"#;
        assert_eq!(parse_body(none, None).unwrap().rows, 0);
    }

    #[test]
    fn binary_data_is_parsed_and_encoded() {
        let json = br#"{"parameters":{"binary_data_output":true},
            "inputs":[{"name":"pixels","shape":[1,3,1,2],"datatype":"FP32",
            "parameters":{"binary_data_size":24}}]}"#;
        let numbers = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let body = [&json[..], &numbers.map(f32::to_le_bytes).concat()].concat();
        let read = parse_body(&body, Some(json.len())).unwrap();
        assert_eq!((&read.values[..], read.binary), (&numbers[..], true));
        let (response, length) = encode(("pets", "v1"), &read, &tensors().1, &[0.25, 0.75]);
        let (json, bytes) = response.split_at(length.unwrap());
        let json: Value = serde_json::from_slice(json).unwrap();
        assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 8);
        assert_eq!(bytes, [0.25_f32.to_le_bytes(), 0.75_f32.to_le_bytes()].concat());
        for header in [json.to_string().len() + 100_000, usize::MAX, 0, 5] {
            assert!(parse_body(&body, Some(header)).is_err(), "{header}");
        }
        assert!(parse_body(&body[..body.len() - 1], Some(body.len() - 24)).is_err());
        let nan = [&body[..body.len() - 4], &f32::NAN.to_le_bytes()].concat();
        assert_eq!(
            parse_body(&nan, Some(body.len() - 24)).unwrap_err().to_string(),
            "`pixels` contains NaN or infinity"
        );
    }

    #[test]
    fn mismatched_shapes_types_and_values_are_rejected() {
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
            assert!(parse_body(body.as_bytes(), None).is_err(), "{body}");
        }
        let deep = format!(
            r#"{{"inputs":[{{"name":"pixels","shape":[1,3,1,2],"datatype":"FP32","data":{}"#,
            "[".repeat(100_000)
        );
        assert!(parse_body(deep.as_bytes(), None).is_err());
        for id in ["", "a b", "a\\nb", &"x".repeat(129)] {
            let body = format!(r#"{{"id":"{id}","inputs":[]}}"#);
            assert!(parse_body(body.as_bytes(), None).is_err(), "{id}");
        }
    }

    #[test]
    fn long_lists_are_rejected_and_unknown_fields_skipped() {
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
        for accepted in [
            body(&good, &large),
            body(&tensor("[1,3,1,2]", &large), ""),
            body(&good, &outputs(8)),
            body(&good, r#","parameters":{"binary_data_output":null}"#),
        ] {
            assert_eq!(parse_body(accepted.as_bytes(), None).unwrap().rows, 1);
        }
        let long = |item: &str, count: usize| vec![item; count].join(",");
        for (rejected, reason) in [
            (body(&long(&good, 2), ""), "at most 1"),
            (body(&format!("{good},{{"), ""), "at most 1"),
            (body(&good, &outputs(9)), "at most 8"),
            (body(&tensor(&format!("[{}]", long("1", 10_000)), ""), ""), "at most 8"),
            (body(&tensor(&format!("[{}]", long("1", 1_000_000)), ""), ""), "at most 8"),
            (body(&tensor("[1,1,1,1,1,1,1,1]", ""), ""), "does not match"),
            (body("", ""), "has no input"),
            (format!(r#"{{"inputs":"{}"}}"#, "x".repeat(1_000_000)), "invalid type"),
            (body(&good, r#","parameters":{"binary_data_output":7}"#), "invalid type"),
        ] {
            let text = parse_body(rejected.as_bytes(), None).unwrap_err().chain_text();
            assert!(text.contains(reason) && text.len() < 300, "{reason}: {text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300),
            header in prop::option::of(0_usize..400)) {
            let _result = parse_body(&bytes, header);
        }
    }
}
