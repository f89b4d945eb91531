//! Real file systems: blocks that are shared, links that cannot be, disks that are full or may not be written to.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use serde_json::json;

use crate::{
    faults::command,
    image::{Disk, noise, world},
    sandbox::{Ran, Sandbox, ended, skip, snapshot},
};

const LARGE: usize = 64 << 20;
/// What a file system may take or put aside for itself meanwhile: half of what a copy would.
const LITTLE: u64 = 32 << 20;
const NO_MOUNT: &str = "this user cannot mount a disk";

/// Nothing is damaged, nothing is missing.
fn sound(sandbox: &Sandbox) {
    let checked = sandbox.json("fsck");
    for key in ["damaged", "faults", "unreadable"] {
        assert_eq!(checked[key], json!([]), "{checked}");
    }
}

fn clean(sandbox: &Sandbox) {
    assert_eq!(sandbox.json("status")["clean"], true, "{}", sandbox.ok("status"));
}

fn delete(sandbox: &Sandbox, folder: &str) {
    fs::remove_dir_all(sandbox.repo.join(folder)).unwrap();
}

/// Runs mlx and counts what it tried of the disk.
fn told(sandbox: &Sandbox, args: &str, operation: &str) -> usize {
    let tale = sandbox.root().join("tale");
    let _new = fs::remove_file(&tale);
    let ran =
        ended(command(sandbox, args).env("MLX_FAULT", format!("tell:{}", tale.display())).output().unwrap());
    assert_eq!(ran.code, 0, "{args}: {}", ran.err);
    fs::read_to_string(&tale).unwrap().lines().filter(|it| *it == operation).count()
}

/// 64 MB that take their room once: in the workspace, in the store, checked out, added again after an edit.
fn shares_blocks(kind: &str, test: &str) {
    let Some((disk, sandbox)) = world(kind) else { return skip(test, NO_MOUNT) };
    sandbox.ok("config set cache.link reflink");
    let bytes = noise(LARGE, 1);
    sandbox.write("data/large", &bytes);
    let free = disk.free();
    let same = |what: &str| {
        let now = disk.free();
        assert!(now + LITTLE > free, "{what} took {} bytes", free - now);
    };
    sandbox.ok("add data");
    same("add");
    delete(&sandbox, "data");
    sandbox.ok("checkout");
    same("checkout");
    clean(&sandbox);
    let file = sandbox.repo.join("data/large");
    assert_eq!(file.metadata().unwrap().mode() & 0o200, 0o200, "it is nobody else's file");
    // An edit is the workspace's alone.
    fs::OpenOptions::new().write(true).open(&file).unwrap().write_all(b"edited").unwrap();
    let changes = json!([{"path": "data/large", "change": "modified"}]);
    assert_eq!(sandbox.json("status")["data"][0]["changes"], changes);
    sound(&sandbox);
    let refused = sandbox.fails("checkout", 4);
    assert!(refused.contains("`data/large`"), "{refused}");
    sandbox.ok("add data");
    same("add of an edit");
    sandbox.git("add -A");
    fs::write(&file, "short").unwrap();
    sandbox.ok("checkout --force");
    same("checkout of an edit");
    assert!(fs::read(&file).unwrap() == [b"edited", &bytes[6..]].concat());
    clean(&sandbox);
    sound(&sandbox);
}

#[test]
fn xfs_shares_blocks_between_store_and_workspace() {
    shares_blocks("xfs", "xfs_shares_blocks_between_store_and_workspace");
}

#[test]
fn btrfs_shares_blocks_between_store_and_workspace() {
    shares_blocks("btrfs", "btrfs_shares_blocks_between_store_and_workspace");
}

const MANY: usize = 16;

/// Files that are stored whole, in one folder.
fn many(sandbox: &Sandbox) {
    for at in 0..MANY {
        sandbox.write(&format!("data/f{at:02}"), noise(1_050_000, at as u64));
    }
}

fn links(sandbox: &Sandbox) -> (usize, usize) {
    let metas = fs::read_dir(sandbox.repo.join("data")).unwrap();
    let metas: Vec<_> = metas.map(|it| it.unwrap().path().symlink_metadata().unwrap()).collect();
    (metas.iter().filter(|it| it.nlink() > 1).count(), metas.iter().filter(|it| it.is_symlink()).count())
}

