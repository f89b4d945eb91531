//! A served model: right answers, in batches, whatever strangers send.

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
    model::{park, python},
    sandbox::{Sandbox, skip},
};

/// A registered model.
pub fn registered() -> Sandbox {
    let sandbox = park(20);
    sandbox.ok("add data");
    sandbox.ok("repro");
    sandbox.commit("first");
    sandbox.ok("model register pets");
    sandbox
}

/// A running service; it is stopped when dropped.
pub struct Running {
    child: Child,
    pub address: String,
    /// What it said on standard error after its first line.
    said: Arc<Mutex<String>>,
}

impl Running {
    pub fn start(sandbox: &Sandbox, args: &str) -> Self {
        Self::run(sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo), args)
    }

    /// As [`Running::start`], by the clock on the wall: what files say of their age is not in its future.
    pub fn now(sandbox: &Sandbox, args: &str) -> Self {
        let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        command.env_remove("MLX_TIMESTAMP");
        Self::run(command, args)
    }

    pub fn run(mut command: Command, args: &str) -> Self {
        command.args(args.split_whitespace()).args(["--port", "0"]);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        while !said.contains(" at http://") {
            said.clear();
            assert!(lines.read_line(&mut said).unwrap() > 0, "it ended");
        }
        let address = said.split("http://").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        let said = Arc::<Mutex<String>>::default();
        let more = Arc::clone(&said);
        thread::spawn(move || {
            lines.lines().map_while(Result::ok).for_each(|it| more.lock().unwrap().push_str(&(it + "\n")));
        });
        Self { child, address, said }
    }

    /// Waits until this stands on standard error.
    pub fn says(&self, text: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.said.lock().unwrap().contains(text) {
            assert!(Instant::now() < end, "not said: {text}: {}", self.said.lock().unwrap());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A connection that gives up after some seconds.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path, "", b"")
    }

    /// One request on a connection of its own: status and body.
    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        let mut stream = self.connect();
        // A refusal may come before all is sent.
        let _sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        answer(&mut stream)
    }

    pub fn json(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Value {
        let (code, text) = self.ask(method, path, headers, body);
        assert_eq!(code, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|it| panic!("{path}: {it}: {text}"))
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Bytes of memory that it holds.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
    }

    /// Asks it to end and gives what it printed.
    pub fn stop(&mut self) -> String {
        self.terminate();
        self.ended()
    }

    /// Waits for its end and gives what it printed.
    pub fn ended(&mut self) -> String {
        let mut said = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success());
        said
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Status and body of an answer; 0 when there is none.
pub fn answer(stream: &mut TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    let _end = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let code = text.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0);
    (code, text.split_once("\r\n\r\n").map(|it| it.1.to_owned()).unwrap_or_default())
}

/// A picture's planes as the packaged network takes them, and what the package says of it offline.
pub fn offline(sandbox: &Sandbox, photo: &[u8]) -> (Vec<f32>, Vec<f32>) {
    let settings =
        mlx::model::settings::Backbone { resize: 32, crop: 32, ..mlx::model::settings::Backbone::default() };
    let planes = mlx::model::picture::planes(&mlx::model::picture::decode(photo).unwrap(), &settings);
    let network = fs::read(sandbox.repo.join("models/pets/model.onnx")).unwrap();
    let mut engine = mlx::model::engine::builtin(&network, "pixels", "probabilities").unwrap();
    let scores = engine.run(&planes, 32).unwrap();
    (planes, scores)
}

fn close(found: &Value, expected: f32) {
    assert!((found.as_f64().unwrap() - f64::from(expected)).abs() < 1e-5, "{found} {expected}");
}

pub fn photo(number: u64) -> Vec<u8> {
    mlx::sketch::photo(7, mlx::sketch::Pet::Dog, number).unwrap()
}

pub fn infer(planes: &[f32], rows: usize) -> Value {
    json!({"id": "mine", "inputs": [{"name": "pixels", "shape": [rows, 3, 32, 32], "datatype": "FP32", "data": planes}]})
}

