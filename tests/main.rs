//! One binary for every integration test: it links once, and the `mod` lines are the table of contents.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up should panic")]
#![expect(clippy::disallowed_methods, reason = "tests are the user: they write files as users do")]

mod image;
mod sandbox;
mod serve;

mod apptest;
mod cli;
mod cost;
mod damage;
mod disk;
mod enemies;
mod explain;
mod faults;
mod files;
mod follow;
mod fsck;
mod gc;
mod habits;
mod hostile;
mod model;
mod monitor;
mod month;
mod mounts;
mod odd;
mod overload;
mod premises;
mod record;
mod release;
mod remote;
mod repro;
mod retrain;
mod roots;
mod s3;
mod shared;
mod signals;
mod strangers;
mod tidy;
mod together;
mod traffic;
mod upkeep;
mod users;
mod versions;
mod watch;
mod workspace;
