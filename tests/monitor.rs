//! Tests of `mlx monitor` and `mlx alert`: the daily report, alerts that are raised once, delivered,
//! acknowledged and may roll back, and the reference days.

use std::{fs, io::Read as _, net::TcpListener, thread};

use serde_json::{Value, json};

use crate::{
    release::{approve, push_to_hub, register_another, registered},
    sandbox::Sandbox,
    serve::{Server, photo},
};

/// Day of the recorded traffic.
pub const DAY: &str = "2023-11-10";

/// Replaces the alert rules of the policy and commits it.
fn set_alert_rules(sandbox: &Sandbox, rules: &str) {
    let policy = sandbox.read(".mlx/policy.toml");
    let start = policy.find("[[alert]]").unwrap();
    sandbox.write(".mlx/policy.toml", format!("{}{rules}", &policy[..start]));
    sandbox.commit("alerts");
}

/// Has the version in production classify ten photos of a day, and seals the day.
pub fn seal_day(sandbox: &Sandbox, day: &str) {
    classify_photos(sandbox, &[(day, 10, 10)]);
    sandbox.ok(&format!("traffic seal --day {day} --machine gate"));
}

/// Has the version in production classify photos. Each item of `days` is a day, an hour and a count.
fn classify_photos(sandbox: &Sandbox, days: &[(&str, u32, u64)]) {
    let mut server = Server::start(sandbox, "serve --env production --follow");
    for (day, hour, count) in days {
        for number in 0..*count {
            let photo = photo(number);
            let headers = format!(
                "X-Request-Id: {day}-{hour}-{number}\r\nX-Captured-At: {day}T{hour:02}:{number:02}:00Z\r\n"
            );
            server.json("POST", "/classify", &headers, &photo);
        }
    }
    server.stop();
}

/// Creates a project whose model `pets@v0.1.0` is released to production.
pub fn released_model() -> Sandbox {
    let sandbox = registered();
    approve(&sandbox, "pets@v0.1.0");
    sandbox.ok("release pets@v0.1.0 --env production");
    sandbox
}

#[test]
fn an_alert_is_raised_once_delivered_and_acknowledged() {
    let sandbox = released_model();
    set_alert_rules(
        &sandbox,
        "[[alert]]\nname = 'frames'\nvalue = 'integrity.frames'\nabove = 5.0\nseverity = 'critical'\n",
    );
    // Alert commands and files are taken from local settings only, never from committed ones.
    assert!(sandbox.fails("config set alert.command true", 6).contains("must not be committed"));
    let alert_file = sandbox.root().join("told");
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
    sandbox.ok(&format!("config set --local alert.file {}", alert_file.display()));
    sandbox.ok(&format!("config set --local alert.command 'cat > {}.command'", alert_file.display()));
    sandbox.ok(&format!("config set --local alert.webhook {hook}"));
    seal_day(&sandbox, DAY);
    let ran = sandbox.mlx(&format!("monitor run --day {DAY} --json"));
    assert_eq!(ran.code, 10, "{}\n{}", ran.out, ran.err);
    let found: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&found["raised"][0]["rule"], &found["values"]["integrity.frames"]),
        (&json!("frames"), &json!(10.0))
    );
    let line = fs::read_to_string(&alert_file).unwrap();
    let alert: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&alert["state"], &alert["rule"], &alert["severity"], &alert["day"]),
        (&json!("raised"), &json!("frames"), &json!("critical"), &json!(DAY))
    );
    assert_eq!(
        fs::read_to_string(format!("{}.command", alert_file.display())).unwrap(),
        format!("{alert}\n")
    );
    assert!(posted.join().unwrap().contains("POST /alerts"));
    // A second run for the day writes the same report and raises nothing.
    let report = sandbox.read(&format!("monitor/production/{DAY}.json"));
    let again = sandbox.mlx(&format!("monitor run --day {DAY} --json"));
    let again: Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!((&again["raised"], &again["firing"][0]["rule"]), (&json!([]), &json!("frames")));
    assert_eq!(sandbox.read(&format!("monitor/production/{DAY}.json")), report);
    assert_eq!(fs::read_to_string(&alert_file).unwrap(), line);
    let page = sandbox.read(&format!("monitor/production/{DAY}.html"));
    assert!(page.contains("<svg") && !page.contains("<script"));
    let number = sandbox.json("alert list")["alerts"][0]["number"].as_u64().unwrap();
    sandbox.ok(&format!("alert ack {number} --as ada@park.example --why 'looking'"));
    assert_eq!(sandbox.json("alert list")["alerts"][0]["acknowledged"], "ada@park.example");
    assert!(
        sandbox.fails(&format!("alert ack {number} --as bob@x"), 4).contains("was already acknowledged by")
    );
    assert!(sandbox.fails("alert ack 999 --as bob@x", 3).contains("alert 999 not found"));
    assert_eq!(sandbox.json("audit --verify")["sound"], true);
}

