//! Tests of recorded traffic: what `mlx serve` records, sealing a day into a dataset, and labels from
//! feedback.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use mlx::{
    digest::Digest,
    time::Day,
    traffic::{
        ImageStats, Record, Spool, TelemetrySample, read_requests, read_telemetry, spool, write_requests,
    },
};
use serde_json::{Value, json};

use crate::{
    crash_safety,
    halting::operations,
    model::python_with,
    sandbox::{Sandbox, command_result, skip},
    serve::{Server, classify_offline, infer_body, photo, registered},
};

/// Header with a time on the day before the sandbox's clock.
const YESTERDAY: &str = "X-Captured-At: 2023-11-13T08:00:00Z\r\n";
/// Time on 2023-11-13, in milliseconds since 1970.
const MORNING: i64 = 1_699_862_400_000;

/// Opens mlx's folder of the repository.
fn mlx_folder(sandbox: &Sandbox) -> mlx::fs::Root {
    mlx::fs::Root::open(&sandbox.repo.join(".git/mlx")).unwrap()
}

/// Runs mlx with the clock one day ahead, and returns its JSON output.
fn json_next_day(sandbox: &Sandbox, args: &str) -> Value {
    let mut command = crash_safety::command(sandbox, args);
    let ran = command_result(command.arg("--json").env("MLX_TIMESTAMP", "1700086400").output().unwrap());
    serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{args}: {ran:?}"))
}

/// Returns the records of a sealed day.
fn sealed_records(sandbox: &Sandbox, folder: &str) -> Vec<Record> {
    read_requests(&fs::read(sandbox.repo.join(folder).join("requests.parquet")).unwrap()).unwrap()
}

/// Returns a record of an answered request.
fn new_record(id: &str, captured: i64) -> Record {
    Record {
        id: id.to_owned(),
        captured,
        received: captured + 3,
        version: "pets@v0.1.0".to_owned(),
        package: Digest::of(b"package"),
        input: Digest::of(id.as_bytes()),
        name: format!("{id}.jpg"),
        status: 200,
        latency: 2.5,
        class: "cat".to_owned(),
        scores: vec![0.75, 0.25],
        features: vec![1.0, -2.0, 3.5],
        image_stats: Some(ImageStats { brightness: 0.5, fingerprint: u64::MAX, ..ImageStats::default() }),
        kept: false,
    }
}

/// Writes records into the spool without a server. Each record's image is its id.
fn write_to_spool(sandbox: &Sandbox, records: &[(&str, i64)]) {
    let options = spool::Options {
        keep_share: 1.0,
        max_undecodable_size: 0,
        max_undecodable_per_day: 0,
        disk: sandbox.repo.clone(),
    };
    let spool = Spool::start(mlx_folder(sandbox), "production", options).unwrap();
    for (id, captured) in records {
        assert!(spool.record(new_record(id, *captured), Some(id.as_bytes().to_vec().into())));
    }
}

