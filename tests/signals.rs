//! How services begin and end.

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
    serve::{Running, answer, photo, registered},
};

/// Tries until it is so.
fn until(what: &str, so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let sandbox = registered();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = sandbox.fails(&format!("serve pets --port {}", address.port()), 4);
    assert!(
        error.contains(&format!("cannot listen at `{address}`")) && error.contains("another --port"),
        "{error}"
    );
    let error = sandbox.fails("serve pets --port 0 --host 192.0.2.1 --no-auth", 2);
    assert!(error.contains("192.0.2.1") && error.contains("--host"), "{error}");
}

#[test]
fn the_page_says_where_it_can_be_asked() {
    let sandbox = registered();
    let running = Running::start(&sandbox, "serve pets");
    let page = running.get("/").1;
    assert!(page.contains(&format!("http://{}/classify", running.address)), "{page}");
}

#[test]
fn more_connections_than_the_limit_wait_and_a_stop_ends_them_all() {
    let sandbox = registered();
    let mut running = Running::start(&sandbox, "serve pets --connections 3 --deadline 60");
    let mut taken: Vec<_> = (0..3).map(|_| running.connect()).collect();
    for stream in &mut taken {
        stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 1, "it was taken");
    }
    let photo = photo(1);
    let head = format!(
        "POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        photo.len()
    );
    let mut late = running.connect();
    late.write_all(&[head.as_bytes(), &photo].concat()).unwrap();
    late.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let waits = late.read(&mut [0; 1]).unwrap_err();
    assert!(matches!(waits.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{waits}");
    late.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    drop(taken.pop());
    assert_eq!(answer(&mut late).0, 200, "a place is free");
    let more: Vec<_> = (0..5).map(|_| running.connect()).collect();
    let said = running.stop();
    assert!(said.contains("gave 1 answer"), "{said}");
    for mut stream in taken.into_iter().chain(more) {
        // At its end or cut off, and not for want of time.
        let ended = stream.read_to_end(&mut Vec::new()).map_err(|it| it.kind());
        assert!(!matches!(ended, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{ended:?}");
    }
}

#[test]
fn a_second_signal_ends_a_watch_that_waits_for_an_answer() {
    let sandbox = Sandbox::new();
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    sandbox.write("frames/1.jpg", photo(1));
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    let url = format!("http://{}", mute.local_addr().unwrap());
    command.args(["watch", "frames", "--env", "test", "--deadline", "3600", "--url", &url]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (mut asked, _) = mute.accept().unwrap();
    assert_eq!(asked.read(&mut [0; 1]).unwrap(), 1, "it asks, and is never answered");
    let end = Instant::now() + Duration::from_secs(30);
    let mut signals = 0;
    let ended = loop {
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        assert!(Instant::now() < end, "{signals} signals, and it goes on");
        Command::new("kill").arg(child.id().to_string()).status().unwrap();
        signals += 1;
        thread::sleep(Duration::from_millis(100));
    };
    assert!(signals >= 2, "the first one is waited with");
    assert_eq!(ended.signal(), Some(9));
}

/// Whether a service has written records below this folder.
fn has_segment(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|it| it.unwrap().path());
    entries.into_iter().any(|it| if it.is_dir() { has_segment(&it) } else { it.extension().is_some() })
}

#[test]
fn a_spool_that_is_locked_does_not_hold_up_the_end() {
    let sandbox = registered();
    let mut running = Running::start(&sandbox, "serve pets");
    let ask = |number| assert_eq!(running.ask("POST", "/classify", "", &photo(number)).0, 200);
    ask(1);
    let spool = sandbox.repo.join(".git/mlx/traffic/test");
    until("the first record is never written", || has_segment(&spool));
    let lock = fs::File::open(spool.join("lock")).unwrap();
    lock.lock().unwrap();
    (2..5).for_each(ask);
    let said = running.stop();
    assert!(said.contains("gave 4 answers"), "{said}");
    running.says("3 records of traffic dropped: ");
}
