//! Tests several users of one machine who share a cache: real user ids with different umasks, which needs
//! root.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    loop_mount::random_bytes,
    sandbox::{CommandResult, Sandbox, command_result, skip, snapshot},
};

/// Group of the cache; it is not the primary group of any user.
const GROUP: &str = "25000";

/// User with a clone of the repository.
struct User<'s> {
    sandbox: &'s Sandbox,
    id: u32,
    umask: &'static str,
    group: &'static str,
    clone: PathBuf,
}

/// Cache that a group shares, and the repository that users clone.
struct SharedCache {
    sandbox: Sandbox,
    cache: PathBuf,
}

impl SharedCache {
    /// Creates the cache. Returns none if this user is not root.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let sandbox = Sandbox::new();
        sandbox.write("README", "of the park");
        sandbox.commit("one");
        let cache = sandbox.root().join("cache");
        fs::create_dir(&cache).unwrap();
        fs::set_permissions(sandbox.root(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(chown(&cache, &format!("0:{GROUP}")));
        fs::set_permissions(&cache, fs::Permissions::from_mode(0o2775)).unwrap();
        // The build folder may not be readable for other users.
        fs::copy(env!("CARGO_BIN_EXE_mlx"), sandbox.root().join("mlx")).unwrap();
        Some(Self { sandbox, cache })
    }

    fn user(&self, id: u32, umask: &'static str) -> User<'_> {
        let clone = self.sandbox.root().join(format!("clone{id}"));
        self.sandbox.git(&format!("clone -q {} {}", self.sandbox.repo.display(), clone.display()));
        assert!(chown(&clone, &format!("{id}:{id}")));
        let user = User { sandbox: &self.sandbox, id, umask, group: GROUP, clone };
        user.ok(&format!("config set --local cache.dir {}", self.cache.display()));
        user
    }

    /// Lists the large files of the cache, sorted.
    fn objects(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache.join("objects")).unwrap();
        let mut objects: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        objects.sort();
        objects
    }
}

fn chown(path: &Path, owner: &str) -> bool {
    Command::new("chown").args(["-R", owner]).arg(path).status().unwrap().success()
}

impl User<'_> {
    /// Runs a shell command as this user.
    fn shell(&self, line: &str) -> CommandResult {
        let id = self.id.to_string();
        let mut command = self.sandbox.command("setpriv", &self.clone);
        command.args(["--reuid", &id, "--regid", &id, "--groups", self.group, "sh", "-c"]);
        command_result(command.arg(format!("umask {}; {line}", self.umask)).output().unwrap())
    }

    fn mlx(&self, args: &str) -> CommandResult {
        self.shell(&format!("{} {args}", self.sandbox.root().join("mlx").display()))
    }

    fn ok(&self, args: &str) -> String {
        let ran = self.mlx(args);
        assert_eq!(ran.code, 0, "{} mlx {args}: {}{}", self.id, ran.out, ran.err);
        ran.out
    }

    fn json(&self, args: &str) -> Value {
        let ran = self.mlx(&format!("{args} --json"));
        serde_json::from_str(&ran.out)
            .unwrap_or_else(|error| panic!("{} mlx {args}: {error} {ran:?}", self.id))
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.clone.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        assert!(chown(&self.clone, &format!("{0}:{0}", self.id)));
    }

    /// Copies a pointer file from another user's clone, as `git pull` would.
    fn copy_pointer(&self, other: &User<'_>, pointer: &str) {
        self.write(pointer, &fs::read(other.clone.join(pointer)).unwrap());
    }

    /// Checks that `fsck` finds nothing damaged or unreadable.
    fn assert_sound(&self) {
        let checked = self.json("fsck");
        for key in ["damaged", "faults", "unreadable"] {
            assert_eq!(checked[key], json!([]), "{checked}");
        }
    }

    fn folder(&self, name: &str) -> std::collections::BTreeMap<Vec<u8>, String> {
        snapshot(&self.clone.join(name))
    }
}

const NOT_ROOT: &str = "this user is not root";

