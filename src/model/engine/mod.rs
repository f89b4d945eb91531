//! What runs an ONNX network: ONNX Runtime where one is found, else the engine that is built in.

mod builtin;
mod locate;
mod runtime;

pub use self::locate::{Library, locate};

use crate::{
    error::{Doing, Result},
    model::onnx,
    repo::Repo,
};

/// A network, loaded.
pub trait Engine: Send {
    /// Runs one batch: `planes` is N×3×`side`×`side`; the named output, N×D, row by row.
    fn run(&mut self, planes: &[f32], side: usize) -> Result<Vec<f32>>;

    /// Its name and version, as feature tables carry them.
    fn id(&self) -> String;
}

/// Loads a network with the best engine at hand. External data is refused: everything is in `bytes`.
pub fn load(repo: &Repo, bytes: &[u8], input: &str, output: &str) -> Result<Box<dyn Engine>> {
    onnx::check(bytes)?;
    match locate(Some(repo))? {
        Some(library) => Ok(Box::new(runtime::Runtime::load(&library, bytes, input, output)?)),
        None => builtin(bytes, input, output),
    }
}

/// Loads a network with the engine that is built in.
pub fn builtin(bytes: &[u8], input: &str, output: &str) -> Result<Box<dyn Engine>> {
    let engine = builtin::Builtin::load(bytes, input, output);
    Ok(Box::new(engine.doing(|| "cannot load the network into the built-in engine".into())?))
}

/// The name and version of the engine that [`load`] would take.
pub fn id(repo: &Repo) -> Result<String> {
    Ok(locate(Some(repo))?.map_or_else(builtin::id, |it| runtime::id(&it)))
}
