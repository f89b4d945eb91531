//! Test fixture `Place`: three clones of the same data, of which the last lacks a file, and a bucket.

use std::{collections::BTreeMap, fs};

use axum::body::Bytes;
use mlx::{digest::Digest, store::Index};

use crate::{fake_s3::FakeS3, gc_roots::remove_any, sandbox::Sandbox};

/// Folders of the clones.
pub const CLONES: [&str; 3] = ["one", "two", "three"];

/// Three clones, of which the last lacks a file, and the packs of their data.
pub struct Place {
    pub sandbox: Sandbox,
    pub service: FakeS3,
    /// Bytes of files at the remote that walks start from, by keys.
    pub files: BTreeMap<String, Bytes>,
    /// Digests of the objects, by their bits.
    objects: [Digest; 3],
}

impl Place {
    /// Pushes the data once, pack by pack, and once more to merge the packs: walks start from these files.
    pub fn new() -> Self {
        let (sandbox, service) = (Sandbox::empty(), FakeS3::start_for(CLONES.len()));
        let [first, second] = contents();
        for (number, name) in CLONES.into_iter().enumerate() {
            let folder = sandbox.root().join(name);
            fs::create_dir(&folder).unwrap();
            let clone = sandbox.at(&folder);
            clone.git("init -q");
            clone.ok("init");
            clone.ok(&format!("remote add s3 {}", service.remote_args_of(number)));
            if number < 2 {
                fs::create_dir(folder.join("d")).unwrap();
                fs::write(folder.join("d/1"), &first).unwrap();
                fs::write(folder.join("d/2"), &second).unwrap();
                clone.ok("add d");
            }
        }
        let clone = sandbox.at(&sandbox.root().join("one"));
        let push = |small: &str| {
            let mut push = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &clone.folder);
            push.args(["push", "d"]).env("MLX_PACK_SIZE", "1").env("MLX_SMALL_PACKS", small);
            assert!(push.output().unwrap().status.success());
        };
        push("9");
        push("1");
        let third = sandbox.at(&sandbox.root().join("three"));
        fs::write(third.folder.join("own"), &second).unwrap();
        third.ok("add own");
        fs::copy(clone.folder.join("d.mlx"), third.folder.join("d.mlx")).unwrap();
        third.ok("fetch --trees d");
        let files = std::mem::take(&mut service.bucket().objects);
        let pointer = fs::read_to_string(clone.folder.join("d.mlx")).unwrap();
        let root = pointer.split('"').find(|text| text.starts_with("b3:")).unwrap().parse().unwrap();
        let place = Self {
            sandbox,
            service,
            files,
            objects: [Digest::of(first.as_bytes()), Digest::of(second.as_bytes()), root],
        };
        place.sandbox.copy_folders(&CLONES, "saved");
        place
    }

    /// Brings a clone back to the objects that it has in the model.
    pub fn restore(&self, clone: usize) {
        fs::remove_dir_all(self.sandbox.root().join(CLONES[clone])).unwrap();
        self.sandbox.copy_folders(&[&format!("saved/{}", CLONES[clone])], ".");
        // The model has no memory of what was at the remote.
        remove_any(&self.sandbox.root().join(CLONES[clone]).join(".git/mlx/remotes"));
    }

    /// Returns the objects of a pack.
    pub fn objects_of(&self, pack: &[u8]) -> Option<u8> {
        let index = Index::from_pack(pack).ok()?;
        let bit = |object: &Digest| 1 << self.objects.iter().position(|other| other == object).unwrap();
        Some(index.rows().map(|row| bit(&row.digest)).sum())
    }
}

/// Contents of two files, in the order of their digests, which is that of their packs.
fn contents() -> [String; 2] {
    let mut texts = ["a file of three clones", "another file of three clones"].map(str::to_owned);
    texts.sort_by_key(|text| Digest::of(text.as_bytes()));
    texts
}

/// Returns the key of a file in the bucket.
pub fn key(folder: &str, name: &str) -> String {
    format!("p/v1/{folder}/{name}")
}

pub fn name_of(key: &str) -> &str {
    key.rsplit('/').next().unwrap()
}
