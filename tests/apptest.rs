//! A served version put through its paces, and services that are not what they say.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use serde_json::{Value, json};

use crate::{
    release::{another, registered, share},
    serve::Running,
};

fn names(report: &Value, passed: bool) -> Vec<&str> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks.filter(|it| it["passed"] == passed).map(|it| it["name"].as_str().unwrap()).collect()
}

#[test]
fn a_served_version_passes_and_its_report_opens_the_gates() {
    let sandbox = registered();
    let running = Running::start(&sandbox, "serve pets@v0.1.0");
    let url = format!("http://{}", running.address);
    let said = sandbox.ok(&format!("apptest {url} --data test"));
    assert!(said.starts_with("pets@v0.1.0 passed with "), "{said}");
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
    assert_eq!(names(&report, true).len(), 6, "{report}");
    assert_eq!(report["errors"], 0);
    // One by one, together, in a stream and twice as tensors.
    assert!(report["same_answers"]["compared"].as_u64().unwrap() > 64 + 3 * tested, "{report}");
    assert_eq!(report["burst"].as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>(), 200);
    let wrong = report["wrong_requests"].as_array().unwrap();
    assert!(wrong.len() == 10 && wrong.iter().all(|it| (400..500).contains(&it["status"].as_u64().unwrap())));
    let latency = |key: &str| report["latency"][key].as_f64().unwrap();
    assert!(0.0 < latency("p50") && latency("p50") <= latency("p95") && latency("p95") <= latency("p99"));
    assert!(report["throughput"].as_f64().unwrap() > 0.0);
    let page = sandbox.read("apptest/report.html");
    assert!(page.contains("pets@v0.1.0 <span class=yes>passed") && !page.contains("<script"), "{page}");

    share(&sandbox);
    sandbox.ok("approve pets@v0.1.0 --report apptest/report.json --env production --as qa@park.example");
}

#[test]
fn pictures_that_are_not_here_are_fetched_and_folders_have_groups() {
    let sandbox = registered();
    share(&sandbox);
    let running = Running::start(&sandbox, "serve pets@v0.1.0");
    let url = format!("http://{}", running.address);
    let folder = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q {} {}", sandbox.root().join("hub.git").display(), folder.display()));
    let elsewhere = sandbox.at(&folder);
    let report = elsewhere.json(&format!("apptest {url} --data test --version pets@v0.1.0 --out there"));
    assert!(names(&report, false).is_empty(), "{report}");
    assert!(folder.join("there/report.json").is_file());

    // A damaged picture is to be refused; a subfolder is a group.
    let photo = |number| mlx::sketch::photo(9, mlx::sketch::Pet::Dog, number).unwrap();
    sandbox.write("more/dog/night/1.jpg", photo(1));
    sandbox.write("more/dog/2.jpg", photo(2));
    sandbox.write("more/cat/broken.jpg", &photo(3)[..200]);
    let report = sandbox.json(&format!("apptest {url} --data more"));
    assert!(names(&report, false).is_empty(), "{report}");
    assert_eq!((&report["data"]["pictures"], &report["data"]["damaged"]), (&json!(3), &json!(1)));
    assert_eq!(report["groups"]["folder"]["night"]["pictures"], 1);
    sandbox.write("more/bird/1.jpg", photo(4));
    assert!(
        sandbox
            .fails(&format!("apptest {url} --data more"), 2)
            .contains("`bird` is not a class of the model")
    );
}

/// A service that says `cat` to everything, with a status of 200 to everything.
fn stub() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || listener.incoming().flatten().for_each(|it| drop(thread::spawn(|| constant(it)))));
    format!("http://{address}")
}

fn constant(stream: TcpStream) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let from = head.len();
            match reader.read_line(&mut head) {
                Ok(read) if read > 0 => {}
                _ => return,
            }
            if let Some(it) = head[from..].to_lowercase().strip_prefix("content-length:") {
                length = it.trim().parse().unwrap();
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
fn a_service_that_answers_wrongly_is_found_out() {
    let sandbox = registered();
    let ran = sandbox.mlx(&format!("apptest {} --data test --out wrong", stub()));
    assert_eq!(ran.code, 10, "{}\n{}", ran.out, ran.err);
    assert!(ran.out.contains("pets@v0.1.0 FAILED"), "{}", ran.out);
    let report: Value = serde_json::from_str(&sandbox.read("wrong/report.json")).unwrap();
    assert_eq!(
        names(&report, false),
        ["every valid request is answered", "same answers as the package", "rejects invalid requests"]
    );
    assert_eq!(report["recall"], json!({"cat": 1.0, "dog": 0.0}));
    let worst = report["worst"].as_array().unwrap();
    assert!(!worst.is_empty() && worst.iter().all(|it| it["label"] == "dog" && it["class"] == "cat"));
    let page = sandbox.read("wrong/report.html");
    assert!(page.contains("<span class=no>failed"), "{page}");
    assert_eq!(page.matches("data:image/jpeg;base64,/9j/").count(), worst.len());
}

#[test]
fn what_cannot_be_tested_is_said_before_anything_is_asked() {
    let sandbox = registered();
    another(&sandbox, "0.5");
    let running = Running::start(&sandbox, "serve pets@v0.2.0");
    let url = format!("http://{}", running.address);
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
fn a_token_is_needed_where_the_service_asks_for_one() {
    let sandbox = registered();
    let token = sandbox.root().join("token");
    fs::write(&token, "secret\n").unwrap();
    let running = Running::start(&sandbox, &format!("serve pets --token-file {}", token.display()));
    let test = format!("apptest http://{} --data test", running.address);
    assert!(sandbox.fails(&test, 6).contains("the service denied access"));
    sandbox.ok(&format!("{test} --token-file {}", token.display()));
    assert!(!sandbox.read("apptest/report.json").contains("secret"));
}
