//! Test fixture `Sandbox`: an isolated environment for one test, with its own folder, home, Git configuration
//! and clock. Also holds what many tests share: running commands, folder snapshots, and skipping tests that
//! cannot run.

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

/// Isolated environment for one test, deleted when dropped.
pub struct Sandbox {
    temp: tempfile::TempDir,
    /// Repository that commands run in.
    pub repo: PathBuf,
}

/// Exit code and output of a finished command; -1 if a signal ended it.
#[derive(Debug)]
pub struct CommandResult {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Sandbox {
    /// Creates a Git repository with mlx initialized.
    pub fn new() -> Self {
        let sandbox = Self::empty();
        sandbox.git("init -q -b main");
        sandbox.ok("init");
        sandbox
    }

    /// Creates an empty folder, without Git.
    pub fn empty() -> Self {
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

    /// Copies folders below the root to a folder there.
    pub fn copy_folders(&self, from: &[&str], to: &str) {
        let root = self.root();
        fs::create_dir_all(root.join(to)).unwrap();
        let mut copy = self.command("cp", &root);
        assert!(copy.arg("-r").args(from).arg(to).status().unwrap().success());
    }

    /// Returns this sandbox with commands running in another folder.
    pub fn at(&self, folder: &Path) -> SandboxFolder<'_> {
        SandboxFolder { sandbox: self, folder: folder.to_owned() }
    }

    /// Prepares a command with the sandbox's environment and without input.
    pub fn command(&self, program: &str, folder: &Path) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.current_dir(folder).env_clear().stdin(Stdio::null());
        command.env("PATH", path).env("HOME", self.root().join("home")).env("LANG", "C.UTF-8");
        command.env("MLX_TIMESTAMP", "1700000000").env("ORT_DYLIB_PATH", "none");
        command.env("GIT_AUTHOR_DATE", "1700000000 +0000").env("GIT_COMMITTER_DATE", "1700000000 +0000");
        command
    }

    pub fn mlx(&self, args: &str) -> CommandResult {
        self.at(&self.repo).mlx(args)
    }

    /// Runs mlx, expects success, and returns its standard output.
    pub fn ok(&self, args: &str) -> String {
        self.at(&self.repo).ok(args)
    }

    /// Runs mlx, expects this exit code, and returns its standard error.
    pub fn fails(&self, args: &str, code: i32) -> String {
        self.at(&self.repo).fails(args, code)
    }

    /// Runs mlx with `--json` and returns its output, whatever the exit code.
    pub fn json(&self, args: &str) -> Value {
        self.at(&self.repo).json(args)
    }

    /// Runs Git, expects success, and returns its standard output.
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

/// Sandbox whose commands run in another folder.
pub struct SandboxFolder<'s> {
    pub sandbox: &'s Sandbox,
    pub folder: PathBuf,
}

impl SandboxFolder<'_> {
    pub fn mlx(&self, args: &str) -> CommandResult {
        let mut command = self.sandbox.command(env!("CARGO_BIN_EXE_mlx"), &self.folder);
        command_result(command.args(split_args(args)).output().unwrap())
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
            .unwrap_or_else(|error| panic!("mlx {args}: {error}\n{}\n{}", ran.out, ran.err))
    }

    pub fn git(&self, args: &str) -> String {
        let output = self.sandbox.command("git", &self.folder).args(split_args(args)).output().unwrap();
        let ran = command_result(output);
        assert_eq!(ran.code, 0, "git {args}\n{}\n{}", ran.out, ran.err);
        ran.out
    }
}

/// Splits arguments at spaces, except within single quotes.
fn split_args(args: &str) -> Vec<String> {
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

/// Creates a repository with a remote and the tracked folder `d` of five files, and returns the path of a
/// clone without data.
pub fn shared_folder() -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    for name in ["1", "2", "3", "4", "5"] {
        sandbox.write(&format!("d/{name}"), name);
    }
    sandbox.ok("add d");
    sandbox.commit("data");
    sandbox.ok("push");
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q . {}", clone.display()));
    (sandbox, clone)
}

pub fn command_result(output: Output) -> CommandResult {
    CommandResult {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Returns all entries below a folder, without `.git`: path → kind, with executable bit and content digest,
/// or target.
pub fn snapshot(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut entries = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.unwrap();
        let name = entry.path().strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        if name.starts_with(b".git/") || name == b".git" {
            continue;
        }
        let meta = entry.path().symlink_metadata().unwrap();
        let description = if meta.is_symlink() {
            format!("link {}", fs::read_link(entry.path()).unwrap().display())
        } else if meta.is_dir() {
            "folder".to_owned()
        } else {
            let exec = meta.permissions().mode() & 0o100 != 0;
            format!("file {exec} {:?}", blake3::hash(&fs::read(entry.path()).unwrap()))
        };
        entries.insert(name, description);
    }
    entries
}

/// Returns a file's inode and modification time, which stay the same unless the file is replaced or written.
pub fn identity(path: &Path) -> (u64, i64, i64) {
    let meta = path.symlink_metadata().unwrap();
    (meta.ino(), meta.mtime(), meta.mtime_nsec())
}

/// Reports a test that cannot run on this machine; under CI that is a failure.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test} was skipped under CI: {why}");
    print_skipped(test, why);
}

/// Prints one line that a test did not run, with a count. Writes to standard error directly, because the
/// harness hides what passing tests print.
fn print_skipped(test: &str, why: &str) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
    std::io::stderr().write_all(format!("skipped ({count} so far): {test}: {why}\n").as_bytes()).unwrap();
}

/// Returns each stage with its outcome, as in `upper ran, count unchanged`.
pub fn outcomes(value: &Value) -> String {
    let stages = value["stages"].as_array().unwrap_or_else(|| panic!("{value}"));
    let outcome =
        |stage: &Value| format!("{} {}", stage["name"].as_str().unwrap(), stage["outcome"].as_str().unwrap());
    stages.iter().map(outcome).collect::<Vec<_>>().join(", ")
}
