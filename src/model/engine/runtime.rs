//! ONNX Runtime as an inference engine, from a shared library that is loaded at run time.

use std::sync::Mutex;

use ort::{environment::Environment, session::Session, value::TensorRef};

use crate::{
    error::{Error, Kind, Result},
    model::engine::{Engine, Library},
};

pub struct OnnxRuntime {
    session: Session,
    input: String,
    output: String,
    id: String,
}

/// Returns the engine's name and version, as feature tables store them.
pub fn id(library: &Library) -> String {
    format!("onnxruntime {}", library.version)
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Internal, format!("{what}: {error}"))
}

/// Returns the library's environment. It is created once per process, because a library is loaded only once.
fn environment(library: &Library) -> Result<Environment> {
    static STARTED: Mutex<Option<Environment>> = Mutex::new(None);
    let mut started = STARTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(environment) = &*started {
        return Ok(environment.clone());
    }
    let wrap =
        |error: &dyn std::fmt::Display| failed(&format!("cannot load `{}`", library.path.display()), error);
    let builder = ort::init_from(&library.path).map_err(|it| wrap(&it))?;
    let environment = builder.with_telemetry(false).build().map_err(|it| wrap(&it))?;
    *started = Some(environment.clone());
    Ok(environment)
}

impl OnnxRuntime {
    pub fn load(library: &Library, bytes: &[u8], input: &str, output: &str) -> Result<Self> {
        let environment = environment(library)?;
        let session =
            Session::builder(&environment).and_then(|mut builder| builder.commit_from_memory(bytes));
        let session = session.map_err(|it| failed("ONNX Runtime cannot read the model", &it))?;
        let require = |what: &str, known: Vec<&str>, name: &str| {
            if known.contains(&name) {
                return Ok(());
            }
            let error =
                Error::not_found(format!("the model has no {what} `{name}`; it has {}", known.join(", ")));
            Err(error.hint("set `backbone.input` and `backbone.output` in `params.toml`"))
        };
        require("input", session.inputs().iter().map(ort::value::Outlet::name).collect(), input)?;
        require("output", session.outputs().iter().map(ort::value::Outlet::name).collect(), output)?;
        Ok(Self { session, input: input.to_owned(), output: output.to_owned(), id: id(library) })
    }
}

impl Engine for OnnxRuntime {
    fn run(&mut self, planes: &[f32], side: usize) -> Result<Vec<f32>> {
        let count = planes.len() / (3 * side * side);
        let view = TensorRef::from_array_view(([count, 3, side, side], planes))
            .map_err(|it| failed("the input is invalid", &it))?;
        let outputs = self.session.run(ort::inputs![self.input.as_str() => view]);
        let outputs = outputs.map_err(|it| failed("the model cannot be run", &it))?;
        let (_, values) = outputs[self.output.as_str()]
            .try_extract_tensor::<f32>()
            .map_err(|it| failed("the model's output is not an N×D float tensor", &it))?;
        Ok(values.to_vec())
    }

    fn id(&self) -> String {
        self.id.clone()
    }
}
