//! A day looked at: alerts raised once, delivered, acknowledged, and what they set off.

use std::{fs, io::Read as _, net::TcpListener, thread};

use serde_json::{Value, json};

use crate::{
    release::{another, approve, registered},
    sandbox::Sandbox,
    serve::Running,
};

const DAY: &str = "2023-11-10";

/// Adds alerts to the policy and commits it.
fn alerts(sandbox: &Sandbox, rules: &str) {
    let policy = sandbox.read(".mlx/policy.toml");
    let start = policy.find("[[alert]]").unwrap();
    sandbox.write(".mlx/policy.toml", format!("{}{rules}", &policy[..start]));
    sandbox.commit("alerts");
}

/// A sealed day with ten pictures, served by the version in production.
fn day(sandbox: &Sandbox, day: &str) {
    let mut running = Running::start(sandbox, "serve --env production --follow");
    for number in 0..10 {
        let photo = mlx::sketch::photo(7, mlx::sketch::Pet::Dog, number).unwrap();
        let headers = format!("X-Request-Id: {day}-{number}\r\nX-Captured-At: {day}T10:0{number}:00Z\r\n");
        running.json("POST", "/classify", &headers, &photo);
    }
    running.stop();
    sandbox.ok(&format!("traffic seal --day {day} --machine gate"));
}

fn in_production() -> Sandbox {
    let sandbox = registered();
    approve(&sandbox, "pets@v0.1.0");
    sandbox.ok("release pets@v0.1.0 --env production");
    sandbox
}

#[test]
fn an_alert_is_raised_once_delivered_and_known() {
    let sandbox = in_production();
    alerts(
        &sandbox,
        "[[alert]]\nname = 'frames'\nvalue = 'integrity.frames'\nabove = 5.0\nseverity = 'critical'\n",
    );
    // What a repository says of commands and files is not heard; what the user says is.
    assert!(sandbox.fails("config set alert.command true", 6).contains("must not be committed"));
    let told = sandbox.root().join("told");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hook = format!("http://{}/alerts", listener.local_addr().unwrap());
    let posted = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        let mut bytes = [0; 4096];
        while !text.contains("\"rule\"") || !text.trim_end().ends_with('}') {
            let count = stream.read(&mut bytes).unwrap();
            text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        text
    });
    sandbox.ok(&format!("config set --local alert.file {}", told.display()));
    sandbox.ok(&format!("config set --local alert.command 'cat > {}.command'", told.display()));
    sandbox.ok(&format!("config set --local alert.webhook {hook}"));
    day(&sandbox, DAY);
    let ran = sandbox.mlx(&format!("monitor run --day {DAY} --json"));
    assert_eq!(ran.code, 10, "{}\n{}", ran.out, ran.err);
    let found: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&found["raised"][0]["rule"], &found["values"]["integrity.frames"]),
        (&json!("frames"), &json!(10.0))
    );
    let line = fs::read_to_string(&told).unwrap();
    let alert: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&alert["state"], &alert["rule"], &alert["severity"], &alert["day"]),
        (&json!("raised"), &json!("frames"), &json!("critical"), &json!(DAY))
    );
    assert_eq!(fs::read_to_string(format!("{}.command", told.display())).unwrap(), alert.to_string());
    assert!(posted.join().unwrap().contains("POST /alerts"));
    // The same day again: the same report, and nothing is raised.
    let report = sandbox.read(&format!("monitor/production/{DAY}.json"));
    let again = sandbox.mlx(&format!("monitor run --day {DAY} --json"));
    let again: Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!((&again["raised"], &again["firing"][0]["rule"]), (&json!([]), &json!("frames")));
    assert_eq!(sandbox.read(&format!("monitor/production/{DAY}.json")), report);
    assert_eq!(fs::read_to_string(&told).unwrap(), line);
    let page = sandbox.read(&format!("monitor/production/{DAY}.html"));
    assert!(page.contains("<svg") && !page.contains("<script"));
    let number = sandbox.json("alert list")["alerts"][0]["number"].as_u64().unwrap();
    sandbox.ok(&format!("alert ack {number} --as ada@park.example --why 'looking'"));
    assert_eq!(sandbox.json("alert list")["alerts"][0]["acknowledged"], "ada@park.example");
    assert!(sandbox.fails(&format!("alert ack {number} --as bob@x"), 4).contains("took notice of alert"));
    assert!(sandbox.fails("alert ack 999 --as bob@x", 3).contains("there is no alert 999"));
    assert_eq!(sandbox.json("audit --verify")["sound"], true);
}

#[test]
fn an_alert_may_roll_back_and_days_may_become_the_reference() {
    let sandbox = in_production();
    another(&sandbox, "0.5");
    approve(&sandbox, "pets@v0.2.0");
    sandbox.ok("release pets@v0.2.0 --env production");
    alerts(
        &sandbox,
        "[[alert]]\nname = 'frames'\nvalue = 'integrity.frames'\nabove = 5.0\naction = 'rollback'\n",
    );
    day(&sandbox, DAY);
    let ran = sandbox.mlx(&format!("monitor run --day {DAY} --json"));
    let found: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{}", ran.err));
    assert_eq!(found["actions"], json!(["rolled back: pets@v0.1.0"]));
    let report: Value =
        serde_json::from_str(&sandbox.read(&format!("monitor/production/{DAY}.json"))).unwrap();
    assert_eq!(report["reference"], "training side of pets@v0.2.0");
    sandbox.ok(&format!("monitor accept --from {DAY} --to {DAY} --as qa@park.example --why usual"));
    day(&sandbox, "2023-11-12");
    sandbox.mlx("monitor run --day 2023-11-12");
    let report: Value = serde_json::from_str(&sandbox.read("monitor/production/2023-11-12.json")).unwrap();
    assert_eq!(report["reference"], format!("{DAY} to {DAY}, accepted by qa@park.example"));
    // What fires is not raised again, and sets nothing off again.
    let rows = sandbox.json("audit");
    let count = |what: &str| rows["rows"].as_array().unwrap().iter().filter(|it| it["what"] == what).count();
    assert_eq!((count("alerted"), count("rolled back"), count("accepted")), (1, 1, 1));
}

#[test]
fn what_is_not_there_is_said_and_nothing_changes() {
    let sandbox = in_production();
    let before = sandbox.git("for-each-ref");
    for (args, code, says) in [
        ("monitor run --day 2023-11-10", 3, "no traffic of 2023-11-10 in `production` is sealed"),
        ("monitor run --day 10.11.2023", 2, "is no day"),
        ("monitor run --day 2023-11-10 --env moon", 3, "knows no environment `moon`"),
        (
            "monitor accept --from 2023-11-10 --to 2023-11-11 --as a@b",
            3,
            "no day from 2023-11-10 to 2023-11-11",
        ),
        ("retrain --env production", 3, "no labeled pictures of `production` are committed"),
        ("retrain --env moon", 3, "nothing was released in `moon`"),
    ] {
        let error = sandbox.fails(args, code);
        assert!(error.contains(says), "{args}: {error}");
    }
    assert_eq!(sandbox.git("for-each-ref"), before);
    assert_eq!(sandbox.git("worktree list").lines().count(), 1);
    assert!(!sandbox.has("monitor"));
}
