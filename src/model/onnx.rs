//! The ONNX protobuf schema, as far as reading, editing and writing models requires.
//!
//! Messages that are only passed through are kept as bytes; unknown fields are dropped. Models whose tensors
//! are stored outside their file are rejected by [`check`].

use prost::Message;

use crate::error::{Error, Kind, Result};

/// `TensorProto.DataType.FLOAT`
pub const FLOAT: i32 = 1;
/// `TensorProto.DataLocation.EXTERNAL`
const EXTERNAL: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub struct Model {
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub producer_name: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub producer_version: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub domain: Option<String>,
    #[prost(int64, optional, tag = "5")]
    pub model_version: Option<i64>,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    #[prost(message, repeated, tag = "14")]
    pub metadata: Vec<Property>,
    #[prost(bytes = "vec", repeated, tag = "25")]
    pub functions: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct OperatorSet {
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Property {
    #[prost(string, optional, tag = "1")]
    pub key: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<Value>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<Value>,
    #[prost(message, repeated, tag = "13")]
    pub value_info: Vec<Value>,
    #[prost(bytes = "vec", repeated, tag = "15")]
    pub sparse_initializer: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Node {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
    #[prost(string, optional, tag = "7")]
    pub domain: Option<String>,
    #[prost(string, optional, tag = "8")]
    pub overload: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub s: Option<Vec<u8>>,
    #[prost(message, optional, tag = "5")]
    pub t: Option<Tensor>,
    #[prost(message, optional, tag = "6")]
    pub g: Option<Graph>,
    #[prost(float, repeated, packed = "false", tag = "7")]
    pub floats: Vec<f32>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub strings: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "10")]
    pub tensors: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<Graph>,
    #[prost(bytes = "vec", optional, tag = "14")]
    pub tp: Option<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "15")]
    pub type_protos: Vec<Vec<u8>>,
    #[prost(int32, optional, tag = "20")]
    pub r#type: Option<i32>,
    #[prost(string, optional, tag = "21")]
    pub ref_attr_name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "22")]
    pub sparse_tensor: Option<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "23")]
    pub sparse_tensors: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Tensor {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub string_data: Vec<Vec<u8>>,
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "9")]
    pub raw_data: Option<Vec<u8>>,
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
    #[prost(uint64, repeated, tag = "11")]
    pub uint64_data: Vec<u64>,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<Property>,
    #[prost(int32, optional, tag = "14")]
    pub data_location: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Value {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<Type>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Type {
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TensorType>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub sequence: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "5")]
    pub map: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorType {
    #[prost(int32, optional, tag = "1")]
    pub element: Option<i32>,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Shape {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Dimension {
    #[prost(int64, optional, tag = "1")]
    pub value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub parameter: Option<String>,
}

impl Tensor {
    /// Creates a float tensor; the product of `dims` must be the number of values.
    pub fn floats(name: &str, dims: &[usize], values: &[f32]) -> Self {
        debug_assert_eq!(dims.iter().product::<usize>(), values.len());
        Self {
            name: Some(name.to_owned()),
            dims: dims.iter().map(|&it| it as i64).collect(),
            data_type: Some(FLOAT),
            raw_data: Some(values.iter().flat_map(|it| it.to_le_bytes()).collect()),
            ..Self::default()
        }
    }
}

impl Value {
    /// Describes a float tensor; a dimension is a fixed size, or a name for any size.
    pub fn floats(name: &str, dims: &[Result<usize, &str>]) -> Self {
        let dim = |size: &Result<usize, &str>| match size {
            Ok(value) => Dimension { value: Some(*value as i64), parameter: None },
            Err(name) => Dimension { value: None, parameter: Some((*name).to_owned()) },
        };
        let shape = Shape { dim: dims.iter().map(dim).collect() };
        let tensor = TensorType { element: Some(FLOAT), shape: Some(shape) };
        Self {
            name: Some(name.to_owned()),
            r#type: Some(Type { tensor: Some(tensor), sequence: None, map: None }),
        }
    }
}

impl Node {
    pub fn new(operator: &str, inputs: &[&str], output: &str, attribute: Vec<Attribute>) -> Self {
        Self {
            input: inputs.iter().map(|it| (*it).to_owned()).collect(),
            output: vec![output.to_owned()],
            name: Some(format!("{operator}/{output}")),
            op_type: Some(operator.to_owned()),
            attribute,
            ..Self::default()
        }
    }
}

impl Attribute {
    pub fn int(name: &str, value: i64) -> Self {
        Self { name: Some(name.to_owned()), i: Some(value), r#type: Some(2), ..Self::default() }
    }

    pub fn ints(name: &str, values: &[i64]) -> Self {
        Self { name: Some(name.to_owned()), ints: values.to_vec(), r#type: Some(7), ..Self::default() }
    }
}

/// Parses an ONNX file. A file without a graph is an error.
pub fn parse(bytes: &[u8]) -> Result<Model> {
    let model =
        Model::decode(bytes).map_err(|error| Error::corrupt(format!("it is not an ONNX file: {error}")))?;
    if model.graph.as_ref().is_none_or(|it| it.node.is_empty()) {
        return Err(Error::corrupt("it is not an ONNX file: it has no graph"));
    }
    Ok(model)
}

/// Rejects models with external data, that is, tensors stored in other files, anywhere in the graph or its
/// subgraphs. Otherwise loading a model could read any file of this machine.
pub fn check(bytes: &[u8]) -> Result<()> {
    parse(bytes)?.graph.as_ref().map_or(Ok(()), check_graph)
}

fn check_graph(graph: &Graph) -> Result<()> {
    graph.initializer.iter().try_for_each(check_tensor)?;
    if !graph.sparse_initializer.is_empty() {
        return Err(external_data("a sparse tensor"));
    }
    for attribute in graph.node.iter().flat_map(|it| &it.attribute) {
        attribute.t.iter().chain(&attribute.tensors).try_for_each(check_tensor)?;
        attribute.g.iter().chain(&attribute.graphs).try_for_each(check_graph)?;
        if attribute.sparse_tensor.is_some() || !attribute.sparse_tensors.is_empty() {
            return Err(external_data("a sparse tensor"));
        }
    }
    Ok(())
}

fn check_tensor(tensor: &Tensor) -> Result<()> {
    if tensor.external_data.is_empty() && tensor.data_location != Some(EXTERNAL) {
        return Ok(());
    }
    Err(external_data(&tensor.name.as_ref().map_or("a tensor".to_owned(), |name| format!("`{name}`"))))
}

fn external_data(tensor: &str) -> Error {
    Error::new(Kind::Denied, format!("the model stores {tensor} outside its file"))
        .hint("export it as one file, without external data")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(tensor: Tensor) -> Vec<u8> {
        let inner = Graph { initializer: vec![tensor], ..Graph::default() };
        let branch = Attribute { g: Some(inner), ..Attribute::default() };
        let graph = Graph { node: vec![Node::new("If", &["x"], "y", vec![branch])], ..Graph::default() };
        Model { graph: Some(graph), ..Model::default() }.encode_to_vec()
    }

    #[test]
    fn external_data_is_rejected_anywhere_in_the_graph() {
        let plain = Tensor::floats("w", &[1], &[1.0]);
        assert!(check(&model(plain.clone())).is_ok());
        let key = Property { key: Some("location".into()), value: Some("/etc/passwd".into()) };
        let listed = Tensor { external_data: vec![key], ..plain.clone() };
        let marked = Tensor { data_location: Some(EXTERNAL), ..plain };
        for tensor in [listed, marked] {
            assert_eq!(check(&model(tensor)).unwrap_err().kind(), Kind::Denied);
        }
    }

    #[test]
    fn bytes_that_are_not_a_model_are_an_error() {
        for bytes in [&b""[..], b"hello world", &[0xff; 40]] {
            assert_eq!(check(bytes).unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