#[test]
fn requests_are_recorded_and_a_day_is_sealed_as_a_dataset() {
    let sandbox = registered();
    let remote = sandbox.root().join("remote");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    let mut server = Server::start(&sandbox, "serve pets --env production");
    let mut responses = Vec::new();
    for number in 0..3 {
        let headers = format!("{YESTERDAY}X-Name: cam/{number}.jpg\r\nX-Request-Id: r{number}\r\n");
        responses.push(server.json("POST", "/classify", &headers, &photo(number)));
    }
    assert_eq!(
        server.request("POST", "/classify", &format!("{YESTERDAY}X-Request-Id: bad\r\n"), b"no picture").0,
        400
    );
    let (planes, _) = classify_offline(&sandbox, &photo(0));
    let twice = infer_body(&[&planes[..], &planes[..]].concat(), 2).to_string();
    assert_eq!(server.request("POST", "/v2/models/pets/infer", YESTERDAY, twice.as_bytes()).0, 200);
    assert_eq!(server.request("POST", "/v2/models/dogs/infer", YESTERDAY, twice.as_bytes()).0, 404);
    for header in ["X-Captured-At: 2023-11-14T23:00:00Z\r\n", "X-Captured-At: soon\r\n", "X-Name: \x07\r\n"] {
        assert_eq!(server.request("POST", "/classify", header, &photo(0)).0, 400, "{header}");
    }
    let metrics = server.get("/metrics").1;
    assert!(metrics.contains("mlx_traffic_dropped_total 0"), "{metrics}");
    server.stop();
    let days = sandbox.json("traffic list");
    let waiting = |at: usize| (days["days"][at]["day"].clone(), days["days"][at]["waiting"].clone());
    assert_eq!(waiting(0), (json!("2023-11-13"), json!(6)));
    // A request with an invalid time is recorded today; a header with a control character is not recorded.
    assert_eq!(waiting(1).0, json!("2023-11-14"));

    let seal = sandbox.json("traffic seal --day 2023-11-13 --machine gate");
    assert_eq!(
        (&seal["records"], &seal["late"], &seal["pictures"], &seal["already"]),
        (&json!(6), &json!(0), &json!(4), &json!(false)),
        "{seal}"
    );
    let folder = "traffic/production/2023-11-13/gate";
    let records = sealed_records(&sandbox, folder);
    let by_id = |id: &str| {
        records.iter().find(|record| record.id == id).unwrap_or_else(|| panic!("{id}: {records:?}"))
    };
    for (number, response) in responses.iter().enumerate() {
        let record = by_id(&format!("r{number}"));
        let bytes = photo(number as u64);
        assert_eq!((&json!(record.class), record.status), (&response["class"], 200));
        assert_eq!((&record.name, record.input), (&format!("cam/{number}.jpg"), Digest::of(&bytes)));
        assert_eq!((record.captured, record.received), (MORNING, 1_700_000_000_000));
        assert!(record.kept && record.image_stats.unwrap().brightness > 0.05 && record.features.len() > 2);
        let kept =
            fs::read(sandbox.repo.join(format!("{folder}/pictures/{}.jpg", record.input.hex()))).unwrap();
        assert_eq!(kept, bytes);
    }
    let bad = by_id("bad");
    assert_eq!((bad.status, bad.image_stats, bad.kept, &bad.class[..]), (400, None, true, ""));
    assert!(sandbox.has(&format!("{folder}/pictures/{}.bin", bad.input.hex())));
    let (first, second) = (by_id("mine"), by_id("mine#1"));
    assert_eq!((first.input, &first.scores), (second.input, &second.scores));
    assert_eq!((first.image_stats, first.kept), (by_id("r0").image_stats, false));
    let samples = fs::read(sandbox.repo.join(folder).join("telemetry.parquet")).unwrap();
    let samples: Vec<TelemetrySample> = read_telemetry(&samples).unwrap();
    assert!(samples.iter().all(|sample| sample.resident > 0) && !samples.is_empty());

    let again = sandbox.json("traffic seal --day 2023-11-13 --machine gate");
    assert_eq!((&again["already"], &again["digest"]), (&json!(true), &seal["digest"]));
    let days = sandbox.json("traffic list");
    assert_eq!(
        days["days"][0],
        json!({"day": "2023-11-13", "machines": ["gate"], "records": 6, "waiting": 0, "labels": 0})
    );
    // A clone can pull the sealed day.
    sandbox.commit("traffic");
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), clone.display()));
    sandbox.at(&clone).ok("pull traffic");
    assert_eq!(sandbox.at(&clone).json("traffic list")["days"][0]["records"], 6);
}

