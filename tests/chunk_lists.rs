//! Tests lists of chunks at a remote that do not give their file: nothing is published, the pointer is
//! named if it disagrees, and a wrong list is replaced by the next push from a clone that has the file.

use std::{fs, path::Path};

use mlx::{
    digest::Digest,
    store::{Index, Kind, pack},
};

use crate::{
    loop_mount::random_bytes,
    remote_repair::{add_remote, clone, files, push_often, put},
    sandbox::{Sandbox, SandboxFolder, command_result},
};

const SIZE: usize = 5_000_000;

fn large() -> Vec<u8> {
    random_bytes(SIZE, 1)
}

/// Chunks of a list: lengths and digests.
type List = Vec<(u64, Digest)>;

fn encode(version: u8, list: &[(u64, Digest)]) -> Vec<u8> {
    let mut bytes = b"mlxchnk".to_vec();
    bytes.push(version);
    for (length, digest) in list {
        let mut rest = *length;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes.extend(digest.bytes());
    }
    bytes
}

/// Creates a repository with the large file `a`, whose remote has the chunks of another file of the same
/// size and, for `a`, the list that `change` makes of that of the other one.
fn with_list(change: &dyn Fn(List) -> Vec<u8>) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("other", random_bytes(SIZE, 2));
    sandbox.ok("add other");
    add_remote(&sandbox, "remote");
    sandbox.ok("push");
    let mut chunks = List::new();
    for file in files(&sandbox, "packs") {
        let bytes = fs::read(&file).unwrap();
        let mut rows: Vec<_> = Index::from_pack(&bytes).unwrap().rows().collect();
        rows.sort_by_key(|row| row.offset);
        chunks.extend(rows.iter().filter(|row| row.kind == Kind::Content).map(|row| (row.size, row.digest)));
    }
    assert!(chunks.len() > 2 && chunks.iter().map(|chunk| chunk.0).sum::<u64>() == SIZE as u64);
    let list = change(chunks);
    let (name, bytes, index) = pack(&[(Kind::Chunks, Digest::of(&large()), &list)]).unwrap();
    put(&sandbox, &name.hex(), &bytes, &index);
    sandbox.write("a", large());
    sandbox.ok("add a");
    sandbox.commit("a");
    sandbox
}

/// A list of another file of the same size cannot be told from the right one before it is read.
#[test]
fn a_push_does_not_trust_a_list_that_cannot_be_of_its_file() {
    for (name, wrong) in WRONG {
        let sandbox = with_list(&wrong);
        let is_sent = sandbox.json("push")["objects"] != 0;
        assert_eq!(is_sent, name != "another file", "{name}");
        if is_sent {
            clone(&sandbox, "clone").ok("pull a");
            assert_eq!(sandbox.json("push")["objects"], 0, "{name}");
        }
    }
}

/// Returns the number of files that a fetch left incomplete.
fn incomplete(clone: &SandboxFolder<'_>) -> usize {
    let Ok(entries) = fs::read_dir(clone.folder.join(".git/mlx/incoming")) else { return 0 };
    entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_none()).count()
}

fn assert_same(clone: &Path) {
    assert!(fs::read(clone.join("a")).unwrap() == large());
}

/// Wrong lists of `a`: of another file, too short, with lengths that are not those of the chunks, and no
/// list.
const WRONG: [(&str, fn(List) -> Vec<u8>); 4] = [
    ("another file", |list| encode(1, &list)),
    ("too short", |list| encode(1, &list[1..])),
    ("other lengths", |mut list| {
        list[0].0 += 1;
        list[1].0 -= 1;
        encode(1, &list)
    }),
    ("not a list", |_| b"nonsense".to_vec()),
];

