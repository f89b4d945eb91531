//! Tests of `mlx serve`: right results, batching, invalid requests, and shutdown. Also holds the fixture
//! [`Server`], which runs a server for other tests.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    model::{python_with, small_project},
    sandbox::{Sandbox, skip},
};

/// Creates a project with a trained model that is registered as `pets@v0.1.0`.
pub fn registered() -> Sandbox {
    let sandbox = small_project(20);
    sandbox.ok("add data");
    sandbox.ok("repro");
    sandbox.commit("first");
    sandbox.ok("model register pets");
    sandbox
}

/// Running `mlx serve` process, killed when dropped.
pub struct Server {
    child: Child,
    pub address: String,
    /// Text on standard error after the line with the address.
    stderr: Arc<Mutex<String>>,
}

impl Server {
    pub fn start(sandbox: &Sandbox, args: &str) -> Self {
        Self::run(sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo), args)
    }

    /// Starts as [`Server::start`], but with the real clock, so that file times are not in the future.
    pub fn start_with_real_clock(sandbox: &Sandbox, args: &str) -> Self {
        let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        command.env_remove("MLX_TIMESTAMP");
        Self::run(command, args)
    }

    /// Adds the arguments to a prepared command, starts it, and waits until it prints its address.
    pub fn run(mut command: Command, args: &str) -> Self {
        command.args(args.split_whitespace()).args(["--port", "0"]);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        while !line.contains(" at http://") {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "the server ended");
        }
        let address = line.split("http://").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        let stderr = Arc::<Mutex<String>>::default();
        let writer = Arc::clone(&stderr);
        thread::spawn(move || {
            lines
                .lines()
                .map_while(Result::ok)
                .for_each(|line| writer.lock().unwrap().push_str(&(line + "\n")));
        });
        Self { child, address, stderr }
    }

    /// Waits until standard error contains this text.
    pub fn wait_for_stderr(&self, text: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.stderr.lock().unwrap().contains(text) {
            assert!(Instant::now() < end, "not on standard error: {text}: {}", self.stderr.lock().unwrap());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Opens a connection with a read timeout.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path, "", b"")
    }

    /// Sends a request on a new connection and returns status and body.
    pub fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        let mut stream = self.connect();
        // The server may refuse the request before all of it is sent.
        let _sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        read_response(&mut stream)
    }

    /// Sends a request, expects status 200, and returns the body.
    pub fn json(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Value {
        let (code, text) = self.request(method, path, headers, body);
        assert_eq!(code, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Returns the server's resident memory in bytes.
    fn resident_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
    }

    /// Sends SIGTERM, waits for the end, and returns standard output.
    pub fn stop(&mut self) -> String {
        self.terminate();
        self.wait()
    }

    /// Waits for a successful end and returns standard output.
    pub fn wait(&mut self) -> String {
        let mut output = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(self.child.wait().unwrap().success());
        output
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Reads the rest of a connection and returns status and body of its response; 0 if there is none.
pub fn read_response(stream: &mut TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    let _end = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (code, text.split_once("\r\n\r\n").map(|parts| parts.1.to_owned()).unwrap_or_default())
}

/// Returns an image's planes as the packaged model takes them, and the scores that the package computes
/// without a server.
pub fn classify_offline(sandbox: &Sandbox, photo: &[u8]) -> (Vec<f32>, Vec<f32>) {
    let settings =
        mlx::model::settings::Backbone { resize: 32, crop: 32, ..mlx::model::settings::Backbone::default() };
    let planes = mlx::model::preprocess::planes(&mlx::model::preprocess::decode(photo).unwrap(), &settings);
    let model = fs::read(sandbox.repo.join("models/pets/model.onnx")).unwrap();
    let mut engine = mlx::model::engine::builtin(&model, "pixels", "probabilities").unwrap();
    let scores = engine.run(&planes, 32).unwrap();
    (planes, scores)
}

fn assert_close(found: &Value, expected: f32) {
    assert!((found.as_f64().unwrap() - f64::from(expected)).abs() < 1e-5, "{found} {expected}");
}

/// Returns a generated photo of a dog, as JPEG.
pub fn photo(number: u64) -> Vec<u8> {
    mlx::demo_data::photo(7, mlx::demo_data::Pet::Dog, number).unwrap()
}

/// Returns the body of an inference request for this many images.
pub fn infer_body(planes: &[f32], rows: usize) -> Value {
    let shape = json!([rows, 3, 32, 32]);
    json!({"id": "mine", "inputs": [{"name": "pixels", "shape": shape, "datatype": "FP32", "data": planes}]})
}

#[test]
fn a_served_model_gives_the_same_scores_as_its_package() {
    let sandbox = registered();
    let mut server = Server::start(&sandbox, "serve pets@v0.1.0");
    for number in 0..3 {
        let (planes, scores) = classify_offline(&sandbox, &photo(number));
        let found = server.json("POST", "/classify", "X-Request-Id: me\r\n", &photo(number));
        assert_eq!(
            (&found["id"], &found["model"], &found["version"]),
            (&json!("me"), &json!("pets"), &json!("v0.1.0"))
        );
        assert_close(&found["scores"]["cat"], scores[0]);
        assert_close(&found["scores"]["dog"], scores[1]);
        let best = if scores[0] > scores[1] { "cat" } else { "dog" };
        assert_eq!(found["class"], best);
        assert_close(&found["probability"], scores[0].max(scores[1]));
        let twice = [&planes[..], &planes[..]].concat();
        for path in ["/v2/models/pets/infer", "/v2/models/pets/versions/v0.1.0/infer"] {
            let found = server.json("POST", path, "", infer_body(&twice, 2).to_string().as_bytes());
            assert_eq!((&found["id"], &found["outputs"][0]["shape"]), (&json!("mine"), &json!([2, 2])));
            assert_close(&found["outputs"][0]["data"][3], scores[1]);
        }
    }
    let meta = server.json("GET", "/v2/models/pets", "", b"");
    assert_eq!(meta["inputs"][0], json!({"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 32, 32]}));
    assert_eq!(server.json("GET", "/v2", "", b"")["extensions"], json!(["binary_tensor_data"]));
    for path in [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/pets/ready",
        "/v2/models/pets/versions/v0.1.0/ready",
    ] {
        assert_eq!(server.get(path).0, 200, "{path}");
    }
    for path in ["/v2/models/dogs", "/v2/models/pets/versions/v9.9.9/ready", "/nothing"] {
        assert_eq!(server.get(path).0, 404, "{path}");
    }
    assert_eq!(server.get("/classify").0, 405);
    let page = server.get("/").1;
    assert!(page.contains("pets is ready") && page.contains("b3:"), "{page}");
    let metrics = server.get("/metrics").1;
    assert!(
        metrics.contains("mlx_requests_total{model=\"pets\",version=\"v0.1.0\",code=\"200\"} 9"),
        "{metrics}"
    );
    let output = server.stop();
    assert!(output.contains("pets@v0.1.0 answered 1"), "{output}");
}

#[test]
fn invalid_requests_get_an_error_status_and_others_are_served() {
    let sandbox = registered();
    fs::write(sandbox.root().join("token"), "secret\n").unwrap();
    let token = sandbox.root().join("token");
    let serve =
        format!("serve pets --token-file {} --deadline 2 --max-body 2 --max-megapixels 1", token.display());
    let server = Server::start(&sandbox, &serve);
    let auth = "Authorization: Bearer secret\r\n";
    for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic secret\r\n"] {
        assert_eq!(server.request("POST", "/classify", headers, &photo(1)).0, 401, "{headers}");
    }
    assert_eq!(server.get("/").0, 401);
    assert_eq!(server.get("/v2/health/live").0, 200);
    let (planes, _) = classify_offline(&sandbox, &photo(1));
    let good = infer_body(&planes, 1).to_string();
    let binary = format!("{auth}Inference-Header-Content-Length: ");
    let with = |key: &str, value: Value| {
        let mut body: Value = serde_json::from_str(&good).unwrap();
        body["inputs"][0][key] = value;
        body.to_string()
    };
    let large_image = {
        let mut bytes = Vec::new();
        let rgb = image::RgbImage::new(2000, 1000);
        rgb.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
        bytes
    };
    for (case, path, headers, body, code) in [
        ("not an image", "/classify", auth, &b"hello"[..], 400),
        ("an empty body", "/classify", auth, b"", 400),
        ("a truncated image", "/classify", auth, &photo(1)[..200], 400),
        ("two million pixels", "/classify", auth, &large_image, 413),
        ("three megabytes", "/classify", auth, &vec![0; 3 << 20], 413),
        ("an invalid id", "/classify", &format!("{auth}X-Request-Id: a b\r\n"), &photo(1), 400),
        ("a compressed body", "/classify", &format!("{auth}Content-Encoding: gzip\r\n"), &photo(1), 415),
        ("invalid JSON", "/v2/models/pets/infer", auth, b"{", 400),
        ("another model", "/v2/models/dogs/infer", auth, good.as_bytes(), 404),
        (
            "a huge header length",
            "/v2/models/pets/infer",
            &format!("{binary}999999999999\r\n"),
            good.as_bytes(),
            400,
        ),
        (
            "a negative header length",
            "/v2/models/pets/infer",
            &format!("{binary}-1\r\n"),
            good.as_bytes(),
            400,
        ),
        ("text as data", "/v2/models/pets/infer", auth, with("data", json!("x")).as_bytes(), 400),
        (
            "an overflowing shape",
            "/v2/models/pets/infer",
            auth,
            with("shape", json!([1_u64 << 62, 3, 32, 32])).as_bytes(),
            400,
        ),
        ("another datatype", "/v2/models/pets/infer", auth, with("datatype", json!("BYTES")).as_bytes(), 400),
        (
            "missing binary data",
            "/v2/models/pets/infer",
            &format!("{binary}{}\r\n", good.len()),
            with("parameters", json!({"binary_data_size": 12288})).as_bytes(),
            400,
        ),
    ] {
        let (found, text) = server.request("POST", path, headers, body);
        assert_eq!(found, code, "{case}: {text}");
        assert!(serde_json::from_str::<Value>(&text).unwrap()["error"].is_string(), "{case}: {text}");
    }
    assert_eq!(server.request("POST", "/classify", auth, &photo(1)).0, 200);
}

#[test]
fn idle_and_slow_connections_do_not_block_others() {
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets --deadline 2");
    // Many idle and slow connections do not delay a complete request.
    let idle: Vec<_> = (0..500).map(|_| server.connect()).collect();
    let mut slow: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for stream in &mut slow {
        let head = "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc";
        stream.write_all(head.as_bytes()).unwrap();
    }
    let start = Instant::now();
    for number in 0..10 {
        assert_eq!(server.request("POST", "/classify", "", &photo(number)).0, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(20));
    for mut stream in slow {
        assert_eq!(read_response(&mut stream).0, 408, "a body that never arrives");
    }
    drop(idle);
    let truncated =
        b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n";
    let mut stream = server.connect();
    stream.write_all(truncated).unwrap();
    assert!(matches!(read_response(&mut stream).0, 0 | 400), "a chunk longer than memory");
    assert_eq!(server.request("POST", "/classify", "", &photo(1)).0, 200);
}

#[test]
fn a_stop_answers_each_pending_request_with_its_own_result() {
    let sandbox = registered();
    let mut server = Server::start(&sandbox, "serve pets --batch 4 --batch-wait 20 --queue 1000");
    let expected: Vec<Vec<f32>> = (0..8).map(|number| classify_offline(&sandbox, &photo(number)).1).collect();
    let pending: Vec<_> = (0..40)
        .map(|at| {
            let mut stream = server.connect();
            let photo = photo(at % 8);
            let head = format!(
                "POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                photo.len()
            );
            stream.write_all(&[head.as_bytes(), &photo].concat()).unwrap();
            (at as usize % 8, stream)
        })
        .collect();
    // All requests are sent; the stop must not lose any.
    thread::sleep(Duration::from_millis(100));
    let output = server.stop();
    let mut answered = 0;
    for (at, mut stream) in pending {
        let (code, text) = read_response(&mut stream);
        if code == 200 {
            let found: Value = serde_json::from_str(&text).unwrap();
            assert_close(&found["scores"]["cat"], expected[at][0]);
            answered += 1;
        }
    }
    assert_eq!(answered, 40, "{output}");
}

#[test]
fn a_server_without_a_token_listens_on_loopback_only() {
    let sandbox = registered();
    let error = sandbox.fails("serve pets --host 0.0.0.0", 2);
    assert!(error.contains("a token is required to listen on `0.0.0.0`"), "{error}");
    assert!(sandbox.fails("serve dogs", 3).contains("dogs"));
    assert!(sandbox.fails("serve pets@v9.0.0", 3).contains("pets@v9.0.0"));
}

const TRITON: &str = "
import sys, json, numpy as np, tritonclient.http as http
client = http.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready('pets')
shape = client.get_model_metadata('pets')['inputs'][0]['shape']
pixels = np.fromfile(sys.argv[2], '<f4').reshape([1] + shape[1:])
found = []
for binary in [True, False]:
    given = http.InferInput('pixels', list(pixels.shape), 'FP32')
    given.set_data_from_numpy(pixels, binary_data=binary)
    asked = http.InferRequestedOutput('probabilities', binary_data=binary)
    found.append(client.infer('pets', [given], outputs=[asked]).as_numpy('probabilities').tolist()[0])
given.set_data_from_numpy(pixels)
found.append(client.infer('pets', [given]).as_numpy('probabilities').tolist()[0])
print(json.dumps(found))
";

#[test]
fn the_triton_client_works_unchanged() {
    let test = "the_triton_client_works_unchanged";
    let Some(python) = python_with("numpy, tritonclient.http") else {
        return skip(test, "no Python with tritonclient[http] (MLX_PYTHON)");
    };
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets");
    let (planes, scores) = classify_offline(&sandbox, &photo(3));
    let saved = sandbox.root().join("pixels");
    fs::write(&saved, planes.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let output = Command::new(python).args(["-c", TRITON, &server.address]).arg(saved).output().unwrap();
    let found: Vec<Vec<f64>> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    for row in found {
        assert!((row[0] - f64::from(scores[0])).abs() < 1e-5, "{row:?} {scores:?}");
    }
}

/// Reads one response on a connection that stays open, and returns its status.
pub fn read_status(stream: &mut BufReader<TcpStream>) -> u16 {
    let (mut line, mut code, mut length) = (String::new(), 0, 0);
    while line != "\r\n" {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the server closed the connection");
        if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
            code = rest[..3].parse().unwrap();
        }
        if let Some(rest) = line.to_lowercase().strip_prefix("content-length:") {
            length = rest.trim().parse().unwrap();
        }
    }
    stream.read_exact(&mut vec![0; length]).unwrap();
    code
}

#[test]
fn memory_stays_flat_over_twenty_thousand_requests() {
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets --queue 1000");
    let memory_after = |count: u64| {
        thread::scope(|scope| {
            for thread in 0..4 {
                let server = &server;
                scope.spawn(move || {
                    let mut stream = BufReader::new(server.connect());
                    for number in 0..count / 4 {
                        let photo = photo((thread * 7 + number) % 50);
                        let head = format!(
                            "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
                            photo.len()
                        );
                        stream.get_mut().write_all(&[head.as_bytes(), &photo].concat()).unwrap();
                        assert_eq!(read_status(&mut stream), 200);
                    }
                });
            }
        });
        server.resident_memory()
    };
    let before = memory_after(4_000);
    let after = memory_after(16_000);
    assert!(after < before + (16 << 20), "{before} bytes after 4,000 requests, {after} after 20,000");
    let metrics = server.get("/metrics").1;
    assert!(metrics.contains("code=\"200\"} 20000"), "{metrics}");
}
