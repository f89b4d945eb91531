//! Root of all integration tests: they form one binary, which links once. The `mod` lines list the test
//! suites and the code they share.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up should panic")]
#![expect(clippy::disallowed_methods, reason = "tests write files as users do")]

mod fake_s3;
mod halting;
mod loop_mount;
mod sandbox;
mod serve;

mod apptest;
mod audit_tampering;
mod base;
mod checkout;
mod cli;
mod concurrency;
mod corruption;
mod crash_safety;
mod daily_use;
mod explain;
mod failing_disk;
mod follow;
mod format_compat;
mod fsck;
mod gc;
mod gc_halted;
mod gc_roots;
mod git_layouts;
mod gone_stages;
mod halted;
mod help;
mod http_malformed;
mod interrupted_push;
mod io_counts;
mod laws;
mod lineage;
mod log;
mod maintenance;
mod malicious_repo;
mod malicious_settings;
mod model;
mod monitor;
mod month;
mod mounts;
mod multi_user;
mod not_run;
mod out_of_git;
mod output;
mod overload;
mod pipelines;
mod pointer_files;
mod release;
mod release_rules;
mod remote;
mod remote_failures;
mod remote_repair;
mod repro;
mod restore;
mod retrain;
mod run_records;
mod s3;
mod settings;
mod shared_cache;
mod signals;
mod sparse;
mod stage_commands;
mod stage_inputs;
mod stage_links;
mod staging;
mod tidy;
mod tracked_files;
mod traffic;
mod unusual_files;
mod values;
mod watch;
mod workspace;
