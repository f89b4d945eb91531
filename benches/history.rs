//! Benchmark: what commands cost in repositories with many stages, pointers and commits, in seconds of wall
//! time and MiB of memory. Run `cargo bench --bench history`; after `-- large` it also takes 1,000 pointers
//! and 10,000 commits, which takes minutes.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set itself up should panic")]
#![expect(clippy::disallowed_methods, reason = "benchmarks are the user: they write files as users do")]
#![expect(clippy::print_stdout, reason = "the benchmark prints a table")]

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use comfy_table::{Table, presets::NOTHING};
use mlx::digest::Digest;

/// A repository in a temporary folder, which is its user's home, too.
struct Repository {
    temp: tempfile::TempDir,
    table: Table,
}

fn main() {
    let is_large = std::env::args().any(|arg| arg == "large");
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["repository", "command", "s", "MiB"]);
    let scenarios: [fn(Table) -> Table; 6] =
        [stages, diamonds, chain, |table| history(table, 200, 4000), pointers, ignored];
    for scenario in scenarios {
        table = scenario(table);
    }
    if is_large {
        table = history(table, 1000, 10_000);
    }
    println!("{table}");
}

impl Repository {
    fn new(table: Table) -> Self {
        let repository = Self { temp: tempfile::tempdir().unwrap(), table };
        let settings = "[user]\nname = Ada\nemail = ada@park.example\n[init]\ndefaultBranch = main\n";
        fs::write(repository.temp.path().join(".gitconfig"), settings).unwrap();
        fs::create_dir(repository.folder()).unwrap();
        repository.git("init -q");
        repository.mlx("init -q");
        repository
    }

    fn folder(&self) -> PathBuf {
        self.temp.path().join("repository")
    }

    fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        let path = self.folder().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn command(&self, program: &str, args: &str) -> Command {
        let mut command = Command::new(program);
        command.args(args.split_whitespace()).current_dir(self.folder()).env("HOME", self.temp.path());
        command.env("GIT_CONFIG_NOSYSTEM", "1").stdout(Stdio::null());
        command
    }

    fn git(&self, args: &str) {
        assert!(self.command("git", args).status().unwrap().success(), "git {args}");
    }

    fn mlx(&self, args: &str) {
        assert!(self.command(env!("CARGO_BIN_EXE_mlx"), args).status().unwrap().success(), "mlx {args}");
    }

    fn commit(&self) {
        self.git("add -A");
        self.git("commit -q -m bench");
    }

    /// Imports commits, each a list of files with their bytes, on top of what is checked out.
    fn import(&self, commits: impl Iterator<Item = Vec<(String, String)>>) {
        let mut stream = String::new();
        for (at, files) in commits.enumerate() {
            let time = 2_000_000_000 + at;
            write!(stream, "commit refs/heads/main\ncommitter Ada <ada@park.example> {time} +0000\n")
                .unwrap();
            write!(stream, "data 1\nx\n{}", if at == 0 { "from refs/heads/main^0\n" } else { "" }).unwrap();
            for (file, text) in files {
                write!(stream, "M 100644 inline {file}\ndata {}\n{text}\n", text.len()).unwrap();
            }
        }
        let mut import = self.command("git", "fast-import --quiet").stdin(Stdio::piped()).spawn().unwrap();
        import.stdin.take().unwrap().write_all(stream.as_bytes()).unwrap();
        assert!(import.wait().unwrap().success());
        self.git("reset -q --hard");
        self.git("gc -q");
    }