#[test]
fn a_way_that_was_refused_is_tried_once_and_the_next_is_taken() {
    for kind in ["ext4:64M", "tmpfs:64M"] {
        let Some((_disk, sandbox)) = world(kind) else { return skip("a_way_that_was_refused", NO_MOUNT) };
        sandbox.ok("config set cache.link reflink,hardlink");
        many(&sandbox);
        // Threads that begin together may each try once.
        let tried = told(&sandbox, "add data", "reflink");
        assert!((1..=8).contains(&tried), "{kind}: {tried} tries");
        let before = snapshot(&sandbox.repo.join("data"));
        delete(&sandbox, "data");
        assert_eq!(told(&sandbox, "checkout", "reflink"), 1, "{kind}");
        assert_eq!(links(&sandbox), (MANY, 0), "{kind}");
        assert_eq!(snapshot(&sandbox.repo.join("data")), before);
        clean(&sandbox);
        sound(&sandbox);
    }
}

/// A repository here, its cache on a disk.
fn apart(kind: &str) -> Option<(Disk, Sandbox)> {
    let sandbox = Sandbox::new();
    let disk = Disk::mount(&sandbox.root().join("disk"), kind)?;
    sandbox.ok(&format!("config set --local cache.dir {}", disk.at.join("cache").display()));
    Some((disk, sandbox))
}

#[test]
fn a_cache_on_another_mount_gives_copies_or_symlinks_and_no_hardlinks() {
    let Some((disk, sandbox)) = apart("tmpfs:64M") else { return skip("a_cache_on_another_mount", NO_MOUNT) };
    many(&sandbox);
    sandbox.ok("add data");
    let before = snapshot(&sandbox.repo.join("data"));
    sandbox.ok("config set cache.link reflink,hardlink");
    delete(&sandbox, "data");
    assert_eq!(told(&sandbox, "checkout", "link"), 1);
    assert_eq!(links(&sandbox), (0, 0));
    assert_eq!(snapshot(&sandbox.repo.join("data")), before);
    clean(&sandbox);
    sandbox.ok("config set cache.link hardlink,symlink");
    delete(&sandbox, "data");
    assert_eq!(told(&sandbox, "checkout", "link"), 1 + MANY);
    assert_eq!(links(&sandbox), (0, MANY));
    let target = fs::read_link(sandbox.repo.join("data/f00")).unwrap();
    assert!(target.starts_with(disk.at.join("cache/objects")), "{}", target.display());
    clean(&sandbox);
    let pointer = sandbox.read("data.mlx");
    sandbox.ok("add data");
    assert_eq!(sandbox.read("data.mlx"), pointer);
    sandbox.ok("unprotect data");
    assert_eq!(snapshot(&sandbox.repo.join("data")), before);
    sandbox.write("data/f00", "edited");
    sound(&sandbox);
}

#[test]
fn one_disk_mounted_twice_is_two_for_hardlinks_and_one_way_refused_is_not_all() {
    let Some((disk, sandbox)) = world("tmpfs:64M") else { return skip("one_disk_mounted_twice", NO_MOUNT) };
    let inner = sandbox.repo.join("data/inner");
    fs::create_dir_all(&inner).unwrap();
    fs::create_dir(disk.at.join("elsewhere")).unwrap();
    let mut bind = sandbox.command("mount", &disk.at);
    assert!(bind.args(["--bind", "elsewhere"]).arg(&inner).status().unwrap().success());
    let bound = Disk { at: inner };
    sandbox.write("data/inner/a", noise(1_050_000, 1));
    sandbox.write("data/z", noise(1_050_000, 2));
    sandbox.ok("add data");
    sandbox.ok("config set cache.link hardlink");
    for name in ["inner/a", "z"] {
        fs::remove_file(sandbox.repo.join("data").join(name)).unwrap();
    }
    sandbox.ok("checkout");
    let names = |path: &str| sandbox.repo.join("data").join(path).metadata().unwrap().nlink();
    assert_eq!((names("inner/a"), names("z")), (1, 2));
    clean(&sandbox);
    drop(bound);
}

/// As many names of one file as ext4 allows.
const NAMES: usize = 65_000;

