//! Tests on real, mounted file systems: reflinks on XFS and Btrfs, refused links, full and read-only disks,
//! overlays and user namespaces. Tests that need a mount are skipped if this user cannot mount.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    crash_safety::command,
    loop_mount::{Disk, random_bytes, sandbox_on},
    sandbox::{CommandResult, Sandbox, command_result, identity, skip, snapshot},
};

/// Size of the file that is reflinked, in bytes.
const REFLINKED_SIZE: usize = 64 << 20;
/// Bytes that a file system may use or reserve for itself during a test: half the size of a copy.
const TOLERANCE: u64 = 32 << 20;
const NO_MOUNT: &str = "this user cannot mount a disk";

/// Checks that `fsck` finds nothing damaged or unreadable.
fn assert_sound(sandbox: &Sandbox) {
    let checked = sandbox.json("fsck");
    for key in ["damaged", "faults", "unreadable"] {
        assert_eq!(checked[key], json!([]), "{checked}");
    }
}

fn assert_clean(sandbox: &Sandbox) {
    assert_eq!(sandbox.json("status")["clean"], true, "{}", sandbox.ok("status"));
}

fn delete(sandbox: &Sandbox, folder: &str) {
    fs::remove_dir_all(sandbox.repo.join(folder)).unwrap();
}

/// Runs mlx and counts its attempts at a file system operation.
fn count_operations(sandbox: &Sandbox, args: &str, operation: &str) -> usize {
    let log = sandbox.root().join("operations");
    let _missing = fs::remove_file(&log);
    let ran = command_result(
        command(sandbox, args).env("MLX_FAULT", format!("tell:{}", log.display())).output().unwrap(),
    );
    assert_eq!(ran.code, 0, "{args}: {}", ran.err);
    fs::read_to_string(&log).unwrap().lines().filter(|line| *line == operation).count()
}

/// Checks that a file of 64 MiB takes disk space once: added, checked out, and added again after an edit.
fn shares_blocks(kind: &str, test: &str) {
    let Some((disk, sandbox)) = sandbox_on(kind) else { return skip(test, NO_MOUNT) };
    sandbox.ok("config set cache.link reflink");
    let bytes = random_bytes(REFLINKED_SIZE, 1);
    sandbox.write("data/large", &bytes);
    let free = disk.free();
    let assert_shared = |operation: &str| {
        let now = disk.free();
        assert!(now + TOLERANCE > free, "{operation} took {} bytes", free - now);
    };
    sandbox.ok("add data");
    assert_shared("add");
    delete(&sandbox, "data");
    sandbox.ok("checkout");
    assert_shared("checkout");
    assert_clean(&sandbox);
    let file = sandbox.repo.join("data/large");
    assert_eq!(file.metadata().unwrap().mode() & 0o200, 0o200, "the file is private and writable");
    // An edit changes the workspace only, not the store.
    fs::OpenOptions::new().write(true).open(&file).unwrap().write_all(b"edited").unwrap();
    let changes = json!([{"path": "data/large", "change": "modified"}]);
    assert_eq!(sandbox.json("status")["data"][0]["changes"], changes);
    assert_sound(&sandbox);
    let refused = sandbox.fails("checkout", 4);
    assert!(refused.contains("`data/large`"), "{refused}");
    sandbox.ok("add data");
    assert_shared("add of an edit");
    sandbox.git("add -A");
    fs::write(&file, "short").unwrap();
    sandbox.ok("checkout --force");
    assert_shared("checkout of an edit");
    assert!(fs::read(&file).unwrap() == [b"edited", &bytes[6..]].concat());
    assert_clean(&sandbox);
    assert_sound(&sandbox);
}

#[test]
fn xfs_shares_blocks_between_store_and_workspace() {
    shares_blocks("xfs", "xfs_shares_blocks_between_store_and_workspace");
}

#[test]
fn btrfs_shares_blocks_between_store_and_workspace() {
    shares_blocks("btrfs", "btrfs_shares_blocks_between_store_and_workspace");
}

