//! Root of all integration tests: they form one binary, which links once. The `mod` lines list the test
//! suites and the code they share.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up should panic")]
#![expect(clippy::disallowed_methods, reason = "tests write files as users do")]

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