#[test]
fn a_day_that_cannot_be_sealed_is_an_error() {
    let sandbox = Sandbox::new();
    write_to_spool(&sandbox, &[("a", 1_700_000_000_000)]);
    assert!(sandbox.fails("traffic seal --day 2023-11-14", 2).contains("2023-11-14 is not over"));
    assert!(
        sandbox
            .fails("traffic seal --day 2023-11-13", 3)
            .contains("this machine has no traffic of 2023-11-13")
    );
    assert!(sandbox.fails("traffic seal --day 2023-11-13 --env test", 3).contains("in `test`"));
    assert!(sandbox.fails("traffic seal --day today", 2).contains("`today` is not a day"));
    assert!(sandbox.fails("traffic seal --day 2023-11-13 --env ../x", 2).contains("`../x`"));
    assert!(sandbox.fails("traffic seal --day 2023-11-13 --machine a/b", 2).contains("`a/b`"));
    assert!(!sandbox.has("traffic"));
    assert_eq!(json_next_day(&sandbox, "traffic seal --day 2023-11-14")["records"], 1);
}

#[test]
fn late_records_are_sealed_once_with_the_next_day() {
    let sandbox = Sandbox::new();
    write_to_spool(&sandbox, &[("a", MORNING), ("b", MORNING + 1)]);
    assert_eq!(sandbox.json("traffic seal --day 2023-11-13 --machine m")["records"], 2);
    // A second record with the same id is another record.
    write_to_spool(&sandbox, &[("a", MORNING + 7), ("older", MORNING - 86_400_000)]);
    assert_eq!(sandbox.json("traffic seal --day 2023-11-13 --machine m")["already"], true);
    assert_eq!(sandbox.json("traffic list")["days"][0]["waiting"], 1);
    let next = json_next_day(&sandbox, "traffic seal --day 2023-11-14 --machine m");
    assert_eq!((&next["records"], &next["late"], &next["pictures"]), (&json!(2), &json!(2), &json!(2)));
    let ids: Vec<_> =
        sealed_records(&sandbox, "traffic/production/2023-11-14/m").into_iter().map(|it| it.id).collect();
    assert_eq!(ids, ["older", "a"]);
    assert_eq!(spool::days(&mlx_folder(&sandbox), "production").unwrap(), []);
}

#[test]
fn a_failed_push_keeps_the_seal() {
    let sandbox = Sandbox::new();
    write_to_spool(&sandbox, &[("a", MORNING)]);
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    fs::write(&remote, "no folder").unwrap();
    let ran = sandbox.mlx("traffic seal --day 2023-11-13 --machine m");
    assert!(ran.code != 0 && ran.err.contains("`mlx push`"), "{ran:?}");
    assert!(sandbox.has("traffic/production/2023-11-13/m.mlx"));
    fs::remove_file(&remote).unwrap();
    fs::create_dir(&remote).unwrap();
    let again = sandbox.json("traffic seal --day 2023-11-13 --machine m");
    assert!(again["already"] == true && again["pushed"].is_string(), "{again}");
    assert!(remote.join("v1/packs").is_dir());
}

#[test]
fn a_killed_server_loses_at_most_the_records_of_one_second() {
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets --env production --keep 0");
    let start = Instant::now();
    let mut sent = Vec::new();
    while start.elapsed() < Duration::from_millis(2500) {
        let headers = format!("X-Request-Id: r{}\r\n", sent.len());
        assert_eq!(server.request("POST", "/classify", &headers, &photo(0)).0, 200);
        sent.push(Instant::now());
    }
    let killed = Instant::now();
    drop(server);
    let found = spool::read(&mlx_folder(&sandbox), "production", Day::of(1_700_000_000_000)).unwrap();
    let safe = sent.iter().filter(|time| killed - **time > Duration::from_secs(1)).count();
    assert!(safe > 10, "{safe} requests are too few for this test");
    for at in 0..safe {
        let id = format!("r{at}");
        assert!(found.records.iter().any(|record| record.id == id), "{id} of {safe} is lost");
    }
    assert!(found.records.iter().all(|record| !record.kept) && found.images.is_empty());
}