#[test]
fn an_alert_can_roll_back_and_accepted_days_become_the_reference() {
    let sandbox = released_model();
    register_another(&sandbox, "0.5");
    approve(&sandbox, "pets@v0.2.0");
    sandbox.ok("release pets@v0.2.0 --env production");
    set_alert_rules(
        &sandbox,
        "[[alert]]\nname = 'frames'\nvalue = 'integrity.frames'\nabove = 5.0\naction = 'rollback'\n",
    );
    classify_photos(&sandbox, &[(DAY, 10, 30)]);
    sandbox.ok(&format!("traffic seal --day {DAY} --machine gate"));
    let held = sandbox.mlx(&format!("monitor run --day {DAY} --no-act --json"));
    let held: Value = serde_json::from_str(&held.out).unwrap_or_else(|_| panic!("{}", held.err));
    assert_eq!((&held["actions"], &held["raised"][0]["rule"]), (&json!([]), &json!("frames")));
    // The next run does the action that `--no-act` held back, and does it once.
    let found = sandbox.json(&format!("monitor run --day {DAY}"));
    assert_eq!(found["actions"], json!(["rolled back: pets@v0.1.0"]));
    assert_eq!(sandbox.json(&format!("monitor run --day {DAY}"))["actions"], json!([]));
    let page = sandbox.read(&format!("monitor/production/{DAY}.html"));
    assert!(page.contains("alert `frames`"));
    let report: Value =
        serde_json::from_str(&sandbox.read(&format!("monitor/production/{DAY}.json"))).unwrap();
    assert_eq!(report["reference"], "training side of pets@v0.2.0");
    sandbox.ok(&format!("monitor accept --from {DAY} --to {DAY} --as qa@park.example --why usual"));
    seal_day(&sandbox, "2023-11-12");
    sandbox.mlx("monitor run --day 2023-11-12");
    let report: Value = serde_json::from_str(&sandbox.read("monitor/production/2023-11-12.json")).unwrap();
    assert_eq!(report["reference"], format!("{DAY} to {DAY}, accepted by qa@park.example"));
    // An alert that keeps firing is not raised again and triggers no second action.
    let rows = sandbox.json("audit");
    let count =
        |what: &str| rows["rows"].as_array().unwrap().iter().filter(|row| row["what"] == what).count();
    assert_eq!((count("alerted"), count("rolled back"), count("accepted")), (1, 1, 1));
}

#[test]
fn a_missing_day_or_environment_is_an_error_and_changes_nothing() {
    let sandbox = released_model();
    let before = sandbox.git("for-each-ref");
    for (args, code, message) in [
        ("monitor run --day 2023-11-10", 3, "no traffic of 2023-11-10 in `production` is sealed"),
        ("monitor run --day 10.11.2023", 2, "is not a day"),
        ("monitor run --day 2023-11-10 --env moon", 3, "environment `moon` not found in the policy"),
        (
            "monitor accept --from 2023-11-10 --to 2023-11-11 --as a@b",
            3,
            "no day from 2023-11-10 to 2023-11-11",
        ),
        ("retrain --env production", 3, "no labeled images of `production` are committed"),
        ("retrain --env moon", 3, "no version was released to `moon`"),
    ] {
        let error = sandbox.fails(args, code);
        assert!(error.contains(message), "{args}: {error}");
    }
    assert_eq!(sandbox.git("for-each-ref"), before);
    assert_eq!(sandbox.git("worktree list").lines().count(), 1);
    assert!(!sandbox.has("monitor"));
}

