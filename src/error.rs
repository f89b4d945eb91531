//! The one error type.
//!
//! The kind says what a caller can *do* (it is the exit code), the message what happened, the hint
//! what the user can try, the chain of sources why. Nothing in this crate matches on messages.

use std::{error, fmt, io};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, for a person and for a caller.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn error::Error + Send + Sync>>,
}

/// What the caller can do about it; each kind is an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bug, or the machine misbehaved. Exit 1.
    Internal = 1,
    /// The user asked for something that makes no sense. Exit 2.
    Usage = 2,
    /// The thing named is not there. Exit 3.
    NotFound = 3,
    /// Going on would overwrite something, or another `mlx` is at work. Exit 4.
    Conflict = 4,
    /// Bytes do not match their digest, or a file cannot be understood. Exit 5.
    Corrupt = 5,
    /// Not permitted, or not safe. Exit 6.
    Denied = 6,
    /// Try again later: network, remote, full disk. Exit 7.
    Unavailable = 7,
    /// The user's own command failed. Exit 8.
    Stage = 8,
}

impl Kind {
    /// The word that stands for this kind in `--json`.
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

    /// The user asked for something that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The thing named is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Bytes are not what their name or format says.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Keeps the lower error as the reason.
    pub fn because(mut self, source: impl error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The hint nearest to the user: this error's own, else that of its source.
    pub fn hint_text(&self) -> Option<&str> {
        let below = || self.0.source.as_deref()?.downcast_ref::<Self>()?.hint_text();
        self.0.hint.as_deref().or_else(below)
    }

    /// The message with all its reasons, on one line.
    pub fn full_text(&self) -> String {
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

/// Says what we were doing when a lower error arrived. The kind travels up unchanged.
pub trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::new(source.kind(), what()).because(source))
    }
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| {
            let (kind, hint) = (kind_of(&source), limit_of(&source));
            let error = Error::new(kind, what()).because(source);
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
        _ if limit_of(error).is_some() => Kind::Unavailable,
        _ => Kind::Internal,
    }
}

/// What the user can do where the machine has no more of something.
fn limit_of(error: &io::Error) -> Option<&'static str> {
    use rustix::io::Errno;

    if [Errno::MFILE, Errno::NFILE].iter().any(|it| error.raw_os_error() == Some(it.raw_os_error())) {
        return Some(
            "raise the number of files that may be open (`ulimit -n`) and run the same command again",
        );
    }
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("the disk is full: make room and run the same command again")
        }
        io::ErrorKind::FileTooLarge => {
            Some("a file may not be so large here: look at `ulimit -f` and at what the file system can")
        }
        io::ErrorKind::OutOfMemory => Some("memory ran out: end other programs, or look at `ulimit -v`"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_travels_up_and_the_reasons_read_as_one_line() {
        let low = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = Err::<(), _>(low).doing(|| "cannot open `a`".into());
        let error = error.doing(|| "cannot add `a`".into()).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert_eq!(error.full_text(), "cannot add `a`: cannot open `a`: permission denied");
    }

    #[test]
    fn each_limit_of_the_machine_says_what_to_do() {
        use rustix::io::Errno;

        let told = |errno: Errno| {
            let error = Err::<(), _>(io::Error::from(errno)).doing(|| "cannot write `a`".into()).unwrap_err();
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
            let (kind, hint) = told(errno);
            assert!(kind == Kind::Unavailable && hint.is_some_and(|it| it.contains(part)), "{errno}");
        }
        assert_eq!(told(Errno::IO), (Kind::Internal, None));
        assert_eq!(told(Errno::ROFS), (Kind::Denied, None));
    }

    #[test]
    fn a_hint_from_below_is_kept() {
        let error = Err::<(), _>(Error::usage("no").hint("try yes")).doing(|| "above".into()).unwrap_err();
        assert_eq!(error.hint_text(), Some("try yes"));
    }
}
