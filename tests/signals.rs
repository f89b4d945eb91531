//! Tests how services start and stop: taken ports, connection limits, signals, and locked spools.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpListener,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    sandbox::Sandbox,
    serve::{Server, photo, read_response, registered},
};

/// Waits until `is_true`, for at most 30 seconds; then fails with the message.
fn wait_until(message: &str, is_true: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is_true() {
        assert!(Instant::now() < end, "{message}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_error_names_a_taken_port() {
    let sandbox = registered();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = sandbox.fails(&format!("serve pets --port {}", address.port()), 4);
    assert!(
        error.contains(&format!("cannot listen on `{address}`")) && error.contains("another --port"),
        "{error}"
    );
    let error = sandbox.fails("serve pets --port 0 --host 192.0.2.1 --no-auth", 2);
    assert!(error.contains("192.0.2.1") && error.contains("--host"), "{error}");
}

#[test]
fn the_page_shows_its_classify_url() {
    let sandbox = registered();
    let running = Server::start(&sandbox, "serve pets");
    let page = running.get("/").1;
    assert!(page.contains(&format!("http://{}/classify", running.address)), "{page}");
}

#[test]
fn connections_above_the_limit_wait_and_a_stop_closes_all() {
    let sandbox = registered();
    let mut running = Server::start(&sandbox, "serve pets --connections 3 --deadline 60");
    let mut taken: Vec<_> = (0..3).map(|_| running.connect()).collect();
    for stream in &mut taken {
        stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 1, "the connection was accepted");
    }
    let photo = photo(1);
    let head = format!(
        "POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        photo.len()
    );
    let mut waiting = running.connect();
    waiting.write_all(&[head.as_bytes(), &photo].concat()).unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = waiting.read(&mut [0; 1]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    waiting.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    drop(taken.pop());
    assert_eq!(read_response(&mut waiting).0, 200, "a connection is free");
    let more: Vec<_> = (0..5).map(|_| running.connect()).collect();
    let output = running.stop();
    assert!(output.contains("answered 1 request"), "{output}");
    for mut stream in taken.into_iter().chain(more) {
        // Closed or reset by the service, not timed out.
        let ended = stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
        assert!(!matches!(ended, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{ended:?}");
    }
}

#[test]
fn a_second_signal_ends_a_watch_that_waits_for_a_response() {
    let sandbox = Sandbox::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    sandbox.write("frames/1.jpg", photo(1));
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    let url = format!("http://{}", silent.local_addr().unwrap());
    command.args(["watch", "frames", "--env", "test", "--deadline", "3600", "--url", &url]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (mut request, _) = silent.accept().unwrap();
    assert_eq!(request.read(&mut [0; 1]).unwrap(), 1, "the request is never answered");
    let end = Instant::now() + Duration::from_secs(30);
    let mut signals = 0;
    let ended = loop {
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        assert!(Instant::now() < end, "still running after {signals} signals");
        Command::new("kill").arg(child.id().to_string()).status().unwrap();
        signals += 1;
        thread::sleep(Duration::from_millis(100));
    };
    assert!(signals >= 2, "the first signal still waits for the response");
    assert_eq!(ended.signal(), Some(9));
}

/// Returns true if a service has written records below this folder.
fn has_segment(folder: &Path) -> bool {
    let mut paths = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    paths.any(|path| if path.is_dir() { has_segment(&path) } else { path.extension().is_some() })
}

#[test]
fn a_locked_spool_does_not_delay_the_stop() {
    let sandbox = registered();
    let mut running = Server::start(&sandbox, "serve pets");
    let classify = |number| assert_eq!(running.request("POST", "/classify", "", &photo(number)).0, 200);
    classify(1);
    let spool = sandbox.repo.join(".git/mlx/traffic/test");
    wait_until("the first record is never written", || has_segment(&spool));
    let lock = fs::File::open(spool.join("lock")).unwrap();
    lock.lock().unwrap();
    (2..5).for_each(classify);
    let output = running.stop();
    assert!(output.contains("answered 4 requests"), "{output}");
    running.wait_for_stderr("dropped 3 traffic records: ");
}
