//! Tests of format compatibility: files of a newer mlx are left alone, files of an older mlx stay readable,
//! leftovers of a killed process of another version do no harm, and the same content gives the same bytes on
//! every machine.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use crate::sandbox::{Sandbox, command_result, snapshot};

const STAGE: &str = "[stage.count]\ncmd = 'cat data/b data/sub/c > all.txt'\n\
    deps = ['data']\nparams = ['params.toml:rate']\nouts = ['all.txt']\n";

/// Writes data, a parameter file and a pipeline of one stage: the same content in every test.
fn fill(sandbox: &Sandbox) {
    sandbox.write("data/b", "bee\n");
    sandbox.write("data/sub/c", "see\n");
    sandbox.write("data/caf\u{e9} \u{1b}[1m", "odd\n");
    sandbox.write("params.toml", "rate = 0.1\n");
    sandbox.write("mlx.toml", STAGE);
}

/// Returns the state of `data` that `status` reports.
fn state(sandbox: &Sandbox) -> String {
    sandbox.json("status")["data"][0]["state"].as_str().unwrap().to_owned()
}

/// Returns path and digest of every file of the repository that a refused command must not change.
fn all_files(sandbox: &Sandbox) -> Vec<String> {
    let files = walkdir::WalkDir::new(&sandbox.repo).sort_by_file_name().into_iter().map(Result::unwrap);
    let files = files.filter(|file| file.file_type().is_file());
    // Lock holders write their name into lock files, and any command may update the index.
    let changing = ["lock", "gate", "gc.lock", "index"];
    let is_changing = |name: &str| changing.contains(&name) || name.rsplit('.').next() == Some("turn");
    let files = files.filter(|file| !is_changing(file.file_name().to_str().unwrap_or_default()));
    // What a remote has is noted by commands that go on with the rest.
    let files = files.filter(|file| !file.path().starts_with(sandbox.repo.join(".git/mlx/remotes")));
    files
        .map(|file| format!("{} {}", file.path().display(), blake3::hash(&fs::read(file.path()).unwrap())))
        .collect()
}

