//! A service that goes along with releases: no request fails, nothing unapproved ever answers.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    release::{another, approve, registered, share},
    sandbox::Sandbox,
    serve::Running,
};

/// Waits until the service answers with this version.
fn wait_for(running: &Running, version: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    while version_of(running) != version {
        assert!(Instant::now() < end, "{version} never answered");
        thread::sleep(Duration::from_millis(50));
    }
}

fn version_of(running: &Running) -> String {
    let found: Value = serde_json::from_str(&running.get("/v2/models/pets").1).unwrap();
    found["versions"][0].as_str().unwrap().to_owned()
}

/// Sets a flag when it is dropped.
struct Ends<'f>(&'f AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn two_released() -> Sandbox {
    let sandbox = registered();
    share(&sandbox);
    approve(&sandbox, "pets@v0.1.0");
    sandbox.ok("release pets@v0.1.0 --env production");
    another(&sandbox, "0.5");
    sandbox.ok("push");
    sandbox
}

#[test]
fn a_switch_under_load_fails_no_request() {
    let sandbox = two_released();
    let running = Running::start(&sandbox, "serve --env production --follow --every 1");
    let photo = mlx::sketch::photo(7, mlx::sketch::Pet::Dog, 1).unwrap();
    let (stop, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    let seen = thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let answer = running.json("POST", "/classify", "", &photo);
                        seen.push(answer["version"].as_str().unwrap().to_owned());
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                    seen
                })
            })
            .collect();
        // Clients end whatever becomes of the rest.
        let _ends = Ends(&stop);
        // Approved is not released.
        approve(&sandbox, "pets@v0.2.0");
        thread::sleep(Duration::from_millis(1500));
        assert_eq!(version_of(&running), "v0.1.0");
        sandbox.ok("release pets@v0.2.0 --env production");
        wait_for(&running, "v0.2.0");
        sandbox.ok("rollback --env production");
        wait_for(&running, "v0.1.0");
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|it| it.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(asked.load(Ordering::Relaxed) > 50);
    for version in ["v0.1.0", "v0.2.0"] {
        assert!(seen.iter().any(|it| it == version), "{version}");
    }
    let metrics = running.get("/metrics").1;
    assert!(metrics.contains("mlx_switches_total 2"), "{metrics}");
    let end = Instant::now() + Duration::from_secs(20);
    let switched = || {
        let rows = sandbox.json("audit");
        let rows = rows["rows"].as_array().unwrap().clone();
        rows.iter().filter(|it| it["what"] == "switched").count()
    };
    while switched() < 3 {
        assert!(Instant::now() < end, "the switches are not on the record");
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(sandbox.json("audit --verify")["sound"], true);
}

#[test]
fn what_the_policy_does_not_allow_never_answers() {
    let sandbox = two_released();
    let running = Running::start(&sandbox, "serve --env production --follow --every 1");
    // Somebody with the right to push makes a release by hand.
    let message = sandbox.git("tag -l --format=%(contents) pets#production#1");
    let package = sandbox.git("tag -l --format=%(contents) pets@v0.2.0");
    let digest = |text: &str, key: &str| {
        let line = text.lines().find(|it| it.starts_with(key)).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    };
    let forged = message
        .replace("pets@v0.1.0", "pets@v0.2.0")
        .replace(&digest(&message, "package"), &digest(&package, "digest"))
        .replacen("package", "previous = \"pets#production#1\"\npackage", 1);
    std::fs::write(sandbox.root().join("message"), forged).unwrap();
    sandbox.git(&format!(
        "tag -a -F {} pets#production#2 pets@v0.2.0^{{}}",
        sandbox.root().join("message").display()
    ));
    sandbox.git("push -q origin pets#production#2");
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(version_of(&running), "v0.1.0");
    // It is none, whoever asks: it has no event of its own.
    let other = Running::start(&sandbox, "serve --env production --follow --every 1");
    assert_eq!(version_of(&other), "v0.1.0");
    let found = sandbox.mlx("audit --verify");
    assert!(found.code == 10 && found.out.contains("`pets#production#2` does not match event"), "{found:?}");
    // The name it took is told to whoever needs it.
    approve(&sandbox, "pets@v0.2.0");
    let refused = sandbox.fails("release pets@v0.2.0 --env production", 4);
    assert!(refused.contains("`pets#production#2` exists already, but no audit event names it"), "{refused}");
    sandbox.git("tag -d pets#production#2");
    sandbox.git("push -q origin :refs/tags/pets#production#2");
    // A policy that asks for more holds for what was released before.
    sandbox.ok("release pets@v0.2.0 --env production");
    wait_for(&running, "v0.2.0");
    let policy = sandbox.read(".mlx/policy.toml");
    sandbox.write(".mlx/policy.toml", policy.replace("accuracy = 0.80", "accuracy = 0.99"));
    sandbox.commit("stricter");
    sandbox.git("push -q origin HEAD");
    let refused = sandbox.fails("serve --env production --follow --port 0", 6);
    assert!(refused.contains("the release `pets#production#2` does not meet the policy"), "{refused}");
}

