//! Networks put together: normalization before a backbone, a linear head behind it, in one file.

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

/// The input of what we make: red, green and blue planes, N×3×H×W, 0–255.
pub const INPUT: &str = "pixels";
/// The backbone's features, N×D.
pub const FEATURES: &str = "mlx_features";
/// One row a picture, one column a class.
pub const OUTPUT: &str = "probabilities";
/// Probabilities and, behind them, features.
pub const BOTH: &str = "mlx_shown";
const PREFIX: &str = "mlx_";
/// IR and operator set of networks of our own.
const VERSIONS: (i64, i64) = (8, 13);

/// A backbone that takes pixels as they are: `(pixel − mean) / scale` stands before it, and nothing that
/// its output does not need is left.
pub fn normalized(backbone: &[u8], settings: &Backbone) -> Result<Model> {
    onnx::check(backbone)?;
    let mut model = onnx::parse(backbone)?;
    let versions = model.opset_import.iter().filter(|it| it.domain.as_deref().unwrap_or_default().is_empty());
    if versions.filter_map(|it| it.version).max().unwrap_or(1) < 7 {
        return Err(Error::usage("the backbone uses operators from before ONNX 1.2")
            .hint("export it with opset 13 or newer"));
    }
    let graph = model.graph.as_mut().expect("a network was parsed, so it has a graph");
    let side = settings.crop as usize;
    let known = |list: &[Value]| list.iter().filter_map(|it| it.name.clone()).collect::<Vec<_>>();
    if !known(&graph.input).contains(&settings.input) {
        return Err(lacks("input", &settings.input, &known(&graph.input)));
    }
    if !graph.node.iter().any(|it| it.output.contains(&settings.output)) {
        return Err(lacks("output", &settings.output, &known(&graph.output)));
    }
    if taken(graph) {
        return Err(Error::usage(
            "the backbone uses names that start with `mlx_`, or `pixels`, or `probabilities`",
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
    let others =
        graph.input.iter().filter(|it| graph.initializer.iter().any(|row| row.name == it.name)).cloned();
    graph.input = [input(side)].into_iter().chain(others).collect();
    graph.output = vec![Value::floats(FEATURES, &[Err("batch"), Err("features")])];
    prune(graph);
    Ok(model)
}

fn lacks(what: &str, name: &str, known: &[String]) -> Error {
    let error = Error::not_found(format!("the backbone has no {what} `{name}`; it has {}", known.join(", ")));
    error.hint(format!("set backbone.{what} in params.toml"))
}

fn taken(graph: &Graph) -> bool {
    let names = graph.node.iter().flat_map(|it| it.input.iter().chain(&it.output));
    names.into_iter().any(|it| it.starts_with(PREFIX) || it == INPUT || it == OUTPUT)
}

fn input(side: usize) -> Value {
    Value::floats(INPUT, &[Err("batch"), Ok(3), Ok(side), Ok(side)])
}

/// Leaves out what no output needs.
fn prune(graph: &mut Graph) {
    let mut needed: BTreeSet<String> = graph.output.iter().filter_map(|it| it.name.clone()).collect();
    let mut kept = Vec::new();
    // Nodes stand in an order in which each comes after those it needs.
    for node in graph.node.drain(..).rev() {
        if node.output.iter().any(|it| needed.contains(it)) {
            needed.extend(node.input.iter().cloned());
            node.attribute.iter().filter_map(|it| it.g.as_ref()).for_each(|it| outer_names(it, &mut needed));
            kept.push(node);
        }
    }
    kept.reverse();
    graph.node = kept;
    graph.initializer.retain(|it| it.name.as_ref().is_some_and(|it| needed.contains(it)));
    graph.input.retain(|it| it.name.as_ref().is_some_and(|it| it == INPUT || needed.contains(it)));
    graph.value_info.clear();
}

/// A branch may use names from around it.
fn outer_names(graph: &Graph, needed: &mut BTreeSet<String>) {
    for node in &graph.node {
        needed.extend(node.input.iter().cloned());
        node.attribute.iter().filter_map(|it| it.g.as_ref()).for_each(|it| outer_names(it, needed));
    }
    needed.extend(graph.output.iter().filter_map(|it| it.name.clone()));
}

/// A backbone with a head: pixels in, probabilities out. The scaling of the features is folded into it.
pub fn with_head(mut model: Model, head: &Head) -> Result<Model> {
    let graph = model.graph.as_mut().ok_or_else(|| Error::corrupt("a network without a graph"))?;
    let (classes, width) = (head.classes.len(), head.mean.len());
    let mut weights = vec![0.0_f32; classes * width];
    let mut bias = vec![0.0_f32; classes];
    for class in 0..classes {
        let mut shift = head.bias[class];
        for at in 0..width {
            let weight = head.weights[class * width + at] / head.scale[at];
            shift -= weight * head.mean[at];
            weights[class * width + at] = weight as f32;
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

/// A packaged network that shows in one output, [`BOTH`], its probabilities and, behind them, the features
/// they came from; a network that was not made here shows its probabilities alone.
pub fn with_features(mut model: Model) -> Model {
    let Some(graph) = model.graph.as_mut() else { return model };
    let makes = |name: &str| graph.node.iter().any(|it| it.output.iter().any(|it| it == name));
    let parts: &[&str] = if makes(FEATURES) { &[OUTPUT, FEATURES] } else { &[OUTPUT] };
    graph.node.push(Node::new("Concat", parts, BOTH, vec![Attribute::int("axis", 1)]));
    graph.output = vec![Value::floats(BOTH, &[Err("batch"), Err("both")])];
    model
}

/// A network of our own from nodes and tensors: pixels in, features out.
pub fn own(nodes: Vec<Node>, initializer: Vec<Tensor>, side: usize) -> Model {
    let graph = Graph {
        node: nodes,
        name: Some("mlx".to_owned()),
        initializer,
        input: vec![input(side)],
        output: vec![Value::floats(FEATURES, &[Err("batch"), Err("features")])],
        ..Graph::default()
    };
    Model {
        ir_version: Some(VERSIONS.0),
        producer_name: Some("mlx".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        graph: Some(graph),
        opset_import: vec![OperatorSet { domain: Some(String::new()), version: Some(VERSIONS.1) }],
        ..Model::default()
    }
}

/// The bytes of a network.
pub fn encode(model: &Model) -> Vec<u8> {
    model.encode_to_vec()
}
