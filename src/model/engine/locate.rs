//! Finds the ONNX Runtime library: set by the user, or part of an installed `onnxruntime` Python package.
//!
//! The search is by path: no program is started, and libraries inside the repository are never used. A
//! library's machine and version are checked before it is loaded, because an unsuitable one can hang the
//! process.

use std::path::{Path, PathBuf};

use crate::{
    error::{Error, Kind, Result},
    fs,
    repo::Repo,
};

/// Oldest supported version.
const MIN_VERSION: (u32, u32) = (1, 17);

/// ONNX Runtime library that can be loaded.
#[derive(Clone, Debug)]
pub struct Library {
    pub path: PathBuf,
    /// Version, such as `1.32.0`.
    pub version: String,
}

/// Returns the library to load: the one in `ORT_DYLIB_PATH` (`none` disables ONNX Runtime) or the
/// configuration key `onnx.library`, otherwise the first usable one of the installed Python packages. A
/// library that the user sets must be usable.
pub fn locate(repo: Option<&Repo>) -> Result<Option<Library>> {
    let environment = std::env::var_os("ORT_DYLIB_PATH").filter(|it| !it.is_empty()).map(PathBuf::from);
    if environment.as_deref() == Some(Path::new("none")) {
        return Ok(None);
    }
    let is_in_repo = |path: &Path| repo.is_some_and(|repo| is_inside(path, repo.root()));
    let configured =
        repo.and_then(|repo| repo.config.get("onnx.library")).map(|value| PathBuf::from(value.0));
    if let Some(path) = environment.or(configured) {
        if is_in_repo(&path) {
            let error = Error::new(Kind::Denied, format!("`{}` is inside the repository", path.display()));
            return Err(error.hint("for safety, libraries are loaded only from outside the repository"));
        }
        return probe(&path).map(Some);
    }
    let outside = package_folders().into_iter().filter(|folder| !is_in_repo(folder));
    Ok(outside.flat_map(|folder| libraries(&folder)).find_map(|library| probe(&library).ok()))
}

fn is_inside(path: &Path, root: &Path) -> bool {
    fs::canonicalize(path).unwrap_or_else(|| path.to_owned()).starts_with(root)
}

/// Returns the folders of installed Python packages, those of the active environment first.
fn package_folders() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    for folder in std::env::split_paths(&path).filter(|it| it.is_absolute()) {
        let python = folder.join("python3");
        if fs::is_file(&python) {
            prefixes.extend(folder.parent().map(Path::to_owned));
            let target = fs::canonicalize(&python);
            prefixes.extend(target.and_then(|python| Some(python.parent()?.parent()?.to_owned())));
        }
    }
    if let Some(home) = variable("HOME") {
        prefixes.push(home.join(".local"));
        let versions = home.join(".pyenv/versions");
        prefixes.extend(fs::names(&versions).into_iter().rev().map(|name| versions.join(name)));
    }
    prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    let mut found = Vec::new();
    for prefix in prefixes {
        let lib = prefix.join("lib");
        let is_python = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("python3");
        for python in fs::names(&lib).into_iter().rev().filter(is_python) {
            found.extend(["site-packages", "dist-packages"].map(|name| lib.join(&python).join(name)));
        }
    }
    found
}

fn libraries(packages: &Path) -> Vec<PathBuf> {
    let folder = packages.join("onnxruntime/capi");
    let names = fs::names(&folder).into_iter().rev();
    names
        .filter(|name| name.to_string_lossy().starts_with("libonnxruntime.so"))
        .map(|name| folder.join(name))
        .collect()
}

/// Checks, without loading the library, that it is built for this machine and new enough.
fn probe(path: &Path) -> Result<Library> {
    let unusable = |why: &str| {
        let error =
            Error::new(Kind::Usage, format!("`{}` cannot be used as ONNX Runtime: {why}", path.display()));
        error.hint("install one with `pip install onnxruntime`, or set `ORT_DYLIB_PATH=none` to do without")
    };
    if !fs::is_file(path) {
        return Err(unusable("no such file"));
    }
    let bytes = fs::read_user_file(path)?;
    let machine = if cfg!(target_arch = "aarch64") { 0xb7 } else { 0x3e };
    if bytes.len() < 64
        || !bytes.starts_with(b"\x7fELF\x02")
        || u16::from_le_bytes([bytes[18], bytes[19]]) != machine
    {
        return Err(unusable("it is not a library for this machine"));
    }
    // Exported symbols carry the library's version.
    let marker = b"VERS_1.";
    let at = bytes
        .windows(marker.len())
        .position(|window| window == marker)
        .ok_or_else(|| unusable("its version cannot be determined"))?;
    let chars = bytes[at + 5..].iter().map(|byte| char::from(*byte)).take(16);
    let version: String = chars.take_while(|char| char.is_ascii_digit() || *char == '.').collect();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if (major, minor) < MIN_VERSION {
        return Err(unusable(&format!(
            "it is version {version}, but {}.{} or newer is required",
            MIN_VERSION.0, MIN_VERSION.1
        )));
    }
    Ok(Library { path: path.to_owned(), version })
}