#[test]
fn nothing_is_recorded_with_no_traffic() {
    let sandbox = registered();
    let mut server = Server::start(&sandbox, "serve pets --no-traffic");
    server.json("POST", "/classify", YESTERDAY, &photo(0));
    server.stop();
    assert!(!sandbox.has(".git/mlx/traffic"));
    assert!(sandbox.fails("serve pets --keep 1.5", 2).contains("from 0 to 1"));
    assert!(sandbox.fails("serve pets --env a/b", 2).contains("`a/b`"));
}

/// Kills or fails the seal at each of its disk operations, and checks that repeating it completes it.
#[test]
fn seal_survives_every_fault() {
    let sandbox = Sandbox::new();
    write_to_spool(&sandbox, &[("a", MORNING), ("b", MORNING + 1), ("older", MORNING - 86_400_000)]);
    let remote = sandbox.root().join("remote");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    crash_safety::save_state(&sandbox);
    let args = "traffic seal --day 2023-11-13 --machine m";
    sandbox.ok(args);
    let expected = crash_safety::outcome(&sandbox);
    for how in ["kill", "fail"] {
        for at in operations(&format!("{how} traffic seal"), 3) {
            crash_safety::restore_state(&sandbox);
            let mut command = crash_safety::command(&sandbox, args);
            let ran = command_result(command.env("MLX_FAULT", format!("{how}:{at}")).output().unwrap());
            assert!(ran.code != 101 && !ran.err.contains("panicked"), "{how} {at}: {}", ran.err);
            sandbox.ok(args);
            assert_eq!(crash_safety::outcome(&sandbox), expected, "{how} {at}");
            assert_eq!(spool::days(&mlx_folder(&sandbox), "production").unwrap(), [], "{how} {at}");
            if ran.code == 0 && (how == "kill" || at > 150) {
                assert!(at > 30, "the seal passes too few fault points");
                break;
            }
        }
    }
}

#[test]
fn labels_are_stored_by_day_and_invalid_feedback_changes_nothing() {
    let sandbox = registered();
    let mut server = Server::start(&sandbox, "serve pets --env production");
    for number in 0..3 {
        let day = 11 + number;
        let headers = format!("X-Request-Id: r{number}\r\nX-Captured-At: 2023-11-{day}T08:00:00Z\r\n");
        server.json("POST", "/classify", &headers, &photo(number));
    }
    server.stop();
    sandbox.ok("traffic seal --day 2023-11-12 --machine m");
    sandbox.write("bad.csv", "id,class\nr0,cat\nr7,cat\nr8,dog\n");
    assert!(sandbox.fails("feedback bad.csv", 3).contains("`r7`, `r8`"));
    sandbox.write("bad.csv", "id,class\nr0,cat\nr1,horse\n");
    assert!(sandbox.fails("feedback bad.csv", 2).contains("not a class of the model that answered: `horse`"));
    let digest = Digest::of(&photo(0));
    sandbox.write(
        "bad.jsonl",
        format!("{{\"id\":\"r0\",\"class\":\"cat\"}}\n{{\"digest\":\"{digest}\",\"class\":\"dog\"}}\n"),
    );
    assert!(sandbox.fails("feedback bad.jsonl", 4).contains("labeled with different classes"));
    sandbox.write("bad.csv", "who,class\n");
    assert!(sandbox.fails("feedback bad.csv", 5).contains("line 1 of `bad.csv`"));
    assert!(sandbox.fails("feedback bad.csv --env test", 5).contains("line 1"));
    assert!(!sandbox.has("traffic/production/2023-11-11/labels.tsv"));

    sandbox.write("good.csv", format!("digest,class\n{digest},cat\n{},dog\n", Digest::of(&photo(2))));
    let report = sandbox.json("feedback good.csv");
    assert_eq!(
        (&report["new"], &report["files"][1]),
        (&json!(2), &json!("traffic/production/2023-11-13/labels.tsv"))
    );
    assert_eq!(sandbox.read("traffic/production/2023-11-11/labels.tsv"), format!("r0\t{digest}\tcat\n"));
    sandbox.write("more.csv", "id,class\nr0,dog\nr1,cat\nr2,dog\n");
    let report = sandbox.json("feedback more.csv");
    assert_eq!((&report["new"], &report["changed"], &report["same"]), (&json!(1), &json!(1), &json!(1)));
    let files = mlx::fs::Root::open(&sandbox.repo).unwrap();
    let labels = mlx::traffic::read_labels(&files, "production", "2023-11-11".parse().unwrap()).unwrap();
    assert_eq!(labels.get(&Record { input: digest, ..new_record("r0", 0) }), Some(&"dog".to_owned()));
    assert_eq!((labels.get(&new_record("r0", 0)), labels.len()), (None, 1));
    assert!(!sandbox.git("status --porcelain -uall").contains("requests.parquet"));
    assert!(sandbox.git("status --porcelain -uall").contains("2023-11-13/labels.tsv"));
}