#[test]
fn users_with_different_umasks_add_check_out_and_collect() {
    let Some(shared) = SharedCache::new() else { return skip("users_with_different_umasks", NOT_ROOT) };
    let (ada, bob) = (shared.user(25001, "022"), shared.user(25002, "077"));
    for (user, seed) in [(&ada, 1), (&bob, 2)] {
        user.write("data/a", format!("of {}", user.id).as_bytes());
        user.write("data/large", &random_bytes(1_100_000, seed));
        user.ok("add data");
        user.assert_sound();
    }
    let before = [ada.folder("data"), bob.folder("data")];
    // Each switches to the other's version and reads the other's files from the cache.
    let pointer = fs::read(ada.clone.join("data.mlx")).unwrap();
    ada.copy_pointer(&bob, "data.mlx");
    bob.write("data.mlx", &pointer);
    ada.ok("checkout");
    bob.ok("checkout");
    assert_eq!([bob.folder("data"), ada.folder("data")], before);
    for user in [&ada, &bob] {
        assert_eq!(user.json("status")["clean"], true);
        user.ok("add data");
        user.assert_sound();
    }
    // gc removes what neither user needs, regardless of who wrote it and who runs gc.
    bob.write("data/large", &random_bytes(1_100_000, 3));
    bob.ok("add data");
    assert_eq!(shared.objects().len(), 3);
    let collected = ada.json("gc --grace 0s --yes");
    assert!(collected["freed"]["total"]["count"].as_u64().unwrap() >= 1, "{collected}");
    assert_eq!((&collected["clones"], shared.objects().len()), (&json!(1), 2));
    ada.write("data/large", &random_bytes(1_100_000, 4));
    ada.ok("add data");
    assert_eq!(shared.objects().len(), 3);
    bob.ok("gc --grace 0s --yes");
    assert_eq!(shared.objects().len(), 2);
    for user in [&ada, &bob] {
        let data = user.folder("data");
        fs::remove_dir_all(user.clone.join("data")).unwrap();
        user.ok("checkout");
        assert_eq!(user.folder("data"), data);
        user.assert_sound();
    }
}

#[test]
fn an_object_forged_by_another_user_is_detected_and_not_checked_out() {
    let Some(shared) = SharedCache::new() else { return skip("an_object_forged_by_another_user", NOT_ROOT) };
    let (ada, bob) = (shared.user(25001, "022"), shared.user(25002, "022"));
    ada.write("data/large", &random_bytes(1_100_000, 1));
    ada.ok("add data");
    let object = shared.objects().remove(0);
    let forge = |size: usize| {
        let path = object.display();
        bob.shell(&format!("rm -f {path}; head -c {size} /dev/zero > {path}; chmod 444 {path}"))
    };
    for link in ["copy", "reflink,hardlink,copy", "symlink"] {
        ada.ok(&format!("config set --local cache.link {link}"));
        assert_eq!(forge(1_100_000).code, 0);
        assert_eq!(object.metadata().unwrap().uid(), bob.id);
        fs::remove_dir_all(ada.clone.join("data")).unwrap();
        let ran = ada.mlx("checkout");
        assert!(ran.code == 5 && ran.err.contains("damaged"), "{link}: {ran:?}");
        assert!(ada.clone.join("data/large").symlink_metadata().is_err(), "{link}");
        // A user who has the file stores it again, and every user can check it out.
        ada.write("data/large", &random_bytes(1_100_000, 1));
        ada.ok("add data");
        ada.assert_sound();
        assert_eq!(object.metadata().unwrap().uid(), ada.id, "{link}");
        bob.copy_pointer(&ada, "data.mlx");
        bob.ok("checkout");
        assert!(fs::read(bob.clone.join("data/large")).unwrap() == random_bytes(1_100_000, 1));
    }
    // `fsck` detects it, too, and `add` does not rely on it.
    assert_eq!(forge(1_100_000).code, 0);
    let ran = ada.mlx("fsck");
    assert!(ran.code == 10 && ran.out.contains("damaged"), "{ran:?}");
    assert_eq!(forge(1_100_000).code, 0);
    ada.ok("add data");
    let digest = blake3::hash(&fs::read(&object).unwrap()).to_string();
    assert!(object.ends_with(&digest), "{digest}");
}

#[test]
fn files_of_other_users_are_copied_and_own_files_are_hardlinked() {
    let Some(shared) = SharedCache::new() else { return skip("files_of_other_users_are_copied", NOT_ROOT) };
    let protected = fs::read_to_string("/proc/sys/fs/protected_hardlinks").unwrap_or_default();
    let (ada, bob) = (shared.user(25001, "022"), shared.user(25002, "077"));
    // Owners alternate in name order: a refused link must not decide for the next file.
    let names = ["a", "b", "c", "d", "e", "f"];
    for (user, first) in [(&ada, 0), (&bob, 1)] {
        for (at, name) in names.iter().enumerate().skip(first).step_by(2) {
            user.write(&format!("data/{name}"), &random_bytes(1_100_000, at as u64));
        }
        user.ok("add data");
    }
    for (at, name) in names.iter().enumerate() {
        ada.write(&format!("data/{name}"), &random_bytes(1_100_000, at as u64));
    }
    ada.ok("add data");
    let data = ada.folder("data");
    assert_eq!(shared.objects().iter().filter(|path| path.metadata().unwrap().uid() == bob.id).count(), 3);
    ada.ok("config set --local cache.link hardlink");
    fs::remove_dir_all(ada.clone.join("data")).unwrap();
    ada.ok("checkout");
    assert_eq!(ada.folder("data"), data);
    let link_count = |name: &&str| ada.clone.join("data").join(name).metadata().unwrap().nlink();
    let links: Vec<u64> = names.iter().map(link_count).collect();
    let expected = if protected.trim() == "1" { [2, 1, 2, 1, 2, 1] } else { [2; 6] };
    assert_eq!(links, expected);
    assert_eq!(ada.json("status")["clean"], true);
    ada.assert_sound();
}

