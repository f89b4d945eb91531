//! Tests of `mlx apptest`: the report on a correct server, and the errors and failed checks for wrong,
//! protected or unreachable ones.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use serde_json::{Value, json};

use crate::{
    release::{push_to_hub, register_another, registered},
    serve::Server,
};

/// Returns the names of the checks that passed or that failed.
fn check_names(report: &Value, passed: bool) -> Vec<&str> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks.filter(|check| check["passed"] == passed).map(|check| check["name"].as_str().unwrap()).collect()
}

#[test]
fn a_correct_server_passes_and_its_report_can_be_approved() {
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets@v0.1.0");
    let url = format!("http://{}", server.address);
    let printed = sandbox.ok(&format!("apptest {url} --data test"));
    assert!(printed.starts_with("pets@v0.1.0 passed with "), "{printed}");
    let report: Value = serde_json::from_str(&sandbox.read("apptest/report.json")).unwrap();
    let registered = &sandbox.json("model show pets@v0.1.0")["package"];
    let package = registered["digest"].as_str().unwrap_or_else(|| registered.as_str().unwrap());
    assert_eq!((&report["version"], &report["package"]), (&json!("pets@v0.1.0"), &json!(package)));
    let metrics: Value = serde_json::from_str(&sandbox.read("metrics/test.json")).unwrap();
    assert_eq!(report["accuracy"], metrics["accuracy"], "the served model is as good as the trained one");
    assert_eq!(report["confusion"], metrics["confusion"]);
    for class in ["cat", "dog"] {
        for number in ["precision", "recall", "f1"] {
            assert_eq!(report[number][class], metrics["class"][class][number], "{number} of {class}");
        }
        assert_eq!(report["groups"]["class"][class]["accuracy"], report["recall"][class]);
    }
    let tested = metrics["pictures"]["tested"].as_u64().unwrap();
    assert_eq!(report["data"]["pictures"], tested);
    assert_eq!(check_names(&report, true).len(), 6, "{report}");
    assert_eq!(report["errors"], 0);
    // Images are sent one by one, at once, as a stream, and twice as tensors.
    assert!(report["same_answers"]["compared"].as_u64().unwrap() > 64 + 3 * tested, "{report}");
    assert_eq!(report["burst"].as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>(), 200);
    let wrong = report["wrong_requests"].as_array().unwrap();
    assert!(
        wrong.len() == 10 && wrong.iter().all(|row| (400..500).contains(&row["status"].as_u64().unwrap()))
    );
    let latency = |key: &str| report["latency"][key].as_f64().unwrap();
    assert!(0.0 < latency("p50") && latency("p50") <= latency("p95") && latency("p95") <= latency("p99"));
    assert!(report["throughput"].as_f64().unwrap() > 0.0);
    let page = sandbox.read("apptest/report.html");
    assert!(page.contains("pets@v0.1.0 <span class=yes>passed") && !page.contains("<script"), "{page}");

    push_to_hub(&sandbox);
    sandbox.ok("approve pets@v0.1.0 --report apptest/report.json --env production --as qa@park.example");
}

#[test]
fn absent_images_are_fetched_and_subfolders_become_groups() {
    let sandbox = registered();
    push_to_hub(&sandbox);
    let server = Server::start(&sandbox, "serve pets@v0.1.0");
    let url = format!("http://{}", server.address);
    let folder = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q {} {}", sandbox.root().join("hub.git").display(), folder.display()));
    let clone = sandbox.at(&folder);
    let report = clone.json(&format!("apptest {url} --data test --version pets@v0.1.0 --out there"));
    assert!(check_names(&report, false).is_empty(), "{report}");
    assert!(folder.join("there/report.json").is_file());

    // The server must refuse a damaged image. A subfolder is a group.
    let photo = |number| mlx::demo_data::photo(9, mlx::demo_data::Pet::Dog, number).unwrap();
    sandbox.write("more/dog/night/1.jpg", photo(1));
    sandbox.write("more/dog/2.jpg", photo(2));
    sandbox.write("more/cat/broken.jpg", &photo(3)[..200]);
    let report = sandbox.json(&format!("apptest {url} --data more"));
    assert!(check_names(&report, false).is_empty(), "{report}");
    assert_eq!((&report["data"]["pictures"], &report["data"]["damaged"]), (&json!(3), &json!(1)));
    assert_eq!(report["groups"]["folder"]["night"]["pictures"], 1);
    sandbox.write("more/bird/1.jpg", photo(4));
    assert!(
        sandbox
            .fails(&format!("apptest {url} --data more"), 2)
            .contains("`bird` is not a class of the model")
    );
}

