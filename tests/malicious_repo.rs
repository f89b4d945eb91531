//! Tests every command that reads or writes files on a malicious repository: its paths, links and names
//! cannot lead out of the workspace, and each refusal names the culprit.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::symlink, net::UnixListener},
    path::Path,
    process::Command,
};

use crate::sandbox::{Sandbox, skip, snapshot};
use mlx::{
    digest::Digest,
    fs::Root,
    store::{Kind, Store, pack},
};

/// Creates a repository with a tracked file, and a folder beside it whose file must stay as it is.
pub fn setup() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("data.bin", "payload");
    sandbox.ok("add data.bin");
    fs::create_dir(sandbox.root().join("outside")).unwrap();
    fs::write(sandbox.root().join("outside/precious"), "precious").unwrap();
    sandbox
}

/// Returns all files of the folder outside and of Git's hooks, with their kinds and digests.
pub fn outside_files(sandbox: &Sandbox) -> Vec<String> {
    let folders = [sandbox.root().join("outside"), sandbox.repo.join(".git/hooks")];
    let files = folders.iter().flat_map(|folder| snapshot(folder).into_iter());
    files.map(|(name, kind)| format!("{} {kind}", String::from_utf8_lossy(&name))).collect()
}

const DIGEST: &str = "b3:0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn invalid_paths_in_lockfile_and_pipeline_are_refused() {
    let sandbox = setup();
    let before = snapshot(&sandbox.root().join("outside"));
    for (at, path) in [
        "",
        ".",
        "..",
        "../x",
        "a/../../x",
        "/abs",
        "a//b",
        "x/",
        "./x",
        "%00",
        "a%00b",
        "%2e%2e/x",
        "%2Fetc",
        ".git/x",
        "a/.GIT/x",
        ".git\\\\hooks\\\\x",
        ".mlx/x",
        "%zz",
    ]
    .into_iter()
    .enumerate()
    {
        let field = ["out", "dep", "git"][at % 3];
        let content = format!("{{ digest = \"{DIGEST}\", files = 1, kind = \"file\", size = 1 }}");
        let head = format!("format = 1\n\n[stage.a]\ncmd = \"x\"\nkey = \"{DIGEST}\"\n");
        sandbox.write("mlx.toml", "[stage.a]\ncmd = 'x'\nouts = ['x']\n");
        sandbox.write("mlx.lock", format!("{head}{field}.\"{path}\" = {content}\n"));
        let error = sandbox.fails("checkout", 5);
        assert!(
            error.contains("`mlx.lock` is not a valid lockfile") && error.contains("line 6"),
            "{path}: {error}"
        );
    }
    fs::remove_file(sandbox.repo.join("mlx.lock")).unwrap();
    // Users may write `x/` for a folder, and `..`, but the path must stay in the repository.
    for (path, code) in [("", 2), (".", 2), ("a/..", 2), ("..", 2), ("../x", 2), ("/abs", 2), (".git/x", 6)] {
        sandbox.write("mlx.toml", format!("[stage.a]\ncmd = 'x'\nouts = ['{path}']\n"));
        let error = sandbox.fails("status", code);
        assert!(error.contains("cannot read the stage `a` in `mlx.toml`"), "{path}: {error}");
    }
    assert_eq!(snapshot(&sandbox.root().join("outside")), before);
}

/// Puts an object of any kind into the store, unchecked, as a malicious remote could.
fn forge(sandbox: &Sandbox, kind: Kind, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let (name, packed, index) = pack(&[(kind, digest, bytes)]).unwrap();
    for (ending, bytes) in [("pack", packed), ("idx", index)] {
        sandbox.write(&format!(".git/mlx/packs/{}.{ending}", name.hex()), bytes);
    }
    digest
}

/// Encodes a tree page, unchecked, from rows of kind, name and digest.
fn encode_page(rows: &[(u8, &[u8], Digest)]) -> Vec<u8> {
    let mut out = b"mlxtree\x01\0".to_vec();
    for (kind, name, digest) in rows {
        out.extend([&[*kind][..], &encode_length(name), name, &[1]].concat());
        out.extend_from_slice(if *kind == 3 { &[1] } else { &[] });
        out.extend_from_slice(digest.bytes());
    }
    out
}

