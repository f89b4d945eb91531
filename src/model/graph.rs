//! Builds and edits ONNX graphs: normalization in front of a backbone, a linear classifier head behind it.
//!
//! Models built here take pixels (float red, green and blue planes, N×3×H×W, 0–255) and return features, or
//! probabilities, or both. Names that start with `mlx_` are reserved for the nodes added here.

use std::collections::BTreeSet;

use prost::Message as _;

use crate::{
    error::{Error, Result},
    model::{
        onnx::{self, Attribute, Graph, Model, Node, OperatorSet, Tensor, Value},
        settings::Backbone,
        softmax::Head,
    },
};

/// Input of the models built here: red, green and blue planes, N×3×H×W, 0–255.
pub const INPUT: &str = "pixels";
/// Output with the backbone's features, N×D.
pub const FEATURES: &str = "mlx_features";
/// Output with the probabilities: one row per image, one column per class.
pub const OUTPUT: &str = "probabilities";
/// Output with the probabilities, followed by the features.
pub const COMBINED: &str = "mlx_shown";
/// Start of the names that are reserved for nodes and tensors added here.
const PREFIX: &str = "mlx_";
/// IR version and operator set of models built here.
const IR_AND_OPSET: (i64, i64) = (8, 13);

/// Makes a backbone take raw pixels: puts `(pixel − mean) / scale` in front of it and removes everything that
/// its output does not need. Its output becomes [`FEATURES`].
pub fn with_normalization(backbone: &[u8], settings: &Backbone) -> Result<Model> {
    onnx::check(backbone)?;
    let mut model = onnx::parse(backbone)?;
    let versions = model.opset_import.iter().filter(|it| it.domain.as_deref().unwrap_or_default().is_empty());
    if versions.filter_map(|it| it.version).max().unwrap_or(1) < 7 {
        return Err(Error::usage("the backbone uses operators older than ONNX 1.2")
            .hint("export it with opset 13 or newer"));
    }
    let graph = model.graph.as_mut().expect("a parsed model has a graph");
    let side = settings.crop as usize;
    let known = |list: &[Value]| list.iter().filter_map(|it| it.name.clone()).collect::<Vec<_>>();
    if !known(&graph.input).contains(&settings.input) {
        return Err(missing_tensor("input", &settings.input, &known(&graph.input)));
    }
    if !graph.node.iter().any(|it| it.output.contains(&settings.output)) {
        return Err(missing_tensor("output", &settings.output, &known(&graph.output)));
    }
    if uses_reserved_names(graph) {
        return Err(Error::usage(
            "the backbone uses a reserved name: `pixels`, `probabilities` or a name that starts with `mlx_`",
        ));
    }
    let mut nodes = vec![
        Node::new("Sub", &[INPUT, "mlx_mean"], "mlx_centered", Vec::new()),
        Node::new("Div", &["mlx_centered", "mlx_scale"], &settings.input, Vec::new()),
    ];
    nodes.append(&mut graph.node);
    nodes.push(Node::new("Flatten", &[&settings.output], FEATURES, vec![Attribute::int("axis", 1)]));
    graph.node = nodes;
    graph.initializer.push(Tensor::floats("mlx_mean", &[1, 3, 1, 1], &settings.mean));
    graph.initializer.push(Tensor::floats("mlx_scale", &[1, 3, 1, 1], &settings.scale));
    let with_default =
        |input: &&Value| graph.initializer.iter().any(|initializer| initializer.name == input.name);
    let others = graph.input.iter().filter(with_default).cloned();
    graph.input = [input(side)].into_iter().chain(others).collect();
    graph.output = vec![Value::floats(FEATURES, &[Err("batch"), Err("features")])];
    prune(graph);
    Ok(model)
}

fn missing_tensor(what: &str, name: &str, known: &[String]) -> Error {
    let error = Error::not_found(format!("the backbone has no {what} `{name}`; it has {}", known.join(", ")));
    error.hint(format!("set `backbone.{what}` in `params.toml`"))
}

fn uses_reserved_names(graph: &Graph) -> bool {
    let names = graph.node.iter().flat_map(|it| it.input.iter().chain(&it.output));
    names.into_iter().any(|it| it.starts_with(PREFIX) || it == INPUT || it == OUTPUT)
}

fn input(side: usize) -> Value {
    Value::floats(INPUT, &[Err("batch"), Ok(3), Ok(side), Ok(side)])
}

