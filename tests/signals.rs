//! How services begin and end.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpListener,
    time::Duration,
};

use crate::serve::{Running, answer, photo, registered};

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
