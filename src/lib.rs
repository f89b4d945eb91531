//! `mlx`: Git-native versioning for data and models, and the pipelines between them.
//!
//! # How to read this crate
//!
//! The modules stand in the order of a byte's life, which is the order to read them in. The blank
//! lines are walls: **a module imports only from groups above its own**, never a neighbor, never
//! anything below. `tests/tidy.rs` reads this list and fails when the code disagrees, so this file
//! is the architecture.

// What can go wrong.
pub mod error;

// Plain values: names of bytes, places in a repository, progress, moments.
pub mod digest;
pub mod path;
pub mod progress;
pub mod time;

// How values are written down: loose documents of people, rows of bytes of machines.
pub mod document;
pub mod wire;

// The disk. The only module that may touch `std::fs`.
pub mod fs;

// What stands in Git for content.
pub mod pointer;

// What we keep: history and content.
pub mod git;
pub mod store;

// Where it is kept: discovery and configuration.
pub mod repo;

// The events that no commit tells, as commits of their own.
pub mod ledger;

// Content to other machines. Owns the one async runtime and shows plain functions.
pub mod remote;

// Content to the working tree.
pub mod workspace;

// Work that turns content into content.
pub mod pipeline;

// Numbers a run leaves behind, and how versions differ.
pub mod metrics;

// What a model was asked and answered.
pub mod traffic;

// A trained model as a thing: split, features, train, evaluate, package, register.
pub mod model;

// What a version must meet, and who may say so.
pub mod policy;

// Who may serve where: approvals and releases, as tags.
pub mod release;

// Findings that call somebody.
pub mod alert;

// A model in use: asked over HTTP, answering in batches.
pub mod deploy;

// A model watched.
pub mod monitor;

// Where a thing came from; who did what.
pub mod audit;
pub mod lineage;

// What must be kept, what may go, what is whole.
pub mod upkeep;

// The pet park's photos, drawn.
pub mod sketch;

// The command line. The only module that prints, and the only one that exits.
pub mod cli;
