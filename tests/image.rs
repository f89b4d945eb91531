//! Small file systems of their own kind for tests, mounted from an image and gone when dropped.
//!
//! `fixtures/disks/` holds fresh XFS and Btrfs disks, packed: no tools to make them need to be there.

use std::{
    fs,
    io::{BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use crate::sandbox::Sandbox;

/// A mounted file system.
pub struct Disk {
    pub at: PathBuf,
}

const BLOCK: usize = 1 << 16;

impl Disk {
    /// Mounts a fresh `tmpfs:SIZE`, `ext4:SIZE`, `ext2:SIZE`, `xfs` (150 MB) or `btrfs` (110 MB); none where this user may not.
    pub fn mount(at: &Path, kind: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let image = at.with_extension("img");
        let (name, size) = kind.split_once(':').unwrap_or((kind, ""));
        let mut mount = Command::new("mount");
        match name {
            "tmpfs" => mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]),
            "ext4" | "ext2" => {
                let mut make = Command::new(format!("mkfs.{name}"));
                // Inodes of the old size have room for whole seconds only.
                let inode = if name == "ext2" { "128" } else { "256" };
                make.args(["-q", "-F", "-I", inode, "-O", "^has_journal"]).arg(&image).arg(size);
                if !make.output().ok()?.status.success() {
                    return None;
                }
                mount.args(["-t", name, "-o", "loop"]).arg(&image)
            }
            _ => {
                unpack(name, &image);
                // Every test mounts the same disk: XFS asks not to be told so.
                let options = if name == "xfs" { "loop,nouuid" } else { "loop" };
                mount.args(["-t", name, "-o", options]).arg(&image)
            }
        };
        Self::mounted(mount, at)
    }

    /// Lays `upper` over `lower`, both folders of one disk.
    pub fn overlay(at: &Path, lower: &Path, upper: &Path) -> Option<Self> {
        let work = upper.with_extension("work");
        [at, upper, &work].iter().for_each(|it| fs::create_dir_all(it).unwrap());
        let layers = [lower, upper, &work].map(|it| it.display().to_string());
        let options = format!("lowerdir={},upperdir={},workdir={}", layers[0], layers[1], layers[2]);
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "-o", &options, "overlay"]);
        Self::mounted(mount, at)
    }

    fn mounted(mut mount: Command, at: &Path) -> Option<Self> {
        let mounted = mount.arg(at).output().ok()?;
        mounted.status.success().then(|| Self { at: at.to_owned() })
    }

    /// Mounts it again as `ro` or `rw`.
    pub fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.at).status().unwrap().success());
    }

    /// Free bytes, when everything is written.
    pub fn free(&self) -> u64 {
        rustix::fs::syncfs(fs::File::open(&self.at).unwrap()).unwrap();
        let stat = rustix::fs::statvfs(&self.at).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Fills it with a file, but for so many bytes.
    pub fn fill(&self, but: u64) -> PathBuf {
        let ballast = self.at.join("ballast");
        let mut file = fs::File::create(&ballast).unwrap();
        let mut left = self.free().saturating_sub(but);
        while left > 0 {
            let piece = vec![b'x'; usize::try_from(left.min(1 << 16)).unwrap()];
            // The last pages may go to what the file system keeps of the file itself.
            let Ok(written) = file.write(&piece) else { break };
            left -= written as u64;
        }
        ballast
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let umount = |lazy: &[&str]| Command::new("umount").args(lazy).arg(&self.at).output();
        if !umount(&[]).is_ok_and(|it| it.status.success()) {
            let _out_of_sight = umount(&["-l"]);
        }
    }
}

/// Writes the image of a disk, its zeros as holes.
fn unpack(name: &str, image: &Path) {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/disks/{name}.zst"));
    let mut disk = BufReader::new(zstd::Decoder::new(fs::File::open(packed).unwrap()).unwrap());
    let mut file = fs::File::create(image).unwrap();
    let mut block = Vec::with_capacity(BLOCK);
    let mut size = 0;
    while disk.by_ref().take(BLOCK as u64).read_to_end(&mut block).unwrap() > 0 {
        if block.len() == BLOCK && block.iter().all(|it| *it == 0) {
            file.seek(SeekFrom::Current(BLOCK as i64)).unwrap();
        } else {
            file.write_all(&block).unwrap();
        }
        size += block.len() as u64;
        block.clear();
    }
    file.set_len(size).unwrap();
}

/// A repository that lies on a disk of this kind.
pub fn world(kind: &str) -> Option<(Disk, Sandbox)> {
    let mut sandbox = Sandbox::bare();
    let disk = Disk::mount(&sandbox.root().join("disk"), kind)?;
    sandbox.repo = disk.at.join("repo");
    fs::create_dir(&sandbox.repo).unwrap();
    sandbox.git("init -q -b main");
    sandbox.ok("init");
    Some((disk, sandbox))
}

/// Bytes without holes or repetition.
pub fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let seed = format!("{seed}");
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
