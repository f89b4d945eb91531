//! Tests of `mlx serve --follow`: the server switches to released versions without a failed request, and
//! never serves a version that was not released under the policy.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    release::{approve, push_to_hub, register_another, registered},
    sandbox::Sandbox,
    serve::Server,
};

/// Waits until the server serves this version.
fn wait_for(server: &Server, version: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    while version_of(server) != version {
        assert!(Instant::now() < end, "{version} was never served");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Returns the version that a server serves.
fn version_of(server: &Server) -> String {
    let found: Value = serde_json::from_str(&server.get("/v2/models/pets").1).unwrap();
    found["versions"][0].as_str().unwrap().to_owned()
}

/// Sets a flag when it is dropped.
struct SetOnDrop<'f>(&'f AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Creates a project with a hub, in which `pets@v0.1.0` is released and `pets@v0.2.0` is registered.
fn two_versions() -> Sandbox {
    let sandbox = registered();
    push_to_hub(&sandbox);
    approve(&sandbox, "pets@v0.1.0");
    sandbox.ok("release pets@v0.1.0 --env production");
    register_another(&sandbox, "0.5");
    sandbox.ok("push");
    sandbox
}

#[test]
fn switching_versions_under_load_fails_no_request() {
    let sandbox = two_versions();
    let server = Server::start(&sandbox, "serve --env production --follow --poll 1");
    let photo = mlx::demo_data::photo(7, mlx::demo_data::Pet::Dog, 1).unwrap();
    let (stop, requests) = (AtomicBool::new(false), AtomicU32::new(0));
    let versions = thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut versions = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let answer = server.json("POST", "/classify", "", &photo);
                        versions.push(answer["version"].as_str().unwrap().to_owned());
                        requests.fetch_add(1, Ordering::Relaxed);
                    }
                    versions
                })
            })
            .collect();
        // Stops the clients even if an assertion below fails.
        let _stop_clients = SetOnDrop(&stop);
        // An approved version is not served before its release.
        approve(&sandbox, "pets@v0.2.0");
        thread::sleep(Duration::from_millis(1500));
        assert_eq!(version_of(&server), "v0.1.0");
        sandbox.ok("release pets@v0.2.0 --env production");
        wait_for(&server, "v0.2.0");
        sandbox.ok("rollback --env production");
        wait_for(&server, "v0.1.0");
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(requests.load(Ordering::Relaxed) > 50);
    for version in ["v0.1.0", "v0.2.0"] {
        assert!(versions.iter().any(|served| served == version), "{version}");
    }
    let metrics = server.get("/metrics").1;
    assert!(metrics.contains("mlx_switches_total 2"), "{metrics}");
    let end = Instant::now() + Duration::from_secs(20);
    let switched = || {
        let rows = sandbox.json("audit");
        let rows = rows["rows"].as_array().unwrap().clone();
        rows.iter().filter(|row| row["what"] == "switched").count()
    };
    while switched() < 3 {
        assert!(Instant::now() < end, "the switches are not in the audit log");
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(sandbox.json("audit --verify")["sound"], true);
}

#[test]
fn a_release_outside_the_policy_is_never_served() {
    let sandbox = two_versions();
    let server = Server::start(&sandbox, "serve --env production --follow --poll 1");
    // A user with the right to push creates a release tag by hand.
    let message = sandbox.git("tag -l --format=%(contents) pets#production#1");
    let package = sandbox.git("tag -l --format=%(contents) pets@v0.2.0");
    let digest = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
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
    assert_eq!(version_of(&server), "v0.1.0");
    // A new server ignores the forged release too, because no audit event names it.
    let other = Server::start(&sandbox, "serve --env production --follow --poll 1");
    assert_eq!(version_of(&other), "v0.1.0");
    let found = sandbox.mlx("audit --verify");
    assert!(found.code == 10 && found.out.contains("`pets#production#2` does not match event"), "{found:?}");
    // The next release needs the same tag name, and its error names the forged tag.
    approve(&sandbox, "pets@v0.2.0");
    let refused = sandbox.fails("release pets@v0.2.0 --env production", 4);
    assert!(refused.contains("`pets#production#2` already exists, but no audit event names it"), "{refused}");
    sandbox.git("tag -d pets#production#2");
    sandbox.git("push -q origin :refs/tags/pets#production#2");
    // A stricter policy also applies to earlier releases.
    sandbox.ok("release pets@v0.2.0 --env production");
    wait_for(&server, "v0.2.0");
    let policy = sandbox.read(".mlx/policy.toml");
    sandbox.write(".mlx/policy.toml", policy.replace("accuracy = 0.80", "accuracy = 0.99"));
    sandbox.commit("stricter");
    sandbox.git("push -q origin HEAD");
    let refused = sandbox.fails("serve --env production --follow --port 0", 6);
    assert!(refused.contains("the release `pets#production#2` does not meet the policy"), "{refused}");
}

/// The forged rollback tag names a real event of the chain and the previous release.
#[test]
fn a_forged_rollback_is_never_served() {
    let sandbox = two_versions();
    register_another(&sandbox, "0.4");
    let server = Server::start(&sandbox, "serve --env production --follow --poll 1");
    let message = sandbox.git("tag -l --format=%(contents) pets#production#1");
    let real = sandbox.git("rev-parse refs/mlx/audit").trim().to_owned();
    for (number, audit) in [(2, "refs/mlx/audit"), (3, &real)] {
        let own = message.lines().find(|line| line.starts_with("audit = ")).unwrap().to_owned();
        let forged = message
            .replace(&own, &format!("audit = \"{audit}\""))
            .replacen("version = ", "previous = \"pets#production#1\"\nrollback = true\nversion = ", 1)
            .replace("pets@v0.1.0", "pets@v0.3.0");
        std::fs::write(sandbox.root().join("message"), forged).unwrap();
        let file = sandbox.root().join("message");
        sandbox.git(&format!("tag -a -F {} pets#production#{number} pets@v0.3.0^{{}}", file.display()));
        sandbox.git(&format!("push -q origin pets#production#{number}"));
        thread::sleep(Duration::from_millis(2500));
        assert_eq!(version_of(&server), "v0.1.0", "{audit}");
        assert!(sandbox.fails("rollback --env production", 3).contains("no earlier version served"));
    }
    assert_eq!(sandbox.mlx("audit --verify").code, 10);
}

#[test]
fn follow_without_a_release_is_an_error() {
    let sandbox = registered();
    assert!(
        sandbox
            .fails("serve --env production --follow --port 0", 3)
            .contains("no version was released to `production`")
    );
    assert!(sandbox.fails("serve --port 0", 2).contains("<VERSION>"));
}

/// Kills a server at different moments of a switch, and checks that the next one serves the released version.
#[test]
fn a_killed_server_restarts_with_the_released_version() {
    let sandbox = two_versions();
    approve(&sandbox, "pets@v0.2.0");
    for round in 0..8_u64 {
        let mut server = Server::start(&sandbox, "serve --env production --follow --poll 1");
        let wanted = if round % 2 == 0 {
            sandbox.ok("release pets@v0.2.0 --env production");
            "v0.2.0"
        } else {
            sandbox.ok("rollback --env production");
            "v0.1.0"
        };
        thread::sleep(Duration::from_millis(170 * round));
        server.kill();
        let server = Server::start(&sandbox, "serve --env production --follow --poll 1");
        assert_eq!(version_of(&server), wanted, "round {round}");
        drop(server);
        assert_eq!(sandbox.json("audit --verify")["sound"], true, "round {round}");
    }
}