#[test]
fn a_version_without_traffic_on_the_day_is_not_rolled_back() {
    let sandbox = released_model();
    seal_day(&sandbox, DAY);
    register_another(&sandbox, "0.5");
    approve(&sandbox, "pets@v0.2.0");
    sandbox.ok("release pets@v0.2.0 --env production");
    set_alert_rules(
        &sandbox,
        "[[alert]]\nname = 'frames'\nvalue = 'integrity.frames'\nabove = 5.0\naction = 'rollback'\n",
    );
    let found = sandbox.json(&format!("monitor run --day {DAY}"));
    let action = format!("rollback skipped: pets@v0.2.0 serves now, but did not answer on {DAY}");
    assert_eq!(found["actions"], json!([action]));
    let rows = sandbox.json("audit");
    assert!(rows["rows"].as_array().unwrap().iter().all(|row| row["what"] != "rolled back"));
}

#[test]
fn invalid_reference_days_are_refused() {
    let sandbox = released_model();
    seal_day(&sandbox, DAY);
    let before = sandbox.git("for-each-ref");
    for (args, code, message) in [
        (format!("--from {DAY} --to 2027-12-31 --as qa@park.example"), 2, "2027-12-31 is not over"),
        (format!("--from 2023-11-11 --to {DAY} --as qa@park.example"), 2, "comes after"),
        (
            format!("--from {DAY} --to {DAY} --as qa@park.example"),
            2,
            "have 10 answered images; a reference needs 30",
        ),
    ] {
        let error = sandbox.fails(&format!("monitor accept {args}"), code);
        assert!(error.contains(message), "{args}: {error}");
    }
    classify_photos(&sandbox, &[("2023-11-11", 10, 20)]);
    sandbox.ok("traffic seal --day 2023-11-11 --machine gate");
    for (who, code, message) in
        [("' '", 2, "`--as` is empty"), ("eve@x", 6, "`eve@x` is not listed in [people]")]
    {
        let error = sandbox.fails(&format!("monitor accept --from {DAY} --to 2023-11-11 --as {who}"), code);
        assert!(error.contains(message), "{who}: {error}");
    }
    assert_eq!(sandbox.git("for-each-ref"), before);
    sandbox.ok(&format!("monitor accept --from {DAY} --to 2023-11-11 --as qa@park.example"));
}

/// Records of a day may be in any later seal. A clone makes the same report as the machine that sealed.
#[test]
fn late_records_are_reported_and_clones_make_the_same_report() {
    let sandbox = released_model();
    let days: Vec<String> = (1..11).map(|number| format!("2023-11-{number:02}")).collect();
    let all: Vec<(&str, u32, u64)> = days.iter().map(|day| (&day[..], 10, 1)).collect();
    classify_photos(&sandbox, &all);
    for day in &days {
        sandbox.ok(&format!("traffic seal --day {day} --machine gate"));
    }
    classify_photos(&sandbox, &[(&days[0], 12, 1), ("2023-11-11", 15, 1)]);
    sandbox.ok("traffic seal --day 2023-11-11 --machine gate");
    let late = sandbox.json("monitor run --day 2023-11-01");
    assert_eq!(late["values"]["integrity.frames"], json!(2.0));
    // Files that are not readable reports do not stop the run. A rule on an unknown value causes a warning.
    sandbox.write("monitor/production/2023-11-02.json", "{");
    sandbox.write("monitor/production/notes.json", "[]");
    set_alert_rules(&sandbox, "[[alert]]\nname = 'dark'\nvalue = 'integrity.drak_share'\nabove = 0.1\n");
    let ran = sandbox.mlx("monitor run --day 2023-11-11");
    assert_eq!(ran.code, 0, "{}", ran.err);
    for message in [
        "`monitor/production/2023-11-02.json` is not a report",
        "`integrity.drak_share`, which no report has",
    ] {
        assert!(ran.err.contains(message), "{}", ran.err);
    }
    assert!(!ran.err.contains("notes"), "{}", ran.err);
    push_to_hub(&sandbox);
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q {} {}", sandbox.root().join("hub.git").display(), clone.display()));
    let other = sandbox.at(&clone);
    other.ok("monitor run --day 2023-11-11");
    let read = |folder: &std::path::Path| -> Value {
        serde_json::from_slice(&fs::read(folder.join("monitor/production/2023-11-11.json")).unwrap()).unwrap()
    };
    assert_eq!(read(&clone)["integrity"]["missing_hours"], json!([10]));
    assert_eq!(read(&clone), read(&sandbox.repo));
}
