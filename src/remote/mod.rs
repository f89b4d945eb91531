//! Remotes: a folder or a bucket that keeps objects for other machines; push and fetch.
//!
//! `opendal` speaks to every kind of backend, retries, and limits time and concurrency. This module decides
//! what is transferred and in what order: packs before their indexes, and each object before those that name
//! it. Only immutable names are cached of a remote, and objects are never listed one by one.
//!
//! ```text
//! mlx-remote.toml      marks the folder as a remote; the format number says which mlx may write
//! v1/packs/HEX         packs, as `store` writes them; HEX is the digest of the bytes
//! v1/indexes/HEX       the index of each, written after its pack
//! v1/damaged/HEX       a note: a reader found damage in the pack; removed once it is repaired
//! v1/replaced/HEX      packs that later ones replace, one per line; readers skip their indexes
//! v1/roots/HEX         the digests that one push asked to keep, one per line
//! ```

mod address;
mod backend;
mod catalog;
mod check;
mod clock;
mod contents;
mod failure;
mod fetch;
mod large;
mod leftovers;
mod lists;
mod merge;
mod needs;
mod plan;
mod push;
mod read;
mod repair;
mod uploader;

pub use self::{
    address::check_setting,
    check::{RemoteCheck, Sample, check},
    fetch::{Depth, Fetched, fetch},
    leftovers::{Leftover, LeftoverKind, Leftovers, leftovers},
    push::{push, push_all},
    uploader::Pushed,
};

use std::future::Future;

use opendal::{Buffer, ErrorKind, Operator};

use crate::{
    digest::Digest,
    error::{Error, Result, WithContext},
    fs::{self, Root},
    path::RepoPath,
    pointer::Content,
    repo::{RemoteConfig, Repo},
};

const MARKER: &str = "mlx-remote.toml";
const MARKER_TEXT: &str = "# Objects of mlx, named by their digests. Remove nothing by hand.\nformat = 1\n";
const FORMAT: u64 = 1;
/// Folder of the packs.
const PACKS: &str = "v1/packs/";
/// Largest number of concurrent requests.
const PARALLEL: usize = 8;

/// The subject of a transfer: contents of pointers and outputs, and keys of cached runs.
#[derive(Clone, Debug, Default)]
pub struct Wants {
    pub contents: Vec<(RepoPath, Content)>,
    pub runs: Vec<Digest>,
}

/// An open remote: a backend that keeps packs and their indexes.
pub struct Remote {
    pub name: String,
    /// The address, without secrets.
    pub location: String,
    operator: Operator,
    uploads: Operator,
    runtime: tokio::runtime::Runtime,
    /// The folder of a file remote, whose files mlx syncs to disk itself.
    folder: Option<Root>,
    /// The folder, inside the repository's shared data, that caches immutable files of this remote.
    cache: RepoPath,
}

/// Purpose of opening a remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

impl Remote {
    /// Opens a configured remote and checks its marker; for writing, creates a missing one.
    pub fn open(config: &RemoteConfig, access: Access) -> Result<Self> {
        let backend =
            backend::open(config, access).context(|| format!("cannot open the remote `{}`", config.name))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let cache = format!("remotes/{}", Digest::of(backend.location.as_bytes()).hex());
        let remote = Self {
            name: config.name.clone(),
            location: backend.location,
            operator: backend.operator,
            uploads: backend.uploads,
            runtime: runtime.context(|| "cannot start the async runtime".into())?,
            folder: backend.folder,
            cache: RepoPath::from_text(&cache)?,
        };
        remote.check_marker(access)?;
        Ok(remote)
    }

    fn check_marker(&self, access: Access) -> Result<()> {
        let Some(bytes) = self.read_if_there(MARKER)? else {
            if access == Access::Write {
                return self.write(MARKER, MARKER_TEXT.as_bytes().to_vec());
            }
            let error = Error::not_found(format!("no mlx remote found at {}", self.location));
            return Err(
                error.hint(format!("push to it first, or check the URL of the remote `{}`", self.name))
            );
        };
        let table: toml::Table = String::from_utf8_lossy(&bytes).parse().unwrap_or_default();
        match table
            .get("format")
            .and_then(toml::Value::as_integer)
            .and_then(|format| u64::try_from(format).ok())
        {
            Some(FORMAT) => Ok(()),
            Some(_) => {
                let error = Error::corrupt(format!("{} was written by a newer mlx", self.location));
                Err(error.hint("upgrade mlx"))
            }
            None => Err(Error::corrupt(format!("`{MARKER}` at {} is damaged", self.location))),
        }
    }

    fn wait<T>(&self, what: &str, task: impl Future<Output = opendal::Result<T>>) -> Result<T> {
        self.runtime.block_on(task).map_err(|error| self.to_error(what, &error))
    }

    fn to_error(&self, what: &str, error: &opendal::Error) -> Error {
        let subject = format!("cannot {what} the remote `{}` at {}", self.name, self.location);
        failure::explain(&subject, &self.name, error)
    }

    fn read_if_there(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let read = async {
            match self.operator.read(path).await {
                Ok(bytes) => Ok(Some(bytes.to_vec())),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.wait("read", read)
    }

    fn exists(&self, path: &str) -> Result<bool> {
        self.wait("read", self.operator.exists(path))
    }

    /// Writes a file completely and, in a folder, syncs it to disk.
    fn write(&self, path: &str, bytes: impl Into<Buffer>) -> Result<()> {
        self.wait("write to", self.upload(path.to_owned(), bytes.into()))?;
        self.sync(path)
    }

    /// Writes a file. A write that only seemed to succeed is an error: the size of a pack is compared before
    /// its index is written, and of every file in a folder, as any disk may be full.
    fn upload(&self, path: String, bytes: Buffer) -> impl Future<Output = opendal::Result<()>> + use<> {
        let (operator, length) = (self.uploads.clone(), bytes.len() as u64);
        let is_compared = self.folder.is_some() || path.starts_with(PACKS);
        async move {
            fs::fault_point("remote-write").map_err(to_opendal)?;
            operator.write(&path, bytes).await?;
            if !is_compared {
                return Ok(());
            }
            let stored = operator.stat(&path).await?.content_length();
            if stored == length {
                return Ok(());
            }
            let message = format!("{path} has {stored} bytes there, not {length}");
            Err(opendal::Error::new(ErrorKind::Unexpected, message))
        }
    }

    /// Deletes a file; a missing one is fine.
    fn delete(&self, path: &str) -> Result<()> {
        let delete = async {
            fs::fault_point("remote-delete").map_err(to_opendal)?;
            match self.operator.delete(path).await {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                done => done,
            }
        };
        self.wait("delete from", delete)
    }

    fn sync(&self, path: &str) -> Result<()> {
        match &self.folder {
            Some(folder) => folder.sync_file(&RepoPath::from_text(path)?),
            None => Ok(()),
        }
    }
}

/// Returns a limit, which tests lower in debug builds.
fn limit(value: u64, variable: &str) -> u64 {
    let lowered = || std::env::var(variable).ok()?.parse().ok();
    if cfg!(debug_assertions) { lowered().unwrap_or(value) } else { value }
}

fn to_opendal(error: std::io::Error) -> opendal::Error {
    opendal::Error::new(ErrorKind::Unexpected, "a disk operation failed").set_source(error)
}

/// Returns the folder that caches immutable files of this remote.
fn cache_folder<'r>(repo: &'r Repo, remote: &Remote) -> (&'r Root, RepoPath) {
    (&repo.shared, remote.cache.clone())
}
