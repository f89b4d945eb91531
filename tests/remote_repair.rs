//! Tests damage at remotes: readers take what is intact and leave a note, pushes and `fsck --remote` repair,
//! and clones that lack data push the rest.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use axum::http::Method;
use mlx::{
    digest::Digest,
    store::{Index, Kind, pack},
};
use serde_json::json;

use crate::{
    fake_s3::FakeS3,
    loop_mount::random_bytes,
    sandbox::{Sandbox, SandboxFolder, snapshot},
};

/// Creates a repository with twenty files in the folder `d`, pushed to the folder `remote`.
pub fn pushed() -> Sandbox {
    let sandbox = Sandbox::new();
    for number in 0..20 {
        sandbox.write(&format!("d/{number}"), random_bytes(3000, number));
    }
    sandbox.ok("add d");
    add_remote(&sandbox, "remote");
    sandbox.ok("push");
    sandbox.commit("all");
    sandbox
}

pub fn add_remote(sandbox: &Sandbox, name: &str) {
    let folder = sandbox.root().join(name);
    fs::create_dir_all(&folder).unwrap();
    sandbox.ok(&format!("remote add {name} file://{} --default", folder.display()));
}

pub fn clone<'s>(sandbox: &'s Sandbox, name: &str) -> SandboxFolder<'s> {
    let folder = sandbox.root().join(name);
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), folder.display()));
    sandbox.at(&folder)
}