/// Checks that copies become reflinks, once, and copies again.
fn links_copies_again(kind: &str, test: &str) {
    let Some((disk, sandbox)) = sandbox_on(kind) else { return skip(test, NO_MOUNT) };
    sandbox.ok("config set cache.link copy");
    sandbox.write("data/large", random_bytes(REFLINKED_SIZE / 4, 1));
    sandbox.ok("add data");
    delete(&sandbox, "data");
    sandbox.ok("checkout");
    let freed = disk.free() + TOLERANCE / 4;
    let deadline = Instant::now() + Duration::from_secs(30);
    for link in ["reflink", "copy"] {
        sandbox.ok(&format!("config set cache.link {link}"));
        let said = sandbox.ok("checkout --relink");
        assert_eq!(said, format!("data: 1 file linked again (1 {link})\n"));
        // A file system may free the blocks of a removed file a moment later.
        while link == "reflink" && disk.free() < freed {
            assert!(Instant::now() < deadline, "a reflink takes as much as a copy");
        }
        let file = identity(&sandbox.repo.join("data/large"));
        assert!(sandbox.ok("checkout --relink").starts_with("nothing to do"), "{link}");
        assert_eq!(identity(&sandbox.repo.join("data/large")), file, "{link}");
        assert_clean(&sandbox);
    }
    assert_sound(&sandbox);
}

#[test]
fn xfs_links_copies_again() {
    links_copies_again("xfs", "xfs_links_copies_again");
}

#[test]
fn btrfs_links_copies_again() {
    links_copies_again("btrfs", "btrfs_links_copies_again");
}

const LARGE_FILES: usize = 16;

/// Writes a folder of files too large for a pack, which can be linked.
fn write_large_files(sandbox: &Sandbox) {
    for number in 0..LARGE_FILES {
        sandbox.write(&format!("data/f{number:02}"), random_bytes(1_050_000, number as u64));
    }
}

/// Counts hardlinked files and symlinks in the folder `data`.
fn links(sandbox: &Sandbox) -> (usize, usize) {
    let entries = fs::read_dir(sandbox.repo.join("data")).unwrap();
    let metas: Vec<_> = entries.map(|entry| entry.unwrap().path().symlink_metadata().unwrap()).collect();
    (metas.iter().filter(|it| it.nlink() > 1).count(), metas.iter().filter(|it| it.is_symlink()).count())
}

#[test]
fn a_refused_kind_of_link_is_tried_once_and_the_next_kind_is_used() {
    for kind in ["ext4:64M", "tmpfs:64M"] {
        let Some((_disk, sandbox)) = sandbox_on(kind) else {
            return skip("a_refused_kind_of_link", NO_MOUNT);
        };
        sandbox.ok("config set cache.link reflink,hardlink");
        write_large_files(&sandbox);
        // Threads that start together may each try once.
        let tries = count_operations(&sandbox, "add data", "reflink");
        assert!((1..=8).contains(&tries), "{kind}: {tries} tries");
        let before = snapshot(&sandbox.repo.join("data"));
        delete(&sandbox, "data");
        assert_eq!(count_operations(&sandbox, "checkout", "reflink"), 1, "{kind}");
        assert_eq!(links(&sandbox), (LARGE_FILES, 0), "{kind}");
        assert_eq!(snapshot(&sandbox.repo.join("data")), before);
        assert_clean(&sandbox);
        assert_sound(&sandbox);
    }
}

/// Mounts a disk and creates a sandbox whose cache is on it, but not its repository.
fn cache_on(kind: &str) -> Option<(Disk, Sandbox)> {
    let sandbox = Sandbox::new();
    let disk = Disk::mount(&sandbox.root().join("disk"), kind)?;
    sandbox.ok(&format!("config set --local cache.dir {}", disk.path.join("cache").display()));
    Some((disk, sandbox))
}

