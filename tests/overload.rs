//! A service with more to do than it can: what is too much is refused, and everybody else is answered.

use std::{
    io::{BufReader, ErrorKind, Read as _, Write as _},
    time::Duration,
};

use crate::serve::{Running, next_answer, photo, registered};

#[test]
fn stalled_uploads_leave_room_for_pictures() {
    let sandbox = registered();
    let running = Running::start(&sandbox, "serve pets --deadline 60");
    let whole = 64 << 20;
    let head = format!("POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {whole}\r\n\r\n");
    let mut stalled: Vec<_> = (0..4).map(|_| running.connect()).collect();
    for stream in &mut stalled {
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&vec![0; whole - 1]).unwrap();
    }
    let (code, text) = running.ask("POST", "/classify", "", &vec![0; whole]);
    assert_eq!(code, 503, "{text}");
    for number in 0..5 {
        assert_eq!(running.ask("POST", "/classify", "", &photo(number)).0, 200);
    }
    drop(stalled);
}

#[test]
fn whoever_reads_no_answer_loses_the_connection() {
    let sandbox = registered();
    let running = Running::start(&sandbox, "serve pets --deadline 1");
    let mut stream = running.connect();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    let many = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    // Answers fill what lies between; then nothing is taken any more.
    let cut_off = loop {
        if let Err(error) = stream.write_all(many.as_bytes()) {
            break error.kind();
        }
    };
    assert!(!matches!(cut_off, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{cut_off}");
    assert_eq!(running.ask("POST", "/classify", "", &photo(1)).0, 200);
}

#[test]
fn an_idle_connection_is_closed() {
    let sandbox = registered();
    let running = Running::start(&sandbox, "serve pets --deadline 1");
    let mut stream = BufReader::new(running.connect());
    for _ in 0..2 {
        stream.get_mut().write_all(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(next_answer(&mut stream), 200);
    }
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "closed");
    assert_eq!(running.ask("POST", "/classify", "", &photo(1)).0, 200);
}
