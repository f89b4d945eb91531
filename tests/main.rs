//! One binary for every integration test: it links once, and the `mod` lines are the table of contents.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up should panic")]
#![expect(clippy::disallowed_methods, reason = "tests are the user: they write files as users do")]

mod sandbox;
mod serve;

mod apptest;
mod cli;
mod damage;
mod disk;
mod explain;
mod faults;
mod files;
mod follow;
mod fsck;
mod gc;
mod hostile;
mod model;
mod monitor;
mod month;
mod odd;
mod overload;
mod record;
mod release;
mod remote;
mod repro;
mod retrain;
mod s3;
mod signals;
mod strangers;
mod tidy;
mod traffic;
mod watch;
mod workspace;