#[test]
fn images_that_share_an_id_are_labeled_by_digest() {
    let sandbox = registered();
    let mut server = Server::start(&sandbox, "serve pets --env production");
    for number in [0, 1] {
        server.json("POST", "/classify", &format!("X-Request-Id: twice\r\n{YESTERDAY}"), &photo(number));
    }
    server.stop();
    sandbox.ok("traffic seal --day 2023-11-13 --machine m");
    sandbox.write("id.csv", "id,class\ntwice,cat\n");
    assert!(sandbox.fails("feedback id.csv", 4).contains("the id of several images: `twice`"));
    let [one, other] = [0, 1].map(|number| Digest::of(&photo(number)));
    sandbox.write("digest.csv", format!("digest,class\n{one},cat\n{other},dog\n"));
    assert_eq!(sandbox.json("feedback digest.csv")["new"], 2);
    let files = mlx::fs::Root::open(&sandbox.repo).unwrap();
    let labels = mlx::traffic::read_labels(&files, "production", "2023-11-13".parse().unwrap()).unwrap();
    let classes =
        [one, other].map(|input| labels.get(&Record { input, ..new_record("twice", 0) }).unwrap().clone());
    assert_eq!(classes, ["cat", "dog"]);
}

#[test]
fn concurrent_seals_of_a_day_make_one() {
    let sandbox = Sandbox::new();
    write_to_spool(&sandbox, &[("a", MORNING), ("b", MORNING + 1)]);
    let seal = || crash_safety::command(&sandbox, "traffic seal --day 2023-11-13 --machine m --json");
    let seals: Vec<_> =
        (0..4).map(|_| seal().stdout(std::process::Stdio::piped()).spawn().unwrap()).collect();
    let reports: Vec<Value> = seals
        .into_iter()
        .map(|child| serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    assert_eq!(reports.iter().filter(|report| report["already"] == false).count(), 1, "{reports:?}");
    assert!(reports.iter().all(|report| report["records"] == 2), "{reports:?}");
    assert_eq!(sealed_records(&sandbox, "traffic/production/2023-11-13/m").len(), 2);
}

/// Kills a seal and repeats it under another machine's name: no record is sealed twice.
#[test]
fn a_killed_seal_repeated_under_another_name_seals_nothing_twice() {
    let sandbox = Sandbox::new();
    write_to_spool(&sandbox, &[("a", MORNING), ("b", MORNING + 1)]);
    fs::create_dir(sandbox.root().join("remote")).unwrap();
    crash_safety::save_state(&sandbox);
    for at in operations("kill traffic seal, then another machine's", 3) {
        crash_safety::restore_state(&sandbox);
        let mut command = crash_safety::command(&sandbox, "traffic seal --day 2023-11-13 --machine m");
        let ran = command_result(command.env("MLX_FAULT", format!("kill:{at}")).output().unwrap());
        if ran.code == 0 {
            assert!(at > 30, "the seal passes too few fault points");
            break;
        }
        let again = sandbox.mlx("traffic seal --day 2023-11-13 --machine other");
        assert!([0, 3].contains(&again.code), "{at}: {again:?}");
        let list = sandbox.json("traffic list");
        let day = &list["days"][0];
        assert_eq!((&day["records"], &day["waiting"]), (&json!(2), &json!(0)), "{at}: {list}");
    }
}

/// Mounts a small disk under the spool, in a mount namespace that ends with the server.
#[test]
fn a_full_disk_delays_no_response_and_dropped_records_are_counted() {
    let mount = "mount -t tmpfs -o size=64k none .git/mlx/traffic && exec \"$@\"";
    let namespace = ["-rm", "sh", "-c", mount, "sh"];
    let sandbox = registered();
    fs::create_dir_all(sandbox.repo.join(".git/mlx/traffic")).unwrap();
    let mut probe = sandbox.command("unshare", &sandbox.repo);
    if !probe.args(namespace).arg("true").status().is_ok_and(|status| status.success()) {
        return skip("a_full_disk_delays_no_response", "user namespaces are not available");
    }
    let mut command = sandbox.command("unshare", &sandbox.repo);
    command.args(namespace).arg(env!("CARGO_BIN_EXE_mlx"));
    let mut server = Server::run(command, "serve pets --env production --keep 1");
    for number in 0..60 {
        assert_eq!(server.request("POST", "/classify", "", &photo(number)).0, 200);
    }
    let dropped = || {
        let text = server.get("/metrics").1;
        let line = text.lines().find_map(|line| line.strip_prefix("mlx_traffic_dropped_total ")).unwrap();
        line.parse::<u64>().unwrap()
    };
    let start = Instant::now();
    while dropped() == 0 && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(dropped() > 0);
    server.stop();
}

const ARROW: &str = "
import sys, json, pyarrow.parquet as pq
table = pq.read_table(sys.argv[1])
rows = table.to_pylist()
for row in rows:
    row['captured'] = row['captured'].isoformat()
    row['received'] = row['received'].isoformat()
print(json.dumps({'types': {it.name: str(it.type) for it in table.schema}, 'rows': rows}))
";

#[test]
fn arrow_reads_the_written_parquet_files() {
    let Some(python) = python_with("pyarrow.parquet") else {
        return skip("arrow_reads_the_written_parquet_files", "no Python with pyarrow (MLX_PYTHON)");
    };
    let minimal =
        Record { image_stats: None, scores: Vec::new(), features: Vec::new(), ..new_record("é", MORNING) };
    let sandbox = Sandbox::empty();
    sandbox.write("requests.parquet", write_requests(&[new_record("a", MORNING), minimal]).unwrap());
    let mut command = Command::new(python);
    let output = command.args(["-c", ARROW]).arg(sandbox.repo.join("requests.parquet")).output().unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let types = &found["types"];
    assert_eq!(
        (&types["captured"], &types["status"], &types["kept"], &types["id"]),
        (&json!("timestamp[ms, tz=UTC]"), &json!("int32"), &json!("bool"), &json!("string"))
    );
    let (first, second) = (&found["rows"][0], &found["rows"][1]);
    assert_eq!(first["captured"], "2023-11-13T08:00:00+00:00");
    assert_eq!((&first["scores"], &first["features"]), (&json!([0.75, 0.25]), &json!([1.0, -2.0, 3.5])));
    assert_eq!((&first["brightness"], &first["fingerprint"]), (&json!(0.5), &json!(-1)));
    assert_eq!(first["package"], Digest::of(b"package").to_string());
    assert_eq!(
        (&second["scores"], &second["brightness"], &second["id"]),
        (&json!([]), &Value::Null, &json!("é"))
    );
}
