//! Tensors of the Open Inference Protocol V2 (REST) and its binary extension, read and written.
//!
//! Everything here takes bytes from strangers: counts are checked before anything is set aside for them.

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, SeqAccess, Visitor},
};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The one datatype that networks here take and give.
pub const DATATYPE: &str = "FP32";
/// The header that says where the JSON ends and bytes begin.
pub const JSON_LENGTH: &str = "inference-header-content-length";
/// An id from outside is no longer than this.
const LONGEST_ID: usize = 128;

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
    parameters: Map<String, Value>,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    shape: Vec<u64>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    data: Option<Flat>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

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
    let wrong = |message: String| Err(Error::usage(message));
    let (text, mut bytes) = match header {
        None => (body, &[][..]),
        Some(length) if length <= body.len() => body.split_at(length),
        Some(length) => {
            return wrong(format!("the header says {length} bytes of JSON, and the body has {}", body.len()));
        }
    };
    let read: Body = serde_json::from_slice(text)
        .map_err(|it| Error::usage(format!("the body is no inference request: {it}")))?;
    if let Some(id) = &read.id {
        check_id(id)?;
    }
    let [tensor] = &read.inputs[..] else {
        return wrong(format!(
            "there is one input, `{}`, and the request has {}",
            input.name,
            read.inputs.len()
        ));
    };
    if tensor.name != input.name {
        return wrong(format!("there is no input `{}`; it is called `{}`", short(&tensor.name), input.name));
    }
    if tensor.datatype != DATATYPE {
        return wrong(format!("`{}` is {DATATYPE}, not `{}`", input.name, short(&tensor.datatype)));
    }
    if let Some(unknown) = read.outputs.iter().find(|it| it.name != output.name) {
        return wrong(format!(
            "there is no output `{}`; it is called `{}`",
            short(&unknown.name),
            output.name
        ));
    }
    let (rows, count) = fits(&tensor.shape, input)?;
    let values = match (number(&tensor.parameters, "binary_data_size")?, &tensor.data) {
        (Some(size), None) => take(&mut bytes, size, count)?,
        (None, Some(Flat(values))) => values.clone(),
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
    let asked = |it: &Map<String, Value>, key: &str| it.get(key).and_then(Value::as_bool);
    let whole = asked(&read.parameters, "binary_data_output").unwrap_or(false);
    let binary = read.outputs.first().and_then(|it| asked(&it.parameters, "binary_data")).unwrap_or(whole);
    Ok(Request { id: read.id, rows, values, binary })
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

fn number(parameters: &Map<String, Value>, key: &str) -> Result<Option<usize>> {
    let Some(value) = parameters.get(key) else { return Ok(None) };
    let number = value.as_u64().and_then(|it| usize::try_from(it).ok());
    number.map(Some).ok_or_else(|| Error::usage(format!("`{key}` is no count of bytes")))
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
    text.chars().filter(|it| !it.is_control()).take(40).collect()
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

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), header in prop::option::of(0_usize..400)) {
            let _any = ask(&bytes, header);
        }
    }
}
