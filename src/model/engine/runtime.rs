//! ONNX Runtime, found on this machine and loaded while running.

use std::sync::Mutex;

use ort::{environment::Environment, session::Session, value::TensorRef};

use crate::{
    error::{Error, Kind, Result},
    model::engine::{Engine, Library},
};

pub struct Runtime {
    session: Session,
    input: String,
    output: String,
    id: String,
}

/// The name of the engine in feature tables.
pub fn id(library: &Library) -> String {
    format!("onnxruntime {}", library.version)
}

fn wrong(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Internal, format!("{what}: {error}"))
}

/// The library's environment: made once in a process, since a library is loaded once.
fn environment(library: &Library) -> Result<Environment> {
    static STARTED: Mutex<Option<Environment>> = Mutex::new(None);
    let mut started = STARTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(environment) = &*started {
        return Ok(environment.clone());
    }
    let failed = |it: &dyn std::fmt::Display| wrong(&format!("cannot load `{}`", library.path.display()), it);
    let builder = ort::init_from(&library.path).map_err(|it| failed(&it))?;
    let environment = builder.with_telemetry(false).build().map_err(|it| failed(&it))?;
    *started = Some(environment.clone());
    Ok(environment)
}

impl Runtime {
    pub fn load(library: &Library, bytes: &[u8], input: &str, output: &str) -> Result<Self> {
        let environment = environment(library)?;
        let session = Session::builder(&environment).and_then(|mut it| it.commit_from_memory(bytes));
        let session = session.map_err(|it| wrong("ONNX Runtime cannot read the network", &it))?;
        let names = |what: &str, known: Vec<&str>, name: &str| {
            if known.contains(&name) {
                return Ok(());
            }
            let error =
                Error::not_found(format!("the network has no {what} `{name}`; it has {}", known.join(", ")));
            Err(error.hint("set backbone.input and backbone.output in params.toml"))
        };
        names("input", session.inputs().iter().map(ort::value::Outlet::name).collect(), input)?;
        names("output", session.outputs().iter().map(ort::value::Outlet::name).collect(), output)?;
        Ok(Self { session, input: input.to_owned(), output: output.to_owned(), id: id(library) })
    }
}

impl Engine for Runtime {
    fn run(&mut self, planes: &[f32], side: usize) -> Result<Vec<f32>> {
        let count = planes.len() / (3 * side * side);
        let view = TensorRef::from_array_view(([count, 3, side, side], planes))
            .map_err(|it| wrong("bad input", &it))?;
        let outputs = self.session.run(ort::inputs![self.input.as_str() => view]);
        let outputs = outputs.map_err(|it| wrong("the network cannot be run", &it))?;
        let (_, values) = outputs[self.output.as_str()]
            .try_extract_tensor::<f32>()
            .map_err(|it| wrong("the network's output is not N×D numbers", &it))?;
        Ok(values.to_vec())
    }

    fn id(&self) -> String {
        self.id.clone()
    }
}