    /// Runs a command and adds its row: wall time, and the memory that it had when it was last looked at.
    fn measure(&mut self, what: &str, args: &str) {
        let start = Instant::now();
        let mut command = self.command(env!("CARGO_BIN_EXE_mlx"), args);
        let mut child = command.spawn().unwrap();
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0;
        while child.try_wait().unwrap().is_none() {
            peak = peak.max(peak_of(Path::new(&status)));
            std::thread::sleep(Duration::from_millis(1));
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!(child.wait().unwrap().success(), "mlx {args}");
        let memory = format!("{}", peak >> 10);
        self.table.add_row([what.to_owned(), format!("mlx {args}"), format!("{seconds:.2}"), memory]);
    }
}

/// Returns the peak memory of a running process, in KiB.
fn peak_of(status: &Path) -> u64 {
    let text = fs::read_to_string(status).unwrap_or_default();
    let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn pointer(text: &str) -> String {
    format!("digest = \"{}\"\nfiles = 1\nformat = 1\nkind = \"file\"\nsize = 4\n", digest(text))
}

fn stages(table: Table) -> Table {
    let mut repository = Repository::new(table);
    let stage = |at| format!("[stage.s{at}]\ncmd = 'echo {at} > o{at}'\ndeps = ['in']\nouts = ['o{at}']\n");
    repository.write("in", "x");
    repository.write("mlx.toml", (0..1000).map(stage).collect::<String>());
    repository.measure("1,000 stages, none ran yet", "repro -q");
    std::thread::sleep(Duration::from_millis(100));
    repository.measure("1,000 stages, nothing changed", "repro -q");
    repository.measure("1,000 stages, nothing changed", "repro -q --dry-run");
    repository.table
}

fn diamonds(table: Table) -> Table {
    let mut repository = Repository::new(table);
    let mut text = "[stage.s0]\ncmd = 'echo 0 > a0; echo 0 > b0'\nouts = ['a0', 'b0']\n".to_owned();
    for at in 1..12 {
        let before = at - 1;
        write!(text, "[stage.s{at}]\ncmd = 'cat a{before} b{before} > a{at}; echo {at} > b{at}'\n").unwrap();
        write!(text, "deps = ['a{before}', 'b{before}']\nouts = ['a{at}', 'b{at}']\n").unwrap();
    }
    repository.write("mlx.toml", text);
    repository.mlx("repro -q");
    repository.commit();
    repository.measure("12 stages, each takes both outputs of the one before", "lineage a11");
    repository.table
}

fn chain(table: Table) -> Table {
    let mut repository = Repository::new(table);
    let stage = |at: usize| {
        format!("[stage.s{at}]\ncmd = 'cp o{} o{at}'\ndeps = ['o{}']\nouts = ['o{at}']\n", at - 1, at - 1)
    };
    repository.write("o0", "x");
    repository.write("mlx.toml", (1..=20).map(stage).collect::<String>());
    repository.mlx("repro -q");
    repository.commit();
    let lock = fs::read_to_string(repository.folder().join("mlx.lock")).unwrap();
    let commits = (0..1000).map(|at| vec![("mlx.lock".to_owned(), format!("{lock}# {at}\n"))]);
    repository.import(commits);
    repository.measure("a chain of 20 stages, 1,000 commits", "lineage o20");
    repository.table
}

fn history(table: Table, pointers: usize, commits: usize) -> Table {
    let mut repository = Repository::new(table);
    let remote = repository.temp.path().join("remote");
    repository.mlx(&format!("remote add origin file://{} --default -q", remote.display()));
    repository.write("x", "data");
    repository.mlx("add -q x");
    repository.commit();
    repository.mlx("push -q");
    let file = |at: usize, version: usize| {
        (format!("d{}/{at:05}.mlx", at / 50), pointer(&format!("{at} {version}")))
    };
    repository.import((0..commits).map(|commit| {
        let changed = if commit == 0 { 0..pointers } else { commit % pointers..commit % pointers + 1 };
        changed.map(|at| file(at, commit)).collect()
    }));
    let what = format!("{pointers} pointers, {commits} commits that change one each");
    for args in ["du", "gc --yes", "log d0/00000", "lineage d0/00000"] {
        repository.measure(&what, args);
    }
    repository.table
}

fn pointers(table: Table) -> Table {
    let mut repository = Repository::new(table);
    (0..2000).for_each(|at| repository.write(&format!("file-{at:04}"), at.to_string()));
    repository.measure("2,000 files in one folder", "add -q --glob file-*");
    repository.commit();
    (0..2000).for_each(|at| fs::remove_file(repository.folder().join(format!("file-{at:04}"))).unwrap());
    repository.measure("2,000 pointers in one folder", "checkout -q");
    repository.table
}

fn ignored(table: Table) -> Table {
    let mut repository = Repository::new(table);
    repository.write(".mlxignore", "*.tmp\n");
    for at in 0..4000 {
        repository.write(&format!("d/{at}/f"), "x");
        repository.write(&format!("d/e{at}/a.tmp"), "x");
    }
    repository.mlx("add -q d");
    std::thread::sleep(Duration::from_millis(100));
    repository.measure("4,000 folders, and 4,000 in which all is ignored", "status -q");
    repository.table
}
