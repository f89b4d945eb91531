//! Tests of `mlx serve` under overload: excess requests are refused, slow and disconnected clients free
//! their places, and other requests are answered.

use std::{
    io::{BufReader, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::serve::{Server, photo, read_status, registered};

/// Images in a request that keeps the model busy.
const BUSY_ROWS: usize = 1024;

/// Sends a request for this many images, with binary data after its JSON, and does not wait for the response.
fn send_request(server: &Server, rows: usize) -> TcpStream {
    let bytes = rows * 3 * 32 * 32 * 4;
    let json = format!(
        "{{\"inputs\":[{{\"name\":\"pixels\",\"shape\":[{rows},3,32,32],\"datatype\":\"FP32\",\
        \"parameters\":{{\"binary_data_size\":{bytes}}}}}]}}"
    );
    let head = format!(
        "POST /v2/models/pets/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
        Inference-Header-Content-Length: {}\r\nContent-Length: {}\r\n\r\n",
        json.len(),
        json.len() + bytes
    );
    let mut stream = server.connect();
    stream.set_read_timeout(Some(Duration::from_mins(5))).unwrap();
    stream.write_all(&[head.as_bytes(), json.as_bytes(), &vec![0; bytes]].concat()).unwrap();
    stream
}

/// Returns the value of a gauge or counter; 0 while it does not exist.
fn metric(server: &Server, name: &str) -> u64 {
    let metrics = server.get("/metrics").1;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

/// Waits until the value of a gauge or counter meets a condition.
fn wait_for_metric(server: &Server, name: &str, condition: impl Fn(u64) -> bool) {
    let end = Instant::now() + Duration::from_mins(5);
    while !condition(metric(server, name)) {
        assert!(Instant::now() < end, "{name} is {}", metric(server, name));
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_full_queue_refuses_with_a_retry_after_header() {
    let sandbox = registered();
    let server = Server::start(
        &sandbox,
        "serve pets --no-traffic --batch 1024 --queue 1 --batch-wait 0 --deadline 600",
    );
    let sent: Vec<_> = (0..6).map(|_| send_request(&server, BUSY_ROWS)).collect();
    let mut codes = Vec::new();
    for mut stream in sent {
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
    let count = |code: u16| codes.iter().filter(|found| **found == code).count();
    assert!(count(200) > 0 && count(503) > 0 && count(200) + count(503) == 6, "{codes:?}");
    assert_eq!(server.request("POST", "/classify", "", &photo(1)).0, 200);
    assert_eq!((metric(&server, "mlx_open_requests"), metric(&server, "mlx_waiting_requests")), (0, 0));
}

#[test]
fn a_disconnected_client_is_counted_and_frees_its_place() {
    let sandbox = registered();
    let mut server =
        Server::start(&sandbox, "serve pets --batch 1024 --queue 8 --batch-wait 0 --deadline 600");
    let mut busy = send_request(&server, 4 * BUSY_ROWS);
    wait_for_metric(&server, "mlx_open_requests", |value| value == 1);
    let gone: Vec<_> = (0..3).map(|_| send_request(&server, BUSY_ROWS)).collect();
    wait_for_metric(&server, "mlx_waiting_requests", |value| value > 0);
    drop(gone);
    let disconnects = "mlx_requests_total{model=\"pets\",version=\"v0.1.0\",code=\"499\"}";
    wait_for_metric(&server, disconnects, |value| value == 3);
    let mut response = Vec::new();
    busy.read_to_end(&mut response).unwrap();
    assert!(response.starts_with(b"HTTP/1.1 200 "));
    wait_for_metric(&server, "mlx_waiting_requests", |value| value == 0);
    assert_eq!(metric(&server, "mlx_open_requests"), 0);
    assert_eq!(server.request("POST", "/classify", "", &photo(1)).0, 200);
    assert!(server.stop().contains("answered 2 requests"));
}

#[test]
fn stalled_uploads_leave_memory_for_small_images() {
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets --deadline 60");
    let whole = 64 << 20;
    let head = format!("POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {whole}\r\n\r\n");
    let mut stalled: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for stream in &mut stalled {
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&vec![0; whole - 1]).unwrap();
    }
    let (code, text) = server.request("POST", "/classify", "", &vec![0; whole]);
    assert_eq!(code, 503, "{text}");
    for number in 0..5 {
        assert_eq!(server.request("POST", "/classify", "", &photo(number)).0, 200);
    }
    drop(stalled);
}

#[test]
fn a_client_that_reads_no_response_is_disconnected() {
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets --deadline 1");
    let mut stream = server.connect();
    stream.set_write_timeout(Some(Duration::from_mins(1))).unwrap();
    let requests = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    // Responses fill the buffers between the two; then the server reads no more requests.
    let cut_off = loop {
        if let Err(error) = stream.write_all(requests.as_bytes()) {
            break error.kind();
        }
    };
    assert!(!matches!(cut_off, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{cut_off}");
    assert_eq!(server.request("POST", "/classify", "", &photo(1)).0, 200);
}

#[test]
fn an_idle_connection_is_closed() {
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets --deadline 1");
    let mut stream = BufReader::new(server.connect());
    for _ in 0..2 {
        stream.get_mut().write_all(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(read_status(&mut stream), 200);
    }
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "closed");
    assert_eq!(server.request("POST", "/classify", "", &photo(1)).0, 200);
}
