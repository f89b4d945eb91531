//! Several users of one machine and one cache: real ones, by number, with umasks of their own.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    image::noise,
    sandbox::{Ran, Sandbox, ended, skip, snapshot},
};

/// The group that the cache belongs to; nobody's first one.
const GROUP: &str = "25000";

/// A user with a clone.
struct User<'s> {
    sandbox: &'s Sandbox,
    id: u32,
    umask: &'static str,
    group: &'static str,
    clone: PathBuf,
}

/// A cache of a group, and somewhere to keep clones; none when this user is not root.
struct Park {
    sandbox: Sandbox,
    cache: PathBuf,
}

impl Park {
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
        // The program may lie where others cannot go.
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

    fn objects(&self) -> Vec<PathBuf> {
        let mut found: Vec<_> =
            fs::read_dir(self.cache.join("objects")).unwrap().map(|it| it.unwrap().path()).collect();
        found.sort();
        found
    }
}

fn chown(path: &Path, to: &str) -> bool {
    Command::new("chown").args(["-R", to]).arg(path).status().unwrap().success()
}

impl User<'_> {
    /// Runs a line of shell as this user.
    fn shell(&self, line: &str) -> Ran {
        let id = self.id.to_string();
        let mut command = self.sandbox.command("setpriv", &self.clone);
        command.args(["--reuid", &id, "--regid", &id, "--groups", self.group, "sh", "-c"]);
        ended(command.arg(format!("umask {}; {line}", self.umask)).output().unwrap())
    }

    fn mlx(&self, args: &str) -> Ran {
        self.shell(&format!("{} {args}", self.sandbox.root().join("mlx").display()))
    }

    fn ok(&self, args: &str) -> String {
        let ran = self.mlx(args);
        assert_eq!(ran.code, 0, "{} mlx {args}: {}{}", self.id, ran.out, ran.err);
        ran.out
    }

    fn json(&self, args: &str) -> Value {
        let ran = self.mlx(&format!("{args} --json"));
        serde_json::from_str(&ran.out).unwrap_or_else(|it| panic!("{} mlx {args}: {it} {ran:?}", self.id))
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.clone.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        assert!(chown(&self.clone, &format!("{0}:{0}", self.id)));
    }

    /// Takes over the pointer that another user recorded, as by a pull.
    fn learns(&self, other: &User<'_>, pointer: &str) {
        self.write(pointer, &fs::read(other.clone.join(pointer)).unwrap());
    }

    fn sound(&self) {
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
fn two_users_with_different_umasks_add_check_out_free_and_check() {
    let Some(park) = Park::new() else { return skip("two_users_with_different_umasks", NOT_ROOT) };
    let (ada, bob) = (park.user(25001, "022"), park.user(25002, "077"));
    for (user, seed) in [(&ada, 1), (&bob, 2)] {
        user.write("data/a", format!("of {}", user.id).as_bytes());
        user.write("data/large", &noise(1_100_000, seed));
        user.ok("add data");
        user.sound();
    }
    let before = [ada.folder("data"), bob.folder("data")];
    // Each takes the other's version, and finds in the cache what the other wrote.
    let kept = fs::read(ada.clone.join("data.mlx")).unwrap();
    ada.learns(&bob, "data.mlx");
    bob.write("data.mlx", &kept);
    ada.ok("checkout");
    bob.ok("checkout");
    assert_eq!([bob.folder("data"), ada.folder("data")], before);
    for user in [&ada, &bob] {
        assert_eq!(user.json("status")["clean"], true);
        user.ok("add data");
        user.sound();
    }
    // What neither needs goes, whoever wrote it and whoever asks.
    bob.write("data/large", &noise(1_100_000, 3));
    bob.ok("add data");
    assert_eq!(park.objects().len(), 3);
    let swept = ada.json("gc --grace 0s --yes");
    assert!(swept["freed"]["total"]["count"].as_u64().unwrap() >= 1, "{swept}");
    assert_eq!((&swept["clones"], park.objects().len()), (&json!(1), 2));
    ada.write("data/large", &noise(1_100_000, 4));
    ada.ok("add data");
    assert_eq!(park.objects().len(), 3);
    bob.ok("gc --grace 0s --yes");
    assert_eq!(park.objects().len(), 2);
    for user in [&ada, &bob] {
        let data = user.folder("data");
        fs::remove_dir_all(user.clone.join("data")).unwrap();
        user.ok("checkout");
        assert_eq!(user.folder("data"), data);
        user.sound();
    }
}

#[test]
fn what_another_user_planted_is_found_and_not_checked_out() {
    let Some(park) = Park::new() else { return skip("what_another_user_planted", NOT_ROOT) };
    let (ada, bob) = (park.user(25001, "022"), park.user(25002, "022"));
    ada.write("data/large", &noise(1_100_000, 1));
    ada.ok("add data");
    let object = park.objects().remove(0);
    let plant = |size: usize| {
        let path = object.display();
        bob.shell(&format!("rm -f {path}; head -c {size} /dev/zero > {path}; chmod 444 {path}"))
    };
    for link in ["copy", "reflink,hardlink,copy", "symlink"] {
        ada.ok(&format!("config set --local cache.link {link}"));
        assert_eq!(plant(1_100_000).code, 0);
        assert_eq!(object.metadata().unwrap().uid(), bob.id);
        fs::remove_dir_all(ada.clone.join("data")).unwrap();
        let ran = ada.mlx("checkout");
        assert!(ran.code == 5 && ran.err.contains("damaged"), "{link}: {ran:?}");
        assert!(ada.clone.join("data/large").symlink_metadata().is_err(), "{link}");
        // It is stored anew by who has it, and serves everyone.
        ada.write("data/large", &noise(1_100_000, 1));
        ada.ok("add data");
        ada.sound();
        assert_eq!(object.metadata().unwrap().uid(), ada.id, "{link}");
        bob.learns(&ada, "data.mlx");
        bob.ok("checkout");
        assert!(fs::read(bob.clone.join("data/large")).unwrap() == noise(1_100_000, 1));
    }
    // `fsck` finds it as well, and an `add` does not lean on it.
    assert_eq!(plant(1_100_000).code, 0);
    let found = ada.mlx("fsck");
    assert!(found.code == 10 && found.out.contains("damaged"), "{found:?}");
    assert_eq!(plant(1_100_000).code, 0);
    ada.ok("add data");
    let sum = blake3::hash(&fs::read(&object).unwrap()).to_string();
    assert!(object.ends_with(&sum), "{sum}");
}

#[test]
fn hardlinks_to_files_of_others_are_forbidden_and_those_to_own_ones_still_made() {
    let Some(park) = Park::new() else { return skip("hardlinks_to_files_of_others", NOT_ROOT) };
    let protected = fs::read_to_string("/proc/sys/fs/protected_hardlinks").unwrap_or_default();
    let (ada, bob) = (park.user(25001, "022"), park.user(25002, "077"));
    // In the order of their names: whose comes first must not settle it for the next.
    let names = ["a", "b", "c", "d", "e", "f"];
    for (user, first) in [(&ada, 0), (&bob, 1)] {
        for (at, name) in names.iter().enumerate().skip(first).step_by(2) {
            user.write(&format!("data/{name}"), &noise(1_100_000, at as u64));
        }
        user.ok("add data");
    }
    for (at, name) in names.iter().enumerate() {
        ada.write(&format!("data/{name}"), &noise(1_100_000, at as u64));
    }
    ada.ok("add data");
    let data = ada.folder("data");
    assert_eq!(park.objects().iter().filter(|it| it.metadata().unwrap().uid() == bob.id).count(), 3);
    ada.ok("config set --local cache.link hardlink");
    fs::remove_dir_all(ada.clone.join("data")).unwrap();
    ada.ok("checkout");
    assert_eq!(ada.folder("data"), data);
    let own = |name: &&str| ada.clone.join("data").join(name).metadata().unwrap();
    let links: Vec<u64> = names.iter().map(|it| own(it).nlink()).collect();
    let expected = if protected.trim() == "1" { [2, 1, 2, 1, 2, 1] } else { [2; 6] };
    assert_eq!(links, expected);
    assert_eq!(ada.json("status")["clean"], true);
    ada.sound();
}

#[test]
fn nothing_is_freed_while_a_clone_of_another_user_cannot_be_read() {
    let Some(park) = Park::new() else { return skip("nothing_is_freed_while_a_clone", NOT_ROOT) };
    let (ada, bob) = (park.user(25001, "022"), park.user(25002, "077"));
    bob.write("data/large", &noise(1_100_000, 1));
    bob.ok("add data");
    for seed in [2, 3] {
        ada.write("data/large", &noise(1_100_000, seed));
        ada.ok("add data");
    }
    fs::set_permissions(&bob.clone, fs::Permissions::from_mode(0o700)).unwrap();
    let ran = ada.mlx("gc --grace 0s --yes");
    let wanted =
        format!("the clone `{}` of {} shares this cache, and cannot be read", bob.clone.display(), bob.id);
    assert!(ran.code == 4 && ran.err.contains(&wanted) && ran.err.contains("--forget"), "{ran:?}");
    assert_eq!(park.objects().len(), 3);
    // Its own user can, and takes nothing of Ada's.
    bob.ok("gc --grace 0s --yes");
    assert_eq!(park.objects().len(), 2);
    ada.ok(&format!("gc --grace 0s --yes --forget {}", bob.clone.display()));
    assert_eq!(park.objects().len(), 1);
    ada.sound();
    // Who was forgotten by mistake has lost nothing that it still holds: it stores it again.
    bob.ok("add data");
    bob.sound();
    assert_eq!(park.objects().len(), 2);
}

#[test]
fn who_may_only_read_a_cache_checks_out_from_it_and_adds_nothing() {
    let Some(park) = Park::new() else { return skip("who_may_only_read_a_cache", NOT_ROOT) };
    let ada = park.user(25001, "022");
    let guest = User { group: "25003", ..park.user(25003, "022") };
    ada.write("data/a", b"of the park");
    ada.write("data/large", &noise(1_100_000, 1));
    ada.ok("add data");
    guest.learns(&ada, "data.mlx");
    let before = snapshot(&park.cache);
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
    assert_eq!(snapshot(&park.cache), before);
}
