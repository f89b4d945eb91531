//! Test fixture `Disk`: mounts a small file system of a given kind and unmounts it when dropped.
//!
//! XFS and Btrfs come from compressed images in `fixtures/disks/`, so that the tools that make them need not
//! be installed.

use std::{
    fs,
    io::{BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use crate::sandbox::Sandbox;

/// Mounted file system.
pub struct Disk {
    /// Mount point.
    pub path: PathBuf,
}

/// Size of the blocks that images are written in, in bytes.
const BLOCK: usize = 1 << 16;

impl Disk {
    /// Mounts an empty `tmpfs:SIZE`, `ext4:SIZE`, `ext2:SIZE`, `xfs` (150 MB) or `btrfs` (110 MB). Returns
    /// none if this user cannot mount.
    pub fn mount(path: &Path, kind: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let image = path.with_extension("img");
        let (name, size) = kind.split_once(':').unwrap_or((kind, ""));
        let mut mount = Command::new("mount");
        match name {
            "tmpfs" => mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]),
            "ext4" | "ext2" => {
                let mut make = Command::new(format!("mkfs.{name}"));
                // Inodes of 128 bytes store times in whole seconds only.
                let inode = if name == "ext2" { "128" } else { "256" };
                make.args(["-q", "-F", "-I", inode, "-O", "^has_journal"]).arg(&image).arg(size);
                if !make.output().ok()?.status.success() {
                    return None;
                }
                mount.args(["-t", name, "-o", "loop"]).arg(&image)
            }
            _ => {
                decompress_image(name, &image);
                // Every test mounts the same image, and XFS refuses a second disk with the same UUID.
                let options = if name == "xfs" { "loop,nouuid" } else { "loop" };
                mount.args(["-t", name, "-o", options]).arg(&image)
            }
        };
        Self::run_mount(mount, path)
    }

    /// Mounts an overlay of `upper` over `lower` at `path`; the work folder is beside `upper`.
    pub fn overlay(path: &Path, lower: &Path, upper: &Path) -> Option<Self> {
        let work = upper.with_extension("work");
        [path, upper, &work].iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
        let layers = [lower, upper, &work].map(|folder| folder.display().to_string());
        let options = format!("lowerdir={},upperdir={},workdir={}", layers[0], layers[1], layers[2]);
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "-o", &options, "overlay"]);
        Self::run_mount(mount, path)
    }

    fn run_mount(mut mount: Command, path: &Path) -> Option<Self> {
        let output = mount.arg(path).output().ok()?;
        output.status.success().then(|| Self { path: path.to_owned() })
    }

    /// Remounts the disk as `ro` or `rw`.
    pub fn remount(&self, access: &str) {
        let options = format!("remount,{access}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.path).status().unwrap().success());
    }

    /// Writes all data to the disk and returns its free bytes.
    pub fn free(&self) -> u64 {
        rustix::fs::syncfs(fs::File::open(&self.path).unwrap()).unwrap();
        let stat = rustix::fs::statvfs(&self.path).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Fills the disk with one file, except for `spare` bytes, and returns the path of that file.
    pub fn fill(&self, spare: u64) -> PathBuf {
        let ballast = self.path.join("ballast");
        let mut file = fs::File::create(&ballast).unwrap();
        let mut left = self.free().saturating_sub(spare);
        while left > 0 {
            let piece = vec![b'x'; usize::try_from(left.min(BLOCK as u64)).unwrap()];
            // The last blocks may be used for the file's own metadata.
            let Ok(written) = file.write(&piece) else { break };
            left -= written as u64;
        }
        ballast
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let umount = |options: &[&str]| Command::new("umount").args(options).arg(&self.path).output();
        if !umount(&[]).is_ok_and(|output| output.status.success()) {
            let _detached = umount(&["-l"]);
        }
    }
}

/// Writes the decompressed image of a disk, as a sparse file.
fn decompress_image(name: &str, image: &Path) {
    let compressed = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/disks/{name}.zst"));
    let mut disk = BufReader::new(zstd::Decoder::new(fs::File::open(compressed).unwrap()).unwrap());
    let mut file = fs::File::create(image).unwrap();
    let mut block = Vec::with_capacity(BLOCK);
    let mut size = 0;
    while disk.by_ref().take(BLOCK as u64).read_to_end(&mut block).unwrap() > 0 {
        if block.len() == BLOCK && block.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(BLOCK as i64)).unwrap();
        } else {
            file.write_all(&block).unwrap();
        }
        size += block.len() as u64;
        block.clear();
    }
    file.set_len(size).unwrap();
}

/// Mounts a disk of this kind and creates a sandbox whose repository is on it. Returns none if this user
/// cannot mount.
pub fn sandbox_on(kind: &str) -> Option<(Disk, Sandbox)> {
    let mut sandbox = Sandbox::empty();
    let disk = Disk::mount(&sandbox.root().join("disk"), kind)?;
    sandbox.repo = disk.path.join("repo");
    fs::create_dir(&sandbox.repo).unwrap();
    sandbox.git("init -q -b main");
    sandbox.ok("init");
    Some((disk, sandbox))
}

/// Returns pseudorandom bytes, which neither compress nor contain holes.
pub fn random_bytes(size: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let seed = format!("{seed}");
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
