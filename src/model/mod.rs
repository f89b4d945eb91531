//! Image classification models, from labeled images to a registered version.
//!
//! The steps, in order: assign images to the training or the test set ([`split`]), compute their features
//! with a frozen backbone ([`features`]), fit a linear classifier head ([`train`]), evaluate it
//! ([`evaluate`]), combine backbone and head into one ONNX file ([`package`]), and register the package under
//! a name and version number ([`registry`]). Each step is a command of its own, and a stage of the project
//! template.

pub mod engine;
pub mod evaluate;
pub mod explain;
pub mod features;
pub mod filters;
pub mod graph;
pub mod image_stats;
pub mod inference;
pub mod onnx;
pub mod package;
pub mod preprocess;
pub mod reference;
pub mod registry;
pub mod settings;
pub mod softmax;
pub mod split;
pub mod table;
pub mod train;