pub fn files(sandbox: &Sandbox, folder: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(sandbox.root().join("remote/v1").join(folder)) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn largest(sandbox: &Sandbox, folder: &str) -> PathBuf {
    files(sandbox, folder).into_iter().max_by_key(|file| file.metadata().unwrap().len()).unwrap()
}

/// Overwrites the middle of the largest pack.
fn damage(sandbox: &Sandbox) -> PathBuf {
    let pack = largest(sandbox, "packs");
    let file = fs::OpenOptions::new().write(true).open(&pack).unwrap();
    file.write_all_at(b"damaged", file.metadata().unwrap().len() / 2).unwrap();
    pack
}

/// Returns true if the file's bytes match its name.
fn is_intact(file: &Path) -> bool {
    blake3::hash(&fs::read(file).unwrap()).to_string() == file.file_name().unwrap().to_str().unwrap()
}

#[test]
fn a_fetch_goes_on_past_damage_and_the_next_push_repairs_it() {
    let sandbox = pushed();
    let pack = damage(&sandbox);
    let other = clone(&sandbox, "other");
    let error = other.fails("pull", 5);
    let damaged = (0..20).filter(|number| error.contains(&format!("`d/{number}`"))).collect::<Vec<_>>();
    assert_eq!(damaged.len(), 1, "{error}");
    for number in (0..20).filter(|number| !damaged.contains(number)) {
        other.ok(&format!("checkout d/{number}"));
    }
    assert_eq!(files(&sandbox, "damaged").len(), 1);
    let said = sandbox.mlx("push");
    assert!(said.code == 0 && said.err.contains("is repaired"), "{said:?}");
    assert!(is_intact(&pack) && files(&sandbox, "damaged").is_empty());
    other.ok("pull");
    assert_eq!(snapshot(&other.folder.join("d")), snapshot(&sandbox.repo.join("d")));
}

#[test]
fn a_truncated_pack_is_damage_too() {
    let sandbox = pushed();
    let pack = largest(&sandbox, "packs");
    let length = pack.metadata().unwrap().len();
    fs::OpenOptions::new().write(true).open(&pack).unwrap().set_len(length / 2).unwrap();
    let other = clone(&sandbox, "other");
    assert!(other.fails("pull", 5).contains("damaged data"));
    sandbox.ok("push");
    assert!(is_intact(&pack));
    other.ok("pull");
}

#[test]
fn a_truncated_pack_in_a_bucket_is_damage_too() {
    let (service, sandbox) = (FakeS3::start(), pushed());
    sandbox.ok(&format!("remote add s3 {}", service.remote_args()));
    sandbox.ok("push");
    sandbox.commit("bucket");
    let truncate = |(key, bytes): (&String, &mut bytes::Bytes)| {
        if key.contains("packs") {
            bytes.truncate(bytes.len() / 2);
        }
    };
    service.bucket().objects.iter_mut().for_each(truncate);
    let other = clone(&sandbox, "other");
    other.ok("remote trust s3");
    assert!(other.fails("pull", 5).contains("damaged data"));
    sandbox.ok("push");
    other.ok("pull");
}

/// The index of a pack is removed once others have its objects; until then it tells what is lost.
#[test]
fn a_lost_pack_is_forgotten_once_its_objects_are_elsewhere() {
    let sandbox = pushed();
    let other = clone(&sandbox, "other");
    let pack = largest(&sandbox, "packs");
    let index = sandbox.root().join("remote/v1/indexes").join(pack.file_name().unwrap());
    fs::remove_file(&pack).unwrap();
    assert_eq!(other.mlx("fsck --remote remote --repair").code, 10);
    assert!(index.exists());
    sandbox.write("e", "new");
    sandbox.ok("add e");
    // Another pack than before, as it also holds the new file.
    sandbox.ok("push");
    assert_eq!(other.mlx("fsck --remote remote --repair").code, 0);
    assert!(!index.exists() && !pack.exists());
    assert_eq!(other.json("fsck --remote remote --full")["lost"], json!([]));
    other.ok("pull");
}

/// Cuts off the ends of the largest pack at the remote and of its index; returns both.
fn cut_off_pack(sandbox: &Sandbox) -> [PathBuf; 2] {
    let pack = largest(sandbox, "packs");
    let index = sandbox.root().join("remote/v1/indexes").join(pack.file_name().unwrap());
    for file in [&pack, &index] {
        let length = file.metadata().unwrap().len();
        fs::OpenOptions::new().write(true).open(file).unwrap().set_len(length - 1).unwrap();
    }
    [pack, index]
}

/// A reader notes a pack that it cannot read at all: a clone that knows its index repairs it.
#[test]
fn a_pack_without_a_readable_index_is_repaired_by_a_clone_that_knows_it() {
    let sandbox = pushed();
    let [pack, _] = cut_off_pack(&sandbox);
    let other = clone(&sandbox, "other");
    other.fails("pull", 3);
    assert_eq!(files(&sandbox, "damaged").len(), 1);
    // A clone that does not know the index leaves the note for one that does.
    assert!(other.mlx("push").err.contains("push from the clone that sent it"));
    sandbox.ok("push");
    assert!(is_intact(&pack) && files(&sandbox, "damaged").is_empty());
    other.ok("pull");
}

#[test]
fn a_damaged_list_of_roots_is_removed_by_a_repair_and_written_again_by_a_push() {
    let sandbox = pushed();
    let [list] = &files(&sandbox, "roots")[..] else { panic!("one push writes one list") };
    let text = fs::read_to_string(list).unwrap();
    fs::write(list, text.replace(['a', 'b', 'c'], "0")).unwrap();
    let checked = sandbox.mlx("fsck --remote remote");
    assert!(checked.code == 10 && checked.out.contains("list of roots"), "{checked:?}");
    assert!(!checked.out.contains("asked to keep"), "{checked:?}");
    assert_eq!(sandbox.mlx("fsck --remote remote --repair").code, 0);
    assert!(!list.exists());
    sandbox.ok("push");
    assert_eq!(fs::read_to_string(list).unwrap(), text);
}

#[test]
fn a_pack_that_cannot_be_read_at_all_is_removed_by_a_repair() {
    let sandbox = pushed();
    let [pack, index] = cut_off_pack(&sandbox);
    let other = clone(&sandbox, "other");
    assert_eq!(other.json("fsck --remote remote")["lost"].as_array().unwrap().len(), 1);
    let repaired = other.mlx("fsck --remote remote --repair");
    assert!(repaired.code == 10 && repaired.out.contains("removed, as neither"), "{repaired:?}");
    assert!(!pack.exists() && !index.exists());
    sandbox.ok("push");
    other.ok("pull");
    assert_eq!(other.mlx("fsck --remote remote --full").code, 0);
}

#[test]
fn fsck_finds_damage_and_repairs_it_from_another_remote() {
    let sandbox = pushed();
    add_remote(&sandbox, "backup");
    sandbox.ok("push");
    sandbox.commit("backup");
    let pack = damage(&sandbox);
    // Without a note only a full check reads the pack.
    assert_eq!(sandbox.json("fsck --remote remote")["read"], 0);
    let checked = sandbox.mlx("fsck --remote remote --full");
    assert!(checked.code == 10 && checked.out.contains("1 object without intact bytes"), "{checked:?}");
    assert!(checked.out.contains("next: mlx fsck --remote remote --repair"), "{checked:?}");
    assert_eq!(sandbox.mlx("fsck --remote remote --sample 100%").code, 10);
    sandbox.fails("fsck --remote remote --sample 0", 2);
    // A clone without data repairs nothing by itself.
    let other = clone(&sandbox, "other");
    let left = other.mlx("fsck --remote remote --full --repair");
    assert!(left.code == 10 && !is_intact(&pack), "{left:?}");
    let repaired = other.mlx("fsck --remote remote --full --repair --from backup");
    assert!(repaired.code == 0 && is_intact(&pack), "{repaired:?}");
    assert_eq!(other.json("fsck --remote remote --full")["damaged"], json!([]));
}

#[test]
fn a_damaged_index_is_read_from_the_end_of_its_pack_and_written_again() {
    let sandbox = pushed();
    let index = largest(&sandbox, "indexes");
    let bytes = fs::read(&index).unwrap();
    fs::write(&index, &bytes[..bytes.len() - 1]).unwrap();
    clone(&sandbox, "reader").ok("pull");
    assert_ne!(fs::read(&index).unwrap(), bytes, "a reader writes nothing");
    let other = clone(&sandbox, "other");
    fs::write(other.folder.join("mine"), "new").unwrap();
    other.ok("add mine");
    other.ok("push");
    assert_eq!(fs::read(&index).unwrap(), bytes);
}

#[test]
fn a_clone_without_data_pushes_the_rest_and_says_what_is_missing() {
    let sandbox = pushed();
    fs::remove_file(largest(&sandbox, "packs")).unwrap();
    let lists = files(&sandbox, "roots").len();
    let other = clone(&sandbox, "other");
    fs::write(other.folder.join("mine"), "new").unwrap();
    other.ok("add mine");
    let pushed = other.mlx("push");
    assert_eq!(pushed.code, 3, "{}", pushed.err);
    assert!(pushed.out.contains("pushed 1 object") && pushed.err.contains("neither this clone nor"));
    // No list claims what is not there.
    let other_list = files(&sandbox, "roots").into_iter().map(|list| fs::read_to_string(list).unwrap());
    let root = sandbox.read("d.mlx").split('"').nth(1).unwrap().to_owned();
    assert_eq!(other_list.filter(|list| list.contains(&root)).count(), lists);
    other.git("add -A");
    other.git("commit -qm mine");
    sandbox.git(&format!("pull -q {} main", other.folder.display()));
    sandbox.ok("pull mine");
    assert_eq!(sandbox.read("mine"), "new");
    sandbox.ok("push");
    clone(&sandbox, "reader").ok("pull");
}

/// Writes a pack and its index to the remote.
pub fn put(sandbox: &Sandbox, name: &str, bytes: &[u8], index: &[u8]) {
    for (folder, bytes) in [("packs", bytes), ("indexes", index)] {
        fs::write(sandbox.root().join("remote/v1").join(folder).join(name), bytes).unwrap();
    }
}

#[test]
fn another_pack_gives_what_one_has_damaged() {
    let sandbox = pushed();
    let contents: Vec<_> = (0..20).map(|number| random_bytes(3000, number)).collect();
    let objects: Vec<_> =
        contents.iter().map(|bytes| (Kind::Content, Digest::of(bytes), &bytes[..])).collect();
    let (name, bytes, index) = pack(&objects).unwrap();
    put(&sandbox, &name.hex(), &bytes, &index);
    for file in files(&sandbox, "packs") {
        let spoiled = file.file_name().unwrap().to_str() != Some(&name.hex());
        if spoiled && file.metadata().unwrap().len() > 50_000 {
            fs::OpenOptions::new().write(true).open(&file).unwrap().write_all_at(&[0; 9000], 20_000).unwrap();
        }
    }
    let other = clone(&sandbox, "other");
    other.ok("pull");
    assert_eq!(snapshot(&other.folder.join("d")), snapshot(&sandbox.repo.join("d")));
    assert_eq!(files(&sandbox, "damaged").len(), 1, "the damage is noted nevertheless");
}

/// Bytes between two objects cannot be made again from the objects.
#[test]
fn a_pack_that_cannot_be_made_again_is_replaced() {
    let sandbox = pushed();
    let old = largest(&sandbox, "packs");
    let bytes = random_bytes(500, 99);
    let digest = blake3::hash(&bytes);
    let mut index = b"mlxindx\x01".to_vec();
    index.extend(1_u64.to_le_bytes());
    index.extend(digest.as_bytes());
    index.extend([0, 0]);
    [13_u64, 500, 500].iter().for_each(|number| index.extend(number.to_le_bytes()));
    let check = blake3::hash(&index);
    index.extend(check.as_bytes());
    let mut pack = b"mlxpack\x01 gap ".to_vec();
    pack.extend(&bytes);
    pack.extend(&index);
    pack.extend((index.len() as u64).to_le_bytes());
    pack.extend(b"mlxtail\x01");
    let name = blake3::hash(&pack).to_string();
    pack[100] ^= 1;
    put(&sandbox, &name, &pack, &index);
    sandbox.write("e", &bytes);
    sandbox.ok("add e");
    sandbox.commit("e");
    let other = clone(&sandbox, "other");
    other.fails("pull e", 5);
    sandbox.ok("push");
    assert!(!sandbox.root().join("remote/v1/packs").join(&name).exists() && is_intact(&old));
    assert!(!sandbox.root().join("remote/v1/indexes").join(&name).exists());
    other.ok("pull e");
    assert_eq!(fs::read(other.folder.join("e")).unwrap(), bytes);
}

/// Sets the time of a file of the remote to some days ago.
pub fn set_age(file: &Path, days: u64) {
    let time = std::time::SystemTime::now() - std::time::Duration::from_hours(24 * days);
    fs::File::open(file).unwrap().set_modified(time).unwrap();
}

#[test]
fn leftovers_of_killed_pushes_go_after_two_weeks() {
    let sandbox = pushed();
    let folder = sandbox.root().join("remote/v1");
    let packs = files(&sandbox, "packs").len();
    files(&sandbox, "packs").iter().for_each(|pack| set_age(pack, 60));
    let leftovers = [("packs", 15), ("packs", 13), ("tmp", 15), ("tmp", 13)].map(|(kind, days)| {
        let file = folder.join(kind).join(blake3::hash(&[days]).to_string());
        fs::write(&file, "half").unwrap();
        set_age(&file, u64::from(days));
        file
    });
    sandbox.ok("push");
    assert_eq!(leftovers.map(|file| file.exists()), [false, true, false, true]);
    assert_eq!((files(&sandbox, "packs").len(), files(&sandbox, "tmp").len()), (packs + 1, 1));
    clone(&sandbox, "other").ok("pull");
}

/// Pushes changes of one file until the small packs are merged.
pub fn push_often(sandbox: &Sandbox) {
    for number in 0..60 {
        sandbox.write("e", format!("push {number}"));
        sandbox.ok("add e");
        sandbox.ok("push");
    }
    sandbox.commit("often");
}

#[test]
fn small_packs_of_many_pushes_are_merged() {
    let (service, sandbox) = (FakeS3::start(), pushed());
    sandbox.ok(&format!("remote add s3 {}", service.remote_args()));
    push_often(&sandbox);
    let other = clone(&sandbox, "other");
    other.ok("remote trust s3");
    service.bucket().log.clear();
    other.ok("pull");
    assert_eq!(fs::read_to_string(other.folder.join("e")).unwrap(), "push 59");
    assert_eq!(snapshot(&other.folder.join("d")), snapshot(&sandbox.repo.join("d")));
    let requests = service.bucket().log.len();
    assert!(requests < 30, "{requests} requests for what 60 pushes sent");
    // A push of nothing reads the marker and lists the names.
    service.bucket().log.clear();
    assert_eq!(sandbox.json("push")["objects"], 0);
    assert_eq!(service.bucket().log.len(), 2, "{:?}", service.bucket().log);
    // One pack is sent with its index and the list of roots, and its size is compared.
    sandbox.write("e", "one more");
    sandbox.ok("add e");
    service.bucket().log.clear();
    sandbox.ok("push");
    let count = |method: Method| service.bucket().count(&method);
    assert_eq!([Method::GET, Method::PUT, Method::HEAD].map(count), [2, 3, 1], "{:?}", service.bucket().log);
}

#[test]
fn packs_that_were_merged_go_after_two_weeks_if_others_have_their_objects() {
    let sandbox = pushed();
    push_often(&sandbox);
    let [list] = &files(&sandbox, "replaced")[..] else { panic!("they are merged once") };
    let before = files(&sandbox, "indexes").len();
    set_age(list, 13);
    clone(&sandbox, "early").ok("push");
    assert_eq!(files(&sandbox, "indexes").len(), before);
    set_age(list, 15);
    let merged = fs::read_to_string(list).unwrap();
    let merged = merged.lines().find_map(|line| line.strip_prefix("by b3:")).unwrap().to_owned();
    // Without the new pack the old ones are needed.
    let pack = sandbox.root().join("remote/v1/packs").join(merged);
    let away = pack.with_extension("away");
    fs::rename(&pack, &away).unwrap();
    clone(&sandbox, "needs").ok("pull");
    clone(&sandbox, "keeps").ok("push");
    assert!(files(&sandbox, "indexes").len() >= before);
    fs::rename(&away, &pack).unwrap();
    clone(&sandbox, "late").ok("push");
    assert!(files(&sandbox, "indexes").len() < 15 && !list.exists());
    assert_eq!(files(&sandbox, "indexes").len(), files(&sandbox, "packs").len());
    let other = clone(&sandbox, "other");
    other.ok("pull");
    assert_eq!(fs::read_to_string(other.folder.join("e")).unwrap(), "push 59");
    assert_eq!(snapshot(&other.folder.join("d")), snapshot(&sandbox.repo.join("d")));
}

#[test]
fn a_list_of_chunks_of_another_file_gives_nothing() {
    let sandbox = Sandbox::new();
    let contents = [random_bytes(5_000_000, 1), random_bytes(5_000_000, 2), random_bytes(4_000_000, 3)];
    for (name, bytes) in ["b", "c", "d"].iter().zip(&contents) {
        sandbox.write(name, bytes);
    }
    sandbox.write("a", &contents[0]);
    sandbox.ok("add c d");
    add_remote(&sandbox, "remote");
    for wrong in ["c", "d"] {
        drop(fs::remove_dir_all(sandbox.root().join("remote")));
        fs::create_dir(sandbox.root().join("remote")).unwrap();
        sandbox.ok(&format!("push {wrong}"));
        let list = files(&sandbox, "packs").iter().find_map(|file| {
            let bytes = fs::read(file).unwrap();
            let digest = Digest::of(&contents[if wrong == "c" { 1 } else { 2 }]);
            let row = Index::from_pack(&bytes).unwrap().find(&digest, &[Kind::Chunks])?;
            Some(row.decode(&bytes[row.offset as usize..][..row.stored as usize]).unwrap())
        });
        let list = list.unwrap();
        let (name, bytes, index) = pack(&[(Kind::Chunks, Digest::of(&contents[0]), &list)]).unwrap();
        put(&sandbox, &name.hex(), &bytes, &index);
        if wrong == "c" {
            sandbox.ok("add a");
            sandbox.commit("all");
        }
        let other = clone(&sandbox, &format!("clone-{wrong}"));
        // Without a checkout, which would check it again.
        let error = other.fails("fetch a", 5);
        assert!(error.contains("`a`") && other.mlx("checkout a").code != 0, "{error}");
        let incoming = fs::read_dir(other.folder.join(".git/mlx/incoming"));
        let left = incoming.map_or(0, |entries| {
            entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_none()).count()
        });
        assert_eq!(left, 0, "{wrong}");
    }
}