/// Returns the files of a folder with this extension.
fn files_with_extension(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

/// Returns a pack index with a higher format version and a valid checksum, as a newer mlx would write it.
fn newer_index(bytes: &[u8]) -> Vec<u8> {
    let mut body = bytes[..bytes.len() - 32].to_vec();
    assert_eq!(body[..8], *b"mlxindx\x01");
    body[7] = 2;
    let check = *blake3::hash(&body).as_bytes();
    [&body[..], &check].concat()
}

/// Expected message, the change that makes a repository newer, and commands that must refuse it.
type NewerCase = (&'static str, fn(&Sandbox), &'static [&'static str]);

const NEWER_CASES: [NewerCase; 4] = [
    (
        "`data.mlx` was written by a newer mlx",
        |sandbox| sandbox.write("data.mlx", "digest = \"b4:xyz\"\nformat = 2\nshards = [1, 2]\n"),
        &[
            "checkout",
            "add data",
            "add data/b",
            "commit",
            "remove data",
            "move data other",
            "gc --grace 0s --yes",
        ],
    ),
    (
        "`mlx.lock` was written by a newer mlx",
        |sandbox| {
            sandbox.write(
                "mlx.lock",
                format!(
                    "{}\n[stage.x]\nnew = 1\n",
                    sandbox.read("mlx.lock").replace("format = 1", "format = 3")
                ),
            );
        },
        // `commit` records the edited data all the same.
        &["status", "checkout", "repro", "gc --grace 0s --yes", "pull"],
    ),
    (
        "was written by a newer mlx",
        |sandbox| {
            for index in files_with_extension(&sandbox.repo.join(".git/mlx/packs"), "idx") {
                fs::set_permissions(&index, fs::Permissions::from_mode(0o644)).unwrap();
                fs::write(&index, newer_index(&fs::read(&index).unwrap())).unwrap();
            }
        },
        &["status", "checkout --force", "add data", "fsck --repair", "gc --grace 0s --yes", "du"],
    ),
    (
        "was written by a newer mlx",
        |sandbox| {
            let marker = sandbox.root().join("remote/mlx-remote.toml");
            let text = fs::read_to_string(&marker).unwrap();
            fs::write(&marker, text.replace("format = 1", "format = 2")).unwrap();
        },
        &["push", "pull", "fetch"],
    ),
];

#[test]
fn files_of_a_newer_mlx_ask_for_an_upgrade_and_stay_unchanged() {
    for (at, (message, make_newer, commands)) in NEWER_CASES.into_iter().enumerate() {
        let sandbox = Sandbox::new();
        fill(&sandbox);
        sandbox.ok("add data");
        sandbox.ok("repro");
        sandbox
            .ok(&format!("remote add origin file://{} --default", sandbox.root().join("remote").display()));
        sandbox.ok("push");
        sandbox.write("data/b", "edited, and stored nowhere\n");
        make_newer(&sandbox);
        let before = (all_files(&sandbox), snapshot(&sandbox.root().join("remote")));
        for args in commands {
            let error = sandbox.fails(args, 5);
            assert!(error.contains(message) && error.contains("hint: upgrade mlx"), "{at}: {args}: {error}");
            let after = (all_files(&sandbox), snapshot(&sandbox.root().join("remote")));
            assert_eq!(after, before, "{at}: {args}");
        }
    }
}

#[test]
fn gc_and_checkout_refuse_a_tree_of_a_newer_mlx() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "named by the tree alone");
    sandbox.ok("add data");
    let bytes = b"mlxtree\x02 whatever comes".to_vec();
    let digest = mlx::digest::Digest::of(&bytes);
    let (name, packed, index) = mlx::store::pack(&[(mlx::store::Kind::Tree, digest, &bytes)]).unwrap();
    sandbox.write(&format!(".git/mlx/packs/{}.pack", name.hex()), packed);
    sandbox.write(&format!(".git/mlx/packs/{}.idx", name.hex()), index);
    sandbox.write(
        "data.mlx",
        format!("digest = \"{digest}\"\nfiles = 1\nformat = 1\nkind = \"tree\"\nsize = 23\n"),
    );
    fs::remove_file(sandbox.repo.join("data/a")).unwrap();
    let before = all_files(&sandbox);
    for args in ["checkout", "checkout --force", "gc --grace 0s --yes", "fsck --repair"] {
        let error = sandbox.fails(args, 5);
        assert!(error.contains("newer mlx") && error.contains("hint: upgrade mlx"), "{args}: {error}");
        assert_eq!(all_files(&sandbox), before, "{args}");
    }
}

/// The index is a cache, and is rebuilt if it cannot be read. Settings are written by people, and unknown
/// ones are kept.
#[test]
fn an_index_of_a_newer_mlx_is_rebuilt_and_its_settings_are_kept() {
    let sandbox = Sandbox::new();
    fill(&sandbox);
    sandbox.ok("add data");
    let index = sandbox.repo.join(".git/mlx/index");
    for bytes in [&b"mlxwork\x09 of the future"[..], b"", b"\0\0\0\0"] {
        fs::write(&index, bytes).unwrap();
        assert_eq!(state(&sandbox), "same");
        sandbox.write("data/b", "edited");
        assert_eq!(state(&sandbox), "changed");
        sandbox.write("data/b", "bee\n");
    }
    let text = "# ours\n[core]\nshards = 7\n[future]\nthing = { deep = [1] }\n";
    sandbox.write(".mlx/config.toml", text);
    sandbox.ok("config set cache.link copy");
    assert!(sandbox.read(".mlx/config.toml").contains("[future]\nthing = { deep = [1] }\n"));
    assert_eq!(state(&sandbox), "same");
}

/// Copies a folder with everything in it.
fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).map(drop).unwrap();
        }
    }
}

