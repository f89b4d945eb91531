//! Tests messages on remotes that fail: one sentence and a hint, in mlx's own words, for every backend.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    process::Stdio,
};

use rustix::fs::{FlockOperation, flock};

use crate::{s3, sandbox::Sandbox};

/// Words of libraries that no message may hold.
const FOREIGN: [&str; 7] =
    ["context:", "service_operation", "(persistent)", "(permanent)", "(temporary)", "reqsign", "S3Error"];

/// Runs a push that fails, and returns its message and its hint.
fn failed_push(sandbox: &Sandbox, code: i32, environment: &[(&str, &str)]) -> (String, String) {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    command.envs(environment.iter().copied()).env("AWS_EC2_METADATA_DISABLED", "true").args(["push"]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in FOREIGN {
        assert!(!text.contains(word), "{word}: {text}");
    }
    let lines: Vec<_> = text.lines().collect();
    let [message, hint] = lines[..] else { panic!("not a message and a hint: {text}") };
    (message.strip_prefix("error: ").unwrap().to_owned(), hint.strip_prefix("hint: ").unwrap().to_owned())
}

fn with_data() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("data", "1");
    sandbox.ok("add data");
    sandbox
}

/// Starts a service that gives the same answer to every request, and returns its address.
fn answer_all(status: &str, body: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            let _closed = stream.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}")
}

#[test]
fn each_cause_at_a_bucket_is_one_sentence_with_a_hint() {
    let sandbox = with_data();
    let server = s3::Server::start(&sandbox.root().join("s3"), "bucket");
    let endpoint = server.endpoint();
    let set = format!("--set endpoint={endpoint} --set region=us-east-1");
    sandbox.ok(&format!("remote add s3 s3://bucket/x --default {set}"));
    let place = format!("the remote `s3` at s3://bucket/x ({endpoint})");
    let (message, hint) = failed_push(&sandbox, 6, &[]);
    assert_eq!(message, format!("cannot read {place}: no valid credentials were found"));
    assert!(hint.contains("AWS_ACCESS_KEY_ID") && hint.contains("`remote.s3.profile`"), "{hint}");
    let wrong = [("AWS_ACCESS_KEY_ID", s3::KEY), ("AWS_SECRET_ACCESS_KEY", "wrong")];
    let (message, hint) = failed_push(&sandbox, 6, &wrong);
    assert_eq!(message, format!("cannot read {place}: the credentials are not accepted"));
    assert!(hint.contains("AWS_ACCESS_KEY_ID"), "{hint}");

    let right = [("AWS_ACCESS_KEY_ID", s3::KEY), ("AWS_SECRET_ACCESS_KEY", s3::SECRET)];
    let endpoint =
        answer_all("404 Not Found", "<Error><Code>NoSuchBucket</Code><Message>No.</Message></Error>");
    let set = format!("--set endpoint={endpoint} --set region=us-east-1");
    sandbox.ok(&format!("remote add no s3://nosuch/x {set}"));
    sandbox.ok("config set core.remote no");
    let (message, hint) = failed_push(&sandbox, 3, &right);
    assert_eq!(
        message,
        format!("cannot read the remote `no` at s3://nosuch/x ({endpoint}): the bucket does not exist there")
    );
    assert!(hint.contains("`remote.no.url`"), "{hint}");
    let endpoint = answer_all("301 Moved Permanently", "");
    sandbox.ok(&format!("config set remote.no.endpoint {endpoint}"));
    sandbox.ok("remote trust no");
    let (message, _) = failed_push(&sandbox, 2, &right);
    assert!(message.ends_with(": the bucket is in another region"), "{message}");

    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    sandbox.ok(&format!("remote add gone s3://bucket/x --set endpoint=http://{free} --set region=r"));
    sandbox.ok("config set core.remote gone");
    let (message, hint) = failed_push(&sandbox, 7, &right);
    assert!(message.ends_with(": no connection: connection refused"), "{message}");
    assert!(hint.contains("`remote.gone.endpoint`"), "{hint}");
}

/// Not even root may create a folder in `/sys/kernel`.
#[test]
fn each_cause_at_a_folder_is_one_sentence_without_credentials() {
    let sandbox = with_data();
    for (folder, code, part) in [
        ("/sys/kernel".to_owned(), 6, "cannot write to the folder `/sys/kernel`"),
        (sandbox.root().join("no/remote").display().to_string(), 3, "does not exist"),
    ] {
        sandbox.ok(&format!("remote add o file://{folder} --default"));
        let (message, hint) = failed_push(&sandbox, code, &[]);
        assert!(message.contains(part) && message.contains(&folder), "{message}");
        assert!(!hint.to_lowercase().contains("credential"), "{hint}");
        sandbox.ok("remote remove o");
    }
}

#[test]
fn an_address_with_dots_is_refused_wherever_it_is_named() {
    let sandbox = with_data();
    let told = "`s3://bucket/a/../b` has a `.` or `..` in its prefix";
    assert!(sandbox.fails("remote add s s3://bucket/a/../b", 2).contains(told));
    assert!(sandbox.fails("config set remote.s.url s3://bucket/a/../b", 2).contains(told));
    assert!(
        sandbox.fails("remote add s s3://bucket/b --set skip_signature=maybe", 2).contains("true or false")
    );
    assert!(sandbox.fails("config set remote.s.checksum_algorithm sha1", 2).contains("crc32c or md5"));
    assert_eq!(sandbox.json("remote list")["remotes"], serde_json::json!([]));
    // A committed address is refused before anything is sent.
    sandbox.write(".mlx/config.toml", "[core]\nremote = \"s\"\n[remote.s]\nurl = \"s3://bucket/a/../b\"\n");
    assert!(failed_push(&sandbox, 2, &[]).0.contains(told));
}

/// The lock is let go once the second fetch has said that it waits.
#[test]
fn a_second_fetch_of_a_large_file_waits_for_the_first_and_says_so() {
    let sandbox = Sandbox::new();
    let bytes: Vec<u8> =
        (0..4_000_000_u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    sandbox.write("big", &bytes);
    sandbox.ok("add big");
    sandbox.ok(&format!("remote add o file://{} --default", sandbox.root().join("remote").display()));
    sandbox.ok("push");
    sandbox.commit("big");
    let other = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q . {}", other.display()));
    let incoming = other.join(".git/mlx/incoming");
    fs::create_dir_all(&incoming).unwrap();
    let held = fs::File::create(incoming.join(format!("{}.lock", blake3::hash(&bytes).to_hex()))).unwrap();
    flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &other);
    let mut child = command.arg("fetch").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("waiting for another mlx: "), "{first}");
    drop(held);
    assert!(child.wait().unwrap().success());
    sandbox.at(&other).ok("checkout");
    assert_eq!(fs::read(other.join("big")).unwrap(), bytes);
}