#[test]
fn a_wrong_list_gives_nothing_and_the_next_push_replaces_it() {
    for (name, wrong) in WRONG {
        let sandbox = with_list(&wrong);
        let other = clone(&sandbox, "clone");
        // Without a checkout, which would check it again.
        let error = other.fails("fetch a", 5);
        assert!(error.contains("`a`"), "{name}: {error}");
        assert!(other.mlx("checkout a").code != 0 && !other.folder.join("a").exists(), "{name}");
        assert_eq!((incomplete(&other), files(&sandbox, "damaged").len()), (0, 1), "{name}");
        // A clone without the file changes nothing.
        other.ok("push");
        other.fails("pull a", 5);
        let said = sandbox.mlx("push");
        assert!(said.code == 0 && said.err.contains("is repaired"), "{name}: {said:?}");
        assert_eq!(files(&sandbox, "damaged").len(), 0, "{name}");
        other.ok("pull a");
        assert_same(&other.folder);
        assert_eq!(sandbox.json("push")["objects"], 0, "{name}");
    }
}

/// Fifty times a chunk of about a megabyte, as if it were one of a hundred kilobytes: as much as the file
/// has.
#[test]
fn a_list_with_false_lengths_writes_nothing() {
    let sandbox = with_list(&|list| encode(1, &vec![(SIZE as u64 / 50, list[0].1); 50]));
    let other = clone(&sandbox, "clone");
    let mut shell = sandbox.command("sh", &other.folder);
    // A file of more than 8 MiB would be an error of the disk.
    shell.args(["-c", "ulimit -f 16384; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_mlx"), "fetch", "a"]);
    let fetched = command_result(shell.output().unwrap());
    assert!(fetched.code == 5 && fetched.err.contains("damaged data"), "{fetched:?}");
    assert_eq!((incomplete(&other), files(&sandbox, "damaged").len()), (0, 1));
}

/// The wrong list comes first in the order in which packs are merged.
#[test]
fn a_merge_of_packs_keeps_all_lists_of_a_file() {
    let sandbox = with_list(&WRONG[0].1);
    let wrong =
        files(&sandbox, "packs").into_iter().min_by_key(|file| file.metadata().unwrap().len()).unwrap();
    add_remote(&sandbox, "second");
    sandbox.ok("push a");
    let (mut chunks, mut list) = (Vec::new(), None);
    for file in fs::read_dir(sandbox.root().join("second/v1/packs")).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        for row in Index::from_pack(&bytes).unwrap().rows() {
            let object = row.decode(&bytes[row.offset as usize..][..row.stored as usize]).unwrap();
            match row.kind {
                Kind::Content => chunks.push((row.digest, object)),
                _ => list = Some(object),
            }
        }
    }
    let chunks: Vec<_> = chunks.iter().map(|(digest, bytes)| (Kind::Content, *digest, &bytes[..])).collect();
    let (name, bytes, index) = pack(&chunks).unwrap();
    put(&sandbox, &name.hex(), &bytes, &index);
    let wrong_name = wrong.file_name().unwrap().to_str().unwrap().to_owned();
    let right = (0_u8..).find_map(|number| {
        let other = [number; 3];
        let right = (Kind::Chunks, Digest::of(&large()), &list.as_ref().unwrap()[..]);
        let made = pack(&[right, (Kind::Content, Digest::of(&other), &other[..])]).unwrap();
        (made.0.hex() > wrong_name).then_some(made)
    });
    let (name, bytes, index) = right.unwrap();
    put(&sandbox, &name.hex(), &bytes, &index);
    sandbox.ok("config set core.remote remote");
    push_often(&sandbox);
    assert_eq!(files(&sandbox, "replaced").len(), 1);
    // Only what was merged is left of the small packs.
    for kind in ["packs", "indexes"] {
        for name in [&wrong_name, &name.hex()] {
            fs::remove_file(sandbox.root().join("remote/v1").join(kind).join(name)).unwrap();
        }
    }
    let other = clone(&sandbox, "clone");
    other.ok("fetch a");
}

