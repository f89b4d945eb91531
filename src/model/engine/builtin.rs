//! The built-in inference engine, `rten`: pure Rust, slower than ONNX Runtime, but always available.

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

/// Returns the engine's name and version. To be updated together with the dependency.
pub fn id() -> String {
    "rten 0.27".to_owned()
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Corrupt, format!("{what}: {error}"))
}

impl Builtin {
    pub fn load(bytes: &[u8], input: &str, output: &str) -> Result<Self> {
        let model = Model::load(bytes.to_vec()).map_err(|it| failed("the model cannot be read", &it))?;
        let node = |name: &str| {
            let missing = Error::not_found(format!("the model has no input or output `{name}`"));
            model
                .find_node(name)
                .ok_or_else(|| missing.hint("set `backbone.input` and `backbone.output` in `params.toml`"))
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
        let mut outputs = outputs.map_err(|it| failed("the model cannot be run", &it))?;
        let output: NdTensor<f32, 2> = outputs
            .remove(0)
            .try_into()
            .map_err(|it| failed("the model's output is not an N×D float tensor", &it))?;
        Ok(output.to_vec())
    }

    fn id(&self) -> String {
        id()
    }
}