#[test]
fn a_cache_on_another_mount_gives_copies_or_symlinks_and_no_hardlinks() {
    let Some((disk, sandbox)) = cache_on("tmpfs:64M") else {
        return skip("a_cache_on_another_mount", NO_MOUNT);
    };
    write_large_files(&sandbox);
    sandbox.ok("add data");
    let before = snapshot(&sandbox.repo.join("data"));
    sandbox.ok("config set cache.link reflink,hardlink");
    delete(&sandbox, "data");
    assert_eq!(count_operations(&sandbox, "checkout", "link"), 1);
    assert_eq!(links(&sandbox), (0, 0));
    assert_eq!(snapshot(&sandbox.repo.join("data")), before);
    assert_clean(&sandbox);
    sandbox.ok("config set cache.link hardlink,symlink");
    delete(&sandbox, "data");
    assert_eq!(count_operations(&sandbox, "checkout", "link"), 1 + LARGE_FILES);
    assert_eq!(links(&sandbox), (0, LARGE_FILES));
    let target = fs::read_link(sandbox.repo.join("data/f00")).unwrap();
    assert!(target.starts_with(disk.path.join("cache/objects")), "{}", target.display());
    assert_clean(&sandbox);
    let pointer = sandbox.read("data.mlx");
    sandbox.ok("add data");
    assert_eq!(sandbox.read("data.mlx"), pointer);
    sandbox.ok("unprotect data");
    assert_eq!(snapshot(&sandbox.repo.join("data")), before);
    sandbox.write("data/f00", "edited");
    assert_sound(&sandbox);
}

#[test]
fn a_bind_mount_gets_copies_and_the_rest_of_the_folder_hardlinks() {
    let Some((disk, sandbox)) = sandbox_on("tmpfs:64M") else {
        return skip("a_bind_mount_gets_copies", NO_MOUNT);
    };
    let inner = sandbox.repo.join("data/inner");
    fs::create_dir_all(&inner).unwrap();
    fs::create_dir(disk.path.join("elsewhere")).unwrap();
    let mut bind = sandbox.command("mount", &disk.path);
    assert!(bind.args(["--bind", "elsewhere"]).arg(&inner).status().unwrap().success());
    let bound = Disk { path: inner };
    sandbox.write("data/inner/a", random_bytes(1_050_000, 1));
    sandbox.write("data/z", random_bytes(1_050_000, 2));
    sandbox.ok("add data");
    sandbox.ok("config set cache.link hardlink");
    for name in ["inner/a", "z"] {
        fs::remove_file(sandbox.repo.join("data").join(name)).unwrap();
    }
    sandbox.ok("checkout");
    let link_count = |path: &str| sandbox.repo.join("data").join(path).metadata().unwrap().nlink();
    assert_eq!((link_count("inner/a"), link_count("z")), (1, 2));
    assert_clean(&sandbox);
    drop(bound);
}

/// Maximum number of hardlinks to one file on ext4.
const MAX_LINKS: usize = 65_000;

#[test]
fn a_file_at_the_link_limit_is_copied_and_others_are_hardlinked() {
    let Some((disk, sandbox)) = sandbox_on("ext4:64M") else {
        return skip("a_file_at_the_link_limit", NO_MOUNT);
    };
    sandbox.ok("config set cache.link hardlink");
    sandbox.write("data/a", random_bytes(1_050_000, 1));
    sandbox.ok("add data");
    let objects = sandbox.repo.join(".git/mlx/objects");
    let object = fs::read_dir(&objects).unwrap().next().unwrap().unwrap().path();
    let names = disk.path.join("names");
    fs::create_dir(&names).unwrap();
    let linked = (1..=MAX_LINKS)
        .take_while(|number| fs::hard_link(&object, names.join(number.to_string())).is_ok())
        .count();
    assert_eq!(linked, MAX_LINKS - 1);
    sandbox.write("data/b", random_bytes(1_050_000, 2));
    sandbox.ok("add data");
    delete(&sandbox, "data");
    sandbox.ok("checkout");
    let link_count = |name: &str| sandbox.repo.join("data").join(name).metadata().unwrap().nlink();
    assert_eq!((link_count("a"), link_count("b")), (1, 2));
    assert!(fs::read(sandbox.repo.join("data/a")).unwrap() == random_bytes(1_050_000, 1));
    assert_clean(&sandbox);
}