#[test]
fn fsck_finds_a_wrong_list_and_replaces_it() {
    let sandbox = with_list(&WRONG[0].1);
    let found = sandbox.mlx("fsck --remote --full");
    assert!(found.code == 10 && found.out.contains("1 object without intact bytes"), "{found:?}");
    assert_eq!(sandbox.mlx("fsck --remote --full --repair").code, 0);
    assert_eq!(sandbox.mlx("fsck --remote --full").code, 0);
    let other = clone(&sandbox, "clone");
    other.ok("pull");
    assert_same(&other.folder);
}

/// An intact list in another pack is taken, in whichever order the packs come.
#[test]
fn a_right_list_beside_a_wrong_one_is_found() {
    let sandbox = with_list(&WRONG[0].1);
    let other = clone(&sandbox, "clone");
    let lists = files(&sandbox, "packs");
    add_remote(&sandbox, "second");
    sandbox.ok("push a");
    for kind in ["packs", "indexes"] {
        for file in fs::read_dir(sandbox.root().join("second/v1").join(kind)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), sandbox.root().join("remote/v1").join(kind).join(file.file_name()))
                .unwrap();
        }
    }
    assert!(files(&sandbox, "packs").len() > lists.len());
    other.ok("pull a");
    assert_same(&other.folder);
}

#[test]
fn a_list_of_a_newer_mlx_asks_for_an_upgrade() {
    let sandbox = with_list(&|list| encode(2, &list));
    let other = clone(&sandbox, "clone");
    let error = other.fails("pull", 5);
    assert!(error.contains("list of the chunks of `a` was written by a newer mlx"), "{error}");
    assert!(error.contains("hint: upgrade mlx"), "{error}");
    assert!(other.folder.join("other").exists() || other.mlx("checkout other").code == 0, "the rest arrives");
    // It is not damage.
    assert_eq!(files(&sandbox, "damaged").len(), 0);
    assert_eq!(sandbox.mlx("fsck --remote --full").code, 0);
    assert_eq!(sandbox.json("push")["objects"], 0, "what the newer mlx has sent stays");
}

#[test]
fn an_object_with_an_unknown_codec_asks_for_an_upgrade() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "text");
    sandbox.ok("add a");
    add_remote(&sandbox, "remote");
    sandbox.ok("push");
    sandbox.commit("a");
    let [index] = &files(&sandbox, "indexes")[..] else { panic!("a file is in one pack") };
    let mut bytes = fs::read(index).unwrap();
    bytes[16 + 33] = 2;
    let body = bytes.len() - 32;
    let check = blake3::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(check.as_bytes());
    fs::write(index, &bytes).unwrap();
    let other = clone(&sandbox, "clone");
    for args in ["pull", "push", "fsck --remote"] {
        let error = other.fails(args, 5);
        assert!(
            error.contains("written by a newer mlx") && error.contains("hint: upgrade mlx"),
            "{args}: {error}"
        );
    }
    assert_eq!(fs::read(index).unwrap(), bytes);
}

#[test]
fn a_wrong_size_in_a_pointer_names_the_pointer() {
    let sandbox = Sandbox::new();
    sandbox.write("a", large());
    sandbox.write("b", "small");
    sandbox.ok("add a b");
    add_remote(&sandbox, "remote");
    sandbox.ok("push");
    let pointer = sandbox.read("a.mlx");
    sandbox.write("a.mlx", pointer.replace("size = 5000000", "size = 5"));
    sandbox.commit("wrong");
    let other = clone(&sandbox, "clone");
    let error = other.fails("pull", 5);
    let says = "the pointer `a.mlx` says that `a` has 5 bytes, but its list of chunks at the remote `remote` \
                has 5000000";
    assert!(error.contains(says), "{error}");
    assert_eq!(incomplete(&other), 0);
    other.ok("checkout b");
    // The list is right: a push leaves it as it is, and the corrected pointer can be pulled.
    let packs = files(&sandbox, "packs").len();
    assert!(!sandbox.mlx("push b").err.contains("repaired"));
    assert_eq!((files(&sandbox, "packs").len(), files(&sandbox, "damaged").len()), (packs, 0));
    fs::write(other.folder.join("a.mlx"), pointer).unwrap();
    other.ok("pull");
    assert_same(&other.folder);
}