#[test]
fn a_file_that_has_all_the_names_it_may_have_is_copied_and_others_are_still_linked() {
    let Some((disk, sandbox)) = world("ext4:64M") else { return skip("a_file_that_has_all_names", NO_MOUNT) };
    sandbox.ok("config set cache.link hardlink");
    sandbox.write("data/a", noise(1_050_000, 1));
    sandbox.ok("add data");
    let objects = sandbox.repo.join(".git/mlx/objects");
    let object = fs::read_dir(&objects).unwrap().next().unwrap().unwrap().path();
    let names = disk.at.join("names");
    fs::create_dir(&names).unwrap();
    let linked =
        (1..=NAMES).take_while(|it| fs::hard_link(&object, names.join(format!("{it}"))).is_ok()).count();
    assert_eq!(linked, NAMES - 1);
    sandbox.write("data/b", noise(1_050_000, 2));
    sandbox.ok("add data");
    delete(&sandbox, "data");
    sandbox.ok("checkout");
    let count = |name: &str| sandbox.repo.join("data").join(name).metadata().unwrap().nlink();
    assert_eq!((count("a"), count("b")), (1, 2));
    assert!(fs::read(sandbox.repo.join("data/a")).unwrap() == noise(1_050_000, 1));
    clean(&sandbox);
}

#[test]
fn names_written_in_two_ways_of_unicode_stay_apart() {
    let Some((_disk, sandbox)) = world("xfs") else { return skip("names_written_in_two_ways", NO_MOUNT) };
    let names = ["data/caf\u{e9}", "data/cafe\u{301}", "data/CAF\u{c9}"];
    names.iter().for_each(|it| sandbox.write(it, *it));
    sandbox.ok("add data");
    delete(&sandbox, "data");
    let ran = sandbox.mlx("checkout");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    names.iter().for_each(|it| assert_eq!(sandbox.read(it), *it));
    clean(&sandbox);
}

#[test]
fn a_same_size_edit_is_seen_where_times_are_whole_seconds() {
    let Some((_disk, sandbox)) = world("ext2:16M") else { return skip("a_same_size_edit_is_seen", NO_MOUNT) };
    for round in 0..10 {
        sandbox.write("data/a", format!("{round:03}x"));
        sandbox.ok("add data");
        clean(&sandbox);
        sandbox.write("data/a", format!("{round:03}y"));
        let stamp = sandbox.repo.join("data/a").metadata().unwrap();
        assert_eq!((stamp.mtime_nsec(), stamp.ctime_nsec()), (0, 0), "whole seconds");
        assert_eq!(sandbox.json("status")["clean"], false, "round {round}");
    }
}

#[test]
fn a_full_workspace_is_named_loses_nothing_and_is_filled_when_there_is_room() {
    let mut sandbox = Sandbox::bare();
    let Some(disk) = Disk::mount(&sandbox.root().join("disk"), "tmpfs:8M") else {
        return skip("a_full_workspace", NO_MOUNT);
    };
    let cache = sandbox.root().join("cache");
    sandbox.repo = disk.at.join("repo");
    fs::create_dir(&sandbox.repo).unwrap();
    sandbox.git("init -q -b main");
    sandbox.ok("init");
    sandbox.ok(&format!("config set --local cache.dir {}", cache.display()));
    for at in 0..3 {
        sandbox.write(&format!("data/large{at}"), noise(1_100_000, at));
        sandbox.write(&format!("data/small{at}"), noise(200_000, 10 + at));
    }
    sandbox.ok("add data");
    let expected = snapshot(&sandbox.repo.join("data"));
    delete(&sandbox, "data");
    sandbox.write("data/mine", "stored nowhere");
    let ballast = disk.fill(1_300_000);
    // Somebody's file is in the way first.
    sandbox.fails("checkout", 4);
    fs::remove_file(sandbox.repo.join("data/mine")).unwrap();
    let error = sandbox.fails("checkout", 7);
    assert!(error.contains("the disk is full") && error.contains("`data/"), "{error}");
    let left = snapshot(&sandbox.repo.join("data"));
    assert!(
        left.len() < expected.len() && left.iter().all(|it| expected.get(it.0) == Some(it.1)),
        "{left:?}"
    );
    assert_eq!(sandbox.json("status")["clean"], false);
    fs::remove_file(ballast).unwrap();
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo.join("data")), expected);
    clean(&sandbox);
    // The pointer and the index lie on the full disk, too: the record stays what it was.
    let pointer = sandbox.read("data.mlx");
    sandbox.write("data/small0", "edited");
    let ballast = disk.fill(0);
    let ran = sandbox.mlx("add data");
    assert!(ran.code == 0 || ran.code == 7 && ran.err.contains("the disk is full"), "{ran:?}");
    assert!(ran.code == 0 || sandbox.read("data.mlx") == pointer);
    fs::remove_file(ballast).unwrap();
    sandbox.ok("add data");
    clean(&sandbox);
    sound(&sandbox);
}

