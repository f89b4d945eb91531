//! A service with more to do than it can: what is too much is refused, and everybody else is answered.

use std::io::Write as _;

use crate::serve::{Running, photo, registered};

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