/// With `MLX_FIXTURES=write`, this test creates `fixtures/formats/repository-1` from the files of [`fill`]:
/// pointer, lockfile, store, index and remote.
#[test]
fn a_repository_in_the_first_format_stays_readable() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/formats/repository-1");
    if std::env::var_os("MLX_FIXTURES").is_some_and(|value| value == "write") && !golden.exists() {
        write_golden(&golden);
    }
    for from in ["store", "remote"] {
        let sandbox = Sandbox::new();
        copy_folder(&golden.join("workspace"), &sandbox.repo);
        if from == "store" {
            copy_folder(&golden.join("store"), &sandbox.repo.join(".git/mlx"));
            fs::copy(golden.join("index"), sandbox.repo.join(".git/mlx/index")).unwrap();
            assert_eq!(sandbox.json("status")["data"][0]["state"], "absent");
            let read = fs::read(sandbox.repo.join(".git/mlx/index")).unwrap();
            assert_eq!(read, fs::read(golden.join("index")).unwrap(), "a readable index is not rebuilt");
            sandbox.ok("checkout");
        } else {
            copy_folder(&golden.join("remote"), &sandbox.root().join("remote"));
            sandbox.ok(&format!(
                "remote add origin file://{} --default",
                sandbox.root().join("remote").display()
            ));
            sandbox.ok("pull");
        }
        assert_eq!(
            (sandbox.read("data/sub/c"), sandbox.read("all.txt")),
            ("see\n".into(), "bee\nsee\n".into()),
            "{from}"
        );
        assert_eq!(sandbox.json("status")["clean"], true, "{from}");
        assert_eq!(sandbox.json("fsck")["faults"], json!([]), "{from}");
        fs::remove_file(sandbox.repo.join("mlx.lock")).unwrap();
        assert_eq!(
            sandbox.json("repro")["stages"][0]["outcome"],
            "restored",
            "{from}: the run record is readable"
        );
        sandbox.ok("add data");
        for file in ["data.mlx", "mlx.lock"] {
            assert_eq!(
                sandbox.read(file).into_bytes(),
                fs::read(golden.join("workspace").join(file)).unwrap(),
                "{from}: {file}"
            );
        }
    }
}

/// Writes the fixture of the first format.
fn write_golden(golden: &Path) {
    let sandbox = Sandbox::new();
    fill(&sandbox);
    sandbox.ok("add data");
    sandbox.ok("repro");
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.ok("push");
    let workspace = golden.join("workspace");
    for file in ["data.mlx", "mlx.lock", "mlx.toml", "params.toml"] {
        fs::create_dir_all(&workspace).unwrap();
        fs::copy(sandbox.repo.join(file), workspace.join(file)).unwrap();
    }
    for folder in ["packs", "runs"] {
        copy_folder(&sandbox.repo.join(".git/mlx").join(folder), &golden.join("store").join(folder));
    }
    // Without data in the workspace, the new index holds the pointer alone.
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    fs::remove_file(sandbox.repo.join("all.txt")).unwrap();
    fs::remove_file(sandbox.repo.join(".git/mlx/index")).unwrap();
    sandbox.ok("status");
    fs::copy(sandbox.repo.join(".git/mlx/index"), golden.join("index")).unwrap();
    copy_folder(&remote, &golden.join("remote"));
}

/// Leftovers of a killed process of another version, some of a kind that this version knows.
#[test]
fn leftovers_of_another_version_do_no_harm() {
    let sandbox = Sandbox::new();
    fill(&sandbox);
    sandbox.ok("add data");
    sandbox.ok("repro");
    sandbox.commit("one");
    let store = sandbox.repo.join(".git/mlx");
    let pack = fs::read(&files_with_extension(&store.join("packs"), "pack")[0]).unwrap();
    let hex = "1".repeat(64);
    let leftovers: [(&str, &[u8]); 12] = [
        ("packs/.mlx-tmp-4194999-0-abc", b"half a pack"),
        ("packs/.mlx-tmp-4194999-zstd-v2-abc", b"half a pack of another kind"),
        (&format!("packs/{hex}.pack"), &pack[..pack.len() / 2]),
        (&format!("packs/{hex}.idx2"), b"an index of another kind"),
        (&format!("packs/{}.idx.new", "2".repeat(64)), b"x"),
        (&format!("incoming/{hex}"), b"the start of a large file"),
        ("leases/4194999-0-1f", b"clone -\nversion 2\nb3:00\n"),
        ("leases/odd", b"\xff\xfe"),
        (&format!("runs/{}", "3".repeat(64)), b"{\"format\": 2}"),
        ("journal/1.log", b"begin move"),
        ("running/abc-count", b"format 2\n"),
        ("failed/count-1/all.txt", b"half"),
    ];
    for (path, bytes) in leftovers {
        let path = store.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    sandbox.write("data/new", "new");
    fs::write(sandbox.repo.join("data/.mlx-tmp-4194999-0-abc"), "half a file").unwrap();
    for args in ["status", "add data", "repro", "push --dry-run", "gc --yes", "gc --grace 0s --yes", "du"] {
        let ran = sandbox.mlx(args);
        assert!(ran.code == 0 || args.starts_with("push"), "{args}: {} {}", ran.code, ran.err);
    }
    for path in ["data", "all.txt"] {
        let path = sandbox.repo.join(path);
        fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)).unwrap();
    }
    sandbox.ok("checkout");
    assert_eq!((sandbox.read("data/new"), sandbox.read("all.txt")), ("new".into(), "bee\nsee\n".into()));
    assert!(
        !sandbox.has("data/.mlx-tmp-4194999-0-abc") && !store.join("packs/.mlx-tmp-4194999-0-abc").exists()
    );
    for kept in ["packs/.mlx-tmp-4194999-zstd-v2-abc", "journal/1.log", "failed/count-1/all.txt"] {
        assert!(store.join(kept).exists(), "{kept} is of another version and must stay");
    }
    assert!(store.join(format!("packs/{hex}.idx2")).exists());
}

