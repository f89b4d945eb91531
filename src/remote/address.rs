//! Address and options of a remote, checked where they are typed and again where they are used: settings that
//! others wrote decide where requests and credentials go.

use std::path::{Path, PathBuf};

use crate::{
    error::{Error, Kind, Result, closest},
    repo::{OPTIONS, check_value},
};

/// Place that a remote's URL names.
#[derive(Debug, PartialEq, Eq)]
pub enum Address {
    Folder(PathBuf),
    /// Bucket and the prefix of all its keys, which may be empty.
    Bucket(String, String),
}

impl Address {
    pub fn parse(url: &str) -> Result<Self> {
        check_value("remote.NAME.url", url)?;
        let invalid =
            |message: String| Error::usage(message).hint("use file:///folder or s3://bucket/prefix");
        match url.split_once("://") {
            Some(("file", path)) => folder(path),
            None if url.starts_with('/') => folder(url),
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(invalid(format!("`{url}` names no bucket")));
                }
                check_host_part("bucket", bucket)?;
                if prefix.split('/').any(|name| matches!(name, "." | "..")) {
                    let error = Error::usage(format!("`{url}` has a `.` or `..` in its prefix"));
                    return Err(error.hint("a bucket has keys, not folders: write the prefix without them"));
                }
                Ok(Self::Bucket(bucket.to_owned(), prefix.to_owned()))
            }
            _ => Err(invalid(format!("`{url}` is not a valid remote URL"))),
        }
    }
}

fn folder(path: &str) -> Result<Address> {
    if Path::new(path).is_absolute() {
        return Ok(Address::Folder(PathBuf::from(path)));
    }
    Err(Error::usage(format!("`{path}` is not an absolute path")).hint("write three slashes: file:///folder"))
}

/// Refuses an unknown setting of a remote, and a value that no backend takes.
pub fn check_setting(name: &str, value: &str) -> Result<()> {
    match name {
        "url" => Address::parse(value).map(drop),
        "region" => check_host_part("region", value),
        "allow_anonymous" | "skip_signature" | "enable_virtual_host_style"
            if !matches!(value, "true" | "false") =>
        {
            Err(Error::usage(format!("`{name}` is `{value}`")).hint("use true or false"))
        }
        "checksum_algorithm" if !matches!(value, "crc32c" | "md5") => {
            Err(Error::usage(format!("`{name}` is `{value}`")).hint("use crc32c or md5"))
        }
        "endpoint" if value.is_empty() || value.contains(|c: char| c.is_whitespace() || c.is_control()) => {
            Err(Error::usage(format!("`{value}` is not an endpoint")).hint("for example https://s3.example"))
        }
        _ if OPTIONS.contains(&name) => Ok(()),
        _ => {
            let error = Error::usage(format!("`{name}` is not a remote option"));
            Err(error.hint(match closest(name, OPTIONS) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known options: {}", OPTIONS.join(", ")),
            }))
        }
    }
}

/// Checks a name that becomes part of the host name that credentials are sent to.
fn check_host_part(kind: &str, name: &str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if name.bytes().all(is_plain) && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric()) {
        return Ok(());
    }
    let error = Error::new(Kind::Denied, format!("`{}` cannot be the name of a {kind}", name.escape_debug()));
    Err(error.hint("it may only contain letters, digits, `-` and `.`, and starts with a letter or a digit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_buckets_are_told_apart() {
        let bucket = |name: &str, prefix: &str| Address::Bucket(name.into(), prefix.into());
        for (url, address) in [
            ("file:///srv/a", Address::Folder("/srv/a".into())),
            ("/srv/a", Address::Folder("/srv/a".into())),
            ("s3://b", bucket("b", "")),
            ("s3://b/", bucket("b", "")),
            ("s3://b.c-1/x/y z/..a/...", bucket("b.c-1", "x/y z/..a/...")),
        ] {
            assert_eq!(Address::parse(url).unwrap(), address, "{url}");
        }
    }

    #[test]
    fn an_address_that_would_be_read_as_another_is_refused() {
        for url in ["s3://b/a/../c", "s3://b/..", "s3://b/./c", "s3://b/a/.", "s3://b/../../c"] {
            let error = Address::parse(url).unwrap_err();
            assert_eq!(error.to_string(), format!("`{url}` has a `.` or `..` in its prefix"));
        }
        for url in ["s3://", "s3:///x", "file://srv/a", "file://", "gs://b/x", "srv/a", "", "s3:b"] {
            assert_eq!(Address::parse(url).unwrap_err().kind(), Kind::Usage, "{url}");
        }
        for url in ["s3://../x", "s3://a@b/x", "s3://a:1/x", "s3://-a/x", "s3://a\n/x", "s3://a%2e/x"] {
            assert_eq!(Address::parse(url).unwrap_err().kind(), Kind::Denied, "{url}");
        }
    }

    #[test]
    fn options_that_no_backend_takes_are_refused() {
        for (name, value) in [
            ("skip_signature", "maybe"),
            ("allow_anonymous", "on"),
            ("enable_virtual_host_style", ""),
            ("checksum_algorithm", "sha1"),
            ("endpoint", ""),
            ("endpoint", "http://a b"),
            ("region", "evil.example/"),
            ("endpont", "x"),
            ("url", "s3://b/../c"),
        ] {
            assert!(check_setting(name, value).is_err(), "{name}={value}");
        }
        for (name, value) in [
            ("skip_signature", "true"),
            ("checksum_algorithm", "md5"),
            ("endpoint", "http://127.0.0.1:9"),
            ("region", "eu-south-2"),
            ("secret_access_key", "any thing"),
            ("url", "s3://b/c"),
        ] {
            check_setting(name, value).unwrap();
        }
    }
}
