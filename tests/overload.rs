//! A service with more to do than it can: what is too much is refused, and everybody else is answered.

use std::{
    io::{BufReader, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::serve::{Running, next_answer, photo, registered};

/// Pictures in one request that keeps the network busy.
const MANY: usize = 1024;

/// A request for this many pictures, as bytes behind its JSON, sent and not waited for.
fn ask_for(running: &Running, rows: usize) -> TcpStream {
    let bytes = rows * 3 * 32 * 32 * 4;
    let json = format!(
        r#"{{"inputs":[{{"name":"pixels","shape":[{rows},3,32,32],"datatype":"FP32","parameters":{{"binary_data_size":{bytes}}}}}]}}"#
    );
    let head = format!(
        "POST /v2/models/pets/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nInference-Header-Content-Length: {}\r\nContent-Length: {}\r\n\r\n",
        json.len(),
        json.len() + bytes
    );
    let mut stream = running.connect();
    stream.set_read_timeout(Some(Duration::from_mins(5))).unwrap();
    stream.write_all(&[head.as_bytes(), json.as_bytes(), &vec![0; bytes]].concat()).unwrap();
    stream
}

/// What a gauge or counter says; 0 while it is not there.
fn number(running: &Running, name: &str) -> u64 {
    let metrics = running.get("/metrics").1;
    let line = metrics.lines().find_map(|it| it.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |it| it.parse().unwrap())
}

/// Waits until a gauge or counter says so.
fn until(running: &Running, name: &str, so: impl Fn(u64) -> bool) {
    let end = Instant::now() + Duration::from_mins(5);
    while !so(number(running, name)) {
        assert!(Instant::now() < end, "{name} is {}", number(running, name));
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_full_queue_refuses_with_a_time_to_come_back() {
    let sandbox = registered();
    let running =
        Running::start(&sandbox, "serve pets --no-traffic --batch 1024 --queue 1 --wait 0 --deadline 600");
    let asked: Vec<_> = (0..6).map(|_| ask_for(&running, MANY)).collect();
    let mut codes = Vec::new();
    for mut stream in asked {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let code: u16 = text.split(' ').nth(1).unwrap().parse().unwrap();
        if code == 503 {
            assert!(text.to_lowercase().contains("\r\nretry-after: 1\r\n"), "{text}");
            assert!(text.ends_with("{\"error\":\"the queue is full\"}"), "{text}");
        }
        codes.push(code);
    }
    let count = |code: u16| codes.iter().filter(|it| **it == code).count();
    assert!(count(200) > 0 && count(503) > 0 && count(200) + count(503) == 6, "{codes:?}");
    assert_eq!(running.ask("POST", "/classify", "", &photo(1)).0, 200);
    assert_eq!((number(&running, "mlx_open_requests"), number(&running, "mlx_waiting_requests")), (0, 0));
}

#[test]
fn a_client_that_is_gone_leaves_a_status_and_no_place() {
    let sandbox = registered();
    let mut running = Running::start(&sandbox, "serve pets --batch 1024 --queue 8 --wait 0 --deadline 600");
    let mut busy = ask_for(&running, 4 * MANY);
    until(&running, "mlx_open_requests", |it| it == 1);
    let gone: Vec<_> = (0..3).map(|_| ask_for(&running, MANY)).collect();
    until(&running, "mlx_waiting_requests", |it| it > 0);
    drop(gone);
    let counted = "mlx_requests_total{model=\"pets\",version=\"v0.1.0\",code=\"499\"}";
    until(&running, counted, |it| it == 3);
    let mut answered = Vec::new();
    busy.read_to_end(&mut answered).unwrap();
    assert!(answered.starts_with(b"HTTP/1.1 200 "));
    until(&running, "mlx_waiting_requests", |it| it == 0);
    assert_eq!(number(&running, "mlx_open_requests"), 0);
    assert_eq!(running.ask("POST", "/classify", "", &photo(1)).0, 200);
    assert!(running.stop().contains("answered 2 requests"));
}

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
    stream.set_write_timeout(Some(Duration::from_mins(1))).unwrap();
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