#[test]
fn unicode_variants_of_a_name_stay_different_files() {
    let Some((_disk, sandbox)) = sandbox_on("xfs") else {
        return skip("unicode_variants_of_a_name", NO_MOUNT);
    };
    let names = ["data/caf\u{e9}", "data/cafe\u{301}", "data/CAF\u{c9}"];
    names.iter().for_each(|name| sandbox.write(name, *name));
    sandbox.ok("add data");
    delete(&sandbox, "data");
    let ran = sandbox.mlx("checkout");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    names.iter().for_each(|name| assert_eq!(sandbox.read(name), *name));
    assert_clean(&sandbox);
}

#[test]
fn a_same_size_edit_is_detected_where_times_are_whole_seconds() {
    let Some((_disk, sandbox)) = sandbox_on("ext2:16M") else {
        return skip("a_same_size_edit_is_detected", NO_MOUNT);
    };
    for round in 0..10 {
        sandbox.write("data/a", format!("{round:03}x"));
        sandbox.ok("add data");
        assert_clean(&sandbox);
        sandbox.write("data/a", format!("{round:03}y"));
        let meta = sandbox.repo.join("data/a").metadata().unwrap();
        assert_eq!((meta.mtime_nsec(), meta.ctime_nsec()), (0, 0), "whole seconds");
        assert_eq!(sandbox.json("status")["clean"], false, "round {round}");
    }
}

#[test]
fn a_checkout_on_a_full_disk_fails_without_loss_and_can_be_repeated() {
    let mut sandbox = Sandbox::empty();
    let Some(disk) = Disk::mount(&sandbox.root().join("disk"), "tmpfs:8M") else {
        return skip("a_checkout_on_a_full_disk", NO_MOUNT);
    };
    let cache = sandbox.root().join("cache");
    sandbox.repo = disk.path.join("repo");
    fs::create_dir(&sandbox.repo).unwrap();
    sandbox.git("init -q -b main");
    sandbox.ok("init");
    sandbox.ok(&format!("config set --local cache.dir {}", cache.display()));
    for number in 0..3 {
        sandbox.write(&format!("data/large{number}"), random_bytes(1_100_000, number));
        sandbox.write(&format!("data/small{number}"), random_bytes(200_000, 10 + number));
    }
    sandbox.ok("add data");
    let expected = snapshot(&sandbox.repo.join("data"));
    delete(&sandbox, "data");
    sandbox.write("data/mine", "stored nowhere");
    let ballast = disk.fill(1_300_000);
    // At first, an unstored file of the user is in the way.
    sandbox.fails("checkout", 4);
    fs::remove_file(sandbox.repo.join("data/mine")).unwrap();
    let error = sandbox.fails("checkout", 7);
    assert!(error.contains("the disk is full") && error.contains("`data/"), "{error}");
    let partial = snapshot(&sandbox.repo.join("data"));
    assert!(
        partial.len() < expected.len() && partial.iter().all(|it| expected.get(it.0) == Some(it.1)),
        "{partial:?}"
    );
    assert_eq!(sandbox.json("status")["clean"], false);
    fs::remove_file(ballast).unwrap();
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo.join("data")), expected);
    assert_clean(&sandbox);
    // The pointer and the index are on the full disk, too: if `add` fails, the pointer is unchanged.
    let pointer = sandbox.read("data.mlx");
    sandbox.write("data/small0", "edited");
    let ballast = disk.fill(0);
    let ran = sandbox.mlx("add data");
    assert!(ran.code == 0 || ran.code == 7 && ran.err.contains("the disk is full"), "{ran:?}");
    assert!(ran.code == 0 || sandbox.read("data.mlx") == pointer);
    fs::remove_file(ballast).unwrap();
    sandbox.ok("add data");
    assert_clean(&sandbox);
    assert_sound(&sandbox);
}