#[test]
fn gc_is_careful_while_a_clone_of_another_user_cannot_be_read() {
    let Some(shared) = SharedCache::new() else {
        return skip("gc_is_careful_while_a_clone_cannot_be_read", NOT_ROOT);
    };
    let (ada, bob) = (shared.user(25001, "022"), shared.user(25002, "077"));
    bob.write("data/large", &random_bytes(1_100_000, 1));
    bob.ok("add data");
    for seed in [2, 3] {
        ada.write("data/large", &random_bytes(1_100_000, seed));
        ada.ok("add data");
    }
    fs::set_permissions(&bob.clone, fs::Permissions::from_mode(0o700)).unwrap();
    let ran = ada.mlx("gc --grace 0s --yes");
    let expected =
        format!("the clone `{}` of {} cannot be read: everything is kept", bob.clone.display(), bob.id);
    assert!(ran.code == 0 && ran.err.contains(&expected), "{ran:?}");
    assert_eq!(shared.objects().len(), 3);
    // The clone's own user can run gc, which removes nothing that Ada needs.
    bob.ok("gc --grace 0s --yes");
    assert_eq!(shared.objects().len(), 2);
    ada.ok(&format!("gc --grace 0s --yes --forget {}", bob.clone.display()));
    assert_eq!(shared.objects().len(), 1);
    ada.assert_sound();
    // A clone that was forgotten by mistake stores its files again from the workspace.
    bob.ok("add data");
    bob.assert_sound();
    assert_eq!(shared.objects().len(), 2);
}

#[test]
fn a_user_without_write_access_to_the_cache_can_check_out_but_not_add() {
    let Some(shared) = SharedCache::new() else {
        return skip("a_user_without_write_access_to_the_cache", NOT_ROOT);
    };
    let ada = shared.user(25001, "022");
    let guest = User { group: "25003", ..shared.user(25003, "022") };
    ada.write("data/a", b"of the park");
    ada.write("data/large", &random_bytes(1_100_000, 1));
    ada.ok("add data");
    guest.copy_pointer(&ada, "data.mlx");
    let before = snapshot(&shared.cache);
    for args in ["status", "checkout", "fsck", "du", "status --check"] {
        guest.ok(args);
    }
    assert_eq!(guest.folder("data"), ada.folder("data"));
    guest.write("data/a", b"edited");
    let pointer = fs::read(guest.clone.join("data.mlx")).unwrap();
    for args in ["add data", "gc --grace 0s --yes"] {
        let ran = guest.mlx(args);
        assert!(ran.code == 6 && ran.err.contains("Permission denied"), "{args}: {ran:?}");
    }
    assert_eq!(fs::read(guest.clone.join("data.mlx")).unwrap(), pointer);
    assert_eq!(snapshot(&shared.cache), before);
}

/// Stages may make their folders read-only, as package managers do.
#[test]
fn read_only_folders_of_an_output_do_not_block_the_next_run() {
    let Some(shared) = SharedCache::new() else { return skip("read_only_folders_of_an_output", NOT_ROOT) };
    let ada = shared.user(25001, "022");
    for ending in ["", "; exit 1"] {
        let command = format!("mkdir -p d/x; cp i d/x/f; chmod 555 d/x d{ending}");
        ada.write(
            "mlx.toml",
            format!("[stage.s]\ncmd = '{command}'\ndeps = ['i']\nouts = ['d']\n").as_bytes(),
        );
        for input in ["1", "2", "1"] {
            ada.write("i", input.as_bytes());
            let ran = ada.mlx("repro");
            assert_eq!(ran.code, if ending.is_empty() { 0 } else { 8 }, "{ending} {input}: {}", ran.err);
        }
        let content = fs::read_to_string(ada.clone.join("d/x/f")).unwrap();
        assert_eq!(content, "1", "{ending}: recorded, or restored after the failure");
    }
    ada.assert_sound();
}
