//! A world of its own for one test: a folder, a home, a Git configuration, a clock.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

pub struct Sandbox {
    temp: tempfile::TempDir,
    /// The repository that commands run in.
    pub repo: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Sandbox {
    /// A fresh Git repository that mlx is set up in.
    pub fn new() -> Self {
        let sandbox = Self::bare();
        sandbox.git("init -q -b main");
        sandbox.ok("init");
        sandbox
    }

    /// A fresh folder.
    pub fn bare() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(temp.path()).unwrap();
        let repo = root.join("repo");
        fs::create_dir_all(&repo).unwrap();
        fs::create_dir_all(root.join("home")).unwrap();
        fs::write(
            root.join("home/.gitconfig"),
            "[user]\nname = Ada\nemail = ada@park.example\n[init]\ndefaultBranch = main\n",
        )
        .unwrap();
        Self { temp, repo }
    }

    pub fn root(&self) -> PathBuf {
        fs::canonicalize(self.temp.path()).unwrap()
    }

    /// The same world, with commands running in another folder of it.
    pub fn at(&self, folder: &Path) -> Elsewhere<'_> {
        Elsewhere { sandbox: self, folder: folder.to_owned() }
    }

    pub fn command(&self, program: &str, folder: &Path) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.current_dir(folder).env_clear().stdin(Stdio::null());
        command.env("PATH", path).env("HOME", self.root().join("home")).env("LANG", "C.UTF-8");
        command.env("MLX_TIMESTAMP", "1700000000").env("ORT_DYLIB_PATH", "none");
        command.env("GIT_AUTHOR_DATE", "1700000000 +0000").env("GIT_COMMITTER_DATE", "1700000000 +0000");
        command
    }

    pub fn mlx(&self, args: &str) -> Ran {
        self.at(&self.repo).mlx(args)
    }

    /// Runs mlx and expects success.
    pub fn ok(&self, args: &str) -> String {
        self.at(&self.repo).ok(args)
    }

    /// Runs mlx and expects this exit code; what it said on standard error.
    pub fn fails(&self, args: &str, code: i32) -> String {
        self.at(&self.repo).fails(args, code)
    }

    pub fn json(&self, args: &str) -> Value {
        self.at(&self.repo).json(args)
    }

    pub fn git(&self, args: &str) -> String {
        self.at(&self.repo).git(args)
    }

    pub fn commit(&self, message: &str) {
        self.git("add -A");
        self.git(&format!("commit -q -m {message}"));
    }

    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.repo.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        String::from_utf8(fs::read(self.repo.join(path)).unwrap()).unwrap()
    }

    pub fn has(&self, path: &str) -> bool {
        self.repo.join(path).symlink_metadata().is_ok()
    }
}

/// Another folder of a sandbox.
pub struct Elsewhere<'s> {
    sandbox: &'s Sandbox,
    pub folder: PathBuf,
}

impl Elsewhere<'_> {
    pub fn mlx(&self, args: &str) -> Ran {
        let mut command = self.sandbox.command(env!("CARGO_BIN_EXE_mlx"), &self.folder);
        ended(command.args(words(args)).output().unwrap())
    }

    pub fn ok(&self, args: &str) -> String {
        let ran = self.mlx(args);
        assert_eq!(ran.code, 0, "mlx {args}\n{}\n{}", ran.out, ran.err);
        ran.out
    }

    pub fn fails(&self, args: &str, code: i32) -> String {
        let ran = self.mlx(args);
        assert_eq!(ran.code, code, "mlx {args}\n{}\n{}", ran.out, ran.err);
        ran.err
    }

    pub fn json(&self, args: &str) -> Value {
        let ran = self.mlx(&format!("{args} --json"));
        serde_json::from_str(&ran.out)
            .unwrap_or_else(|it| panic!("mlx {args}: {it}\n{}\n{}", ran.out, ran.err))
    }

    pub fn git(&self, args: &str) -> String {
        let output = self.sandbox.command("git", &self.folder).args(words(args)).output().unwrap();
        let ran = ended(output);
        assert_eq!(ran.code, 0, "git {args}\n{}\n{}", ran.out, ran.err);
        ran.out
    }
}

/// Splits at spaces; what stands in single quotes stays together.
fn words(args: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, part) in args.split('\'').enumerate() {
        if at % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

pub fn ended(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Everything in a folder: path → kind, exec bit, bytes or target.
pub fn snapshot(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.unwrap();
        let name = entry.path().strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        if name.starts_with(b".git/") || name == b".git" {
            continue;
        }
        let meta = entry.path().symlink_metadata().unwrap();
        let what = if meta.is_symlink() {
            format!("link {}", fs::read_link(entry.path()).unwrap().display())
        } else if meta.is_dir() {
            "folder".to_owned()
        } else {
            let exec = meta.permissions().mode() & 0o100 != 0;
            format!("file {exec} {:?}", blake3::hash(&fs::read(entry.path()).unwrap()))
        };
        found.insert(name, what);
    }
    found
}

/// Inode and modification time: what does not change when a file is left alone.
pub fn identity(path: &Path) -> (u64, i64, i64) {
    let meta = path.symlink_metadata().unwrap();
    (meta.ino(), meta.mtime(), meta.mtime_nsec())
}

/// A test that cannot run for want of a program: under CI that is a failure.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test} was skipped under CI: {why}");
    say_skipped(test, why);
}

/// Says on one line that a test did not run, and counts it. Written past the harness, which hides what
/// passing tests print.
pub fn say_skipped(test: &str, why: &str) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
    std::io::stderr().write_all(format!("skipped ({count} so far): {test}: {why}\n").as_bytes()).unwrap();
}
