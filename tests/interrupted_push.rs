//! Tests pushes to a bucket and to a folder that are killed or refused at any of their uploads: no reader
//! meets a tree without its pages, and the next push, from any clone, completes the remote.

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use axum::http::Method;

use crate::{
    fake_s3::FakeS3,
    gc_roots::remove_any,
    sandbox::{CommandResult, Sandbox, SandboxFolder, command_result, snapshot},
};

/// Size of packs, in bytes, with which the trees of the project take several.
const PACK_SIZE: &str = "6000";

/// Creates a repository with 800 long names in forty folders of a tracked one.
fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    let mut name = blake3::Hasher::new();
    for number in 0..800_u32 {
        name.update(&number.to_le_bytes());
        let long = format!("{}{}", name.finalize(), blake3::hash(&number.to_le_bytes()));
        sandbox.write(&format!("d/{}/{long}", number % 40), [u8::try_from(number % 40).unwrap(); 999]);
    }
    sandbox.ok("add d");
    sandbox
}

/// Largest number of uploads that an interruption may waste.
const UNDER_WAY: usize = 4;

fn with_small_packs(folder: &SandboxFolder<'_>, args: &str) -> std::process::Command {
    let mut command = folder.sandbox.command(env!("CARGO_BIN_EXE_mlx"), &folder.folder);
    command.args(args.split(' ')).env("MLX_PACK_SIZE", PACK_SIZE);
    command
}

fn push(folder: &SandboxFolder<'_>) -> CommandResult {
    command_result(with_small_packs(folder, "push").output().unwrap())
}

/// Kills a push once one of its uploads hangs.
fn push_until_it_hangs(folder: &SandboxFolder<'_>, service: &FakeS3) {
    let mut push = with_small_packs(folder, "push").stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    while !service.bucket().waiting {
        assert!(Instant::now() < deadline && push.try_wait().unwrap().is_none(), "no upload hangs");
        std::thread::sleep(Duration::from_millis(2));
    }
    push.kill().unwrap();
    push.wait().unwrap();
}

/// Clones the repository into a new folder and fetches from its remote.
fn fetch<'s>(sandbox: &'s Sandbox, folder: &Path) -> (SandboxFolder<'s>, CommandResult) {
    let _old = fs::remove_dir_all(folder);
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), folder.display()));
    let clone = sandbox.at(folder);
    // Needs no trust for a folder.
    clone.mlx("remote trust s3");
    let fetched = clone.mlx("fetch");
    (clone, fetched)
}

/// Checks that a reader gets all, or finds that the tree itself is not there yet.
fn assert_no_hole(sandbox: &Sandbox, root: &str, when: &str) {
    let (_, fetched) = fetch(sandbox, &sandbox.root().join("reader"));
    let absent = fetched.code == 3 && fetched.err.contains(&format!("lacks {root}"));
    let empty = ["no mlx remote found", "does not exist"].iter().any(|text| fetched.err.contains(text));
    assert!(fetched.code == 0 || absent || fetched.code == 3 && empty, "{when}: {}", fetched.err);
}

#[test]
fn a_push_that_is_cut_off_at_any_upload_leaves_no_hole() {
    let (service, sandbox) = (FakeS3::start(), project());
    sandbox.ok(&format!("remote add s3 {}", service.remote_args()));
    sandbox.commit("all");
    let own = sandbox.at(&sandbox.repo);
    assert_eq!(push(&own).code, 0);
    let uploads = service.bucket().count(&Method::PUT);
    assert!(uploads > 20, "{uploads} uploads: the trees take several packs");
    let (other, fetched) = fetch(&sandbox, &sandbox.root().join("other"));
    assert_eq!(fetched.code, 0, "{}", fetched.err);
    let pointer = sandbox.read("d.mlx");
    let root = pointer.split("b3:").nth(1).unwrap()[..10].to_owned();
    for left in 0..uploads {
        let when = format!("after {left} of {uploads} uploads");
        service.bucket().objects.clear();
        service.bucket().uploads_left = Some(left);
        if left % 3 == 0 {
            service.bucket().hangs = true;
            push_until_it_hangs(&own, &service);
        } else {
            assert_ne!(push(&own).code, 0, "{when}");
        }
        (service.bucket().uploads_left, service.bucket().hangs, service.bucket().waiting) =
            (None, false, false);
        assert_no_hole(&sandbox, &root, &when);
        service.bucket().log.clear();
        push_again(if left % 2 == 0 { &own } else { &other }, &when);
        let sent = service.bucket().count(&Method::PUT);
        assert!(
            left + sent <= uploads + UNDER_WAY,
            "{when}: what arrived is not sent again, but {sent} files"
        );
        assert_complete(&sandbox, &when);
    }
}

/// Returns the numbers of the disk operations of a push to an empty remote at which it writes a file there.
fn writes_of_push(folder: &SandboxFolder<'_>) -> Vec<usize> {
    let log = folder.sandbox.root().join("operations");
    let told = with_small_packs(folder, "push").env("MLX_FAULT", format!("tell:{}", log.display())).output();
    assert!(told.unwrap().status.success());
    let operations = fs::read_to_string(log).unwrap();
    let writes = operations.lines().zip(1..).filter(|(operation, _)| *operation == "remote-write");
    writes.map(|(_, number)| number).collect()
}

#[test]
fn a_push_to_a_folder_that_is_killed_or_fails_at_any_write_leaves_no_hole() {
    let sandbox = project();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.commit("all");
    let own = sandbox.at(&sandbox.repo);
    let writes = writes_of_push(&own);
    assert!(writes.len() > 20, "{} writes: the trees take several packs", writes.len());
    let (other, fetched) = fetch(&sandbox, &sandbox.root().join("other"));
    assert_eq!(fetched.code, 0, "{}", fetched.err);
    let root = sandbox.read("d.mlx").split("b3:").nth(1).unwrap()[..10].to_owned();
    let mut stopped = 0;
    for (number, at) in writes.iter().enumerate() {
        let fault = format!("{}:{at}", if number % 3 == 0 { "fail" } else { "kill" });
        fs::remove_dir_all(&remote).unwrap();
        for folder in [&own, &other] {
            remove_any(&folder.folder.join(".git/mlx/remotes"));
        }
        let push = with_small_packs(&own, "push").env("MLX_FAULT", &fault).output().unwrap();
        stopped += usize::from(!push.status.success());
        assert_no_hole(&sandbox, &root, &fault);
        let again = push_again(if number % 2 == 0 { &own } else { &other }, &fault);
        assert!(!again.err.contains("lost"), "{fault}: {}", again.err);
        assert_complete(&sandbox, &fault);
    }
    assert!(stopped + UNDER_WAY >= writes.len(), "{stopped} of {} pushes were stopped", writes.len());
}

fn push_again(folder: &SandboxFolder<'_>, when: &str) -> CommandResult {
    let again = push(folder);
    assert_eq!(again.code, 0, "{when}: {}", again.err);
    again
}

/// Checks that a new clone gets everything.
fn assert_complete(sandbox: &Sandbox, when: &str) {
    let (reader, fetched) = fetch(sandbox, &sandbox.root().join("reader"));
    assert_eq!(fetched.code, 0, "{when}: {}", fetched.err);
    reader.ok("checkout");
    assert!(snapshot(&reader.folder.join("d")) == snapshot(&sandbox.repo.join("d")), "{when}");
}