/// Fills the cache to the last byte; gc makes room, add and checkout work again.
fn frees_a_full_cache(sandbox: &Sandbox, disk: &Disk) {
    for at in 0..40 {
        sandbox.write(&format!("data/f{at}"), noise(20_000, at));
    }
    sandbox.write("data/large", noise(1_100_000, 100));
    sandbox.ok("add data");
    // A pack that is mostly unneeded would be written anew: there is no room for that.
    for at in 1..40 {
        fs::remove_file(sandbox.repo.join(format!("data/f{at}"))).unwrap();
    }
    fs::remove_file(sandbox.repo.join("data/large")).unwrap();
    sandbox.write("data/g", "of the second version");
    sandbox.ok("add data");
    let expected = snapshot(&sandbox.repo.join("data"));
    let ballast = disk.fill(0);
    let kept = sandbox.read("data.mlx");
    sandbox.write("new", noise(300_000, 7));
    let error = sandbox.fails("add new", 7);
    assert!(error.contains("the disk is full"), "{error}");
    assert!(!sandbox.has("new.mlx") && sandbox.read("data.mlx") == kept);
    let swept = sandbox.json("gc --grace 0s --yes");
    // The large file made room for the rest of a pack to be moved, after which 39 small ones could go.
    let freed = &swept["freed"];
    assert_eq!((&freed["whole"]["count"], &freed["contents"]["count"]), (&json!(1), &json!(39)), "{swept}");
    sound(sandbox);
    delete(sandbox, "data");
    sandbox.ok("checkout data");
    assert_eq!(snapshot(&sandbox.repo.join("data")), expected);
    sandbox.ok("add new");
    fs::remove_file(ballast).unwrap();
    assert_eq!(sandbox.json("gc --grace 0s --yes")["freed"]["total"]["count"], 0);
    sound(sandbox);
    delete(sandbox, "data");
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo.join("data")), expected);
}

#[test]
fn gc_frees_a_cache_that_is_full() {
    let sandbox = Sandbox::new();
    // The repository's own store, on a small disk.
    let Some(disk) = Disk::mount(&sandbox.repo.join(".git/mlx"), "tmpfs:4M") else {
        return skip("gc_frees_a_cache_that_is_full", NO_MOUNT);
    };
    frees_a_full_cache(&sandbox, &disk);
}

#[test]
fn gc_frees_a_shared_cache_that_is_full() {
    let Some((disk, sandbox)) = apart("tmpfs:4M") else { return skip("gc_frees_a_shared_cache", NO_MOUNT) };
    frees_a_full_cache(&sandbox, &disk);
}

#[test]
fn a_read_only_cache_is_read_and_writers_fail_before_they_change_anything() {
    let Some((disk, sandbox)) = apart("tmpfs:16M") else { return skip("a_read_only_cache", NO_MOUNT) };
    sandbox.write("data/a", "one");
    sandbox.write("data/large", noise(1_100_000, 1));
    sandbox.ok("add data");
    sandbox.commit("one");
    sandbox.write("data/a", "two");
    sandbox.ok("add data");
    sandbox.commit("two");
    let expected = snapshot(&sandbox.repo);
    disk.remount("ro");
    clean(&sandbox);
    sandbox.ok("diff data HEAD~1 HEAD");
    sandbox.ok("log data");
    sandbox.ok("du");
    sound(&sandbox);
    delete(&sandbox, "data");
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo), expected);
    sandbox.ok("checkout --rev HEAD~1 data");
    assert_eq!(sandbox.read("data/a"), "one");
    sandbox.ok("checkout");
    clean(&sandbox);
    sandbox.write("data/a", "three");
    let before = snapshot(&sandbox.repo);
    for args in ["add data", "commit", "gc --grace 0s --yes"] {
        let ran = sandbox.mlx(args);
        assert!(ran.code == 6 && ran.err.contains("ead-only file system"), "{args}: {ran:?}");
        assert_eq!(snapshot(&sandbox.repo), before, "{args}");
    }
    disk.remount("rw");
    sandbox.ok("add data");
    sound(&sandbox);
}