/// A rollback that nobody decided, which names a real event of the chain and the release before.
#[test]
fn a_forged_rollback_never_answers() {
    let sandbox = two_released();
    another(&sandbox, "0.4");
    let running = Running::start(&sandbox, "serve --env production --follow --every 1");
    let message = sandbox.git("tag -l --format=%(contents) pets#production#1");
    let real = sandbox.git("rev-parse refs/mlx/audit").trim().to_owned();
    for (number, audit) in [(2, "refs/mlx/audit"), (3, &real)] {
        let own = message.lines().find(|it| it.starts_with("audit = ")).unwrap().to_owned();
        let forged = message
            .replace(&own, &format!("audit = \"{audit}\""))
            .replacen("version = ", "previous = \"pets#production#1\"\nrollback = true\nversion = ", 1)
            .replace("pets@v0.1.0", "pets@v0.3.0");
        std::fs::write(sandbox.root().join("message"), forged).unwrap();
        let file = sandbox.root().join("message");
        sandbox.git(&format!("tag -a -F {} pets#production#{number} pets@v0.3.0^{{}}", file.display()));
        sandbox.git(&format!("push -q origin pets#production#{number}"));
        thread::sleep(Duration::from_millis(2500));
        assert_eq!(version_of(&running), "v0.1.0", "{audit}");
        assert!(sandbox.fails("rollback --env production", 3).contains("no version served"));
    }
    assert_eq!(sandbox.mlx("audit --verify").code, 10);
}

#[test]
fn nothing_to_follow_is_said() {
    let sandbox = registered();
    assert!(
        sandbox
            .fails("serve --env production --follow --port 0", 3)
            .contains("no version was released to `production`")
    );
    assert!(sandbox.fails("serve --port 0", 2).contains("<VERSION>"));
}

/// Killed at random moments of a switch, a service that is started again answers with what was released.
#[test]
fn kills_of_a_following_service_lose_no_switch() {
    let sandbox = two_released();
    approve(&sandbox, "pets@v0.2.0");
    for round in 0..8_u64 {
        let mut running = Running::start(&sandbox, "serve --env production --follow --every 1");
        let wanted = if round % 2 == 0 {
            sandbox.ok("release pets@v0.2.0 --env production");
            "v0.2.0"
        } else {
            sandbox.ok("rollback --env production");
            "v0.1.0"
        };
        thread::sleep(Duration::from_millis(170 * round));
        running.kill();
        let running = Running::start(&sandbox, "serve --env production --follow --every 1");
        assert_eq!(version_of(&running), wanted, "round {round}");
        drop(running);
        assert_eq!(sandbox.json("audit --verify")["sound"], true, "round {round}");
    }
}