/// Encodes the length of a name as a varint; two bytes are enough for any name.
fn encode_length(name: &[u8]) -> Vec<u8> {
    let low = name.len() as u8 & 0x7f;
    if name.len() < 128 { vec![low] } else { vec![low | 0x80, (name.len() >> 7) as u8] }
}

/// Stores a tree with these rows, and a pointer `evil.mlx` to it.
fn forge_tree(sandbox: &Sandbox, rows: &[(u8, &[u8], Digest)]) {
    let digest = forge(sandbox, Kind::Tree, &encode_page(rows));
    sandbox.git("update-index --add --cacheinfo 100644,e69de29bb2d1d6434b8b29ae775ad8c2e48c5391,evil.mlx");
    sandbox.write(
        "evil.mlx",
        format!("digest = \"{digest}\"\nfiles = 1\nformat = 1\nkind = \"tree\"\nsize = 1\n"),
    );
}

#[test]
fn invalid_names_and_links_in_a_tree_are_refused() {
    let sandbox = setup();
    let file = forge(&sandbox, Kind::Content, b"x");
    let link = |target: &[u8]| (2_u8, forge(&sandbox, Kind::Content, target));
    let long = [b'n'; 256];
    let before = (outside_files(&sandbox), snapshot(&sandbox.repo.join(".git/hooks")));
    let names: [&[u8]; 18] = [
        b"",
        b".",
        b"..",
        b"/abs",
        b"a/b",
        b"../x",
        b"a//b",
        b"x/",
        b"a\0b",
        b".git",
        b".GIT",
        b"git~1",
        b".git.",
        b".git ",
        ".g\u{200c}it".as_bytes(),
        b".mlx",
        b".git\\hooks",
        &long,
    ];
    for name in names {
        forge_tree(&sandbox, &[(0, name, file)]);
        let error = sandbox.fails("checkout evil", 6);
        assert!(error.contains("cannot be in a path"), "{name:?}: {error}");
        assert!(!sandbox.has("evil"), "{name:?}");
    }
    // The same name twice, as a link and as a folder, would lead a path out of its folder.
    let (kind, up) = link(b"../outside");
    let inner = forge(&sandbox, Kind::Tree, &encode_page(&[(0, b"x", file)]));
    for rows in [[(kind, &b"a"[..], up), (3, b"a", inner)], [(0, b"b", file), (0, b"a", file)]] {
        forge_tree(&sandbox, &rows);
        assert!(sandbox.fails("checkout evil", 5).contains("is not sorted"));
    }
    for target in
        [&b"../outside"[..], b"/etc/passwd", b"/proc/self/environ", b"a/../../x", b".git/../../../x"]
    {
        let (kind, digest) = link(target);
        forge_tree(&sandbox, &[(kind, b"l", digest)]);
        assert!(sandbox.fails("checkout evil", 6).contains("leads out of `evil`"), "{target:?}");
    }
    // A tree cannot contain itself, but it can name trees that are not stored.
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    forge_tree(&sandbox, &[(3, b"a", a), (3, b"b", b)]);
    sandbox.fails("checkout evil", 3);
    assert!(!sandbox.has("evil"));
    assert_eq!((outside_files(&sandbox), snapshot(&sandbox.repo.join(".git/hooks"))), before);
}

/// No file system that mlx runs on gives these names a special meaning, so they are kept as they are.
#[test]
fn names_that_only_windows_refuses_are_accepted() {
    let sandbox = Sandbox::new();
    for name in ["CON", "aux.txt", "a:b", "C:\\x", "\\\\?\\C:\\y", "NUL", "x.", "y ", "back\\slash", "git~2"]
    {
        sandbox.write(&format!("data/{name}"), name);
    }
    let before = snapshot(&sandbox.repo.join("data"));
    assert_eq!(before.len(), 10);
    sandbox.ok("add data");
    let pointer = sandbox.read("data.mlx");
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo.join("data")), before);
    sandbox.ok("add data");
    assert_eq!(sandbox.read("data.mlx"), pointer);
}

