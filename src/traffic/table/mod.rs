//! Records and samples as Parquet, for whoever reads it: Arrow, pandas, us.
//!
//! The same rows give the same bytes. What is read may come from strangers: it is an error or rows, never
//! a panic, and never takes much more memory than the file has bytes (see [`columns`]).

mod columns;
mod requests;
mod telemetry;

pub use self::{
    requests::{read as read_requests, write as write_requests},
    telemetry::{read as read_telemetry, write as write_telemetry},
};
