//! The embedded engine, `rten`: pure Rust, slower than ONNX Runtime, always there.

use rten::{Model, NodeId};
use rten_tensor::{AsView as _, NdTensor, NdTensorView};

use crate::{
    error::{Error, Kind, Result},
    model::engine::Engine,
};

pub struct Builtin {
    model: Model,
    input: NodeId,
    output: NodeId,
}

/// Raised when another version of the engine is built in.
pub fn id() -> String {
    "rten 0.27".to_owned()
}

fn wrong(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Corrupt, format!("{what}: {error}"))
}

impl Builtin {
    pub fn load(bytes: &[u8], input: &str, output: &str) -> Result<Self> {
        let model = Model::load(bytes.to_vec()).map_err(|it| wrong("the network cannot be read", &it))?;
        let node = |name: &str| {
            let missing = Error::not_found(format!("the network has no `{name}`"));
            model
                .find_node(name)
                .ok_or_else(|| missing.hint("set backbone.input and backbone.output in params.toml"))
        };
        let (input, output) = (node(input)?, node(output)?);
        Ok(Self { model, input, output })
    }
}

impl Engine for Builtin {
    fn run(&mut self, planes: &[f32], side: usize) -> Result<Vec<f32>> {
        let count = planes.len() / (3 * side * side);
        let view = NdTensorView::from_data([count, 3, side, side], planes);
        let outputs = self.model.run(vec![(self.input, view.into())], &[self.output], None);
        let mut outputs = outputs.map_err(|it| wrong("the network cannot be run", &it))?;
        let output: NdTensor<f32, 2> = outputs
            .remove(0)
            .try_into()
            .map_err(|it| wrong("the network's output is not N×D numbers", &it))?;
        Ok(output.to_vec())
    }

    fn id(&self) -> String {
        id()
    }
}
