//! Inference engines that run ONNX models: ONNX Runtime if it is installed, otherwise the built-in `rten`.

mod builtin;
mod locate;
mod runtime;

pub use self::locate::{Library, locate};

use crate::{
    error::{Result, WithContext},
    model::onnx,
    repo::Repo,
};

/// Model that is loaded into an inference engine.
pub trait Engine: Send {
    /// Runs one batch. `planes` is N×3×`side`×`side`; the result is the model's output, N×D, row by row.
    fn run(&mut self, planes: &[f32], side: usize) -> Result<Vec<f32>>;

    /// Returns the engine's name and version, as feature tables store them.
    fn id(&self) -> String;
}

/// Loads an ONNX model with the best available engine. Models with external data are rejected.
pub fn load(repo: &Repo, bytes: &[u8], input: &str, output: &str) -> Result<Box<dyn Engine>> {
    onnx::check(bytes)?;
    match locate(Some(repo))? {
        Some(library) => Ok(Box::new(runtime::OnnxRuntime::load(&library, bytes, input, output)?)),
        None => builtin(bytes, input, output),
    }
}

/// Loads an ONNX model with the built-in engine.
pub fn builtin(bytes: &[u8], input: &str, output: &str) -> Result<Box<dyn Engine>> {
    let engine = builtin::Builtin::load(bytes, input, output);
    Ok(Box::new(engine.context(|| "cannot load the model into the built-in engine".into())?))
}

/// Returns the name and version of the engine that [`load`] would use.
pub fn id(repo: &Repo) -> Result<String> {
    Ok(locate(Some(repo))?.map_or_else(builtin::id, |library| runtime::id(&library)))
}
