//! Tests `mlx watch`: sends new images of a camera's folder to a served model, each once.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    sandbox::command_result,
    serve::{Server, registered},
};

fn url(running: &Server) -> String {
    format!("http://{}", running.address)
}

#[test]
fn each_frame_of_a_camera_is_sent_once() {
    let sandbox = registered();
    let running = Server::start_with_real_clock(&sandbox, "serve pets");
    for (number, frame) in mlx::demo_data::camera::frames(3, 5, 6).unwrap().into_iter().enumerate() {
        let jpeg = if number == 2 { frame.jpeg[..500].to_vec() } else { frame.jpeg.clone() };
        sandbox.write(&format!("frames/2023-03-05T{}Z.jpg", frame.time()), jpeg);
    }
    sandbox.write("frames/.half.jpg", "x");
    let watch = format!("watch frames --env test --url {} --once", url(&running));
    let first = sandbox.mlx(&format!("{watch} --out answers.jsonl --json"));
    assert_eq!(first.code, 0, "{}\n{}", first.out, first.err);
    let report: Value = serde_json::from_str(&first.out).unwrap();
    let (answered, refused) = (report["answered"].as_u64().unwrap(), report["refused"].as_u64().unwrap());
    assert_eq!((answered, refused), (5, 1), "{report}");
    let again = sandbox.json(&watch);
    assert_eq!((&again["answered"], &again["refused"]), (&json!(0), &json!(0)));
    let lines = sandbox.read("answers.jsonl");
    let lines: Vec<Value> = lines.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    for line in lines {
        let name = line["name"].as_str().unwrap();
        let captured = line["captured"].as_str().unwrap();
        assert_eq!(name.replace('-', ":"), format!("{captured}.jpg").replace('-', ":"));
    }
    assert_eq!(
        sandbox.git("status --porcelain -uall").lines().filter(|line| !line.contains("frames/")).count(),
        1
    );
}

#[test]
fn a_watch_runs_until_a_signal_ends_it() {
    let sandbox = registered();
    let running = Server::start_with_real_clock(&sandbox, "serve pets");
    fs::create_dir(sandbox.repo.join("frames")).unwrap();
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    command.args(["watch", "frames", "--env", "test", "--out", "answers.jsonl", "--url", &url(&running)]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    for number in 1..=2 {
        sandbox.write(
            &format!("frames/{number}.jpg"),
            mlx::demo_data::photo(7, mlx::demo_data::Pet::Cat, number).unwrap(),
        );
        while !sandbox.has("answers.jsonl") || sandbox.read("answers.jsonl").lines().count() < number as usize
        {
            assert!(start.elapsed() < Duration::from_mins(1), "no answer to frame {number}");
            thread::sleep(Duration::from_millis(50));
        }
    }
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    let ran = command_result(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.starts_with("2 images classified: "), "{}", ran.out);
}