/// Fills the cache to the last byte and checks that gc frees space, after which `add` and `checkout` work
/// again.
fn frees_a_full_cache(sandbox: &Sandbox, disk: &Disk) {
    for number in 0..40 {
        sandbox.write(&format!("data/f{number}"), random_bytes(20_000, number));
    }
    sandbox.write("data/large", random_bytes(1_100_000, 100));
    sandbox.ok("add data");
    // gc would repack a mostly unused pack, but the disk has no space for that.
    for number in 1..40 {
        fs::remove_file(sandbox.repo.join(format!("data/f{number}"))).unwrap();
    }
    fs::remove_file(sandbox.repo.join("data/large")).unwrap();
    sandbox.write("data/g", "of the second version");
    sandbox.ok("add data");
    let expected = snapshot(&sandbox.repo.join("data"));
    let ballast = disk.fill(0);
    let pointer = sandbox.read("data.mlx");
    sandbox.write("new", random_bytes(300_000, 7));
    let error = sandbox.fails("add new", 7);
    assert!(error.contains("the disk is full"), "{error}");
    assert!(!sandbox.has("new.mlx") && sandbox.read("data.mlx") == pointer);
    let collected = sandbox.json("gc --grace 0s --yes");
    // Removing the large file made space to repack the pack, which removed 39 small files.
    let freed = &collected["freed"];
    assert_eq!(
        (&freed["whole"]["count"], &freed["contents"]["count"]),
        (&json!(1), &json!(39)),
        "{collected}"
    );
    assert_sound(sandbox);
    delete(sandbox, "data");
    sandbox.ok("checkout data");
    assert_eq!(snapshot(&sandbox.repo.join("data")), expected);
    sandbox.ok("add new");
    fs::remove_file(ballast).unwrap();
    assert_eq!(sandbox.json("gc --grace 0s --yes")["freed"]["total"]["count"], 0);
    assert_sound(sandbox);
    delete(sandbox, "data");
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo.join("data")), expected);
}

#[test]
fn gc_frees_a_cache_that_is_full() {
    let sandbox = Sandbox::new();
    // The repository's own store is on a small disk.
    let Some(disk) = Disk::mount(&sandbox.repo.join(".git/mlx"), "tmpfs:4M") else {
        return skip("gc_frees_a_cache_that_is_full", NO_MOUNT);
    };
    frees_a_full_cache(&sandbox, &disk);
}

#[test]
fn gc_frees_a_shared_cache_that_is_full() {
    let Some((disk, sandbox)) = cache_on("tmpfs:4M") else {
        return skip("gc_frees_a_shared_cache", NO_MOUNT);
    };
    frees_a_full_cache(&sandbox, &disk);
}

#[test]
fn a_read_only_cache_can_be_read_and_writing_commands_change_nothing() {
    let Some((disk, sandbox)) = cache_on("tmpfs:16M") else { return skip("a_read_only_cache", NO_MOUNT) };
    sandbox.write("data/a", "one");
    sandbox.write("data/large", random_bytes(1_100_000, 1));
    sandbox.ok("add data");
    sandbox.commit("one");
    sandbox.write("data/a", "two");
    sandbox.ok("add data");
    sandbox.commit("two");
    let expected = snapshot(&sandbox.repo);
    disk.remount("ro");
    assert_clean(&sandbox);
    sandbox.ok("diff data HEAD~1 HEAD");
    sandbox.ok("log data");
    sandbox.ok("du");
    assert_sound(&sandbox);
    delete(&sandbox, "data");
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo), expected);
    sandbox.ok("checkout --rev HEAD~1 data");
    assert_eq!(sandbox.read("data/a"), "one");
    sandbox.ok("checkout");
    assert_clean(&sandbox);
    sandbox.write("data/a", "three");
    let before = snapshot(&sandbox.repo);
    for args in ["add data", "commit", "gc --grace 0s --yes"] {
        let ran = sandbox.mlx(args);
        assert!(ran.code == 6 && ran.err.contains("ead-only file system"), "{args}: {ran:?}");
        assert_eq!(snapshot(&sandbox.repo), before, "{args}");
    }
    disk.remount("rw");
    sandbox.ok("add data");
    assert_sound(&sandbox);
}

