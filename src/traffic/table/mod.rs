//! Records and telemetry samples as Parquet files, readable by Arrow, pandas and mlx.
//!
//! The same rows give the same bytes. Input is untrusted: reading returns rows or an error, never panics, and
//! never needs much more memory than the file has bytes (see [`columns`]).

mod columns;
mod requests;
mod telemetry;

pub use self::{
    requests::{read as read_requests, write as write_requests},
    telemetry::{read as read_telemetry, write as write_telemetry},
};
