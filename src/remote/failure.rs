//! Causes of a failed request to a remote, each in one sentence with a hint: one table for all backends.
//!
//! `opendal` tells kinds apart only roughly, and its messages are written for programmers. The cause is read
//! from the underlying error (of the disk, or of the connection), or from the code in a bucket's answer.

use std::{error::Error as StdError, io};

use opendal::ErrorKind;

use crate::error::{Error, Kind};

const CREDENTIALS: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile of the cloud's \
                           own files with `remote.NAME.profile`, or log in with the cloud's own tools";
const NETWORK: &str = "check the network and `remote.NAME.endpoint`, then run the same command again: it \
                       continues with what has arrived";
const RETRY: &str = "run the same command again: it continues with what has arrived";
const PLACE: &str = "check `remote.NAME.url`, `endpoint` and `region` with `mlx config list`";
const PERMISSION: &str = "ask the bucket's owner to let you list, read and write it";

/// Hint for a folder that this user may not change.
pub const FOLDER_PERMISSION: &str = "ask the owner of the folder for permission to read and write it";

/// A cause: the kind of error, a sentence, and a hint in which `NAME` stands for the remote's.
struct Cause(Kind, String, &'static str);

/// Codes in the answers of buckets.
const CODES: [(&[&str], Kind, &str, &str); 8] = [
    (&["NoSuchBucket"], Kind::NotFound, "the bucket does not exist there", PLACE),
    (&["InvalidBucketName"], Kind::Usage, "the name of the bucket is not valid there", PLACE),
    (
        &["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "MissingSecurityHeader"],
        Kind::Denied,
        "the credentials are not accepted",
        CREDENTIALS,
    ),
    (
        &["ExpiredToken", "TokenRefreshRequired", "ExpiredTokenException"],
        Kind::Denied,
        "the credentials have expired",
        CREDENTIALS,
    ),
    (
        &["AccessDenied", "AllAccessDisabled", "AccountProblem", "UnauthorizedAccess"],
        Kind::Denied,
        "the credentials do not allow it",
        PERMISSION,
    ),
    (
        &["PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed"],
        Kind::Usage,
        "the bucket is in another region",
        PLACE,
    ),
    (
        &["RequestTimeTooSkewed", "RequestExpired"],
        Kind::Denied,
        "the clock of this machine is wrong",
        "set the clock, then run the same command again",
    ),
    (
        &["SlowDown", "TooManyRequests", "ServiceUnavailable", "InternalError", "RequestTimeout"],
        Kind::Unavailable,
        "the service is overloaded or not available",
        RETRY,
    ),
];

/// Describes a failed request: the error's message is one sentence that starts with `subject`, such as
/// "cannot read the remote `origin`".
pub fn explain(subject: &str, remote: &str, error: &opendal::Error) -> Error {
    let Cause(kind, sentence, hint) = cause_of(error);
    Error::new(kind, format!("{subject}: {sentence}")).hint(hint.replace("NAME", remote))
}

fn cause_of(error: &opendal::Error) -> Cause {
    let chain = sources(error);
    let last = chain.last().map(|it| first_line(&it.to_string())).unwrap_or_default();
    if chain.iter().any(|it| it.is::<reqwest::Error>()) {
        return Cause(Kind::Unavailable, format!("no connection: {last}"), NETWORK);
    }
    if let Some(disk) = chain.iter().find_map(|it| it.downcast_ref::<io::Error>()) {
        return disk_cause(disk);
    }
    if let Some(cause) = code_of(error.message()).and_then(code_cause) {
        return cause;
    }
    // Signing fails before anything is sent; the signer's own error type is not ours to name.
    if chain.iter().any(|it| it.to_string().contains("credential")) {
        return Cause(Kind::Denied, "no valid credentials were found".to_owned(), CREDENTIALS);
    }
    if error.message().contains("timeout reached") {
        return Cause(Kind::Unavailable, "it does not answer".to_owned(), NETWORK);
    }
    match error.kind() {
        ErrorKind::PermissionDenied => {
            Cause(Kind::Denied, "the credentials do not allow it".to_owned(), PERMISSION)
        }
        ErrorKind::RateLimited => {
            Cause(Kind::Unavailable, "the service is overloaded or not available".to_owned(), RETRY)
        }
        ErrorKind::NotFound => Cause(
            Kind::NotFound,
            "a file of the remote does not exist".to_owned(),
            "push again from a machine that has the objects",
        ),
        ErrorKind::ConfigInvalid => {
            Cause(Kind::Usage, format!("its options are not valid ({})", first_line(error.message())), PLACE)
        }
        _ => status_cause(error).unwrap_or_else(|| {
            let words = [first_line(error.message()), last].into_iter().find(|text| !text.is_empty());
            let words = words.unwrap_or_else(|| error.kind().to_string());
            Cause(Kind::Unavailable, format!("the request failed ({words})"), RETRY)
        }),
    }
}

/// Returns the errors that led to this one, the first cause last.
fn sources(error: &opendal::Error) -> Vec<&(dyn StdError + 'static)> {
    let mut found = Vec::new();
    let mut next = StdError::source(error);
    while let Some(source) = next {
        found.push(source);
        next = source.source();
    }
    found
}

fn disk_cause(error: &io::Error) -> Cause {
    use io::ErrorKind as Io;

    let cause = |kind, sentence: &str, hint| Cause(kind, sentence.to_owned(), hint);
    match error.kind() {
        Io::PermissionDenied => cause(Kind::Denied, "permission denied", FOLDER_PERMISSION),
        Io::ReadOnlyFilesystem => {
            cause(Kind::Denied, "its file system is read-only", "mount it for writing, or use another remote")
        }
        Io::StorageFull | Io::QuotaExceeded => cause(
            Kind::Unavailable,
            "its disk is full",
            "free some space there and run the same command again: it continues with what has arrived",
        ),
        Io::NotFound => cause(
            Kind::NotFound,
            "a file or folder of the remote does not exist",
            "check that its disk is mounted, or push again from a machine that has the objects",
        ),
        _ => Cause(
            Kind::Unavailable,
            first_line(&error.to_string()),
            "check the disk of the remote, then run the same command again",
        ),
    }
}

fn code_cause(code: &str) -> Option<Cause> {
    let (_, kind, sentence, hint) = CODES.iter().find(|row| row.0.contains(&code))?;
    Some(Cause(*kind, (*sentence).to_owned(), hint))
}

/// Returns the code of a bucket's answer, which `opendal` prints as a field of a struct.
fn code_of(message: &str) -> Option<&str> {
    let rest = message.split_once("code: \"")?.1;
    rest.split_once('"').map(|it| it.0)
}

/// Reads the status of an answer without a code.
fn status_cause(error: &opendal::Error) -> Option<Cause> {
    let text = error.to_string();
    let digits = text.split_once("status: ")?.1;
    match digits.get(..3)?.parse().ok()? {
        301 | 302 | 307 | 308 => code_cause("PermanentRedirect"),
        401 => code_cause("InvalidToken"),
        500..=599 => code_cause("ServiceUnavailable"),
        status @ 100..=999_u16 => {
            Some(Cause(Kind::Unavailable, format!("the answer has the status {status}"), PLACE))
        }
        _ => None,
    }
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let line = line.split_once(" (os error").map_or(line, |it| it.0);
    line.chars().take(160).collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(error: &opendal::Error) -> (Kind, String, String) {
        let error = explain("cannot read the remote `o` at s3://b", "o", error);
        let text = error.to_string();
        let sentence = text.strip_prefix("cannot read the remote `o` at s3://b: ").unwrap();
        (error.kind(), sentence.to_owned(), error.hint_text().unwrap().to_owned())
    }

    #[test]
    fn each_code_of_a_bucket_has_a_sentence_and_a_hint() {
        for (codes, kind, sentence, _) in CODES {
            for code in codes {
                let answer = format!("S3Error {{ code: \"{code}\", message: \"Words.\", resource: \"/b\" }}");
                let error = opendal::Error::new(ErrorKind::Unexpected, answer)
                    .with_context("service_operation", "PutObject");
                let (found, text, hint) = explained(&error);
                assert_eq!((found, text.as_str()), (kind, sentence), "{code}");
                assert!(!hint.is_empty() && !hint.contains("NAME"), "{code}: {hint}");
            }
        }
    }

    #[test]
    fn each_failure_of_a_disk_has_a_sentence_without_credentials() {
        use rustix::io::Errno;

        for (errno, kind, sentence) in [
            (Errno::ACCESS, Kind::Denied, "permission denied"),
            (Errno::PERM, Kind::Denied, "permission denied"),
            (Errno::ROFS, Kind::Denied, "its file system is read-only"),
            (Errno::NOSPC, Kind::Unavailable, "its disk is full"),
            (Errno::DQUOT, Kind::Unavailable, "its disk is full"),
            (Errno::NOENT, Kind::NotFound, "a file or folder of the remote does not exist"),
            (Errno::IO, Kind::Unavailable, "input/output error"),
            (Errno::STALE, Kind::Unavailable, "stale file handle"),
        ] {
            let error = opendal::Error::new(ErrorKind::Unexpected, "words")
                .with_context("service", "fs")
                .set_source(io::Error::from(errno));
            let (found, text, hint) = explained(&error);
            assert_eq!((found, text.as_str()), (kind, sentence), "{errno}");
            assert!(!hint.contains("redential"), "{errno}: {hint}");
        }
    }

    #[test]
    fn answers_without_a_code_are_told_apart_by_kind_and_status() {
        let plain = |kind, message: &str| opendal::Error::new(kind, message);
        let status = |number: &str| {
            let parts = format!("Parts {{ status: {number}, version: HTTP/1.1, headers: {{}} }}");
            plain(ErrorKind::Unexpected, "").with_context("response", parts)
        };
        let signing = plain(ErrorKind::Unexpected, "signing http request")
            .set_source(Error::usage("failed to load signing credential"));
        for (error, kind, sentence) in [
            (signing, Kind::Denied, "no valid credentials were found"),
            (plain(ErrorKind::PermissionDenied, ""), Kind::Denied, "the credentials do not allow it"),
            (
                plain(ErrorKind::RateLimited, ""),
                Kind::Unavailable,
                "the service is overloaded or not available",
            ),
            (plain(ErrorKind::NotFound, ""), Kind::NotFound, "a file of the remote does not exist"),
            (plain(ErrorKind::ConfigInvalid, "no\nsuch"), Kind::Usage, "its options are not valid (no)"),
            (
                plain(ErrorKind::Unexpected, "io operation timeout reached"),
                Kind::Unavailable,
                "it does not answer",
            ),
            (status("301"), Kind::Usage, "the bucket is in another region"),
            (status("401"), Kind::Denied, "the credentials are not accepted"),
            (status("503"), Kind::Unavailable, "the service is overloaded or not available"),
            (status("418"), Kind::Unavailable, "the answer has the status 418"),
            (plain(ErrorKind::Unexpected, "odd"), Kind::Unavailable, "the request failed (odd)"),
        ] {
            assert_eq!((explained(&error).0, explained(&error).1.as_str()), (kind, sentence), "{error}");
        }
    }
}
