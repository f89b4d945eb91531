//! A trained model as a thing one can measure, pack and name.
//!
//! The order of a picture's life: it is put on a side ([`split`]), becomes numbers ([`features`]), teaches a
//! head ([`train`]) or examines it ([`evaluate`]); backbone and head become one file ([`package`]) with a name
//! and a number ([`registry`]). Each step is a command of its own, and a stage of the template.

pub mod engine;
pub mod evaluate;
pub mod explain;
pub mod features;
pub mod filters;
pub mod graph;
pub mod looks;
pub mod offline;
pub mod onnx;
pub mod package;
pub mod picture;
pub mod reference;
pub mod registry;
pub mod settings;
pub mod softmax;
pub mod split;
pub mod table;
pub mod train;