#[test]
fn add_refuses_names_that_could_stand_for_git_or_mlx_folders() {
    let sandbox = Sandbox::new();
    for name in [
        // A plain `.git` is left out.
        ".GIT",
        "git~1",
        ".git.",
        ".git ",
        ".g\u{200c}it",
        ".git::$INDEX_ALLOCATION",
        ".git\\hooks",
        "a\\.git",
        ".mlx",
        ".MLX",
        "mlx~1",
    ] {
        sandbox.write(&format!("data/{name}/config"), "x");
        let error = sandbox.fails("add data", 6);
        assert!(error.contains("could be read as Git's or mlx's own folder"), "{name}: {error}");
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    }
    assert!(!sandbox.has("data.mlx") && !sandbox.has(".gitignore"));
}

/// Uses the links `outlink -> ../outside` and `hookdir -> .git/hooks`, and pointers that only Git's index
/// has.
#[test]
fn pointers_behind_links_are_refused_by_every_command() {
    let sandbox = setup();
    symlink("../outside", sandbox.repo.join("outlink")).unwrap();
    symlink(".git/hooks", sandbox.repo.join("hookdir")).unwrap();
    let blob = sandbox.git("hash-object -w data.bin.mlx");
    for path in ["outlink/payload.bin.mlx", "outlink/precious.mlx", "hookdir/pre-commit.mlx"] {
        sandbox.git(&format!("update-index --add --cacheinfo 100644,{},{path}", blob.trim()));
    }
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.ok("push data.bin");
    let before = outside_files(&sandbox);
    for args in [
        "diff",
        "pull",
        "pull --force",
        "checkout",
        "checkout --force",
        "checkout hookdir/pre-commit",
        "checkout --force outlink",
        "add outlink/precious",
        "commit",
        "remove --data --force outlink/precious",
        "move data.bin hookdir/pre-commit",
        "move outlink/precious here",
        "unprotect hookdir",
    ] {
        let error = sandbox.fails(args, 6);
        assert!(error.contains("is a symlink, and mlx does not follow symlinks"), "{args}: {error}");
        assert_eq!(outside_files(&sandbox), before, "{args}");
    }
    assert_eq!(sandbox.json("status")["data"][1]["state"], "unknown");
    for args in ["gc --grace 0s --yes", "du"] {
        sandbox.ok(args);
    }
    let found = sandbox.mlx("fsck");
    assert_eq!((found.code, found.out.matches("cannot be read: ").count()), (10, 3), "{}", found.out);
    assert_eq!(outside_files(&sandbox), before);
}

/// Another kind of file in the place of a tracked file: name, function that creates it, exit code of
/// `checkout`, exit code with `--force`.
type Obstacle = (&'static str, fn(&Sandbox, &Path), i32, i32);

const OBSTACLES: [Obstacle; 6] = [
    ("a link", |sandbox, path| symlink(sandbox.root().join("outside/precious"), path).unwrap(), 4, 0),
    ("a dangling link", |sandbox, path| symlink(sandbox.root().join("outside/new"), path).unwrap(), 4, 0),
    (
        "a folder with files",
        |_, path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("mine"), "mine").unwrap();
        },
        4,
        0,
    ),
    ("a fifo", |_, path| Command::new("mkfifo").arg(path).status().map(drop).unwrap(), 2, 2),
    ("a socket", |_, path| drop(UnixListener::bind(path).unwrap()), 2, 2),
    (
        "a device",
        |_, path| Command::new("mknod").arg(path).args(["c", "1", "5"]).status().map(drop).unwrap(),
        2,
        2,
    ),
];