/// Removes the nodes, initializers and inputs that no output needs.
fn prune(graph: &mut Graph) {
    let mut needed: BTreeSet<String> = graph.output.iter().filter_map(|it| it.name.clone()).collect();
    let mut kept = Vec::new();
    // ONNX requires nodes to be in topological order.
    for node in graph.node.drain(..).rev() {
        if node.output.iter().any(|it| needed.contains(it)) {
            needed.extend(node.input.iter().cloned());
            let subgraphs = node.attribute.iter().filter_map(|attribute| attribute.g.as_ref());
            subgraphs.for_each(|subgraph| add_used_names(subgraph, &mut needed));
            kept.push(node);
        }
    }
    kept.reverse();
    graph.node = kept;
    graph.initializer.retain(|tensor| tensor.name.as_ref().is_some_and(|name| needed.contains(name)));
    graph
        .input
        .retain(|input| input.name.as_ref().is_some_and(|name| name == INPUT || needed.contains(name)));
    graph.value_info.clear();
}

/// Adds all names that a subgraph uses: a branch may use names of the surrounding graph.
fn add_used_names(graph: &Graph, needed: &mut BTreeSet<String>) {
    for node in &graph.node {
        needed.extend(node.input.iter().cloned());
        let subgraphs = node.attribute.iter().filter_map(|attribute| attribute.g.as_ref());
        subgraphs.for_each(|subgraph| add_used_names(subgraph, needed));
    }
    needed.extend(graph.output.iter().filter_map(|it| it.name.clone()));
}

/// Appends a classifier head to a backbone: pixels in, probabilities out. The scaling of the features is
/// folded into the head's weights.
pub fn with_head(mut model: Model, head: &Head) -> Result<Model> {
    let graph = model.graph.as_mut().ok_or_else(|| Error::corrupt("the model has no graph"))?;
    let (classes, width) = (head.classes.len(), head.mean.len());
    let mut weights = vec![0.0_f32; classes * width];
    let mut bias = vec![0.0_f32; classes];
    for class in 0..classes {
        let mut shift = head.bias[class];
        for feature in 0..width {
            let weight = head.weights[class * width + feature] / head.scale[feature];
            shift -= weight * head.mean[feature];
            weights[class * width + feature] = weight as f32;
        }
        bias[class] = shift as f32;
    }
    graph.initializer.push(Tensor::floats("mlx_weights", &[classes, width], &weights));
    graph.initializer.push(Tensor::floats("mlx_bias", &[classes], &bias));
    let gemm = Node::new(
        "Gemm",
        &[FEATURES, "mlx_weights", "mlx_bias"],
        "mlx_scores",
        vec![Attribute::int("transB", 1)],
    );
    graph.node.push(gemm);
    graph.node.push(Node::new("Softmax", &["mlx_scores"], OUTPUT, vec![Attribute::int("axis", 1)]));
    graph.output = vec![Value::floats(OUTPUT, &[Err("batch"), Ok(classes)])];
    model.producer_name = Some("mlx".to_owned());
    model.producer_version = Some(env!("CARGO_PKG_VERSION").to_owned());
    Ok(model)
}

/// Makes a packaged model return one output, [`COMBINED`]: its probabilities, followed by the features they
/// were computed from. A model that was not built by mlx returns its probabilities alone.
pub fn with_features(mut model: Model) -> Model {
    let Some(graph) = model.graph.as_mut() else { return model };
    let has_output =
        |name: &str| graph.node.iter().any(|node| node.output.iter().any(|output| output == name));
    let parts: &[&str] = if has_output(FEATURES) { &[OUTPUT, FEATURES] } else { &[OUTPUT] };
    graph.node.push(Node::new("Concat", parts, COMBINED, vec![Attribute::int("axis", 1)]));
    graph.output = vec![Value::floats(COMBINED, &[Err("batch"), Err("both")])];
    model
}

/// Builds a feature extractor from nodes and tensors: pixels in, features out.
pub fn from_nodes(nodes: Vec<Node>, initializer: Vec<Tensor>, side: usize) -> Model {
    let graph = Graph {
        node: nodes,
        name: Some("mlx".to_owned()),
        initializer,
        input: vec![input(side)],
        output: vec![Value::floats(FEATURES, &[Err("batch"), Err("features")])],
        ..Graph::default()
    };
    Model {
        ir_version: Some(IR_AND_OPSET.0),
        producer_name: Some("mlx".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        graph: Some(graph),
        opset_import: vec![OperatorSet { domain: Some(String::new()), version: Some(IR_AND_OPSET.1) }],
        ..Model::default()
    }
}

/// Encodes a model as the bytes of an ONNX file.
pub fn encode(model: &Model) -> Vec<u8> {
    model.encode_to_vec()
}