/// Starts a server that responds to every request with status 200 and class `cat`. Returns its URL.
fn start_stub() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        listener.incoming().flatten().for_each(|stream| drop(thread::spawn(|| respond(stream))));
    });
    format!("http://{address}")
}

/// Answers every request on a connection with the same response.
fn respond(stream: TcpStream) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let from = head.len();
            match reader.read_line(&mut head) {
                Ok(read) if read > 0 => {}
                _ => return,
            }
            if let Some(value) = head[from..].to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        if reader.read_exact(&mut vec![0; length]).is_err() {
            return;
        }
        let body = json!({"name": "pets", "versions": ["v0.1.0"], "class": "cat", "probability": 0.75,
            "scores": {"cat": 0.75, "dog": 0.25}, "model": "pets", "version": "v0.1.0"});
        let body = body.to_string();
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if reader.get_mut().write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn a_server_with_wrong_answers_fails() {
    let sandbox = registered();
    let ran = sandbox.mlx(&format!("apptest {} --data test --out wrong", start_stub()));
    assert_eq!(ran.code, 10, "{}\n{}", ran.out, ran.err);
    assert!(ran.out.contains("pets@v0.1.0 FAILED"), "{}", ran.out);
    let report: Value = serde_json::from_str(&sandbox.read("wrong/report.json")).unwrap();
    assert_eq!(
        check_names(&report, false),
        ["every valid request is answered", "same answers as the package", "rejects invalid requests"]
    );
    assert_eq!(report["recall"], json!({"cat": 1.0, "dog": 0.0}));
    let worst = report["worst"].as_array().unwrap();
    assert!(!worst.is_empty() && worst.iter().all(|row| row["label"] == "dog" && row["class"] == "cat"));
    let page = sandbox.read("wrong/report.html");
    assert!(page.contains("<span class=no>failed"), "{page}");
    assert_eq!(page.matches("data:image/jpeg;base64,/9j/").count(), worst.len());
}

#[test]
fn an_impossible_test_is_refused_before_any_request() {
    let sandbox = registered();
    register_another(&sandbox, "0.5");
    let server = Server::start(&sandbox, "serve pets@v0.2.0");
    let url = format!("http://{}", server.address);
    let error = sandbox.fails(&format!("apptest {url} --data test --version pets@v0.1.0"), 4);
    assert!(error.contains("the service serves `pets@v0.2.0`, not `pets@v0.1.0`"), "{error}");
    assert!(sandbox.fails(&format!("apptest {url} --data nowhere"), 3).contains("nowhere"));
    assert!(sandbox.fails("apptest pets --data test", 2).contains("the URL of the service is not valid"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = sandbox.fails(&format!("apptest {closed} --data test"), 7);
    assert!(error.contains("no answer from `http://127.0.0.1:"), "{error}");
    assert!(!sandbox.has("apptest"));
}

#[test]
fn apptest_sends_the_token_that_the_server_requires() {
    let sandbox = registered();
    let token = sandbox.root().join("token");
    fs::write(&token, "secret\n").unwrap();
    let server = Server::start(&sandbox, &format!("serve pets --token-file {}", token.display()));
    let test = format!("apptest http://{} --data test", server.address);
    assert!(sandbox.fails(&test, 6).contains("the service denied access"));
    sandbox.ok(&format!("{test} --token-file {}", token.display()));
    assert!(!sandbox.read("apptest/report.json").contains("secret"));
}