#[test]
fn an_obstacle_at_a_tracked_path_is_replaced_or_refused_not_followed() {
    let sandbox = setup();
    sandbox.write("data/a", "ours");
    sandbox.ok("add data");
    let before = outside_files(&sandbox);
    for (obstacle, create, code, forced_code) in OBSTACLES {
        for name in ["data/a", "data"] {
            let path = sandbox.repo.join(name);
            fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)).unwrap();
            create(&sandbox, &path);
            if path.symlink_metadata().is_err() {
                skip(
                    "an_obstacle_at_a_tracked_path_is_replaced_or_refused_not_followed",
                    "this user cannot make a device",
                );
                sandbox.ok("checkout");
                continue;
            }
            let error = sandbox.fails("checkout", code);
            assert!(error.contains(&format!("`{name}")), "{obstacle} at {name}: {error}");
            assert_eq!(sandbox.mlx("checkout --force").code, forced_code, "{obstacle} at {name}");
            if forced_code != 0 {
                fs::remove_file(&path).unwrap();
                sandbox.ok("checkout");
            }
            assert_eq!(outside_files(&sandbox), before, "{obstacle} at {name}");
            assert_eq!(sandbox.read("data/a"), "ours", "{obstacle} at {name}");
            assert!(path.symlink_metadata().is_ok_and(|meta| !meta.is_symlink()), "{obstacle}");
        }
    }
}

/// Replaces each file that mlx reads by a FIFO: no command waits for its other end.
#[test]
fn a_fifo_in_the_place_of_a_file_that_mlx_reads_does_not_block() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "a");
    sandbox.ok("add data");
    for (file, code) in [
        ("data.mlx", 6),
        (".gitignore", 6),
        // `add` needs no stages: one warning names the file.
        ("mlx.toml", 0),
        (".mlx/config.toml", 6),
        (".mlx/local.toml", 6),
        ("data/.mlxignore", 6),
        ("data/a", 2),
    ] {
        let path = sandbox.repo.join(file);
        let original = fs::read(&path).ok();
        let _none = fs::remove_file(&path);
        Command::new("mkfifo").arg(&path).status().unwrap();
        let mut add = sandbox.command("timeout", &sandbox.repo);
        let ran = crate::sandbox::command_result(
            add.args(["20", env!("CARGO_BIN_EXE_mlx"), "add", "data"]).output().unwrap(),
        );
        let name = file.rsplit(".mlx/").next().unwrap();
        assert!(
            ran.code == code && ran.err.contains(&format!("`{name}` is")),
            "{file}: {} {}",
            ran.code,
            ran.err
        );
        fs::remove_file(&path).unwrap();
        if let Some(bytes) = original {
            fs::write(&path, bytes).unwrap();
        }
    }
    sandbox.ok("add data");
}

/// Replaces each file with rules that `gix` opens by a FIFO: these rules do not count, and nothing waits.
#[test]
fn a_fifo_in_the_place_of_a_file_with_git_rules_does_not_block() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "a");
    sandbox.ok("add data");
    let user = sandbox.root().join("user-rules");
    sandbox.git(&format!("config core.excludesFile {}", user.display()));
    sandbox.git(&format!("config core.attributesFile {}", user.display()));
    let files = [".git/info/attributes", ".git/info/exclude", ".gitattributes"];
    for path in files.map(|file| sandbox.repo.join(file)).into_iter().chain([user]) {
        let _none = fs::remove_file(&path);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        for args in [["add", "data"], ["status", "data"], ["checkout", "data"]] {
            let mut timeout = sandbox.command("timeout", &sandbox.repo);
            let ran = timeout.args(["20", env!("CARGO_BIN_EXE_mlx")]).args(args).output().unwrap();
            assert_eq!(ran.status.code(), Some(0), "{}, {args:?}", path.display());
        }
        fs::remove_file(&path).unwrap();
    }
}