/// Returns the content of tracked files and the digests of stored ones, by path: all that must not depend on
/// the machine.
fn written_files(sandbox: &Sandbox) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for file in ["data.mlx", "mlx.lock", ".gitignore", ".mlx/config.toml"] {
        found.insert(file.to_owned(), sandbox.read(file));
    }
    for folder in ["packs", "objects", "runs"] {
        let folder = sandbox.repo.join(".git/mlx").join(folder);
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let bytes = blake3::hash(&fs::read(&path).unwrap()).to_string();
            found.insert(path.strip_prefix(&sandbox.repo).unwrap().display().to_string(), bytes);
        }
    }
    found
}

/// Name of an environment, and the change of a command that sets it up.
type Environment = (&'static str, fn(&mut Command) -> &mut Command);

const ENVIRONMENTS: [Environment; 5] = [
    ("unchanged", |command| command),
    ("a decimal comma, another zone", |command| {
        command.env("LANG", "de_DE.UTF-8").env("LC_ALL", "de_DE.UTF-8").env("TZ", "Pacific/Kiritimati")
    }),
    ("no home, one thread", |command| {
        command.env_remove("HOME").env_remove("LANG").env("RAYON_NUM_THREADS", "1")
    }),
    ("another shell, many threads", |command| {
        command
            .env("SHELL", "/bin/false")
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C")
            .env("RAYON_NUM_THREADS", "13")
    }),
    ("another user", |command| {
        if rustix::process::geteuid().is_root() { command.uid(65534).gid(65534) } else { command }
    }),
];

#[test]
fn the_same_content_gives_the_same_bytes_in_every_environment() {
    let mut expected = None;
    for (what, set_up) in ENVIRONMENTS {
        let sandbox = Sandbox::new();
        fill(&sandbox);
        for at in 0..60 {
            sandbox.write(&format!("data/many/{at}"), format!("number {at}"));
        }
        sandbox.write("data/large", vec![7_u8; 1_200_000]);
        let mut program = PathBuf::from(env!("CARGO_BIN_EXE_mlx"));
        if what == "another user" && rustix::process::geteuid().is_root() {
            // The program may be in a folder that other users cannot read.
            program = sandbox.root().join("mlx");
            let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_mlx")).arg(&program).status();
            assert!(copied.unwrap().success());
            let owned = Command::new("chown").args(["-R", "65534:65534"]).arg(sandbox.root()).status();
            assert!(owned.unwrap().success());
        }
        for args in [&["add", "data"][..], &["repro"]] {
            let mut command = sandbox.command(program.to_str().unwrap(), &sandbox.repo);
            command.args(args);
            set_up(&mut command);
            let ran = command_result(command.output().unwrap());
            assert_eq!(ran.code, 0, "{what}: {}", ran.err);
        }
        let found = written_files(&sandbox);
        assert!(found.len() > 8, "{found:?}");
        assert_eq!(expected.get_or_insert_with(|| found.clone()), &found, "{what}");
    }
}

#[test]
fn new_files_and_folders_obey_the_umask() {
    for (umask, file, folder) in [("000", 0o666, 0o777), ("022", 0o644, 0o755), ("077", 0o600, 0o700)] {
        let sandbox = Sandbox::new();
        sandbox.write("data/sub/tool", "x");
        fs::set_permissions(sandbox.repo.join("data/sub/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        sandbox.write("data/a", "a");
        sandbox.ok("add data");
        let pointer = sandbox.read("data.mlx");
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
        fs::remove_file(sandbox.repo.join("data.mlx")).unwrap();
        sandbox.write("data.mlx", &pointer);
        let mut shell = sandbox.command("sh", &sandbox.repo);
        let script = format!(
            "umask {umask}; {mlx} checkout && rm data.mlx && {mlx} add data",
            mlx = env!("CARGO_BIN_EXE_mlx")
        );
        let ran = command_result(shell.args(["-c", &script]).output().unwrap());
        assert_eq!(ran.code, 0, "{umask}: {}", ran.err);
        let mode = |path: &str| sandbox.repo.join(path).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("data/a"), mode("data/sub"), mode("data.mlx")), (file, folder, file), "{umask}");
        assert_eq!(mode("data/sub/tool"), file | (file & 0o444) >> 2, "{umask}");
        assert_eq!(sandbox.read("data.mlx"), pointer, "{umask}");
    }
}

/// Documents are read into memory, so that a file beyond the size limit is refused before it is read.
#[test]
fn a_document_of_a_gigabyte_is_refused_and_named() {
    let sandbox = Sandbox::new();
    fill(&sandbox);
    sandbox.ok("add data");
    sandbox.ok("repro");
    for (file, args) in [
        ("mlx.toml", "status"),
        ("mlx.lock", "status"),
        ("params.toml", "repro --dry-run"),
        (".mlx/config.toml", "checkout"),
        (".mlx/local.toml", "status"),
        ("data/.mlxignore", "add data"),
        (".gitignore", "add other"),
    ] {
        sandbox.write("other", "x");
        let path = sandbox.repo.join(file);
        let kept = fs::read(&path).ok();
        fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        let error = sandbox.fails(args, 5);
        let name = file.rsplit(".mlx/").next().unwrap();
        assert!(error.contains(&format!("`{name}` is larger than ")), "{file}: {error}");
        fs::remove_file(&path).unwrap();
        if let Some(bytes) = kept {
            fs::write(&path, bytes).unwrap();
        }
    }
    // A pointer file of that size is not valid, but it does not count as absent either.
    let pointer = sandbox.read("data.mlx");
    fs::OpenOptions::new().write(true).open(sandbox.repo.join("data.mlx")).unwrap().set_len(1 << 30).unwrap();
    assert_eq!(sandbox.json("gc")["done"], false);
    assert!(sandbox.fails("checkout data", 5).contains("`data.mlx` is not a pointer"));
    sandbox.write("data.mlx", pointer);
    assert_eq!(state(&sandbox), "same");
}

#[test]
fn a_pointer_with_reordered_lines_or_crlf_is_read() {
    let sandbox = Sandbox::new();
    fill(&sandbox);
    sandbox.ok("add data");
    let pointer = sandbox.read("data.mlx");
    let crlf = pointer.replace('\n', "\r\n");
    let reversed: String = pointer.lines().rev().map(|line| format!("{line}\n\n")).collect();
    for text in [crlf.clone(), format!("\u{feff}{crlf}"), format!("# ours\n{reversed}")] {
        sandbox.write("data.mlx", &text);
        assert_eq!(state(&sandbox), "same", "{text:?}");
    }
    for (text, part) in [
        (format!("{pointer}files = 3\n"), "duplicate key"),
        (pointer.replace("files = 3", "files = -1"), "invalid value"),
        (pointer.replace("files = 3", "files = 1e400"), ""),
        (pointer.replace("files = 3", "files = nan"), ""),
        (pointer.replace("tree", "trees"), "unknown variant"),
        (pointer.replace("\"b3:", "\"b3:../"), ""),
        (format!("{pointer}path = '../x'\n"), "unknown field `path`"),
        (format!("{pointer}x = {}\n", "[".repeat(2000)), ""),
    ] {
        sandbox.write("data.mlx", &text);
        let error = sandbox.fails("checkout", 5);
        assert!(error.contains("`data.mlx` is not a pointer: ") && error.contains(part), "{text}: {error}");
    }
    // Sums of the largest sizes that a pointer can claim do not overflow.
    sandbox.write(
        "data.mlx",
        pointer
            .replace("size = 12", "size = 18446744073709551615")
            .replace("files = 3", "files = 9223372036854775808"),
    );
    for args in ["status", "du", "gc", "diff", "checkout --force"] {
        let ran = sandbox.mlx(args);
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
    }
    assert_eq!(sandbox.mlx("fsck").code, 10);
}
