//! `mlx`: Git-native versioning of data and models, pipelines between them, and their way to production.
//!
//! # How to read this crate
//!
//! The list below is the architecture. Modules are grouped in layers, separated by blank lines, and listed
//! from the ground up, which is also the order to read them in. **A module imports only from groups above its
//! own**, never from its own group or from one below. `tests/tidy.rs` reads this list and fails when the code
//! disagrees.

// The error type of the crate.
pub mod error;

// Plain values: digests, repository paths, progress events, time.
pub mod digest;
pub mod path;
pub mod progress;
pub mod time;

// Serialization: documents that people write, and binary records.
pub mod document;
pub mod wire;

// The file system. The only module that may use `std::fs`.
pub mod fs;

// Pointer files, which stand in Git for stored content.
pub mod pointer;

// Git history and the content-addressed store.
pub mod git;
pub mod store;

// The repository: discovery and configuration.
pub mod repo;

// The audit chain: events that no commit tells, each a commit on a ref of its own.
pub mod ledger;

// Remotes: upload and download of objects. Owns the async runtime and offers plain functions.
pub mod remote;

// The workspace: add, status, checkout, and the stat cache.
pub mod workspace;

// Pipelines: stages, their lockfile and the run cache.
pub mod pipeline;

// Metrics and parameters, and how versions differ.
pub mod metrics;

// Recorded requests and labels of served models.
pub mod traffic;

// Models: split, features, train, evaluate, package, register.
pub mod model;

// The policy: gates of an environment, approvers, alert rules.
pub mod policy;

// Releases: approvals and releases as tags.
pub mod release;

// Alerts: rules that a day breaks, and their delivery.
pub mod alert;

// Serving over HTTP, and the application test.
pub mod deploy;

// Monitoring: reports on a day of traffic.
pub mod monitor;

// Reports on history: who did what, and how a result was produced.
pub mod audit;
pub mod lineage;

// Maintenance of the store: gc, fsck, disk usage.
pub mod maintenance;

// Photos for the demo, drawn from a seed.
pub mod demo_data;

// The command line. The only module that prints and exits.
pub mod cli;