/// Replaces each file that mlx reads by a link to a secret: it is not read, and no word of it is printed.
#[test]
fn a_link_in_the_place_of_a_file_that_mlx_reads_reveals_nothing() {
    let sandbox = Sandbox::new();
    let secret = sandbox.root().join("secret.toml");
    fs::write(&secret, "hush = \"CANARY\"\n").unwrap();
    sandbox.write("data/a", "a");
    sandbox.write("params.toml", "hush = 1\n");
    let stage =
        "[stage.a]\ncmd = 'cp data/a o'\ndeps = ['data']\nparams = ['params.toml:hush']\nouts = ['o']\n";
    sandbox.write("mlx.toml", stage);
    sandbox.ok("add data");
    sandbox.ok("repro");
    for (file, args) in [
        ("mlx.toml", "status"),
        ("mlx.lock", "checkout"),
        ("params.toml", "repro"),
        ("data.mlx", "checkout"),
        ("data/.mlxignore", "add data"),
        (".gitignore", "add other"),
        (".mlx/config.toml", "status"),
        (".mlx/local.toml", "status"),
        ("o", "commit"),
    ] {
        sandbox.write("other", "x");
        let path = sandbox.repo.join(file);
        let original = fs::read(&path).ok();
        let _none = fs::remove_file(&path);
        symlink(&secret, &path).unwrap();
        let ran = sandbox.mlx(args);
        let name = file.rsplit(".mlx/").next().unwrap();
        assert!(ran.code == 6 && ran.err.contains(&format!("`{name}` is a symlink")), "{file}: {ran:?}");
        assert!(!ran.err.contains("CANARY") && !ran.out.contains("CANARY"), "{file}: {ran:?}");
        fs::remove_file(&path).unwrap();
        if let Some(bytes) = original {
            fs::write(&path, bytes).unwrap();
        }
    }
    assert_eq!(fs::read_to_string(secret).unwrap(), "hush = \"CANARY\"\n");
    // Nor is a folder recorded that could not be checked out.
    sandbox.write("mlx.toml", "[stage.a]\ncmd = 'mkdir o && ln -s /etc/passwd o/l'\nouts = ['o']\n");
    let error = sandbox.fails("repro", 6);
    assert!(error.contains("the link `o/l` leads out of `o`"), "{error}");
}

/// Mounted file system, unmounted when dropped, even if the test fails.
struct MountGuard(std::path::PathBuf);

impl Drop for MountGuard {
    fn drop(&mut self) {
        let _status = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(args: &[&str], path: &Path) -> Option<MountGuard> {
    let ran = Command::new("mount").args(args).arg(path).output();
    ran.is_ok_and(|output| output.status.success()).then(|| MountGuard(path.to_owned()))
}

#[test]
fn links_in_a_folder_are_stored_unless_they_lead_out() {
    let sandbox = setup();
    sandbox.write("data/a", "a");
    fs::create_dir_all(sandbox.repo.join("data/p/q/r")).unwrap();
    for (target, name) in
        [(".", "self"), ("../p", "p/loop"), ("two", "one"), ("one", "two"), ("../..", "p/q/up")]
    {
        symlink(target, sandbox.repo.join("data").join(name)).unwrap();
    }
    sandbox.ok("add data");
    assert!(sandbox.read("data.mlx").contains("files = 6\n"));
    let before = snapshot(&sandbox.repo.join("data"));
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo.join("data")), before);
    let pointer = sandbox.read("data.mlx");
    for target in [
        "/etc/passwd",
        "/proc/self",
        "/proc/self/fd/0",
        "/dev/zero",
        "../x",
        "../../outside/precious",
        "../data/a",
        // Its text stays inside, but the link `up` leads it out.
        "p/q/up/../../outside/precious",
    ] {
        symlink(target, sandbox.repo.join("data/bad")).unwrap();
        let error = sandbox.fails("add data", 6);
        assert!(error.contains("the link `data/bad` leads out of `data`"), "{target}: {error}");
        fs::remove_file(sandbox.repo.join("data/bad")).unwrap();
    }
    assert_eq!(sandbox.read("data.mlx"), pointer);
    let store = Store::open(Root::open(&sandbox.repo.join(".git/mlx")).unwrap()).unwrap();
    assert!(!store.contains(&Digest::of(b"precious")));
}