#[test]
fn a_workspace_of_two_layers_is_told_truly_and_the_lower_stays() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "one");
    sandbox.write("data/large", noise(1_100_000, 1));
    sandbox.ok("config set cache.link reflink,hardlink,copy");
    sandbox.ok("add data");
    delete(&sandbox, "data");
    sandbox.ok("checkout");
    sandbox.commit("one");
    let lower = snapshot(&sandbox.repo);
    let at = sandbox.root().join("merged");
    let Some(disk) = Disk::mount(&sandbox.root().join("disk"), "tmpfs:32M") else {
        return skip("a_workspace_of_two_layers", NO_MOUNT);
    };
    let Some(layers) = Disk::overlay(&at, &sandbox.repo, &disk.at.join("upper")) else {
        return skip("a_workspace_of_two_layers", "there is no overlayfs");
    };
    let above = sandbox.at(&layers.at);
    assert_eq!(above.json("status")["clean"], true);
    fs::write(layers.at.join("data/a"), "two").unwrap();
    // The lower layer's link to the store is cut when it is written to.
    let large = layers.at.join("data/large");
    fs::set_permissions(&large, fs::Permissions::from_mode(0o644)).unwrap();
    fs::OpenOptions::new().append(true).open(&large).unwrap().write_all(b"more").unwrap();
    let changes = above.json("status")["data"][0]["changes"].clone();
    let expected = json!([
        {"path": "data/a", "change": "modified"},
        {"path": "data/large", "change": "modified"},
    ]);
    assert_eq!(changes, expected);
    above.ok("add data");
    assert_eq!(above.json("status")["clean"], true);
    let wanted = snapshot(&layers.at.join("data"));
    fs::remove_dir_all(layers.at.join("data")).unwrap();
    above.ok("checkout");
    assert_eq!(snapshot(&layers.at.join("data")), wanted);
    assert_eq!(above.json("fsck")["faults"], json!([]));
    drop(layers);
    assert_eq!(snapshot(&sandbox.repo), lower);
    clean(&sandbox);
}

/// As [`Sandbox::mlx`], in a namespace where this user is root and nobody else is known.
fn in_a_namespace(sandbox: &Sandbox, folder: &Path, args: &str) -> Ran {
    let mut unshare = sandbox.command("unshare", folder);
    unshare.arg("-Ur").arg(env!("CARGO_BIN_EXE_mlx")).args(args.split(' '));
    ended(unshare.output().unwrap())
}

#[test]
fn in_a_namespace_of_its_own_it_works_and_strangers_files_are_verified() {
    let sandbox = Sandbox::new();
    let probe = in_a_namespace(&sandbox, &sandbox.repo, "status");
    if probe.code != 0 {
        return skip("in_a_namespace", &format!("there are no user namespaces: {}", probe.err));
    }
    let cache = sandbox.root().join("cache");
    sandbox.ok(&format!("config set --local cache.dir {}", cache.display()));
    sandbox.ok("config set cache.link hardlink");
    sandbox.write("data/a", "one");
    sandbox.write("data/large", noise(1_100_000, 1));
    sandbox.ok("add data");
    let object = fs::read_dir(cache.join("objects")).unwrap().next().unwrap().unwrap().path();
    // To the namespace its owner is nobody, and links to it are forbidden.
    if !sandbox.command("chown", &cache).arg("12345").arg(&object).status().unwrap().success() {
        return skip("in_a_namespace", "this user is not root");
    }
    let before = snapshot(&sandbox.repo);
    delete(&sandbox, "data");
    for args in ["checkout", "status --check", "add data", "gc --grace 0s --yes", "fsck"] {
        let ran = in_a_namespace(&sandbox, &sandbox.repo, args);
        assert_eq!(ran.code, 0, "{args}: {ran:?}");
    }
    assert_eq!(snapshot(&sandbox.repo), before);
    let large = sandbox.repo.join("data/large").metadata().unwrap();
    assert_eq!((large.nlink(), large.uid()), (1, rustix::process::geteuid().as_raw()));
}
