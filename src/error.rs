//! The error type of the whole crate: kind, message, hint and source.
//!
//! The kind tells the caller what it can do and is the exit code. The message says what happened, the hint
//! what the user can try, and the chain of sources why. Nothing in this crate matches on message text.

use std::{error, fmt, io};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error of any operation, for the user to read and for callers to handle by [`Kind`].
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn error::Error + Send + Sync>>,
}

/// Class of an error, by what the caller can do about it. Each kind is an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bug, or an unexpected failure of the machine. Exit 1.
    Internal = 1,
    /// An invalid request by the user. Exit 2.
    Usage = 2,
    /// A named file, object, revision or the like does not exist. Exit 3.
    NotFound = 3,
    /// Continuing would overwrite something, or another `mlx` process is running. Exit 4.
    Conflict = 4,
    /// Bytes do not match their digest, or a file cannot be parsed. Exit 5.
    Corrupt = 5,
    /// The operation is not permitted, or not safe. Exit 6.
    Denied = 6,
    /// A temporary failure of the network, a remote or a full disk: try again later. Exit 7.
    Unavailable = 7,
    /// A pipeline stage's own command failed. Exit 8.
    Stage = 8,
}

impl Kind {
    /// Returns the name of this kind in `--json` output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Corrupt => "corrupt",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::Stage => "stage",
        }
    }
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), hint: None, source: None }))
    }

    /// Creates an error for an invalid request by the user.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Creates an error for something named that does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Creates an error for bytes that do not match their digest or format.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }

    /// Sets the hint: the next thing the user can try.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Sets the underlying error as the source.
    pub fn with_source(mut self, source: impl error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Returns this error's own hint, or else the hint of its source.
    pub fn hint_text(&self) -> Option<&str> {
        let source_hint = || self.0.source.as_deref()?.downcast_ref::<Self>()?.hint_text();
        self.0.hint.as_deref().or_else(source_hint)
    }

    /// Returns the message and those of all sources on one line, joined with `: `.
    pub fn chain_text(&self) -> String {
        let mut text = self.0.message.clone();
        let mut next = error::Error::source(self);
        while let Some(source) = next {
            let reason = source.to_string();
            if !text.ends_with(&reason) {
                text = format!("{text}: {reason}");
            }
            next = source.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.0.source.as_deref().map(|it| it as _)
    }
}

/// Returns the known word that is most like a mistyped one, for a hint; `None` if none is.
pub fn closest<'w>(typed: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    /// Lowest similarity, from 0 to 1, at which a word is suggested.
    const MIN_SIMILARITY: f64 = 0.8;

    let rated = known.into_iter().map(|word| (strsim::jaro_winkler(typed, word), word));
    let best = rated.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|it| it.0 >= MIN_SIMILARITY);
    best.map(|it| it.1)
}

/// Adds a message that names the failed operation to an error from a lower layer.
pub trait WithContext<T> {
    /// Wraps an error under the message that `message` returns, such as "cannot open `a`". The kind is kept;
    /// an I/O error gets the kind and the hint that fit its code.
    fn context(self, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T> WithContext<T> for Result<T> {
    fn context(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::new(source.kind(), message()).with_source(source))
    }
}

impl<T> WithContext<T> for io::Result<T> {
    fn context(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| {
            let (kind, hint) = (kind_of(&source), resource_hint(&source));
            let error = Error::new(kind, message()).with_source(source);
            match hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        })
    }
}

fn kind_of(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Kind::Denied,
        _ if resource_hint(error).is_some() => Kind::Unavailable,
        _ => Kind::Internal,
    }
}

/// Returns the hint for an error that means that the machine ran out of a resource.
fn resource_hint(error: &io::Error) -> Option<&'static str> {
    use rustix::io::Errno;

    if [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) {
        return Some("raise the limit on open files (`ulimit -n`) and run the same command again");
    }
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("the disk is full: free some space and run the same command again")
        }
        io::ErrorKind::FileTooLarge => {
            Some("the file is too large: check `ulimit -f` and the file system's limit on file size")
        }
        io::ErrorKind::OutOfMemory => Some("out of memory: close other programs, or check `ulimit -v`"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_keeps_the_kind_and_the_chain_reads_as_one_line() {
        let low = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = Err::<(), _>(low).context(|| "cannot open `a`".into());
        let error = error.context(|| "cannot add `a`".into()).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert_eq!(error.chain_text(), "cannot add `a`: cannot open `a`: permission denied");
    }

    #[test]
    fn each_exhausted_resource_has_a_hint() {
        use rustix::io::Errno;

        let kind_and_hint = |errno: Errno| {
            let error =
                Err::<(), _>(io::Error::from(errno)).context(|| "cannot write `a`".into()).unwrap_err();
            (error.kind(), error.hint_text().map(str::to_owned))
        };
        for (errno, part) in [
            (Errno::NOSPC, "the disk is full"),
            (Errno::DQUOT, "the disk is full"),
            (Errno::FBIG, "`ulimit -f`"),
            (Errno::MFILE, "`ulimit -n`"),
            (Errno::NFILE, "`ulimit -n`"),
            (Errno::NOMEM, "`ulimit -v`"),
        ] {
            let (kind, hint) = kind_and_hint(errno);
            assert!(kind == Kind::Unavailable && hint.is_some_and(|it| it.contains(part)), "{errno}");
        }
        assert_eq!(kind_and_hint(Errno::IO), (Kind::Internal, None));
        assert_eq!(kind_and_hint(Errno::ROFS), (Kind::Denied, None));
    }

    #[test]
    fn only_a_similar_word_is_suggested() {
        let known = ["status", "show", "remote", "cache.link"];
        let near = |typed| closest(typed, known);
        assert_eq!(
            [near("sttus"), near("remot"), near("cache.lnk")],
            [Some("status"), Some("remote"), Some("cache.link")]
        );
        assert_eq!([near("xyz"), near("")], [None, None]);
    }

    #[test]
    fn the_hint_of_a_source_is_kept() {
        let error = Err::<(), _>(Error::usage("no").hint("try yes")).context(|| "above".into()).unwrap_err();
        assert_eq!(error.hint_text(), Some("try yes"));
    }
}