#[test]
fn an_overlay_workspace_works_and_its_lower_layer_is_unchanged() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "one");
    sandbox.write("data/large", random_bytes(1_100_000, 1));
    sandbox.ok("config set cache.link reflink,hardlink,copy");
    sandbox.ok("add data");
    delete(&sandbox, "data");
    sandbox.ok("checkout");
    sandbox.commit("one");
    let lower = snapshot(&sandbox.repo);
    let at = sandbox.root().join("merged");
    let Some(disk) = Disk::mount(&sandbox.root().join("disk"), "tmpfs:32M") else {
        return skip("an_overlay_workspace", NO_MOUNT);
    };
    let Some(layers) = Disk::overlay(&at, &sandbox.repo, &disk.path.join("upper")) else {
        return skip("an_overlay_workspace", "overlayfs is not available");
    };
    let upper = sandbox.at(&layers.path);
    assert_eq!(upper.json("status")["clean"], true);
    fs::write(layers.path.join("data/a"), "two").unwrap();
    // Writing to a hardlink of the lower layer copies the file, so the store's object is unchanged.
    let large = layers.path.join("data/large");
    fs::set_permissions(&large, fs::Permissions::from_mode(0o644)).unwrap();
    fs::OpenOptions::new().append(true).open(&large).unwrap().write_all(b"more").unwrap();
    let changes = upper.json("status")["data"][0]["changes"].clone();
    let expected = json!([
        {"path": "data/a", "change": "modified"},
        {"path": "data/large", "change": "modified"},
    ]);
    assert_eq!(changes, expected);
    upper.ok("add data");
    assert_eq!(upper.json("status")["clean"], true);
    let edited = snapshot(&layers.path.join("data"));
    fs::remove_dir_all(layers.path.join("data")).unwrap();
    upper.ok("checkout");
    assert_eq!(snapshot(&layers.path.join("data")), edited);
    assert_eq!(upper.json("fsck")["faults"], json!([]));
    drop(layers);
    assert_eq!(snapshot(&sandbox.repo), lower);
    assert_clean(&sandbox);
}

/// Runs mlx like [`Sandbox::mlx`], in a user namespace where this user is root and other users are not
/// mapped.
fn mlx_in_namespace(sandbox: &Sandbox, folder: &Path, args: &str) -> CommandResult {
    let mut unshare = sandbox.command("unshare", folder);
    unshare.arg("-Ur").arg(env!("CARGO_BIN_EXE_mlx")).args(args.split(' '));
    command_result(unshare.output().unwrap())
}

#[test]
fn mlx_works_in_a_user_namespace_and_verifies_files_of_unmapped_users() {
    let sandbox = Sandbox::new();
    let probe = mlx_in_namespace(&sandbox, &sandbox.repo, "status");
    if probe.code != 0 {
        return skip(
            "mlx_works_in_a_user_namespace",
            &format!("user namespaces are not available: {}", probe.err),
        );
    }
    let cache = sandbox.root().join("cache");
    sandbox.ok(&format!("config set --local cache.dir {}", cache.display()));
    sandbox.ok("config set cache.link hardlink");
    sandbox.write("data/a", "one");
    sandbox.write("data/large", random_bytes(1_100_000, 1));
    sandbox.ok("add data");
    let object = fs::read_dir(cache.join("objects")).unwrap().next().unwrap().unwrap().path();
    // In the namespace, the object's owner is not mapped, and hardlinks to it are forbidden.
    if !sandbox.command("chown", &cache).arg("12345").arg(&object).status().unwrap().success() {
        return skip("mlx_works_in_a_user_namespace", "this user is not root");
    }
    let before = snapshot(&sandbox.repo);
    delete(&sandbox, "data");
    for args in ["checkout", "status --check", "add data", "gc --grace 0s --yes", "fsck"] {
        let ran = mlx_in_namespace(&sandbox, &sandbox.repo, args);
        assert_eq!(ran.code, 0, "{args}: {ran:?}");
    }
    assert_eq!(snapshot(&sandbox.repo), before);
    let large = sandbox.repo.join("data/large").metadata().unwrap();
    assert_eq!((large.nlink(), large.uid()), (1, rustix::process::geteuid().as_raw()));
}
