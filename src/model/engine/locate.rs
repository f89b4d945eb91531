//! Where an ONNX Runtime lies: named by the user, or inside an installed `onnxruntime` Python package.
//!
//! It is looked for by path, no program is started, and nothing inside the repository is ever taken. A
//! library is looked into before it is loaded, since a wrong one can hang the process.

use std::path::{Path, PathBuf};

use crate::{
    error::{Error, Kind, Result},
    fs,
    repo::Repo,
};

/// The oldest version whose interface serves.
const OLDEST: (u32, u32) = (1, 17);

/// A library that can be loaded.
#[derive(Clone, Debug)]
pub struct Library {
    pub path: PathBuf,
    /// `1.32.0`
    pub version: String,
}

/// The library to load, if there is one; one that the user names must be fit.
pub fn locate(repo: Option<&Repo>) -> Result<Option<Library>> {
    let environment = std::env::var_os("ORT_DYLIB_PATH").filter(|it| !it.is_empty()).map(PathBuf::from);
    if environment.as_deref() == Some(Path::new("none")) {
        return Ok(None);
    }
    let is_inside = |it: &Path| repo.is_some_and(|repo| is_inside(it, repo.root()));
    let configured = repo.and_then(|it| it.config.get("onnx.library")).map(|it| PathBuf::from(it.0));
    if let Some(path) = environment.or(configured) {
        if is_inside(&path) {
            let error = Error::new(Kind::Denied, format!("`{}` lies in the repository", path.display()));
            return Err(error.hint("a repository's own files never choose which library is loaded"));
        }
        return probe(&path).map(Some);
    }
    let outside = folders().into_iter().filter(|it| !is_inside(it));
    Ok(outside.flat_map(|it| libraries(&it)).find_map(|it| probe(&it).ok()))
}

fn is_inside(path: &Path, root: &Path) -> bool {
    fs::canonical(path).unwrap_or_else(|| path.to_owned()).starts_with(root)
}

/// Folders of Python packages: the active environment's first.
fn folders() -> Vec<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(set).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    for folder in std::env::split_paths(&path).filter(|it| it.is_absolute()) {
        let python = folder.join("python3");
        if fs::is_file(&python) {
            prefixes.extend(folder.parent().map(Path::to_owned));
            prefixes.extend(fs::canonical(&python).and_then(|it| Some(it.parent()?.parent()?.to_owned())));
        }
    }
    if let Some(home) = set("HOME") {
        prefixes.push(home.join(".local"));
        let versions = home.join(".pyenv/versions");
        prefixes.extend(fs::names(&versions).into_iter().rev().map(|it| versions.join(it)));
    }
    prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    let mut found = Vec::new();
    for prefix in prefixes {
        let lib = prefix.join("lib");
        for python in
            fs::names(&lib).into_iter().rev().filter(|it| it.to_string_lossy().starts_with("python3"))
        {
            found.extend(["site-packages", "dist-packages"].map(|it| lib.join(&python).join(it)));
        }
    }
    found
}

fn libraries(packages: &Path) -> Vec<PathBuf> {
    let folder = packages.join("onnxruntime/capi");
    let names = fs::names(&folder).into_iter().rev();
    names
        .filter(|it| it.to_string_lossy().starts_with("libonnxruntime.so"))
        .map(|it| folder.join(it))
        .collect()
}

/// Looks into a library without loading it: is it one for this machine, and new enough?
fn probe(path: &Path) -> Result<Library> {
    let unfit = |why: &str| {
        let error =
            Error::new(Kind::Usage, format!("`{}` cannot serve as ONNX Runtime: {why}", path.display()));
        error.hint("`pip install onnxruntime` brings a fit one; ORT_DYLIB_PATH=none does without")
    };
    if !fs::is_file(path) {
        return Err(unfit("there is no such file"));
    }
    let bytes = fs::read_outside(path)?;
    let machine = if cfg!(target_arch = "aarch64") { 0xb7 } else { 0x3e };
    if bytes.len() < 64
        || !bytes.starts_with(b"\x7fELF\x02")
        || u16::from_le_bytes([bytes[18], bytes[19]]) != machine
    {
        return Err(unfit("it is no library for this machine"));
    }
    // Exported symbols carry the version they came with.
    let mark = b"VERS_1.";
    let at = bytes
        .windows(mark.len())
        .position(|it| it == mark)
        .ok_or_else(|| unfit("it does not say its version"))?;
    let digits = bytes[at + 5..].iter().map(|it| char::from(*it)).take(16);
    let version: String = digits.take_while(|it| it.is_ascii_digit() || *it == '.').collect();
    let mut numbers = version.split('.').map(|it| it.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if (major, minor) < OLDEST {
        return Err(unfit(&format!(
            "it is version {version}, and {}.{} is the oldest that serves",
            OLDEST.0, OLDEST.1
        )));
    }
    Ok(Library { path: path.to_owned(), version })
}