#[test]
fn add_takes_another_file_system_but_not_the_repository_itself() {
    let sandbox = Sandbox::new();
    sandbox.write("data/m/hidden", "below the mount");
    let mount_point = sandbox.repo.join("data/m");
    let Some(mounted) = mount(&["-t", "tmpfs", "-o", "size=1m", "none"], &mount_point) else {
        return skip("add_takes_another_file_system_but_not_the_repository_itself", "this user cannot mount");
    };
    sandbox.write("data/m/x", "on the other");
    sandbox.ok("add data");
    fs::remove_file(mount_point.join("x")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/m/x"), "on the other");
    drop(mounted);
    assert_eq!(sandbox.json("status")["clean"], false);
    let bind = mount(&["--bind", sandbox.repo.to_str().unwrap()], &mount_point);
    assert!(bind.is_some() && sandbox.fails("add data", 6).contains("cannot track `data/m`: it is"));
}

/// Names that a terminal would interpret, or show as another name.
const CONTROL_NAMES: [&[u8]; 12] = [
    b"\x1b[31mred",
    b"\x1b]0;title\x07",
    "rtl\u{202e}gpj.exe".as_bytes(),
    "iso\u{2066}x".as_bytes(),
    "c1\u{9b}31m".as_bytes(),
    "line\u{2028}sep".as_bytes(),
    b"new\nline",
    b"tab\tx",
    b"-dash",
    b"\"quoted\"",
    b"bad\xff\xfe",
    b"del\x7f",
];

/// Returns true if a text has no control characters but newline and tab, and no characters that change the
/// text direction or break lines.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| {
        let bidi = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        matches!(c, '\n' | '\t') || !c.is_control() && !bidi
    })
}

#[test]
fn control_characters_in_names_are_escaped_and_json_is_valid() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.repo.join("data")).unwrap();
    for name in CONTROL_NAMES {
        fs::write(sandbox.repo.join("data").join(OsStr::from_bytes(name)), name).unwrap();
        fs::write(sandbox.repo.join(OsStr::from_bytes(name)), "single").unwrap();
        let mut add = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        let added = crate::sandbox::command_result(
            add.args(["add", "--"]).arg(OsStr::from_bytes(name)).output().unwrap(),
        );
        assert!(added.code == 0 && is_plain(&added.out), "{added:?}");
        // Without `--`, the argument parser reports the name.
        let mut add = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        let refused = crate::sandbox::command_result(add.arg(OsStr::from_bytes(name)).output().unwrap());
        assert!(refused.code == 2 && is_plain(&refused.err), "{refused:?}");
    }
    sandbox.ok("add data");
    sandbox.git("add -A");
    sandbox.git("commit -q -m '\u{202e}message \u{9b}31m'");
    for name in CONTROL_NAMES {
        fs::write(sandbox.repo.join("data").join(OsStr::from_bytes(name)), "edited").unwrap();
    }
    for args in
        ["status", "diff", "log data", "checkout", "du", "fsck", "gc", "checkout '\u{202e}\u{1b}[31m'"]
    {
        let ran = sandbox.mlx(args);
        assert!(is_plain(&ran.out) && is_plain(&ran.err), "{args}: {ran:?}");
        let json = sandbox.mlx(&format!("{args} --json"));
        assert!(is_plain(&json.out), "{args}: {json:?}");
        serde_json::from_str::<serde_json::Value>(&json.out)
            .unwrap_or_else(|error| panic!("{args}: {error}: {json:?}"));
    }
    let status = sandbox.json("status");
    let data = status["data"].as_array().unwrap().iter().find(|data| data["path"] == "data").unwrap();
    let paths = data["changes"].as_array().unwrap().iter().map(|change| change["path"].as_str().unwrap());
    let mut names: Vec<_> =
        paths.map(|path| mlx::path::RepoPath::from_text(path).unwrap().name().to_vec()).collect();
    let mut expected = CONTROL_NAMES.map(<[u8]>::to_vec);
    names.sort();
    expected.sort();
    assert_eq!(names, expected, "every name comes back from `--json` byte for byte");
}