#[test]
fn a_served_model_answers_as_its_package_does() {
    let sandbox = registered();
    let mut running = Running::start(&sandbox, "serve pets@v0.1.0");
    for number in 0..3 {
        let (planes, scores) = offline(&sandbox, &photo(number));
        let found = running.json("POST", "/classify", "X-Request-Id: me\r\n", &photo(number));
        assert_eq!(
            (&found["id"], &found["model"], &found["version"]),
            (&json!("me"), &json!("pets"), &json!("v0.1.0"))
        );
        close(&found["scores"]["cat"], scores[0]);
        close(&found["scores"]["dog"], scores[1]);
        let best = if scores[0] > scores[1] { "cat" } else { "dog" };
        assert_eq!(found["class"], best);
        close(&found["probability"], scores[0].max(scores[1]));
        let twice = [&planes[..], &planes[..]].concat();
        for path in ["/v2/models/pets/infer", "/v2/models/pets/versions/v0.1.0/infer"] {
            let found = running.json("POST", path, "", infer(&twice, 2).to_string().as_bytes());
            assert_eq!((&found["id"], &found["outputs"][0]["shape"]), (&json!("mine"), &json!([2, 2])));
            close(&found["outputs"][0]["data"][3], scores[1]);
        }
    }
    let meta = running.json("GET", "/v2/models/pets", "", b"");
    assert_eq!(meta["inputs"][0], json!({"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 32, 32]}));
    assert_eq!(running.json("GET", "/v2", "", b"")["extensions"], json!(["binary_tensor_data"]));
    for path in [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/pets/ready",
        "/v2/models/pets/versions/v0.1.0/ready",
    ] {
        assert_eq!(running.get(path).0, 200, "{path}");
    }
    for path in ["/v2/models/dogs", "/v2/models/pets/versions/v9.9.9/ready", "/nothing"] {
        assert_eq!(running.get(path).0, 404, "{path}");
    }
    assert_eq!(running.get("/classify").0, 405);
    let page = running.get("/").1;
    assert!(page.contains("pets is ready") && page.contains("b3:"), "{page}");
    let metrics = running.get("/metrics").1;
    assert!(
        metrics.contains("mlx_requests_total{model=\"pets\",version=\"v0.1.0\",code=\"200\"} 9"),
        "{metrics}"
    );
    let said = running.stop();
    assert!(said.contains("pets@v0.1.0 answered 1"), "{said}");
}

#[test]
fn what_strangers_send_gets_a_status_and_others_are_served() {
    let sandbox = registered();
    fs::write(sandbox.root().join("token"), "secret\n").unwrap();
    let token = sandbox.root().join("token");
    let serve =
        format!("serve pets --token-file {} --deadline 2 --max-body 2 --max-megapixels 1", token.display());
    let running = Running::start(&sandbox, &serve);
    let auth = "Authorization: Bearer secret\r\n";
    for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic secret\r\n"] {
        assert_eq!(running.ask("POST", "/classify", headers, &photo(1)).0, 401, "{headers}");
    }
    assert_eq!(running.get("/").0, 401);
    assert_eq!(running.get("/v2/health/live").0, 200);
    let (planes, _) = offline(&sandbox, &photo(1));
    let good = infer(&planes, 1).to_string();
    let binary = format!("{auth}Inference-Header-Content-Length: ");
    let with = |key: &str, value: Value| {
        let mut body: Value = serde_json::from_str(&good).unwrap();
        body["inputs"][0][key] = value;
        body.to_string()
    };
    let large_picture = {
        let mut bytes = Vec::new();
        let picture = image::RgbImage::new(2000, 1000);
        picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
        bytes
    };
    for (what, path, headers, body, code) in [
        ("no picture", "/classify", auth, &b"hello"[..], 400),
        ("nothing", "/classify", auth, b"", 400),
        ("half a picture", "/classify", auth, &photo(1)[..200], 400),
        ("two million pixels", "/classify", auth, &large_picture, 413),
        ("three megabytes", "/classify", auth, &vec![0; 3 << 20], 413),
        ("an odd id", "/classify", &format!("{auth}X-Request-Id: a b\r\n"), &photo(1), 400),
        ("compressed", "/classify", &format!("{auth}Content-Encoding: gzip\r\n"), &photo(1), 415),
        ("no JSON", "/v2/models/pets/infer", auth, b"{", 400),
        ("another model", "/v2/models/dogs/infer", auth, good.as_bytes(), 404),
        (
            "a long header",
            "/v2/models/pets/infer",
            &format!("{binary}999999999999\r\n"),
            good.as_bytes(),
            400,
        ),
        ("no number", "/v2/models/pets/infer", &format!("{binary}-1\r\n"), good.as_bytes(), 400),
        ("text", "/v2/models/pets/infer", auth, with("data", json!("x")).as_bytes(), 400),
        (
            "a shape beyond all",
            "/v2/models/pets/infer",
            auth,
            with("shape", json!([1_u64 << 62, 3, 32, 32])).as_bytes(),
            400,
        ),
        ("another type", "/v2/models/pets/infer", auth, with("datatype", json!("BYTES")).as_bytes(), 400),
        (
            "bytes that are not there",
            "/v2/models/pets/infer",
            &format!("{binary}{}\r\n", good.len()),
            with("parameters", json!({"binary_data_size": 12288})).as_bytes(),
            400,
        ),
    ] {
        let (found, text) = running.ask("POST", path, headers, body);
        assert_eq!(found, code, "{what}: {text}");
        assert!(serde_json::from_str::<Value>(&text).unwrap()["error"].is_string(), "{what}: {text}");
    }
    assert_eq!(running.ask("POST", "/classify", auth, &photo(1)).0, 200);
}

#[test]
fn the_slow_and_the_many_do_not_keep_others_out() {
    let sandbox = registered();
    let running = Running::start(&sandbox, "serve pets --deadline 2");
    // Half-open and slow ones are many; who asks properly is answered.
    let idle: Vec<_> = (0..500).map(|_| running.connect()).collect();
    let mut slow: Vec<_> = (0..20).map(|_| running.connect()).collect();
    for stream in &mut slow {
        let head = "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc";
        stream.write_all(head.as_bytes()).unwrap();
    }
    let start = Instant::now();
    for number in 0..10 {
        assert_eq!(running.ask("POST", "/classify", "", &photo(number)).0, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(20));
    for mut stream in slow {
        assert_eq!(answer(&mut stream).0, 408, "a body that does not come");
    }
    drop(idle);
    let truncated =
        b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n";
    let mut stream = running.connect();
    stream.write_all(truncated).unwrap();
    assert!(matches!(answer(&mut stream).0, 0 | 400), "a chunk longer than memory");
    assert_eq!(running.ask("POST", "/classify", "", &photo(1)).0, 200);
}

#[test]
fn requests_at_once_are_answered_each_their_own_and_a_stop_answers_all() {
    let sandbox = registered();
    let mut running = Running::start(&sandbox, "serve pets --batch 4 --batch-wait 20 --queue 1000");
    let expected: Vec<Vec<f32>> = (0..8).map(|it| offline(&sandbox, &photo(it)).1).collect();
    let asked: Vec<_> = (0..40)
        .map(|at| {
            let mut stream = running.connect();
            let photo = photo(at % 8);
            let head = format!(
                "POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                photo.len()
            );
            stream.write_all(&[head.as_bytes(), &photo].concat()).unwrap();
            (at as usize % 8, stream)
        })
        .collect();
    // All are on their way; none is lost by the stop.
    thread::sleep(Duration::from_millis(100));
    let said = running.stop();
    let mut answered = 0;
    for (at, mut stream) in asked {
        let (code, text) = answer(&mut stream);
        if code == 200 {
            let found: Value = serde_json::from_str(&text).unwrap();
            close(&found["scores"]["cat"], expected[at][0]);
            answered += 1;
        }
    }
    assert_eq!(answered, 40, "{said}");
}

#[test]
fn it_does_not_open_itself_to_the_world() {
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
fn the_client_of_triton_works_untouched() {
    let test = "the_client_of_triton_works_untouched";
    let Some(python) = python("numpy, tritonclient.http") else {
        return skip(test, "no Python with tritonclient[http] (MLX_PYTHON)");
    };
    let sandbox = registered();
    let running = Running::start(&sandbox, "serve pets");
    let (planes, scores) = offline(&sandbox, &photo(3));
    let saved = sandbox.root().join("pixels");
    fs::write(&saved, planes.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let output = Command::new(python).args(["-c", TRITON, &running.address]).arg(saved).output().unwrap();
    let found: Vec<Vec<f64>> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    for row in found {
        assert!((row[0] - f64::from(scores[0])).abs() < 1e-5, "{row:?} {scores:?}");
    }
}

/// One answer on a connection that stays open: its status.
pub fn next_answer(stream: &mut BufReader<TcpStream>) -> u16 {
    let (mut line, mut code, mut length) = (String::new(), 0, 0);
    while line != "\r\n" {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "it closed the connection");
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
fn twenty_thousand_requests_leave_memory_flat() {
    let sandbox = registered();
    let running = Running::start(&sandbox, "serve pets --queue 1000");
    let ask = |count: u64| {
        thread::scope(|scope| {
            for thread in 0..4 {
                let running = &running;
                scope.spawn(move || {
                    let mut stream = BufReader::new(running.connect());
                    for number in 0..count / 4 {
                        let photo = photo((thread * 7 + number) % 50);
                        let head = format!(
                            "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
                            photo.len()
                        );
                        stream.get_mut().write_all(&[head.as_bytes(), &photo].concat()).unwrap();
                        assert_eq!(next_answer(&mut stream), 200);
                    }
                });
            }
        });
        running.resident()
    };
    let before = ask(4_000);
    let after = ask(16_000);
    assert!(after < before + (16 << 20), "{before} bytes after 4,000 requests, {after} after 20,000");
    let metrics = running.get("/metrics").1;
    assert!(metrics.contains("code=\"200\"} 20000"), "{metrics}");
}
