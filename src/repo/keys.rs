//! Keys of settings: descriptions, defaults, the values they take, and those that a commit must not set.

use crate::{
    error::{Error, Kind, Result, closest},
    fs::LinkKind,
    repo::files::Layer,
};

/// A key with its description and its default value, if that is the same everywhere.
pub struct Key {
    pub name: &'static str,
    pub about: &'static str,
    pub default: Option<&'static str>,
}

const fn key(name: &'static str, default: Option<&'static str>, about: &'static str) -> Key {
    Key { name, about, default }
}

/// All keys; `remote.NAME.KEY` stands for any option of a remote.
pub const KEYS: [Key; 8] = [
    key("alert.command", None, "a shell command that gets each alert as JSON (user or local settings only)"),
    key(
        "alert.file",
        None,
        "a file that each alert is appended to as a line of JSON (user or local settings only)",
    ),
    key(
        "alert.webhook",
        None,
        "an address that each alert is posted to as JSON (user or local settings only)",
    ),
    key("cache.dir", None, "folder of the store, for several clones to share (user or local settings only)"),
    key(
        "cache.link",
        Some("reflink,copy"),
        "how checkout places files over 1 MiB: reflink, hardlink, symlink, copy, in order; others are copied",
    ),
    key("core.remote", None, "the default remote of push, pull and fetch"),
    key("onnx.library", None, "the ONNX Runtime library to load (user or local settings only)"),
    key("remote.NAME.KEY", None, "url and options of a remote, as `mlx remote add` writes them"),
];

/// Options of a remote; keys and secrets only in local or user settings.
pub const OPTIONS: [&str; 14] = [
    "endpoint",
    "region",
    "profile",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "role_arn",
    "external_id",
    "allow_anonymous",
    "skip_signature",
    "enable_virtual_host_style",
    "server_side_encryption",
    "default_storage_class",
    "checksum_algorithm",
];
/// Keys that a commit must not set, since the repository may be untrusted.
const NEVER_COMMITTED: [&str; 5] =
    ["alert.command", "alert.file", "alert.webhook", "cache.dir", "onnx.library"];
/// Parts of option names that mark secrets.
const SECRETS: [&str; 7] = ["access_key", "secret", "token", "password", "sas", "credential", "customer_key"];

/// Returns the default value of a key, if it has one.
pub fn default_value(name: &str) -> Option<&'static str> {
    KEYS.iter().find(|key| key.name == name)?.default
}

/// Returns true if this option of a remote is a secret: its value is never printed and never committed.
pub fn is_secret(key: &str) -> bool {
    let name = key.rsplit('.').next().unwrap_or_default();
    SECRETS.iter().any(|word| name.contains(word))
}

/// Returns true for keys of the committed settings that have no effect there.
pub fn is_never_committed(key: &str) -> bool {
    NEVER_COMMITTED.contains(&key)
}

/// Refuses unknown keys, and keys that must not be committed.
pub fn check_key(key: &str, layer: Layer) -> Result<()> {
    let remote = key.strip_prefix("remote.").and_then(|rest| rest.split_once('.'));
    let remote = remote.filter(|(name, option)| !name.is_empty() && !option.contains('.'));
    match remote {
        Some((name, option)) if option != "url" && !OPTIONS.contains(&option) => {
            let hint = match closest(option, OPTIONS.into_iter().chain(["url"])) {
                Some(near) => format!("did you mean `remote.{name}.{near}`?"),
                None => format!("known options: url, {}", OPTIONS.join(", ")),
            };
            return Err(Error::usage(format!("setting `{key}` not found")).hint(hint));
        }
        None if key.contains("NAME") || KEYS.iter().all(|known| known.name != key) => {
            let hint = match closest(key, KEYS.iter().map(|known| known.name)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    format!("known settings: {}", KEYS.each_ref().map(|known| known.name).join(", "))
                }
            };
            return Err(Error::usage(format!("setting `{key}` not found")).hint(hint));
        }
        _ => {}
    }
    let secret = remote.is_some() && is_secret(key);
    if layer == Layer::Repo && (secret || is_never_committed(key)) {
        let reason = if secret { "is a secret" } else { "is specific to one machine" };
        let error = Error::new(Kind::Denied, format!("`{key}` {reason} and must not be committed"));
        return Err(error.hint("add `--local`, or use the environment or the cloud's own profile files"));
    }
    Ok(())
}

/// Refuses values that would make every later command fail, and secrets in the URL of a remote.
pub fn check_value(key: &str, value: &str) -> Result<()> {
    match key {
        "cache.link" => value.split(',').try_for_each(|link| link.trim().parse::<LinkKind>().map(drop)),
        "cache.dir" if !value.starts_with('/') => {
            Err(Error::usage(format!("`{value}` is not an absolute path")))
        }
        _ if key.starts_with("remote.") && key.rsplit('.').next() == Some("url") && has_login(value) => {
            let error = Error::new(Kind::Denied, "a remote URL must not contain a user name or a password");
            Err(error
                .hint("put secrets into the environment, the cloud's profile files, or `--local` settings"))
        }
        _ => Ok(()),
    }
}

/// Returns true if a URL has a user name or a password before its host or bucket.
fn has_login(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |it| it.1);
    rest.split('/').next().is_some_and(|host| host.contains('@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        for (key, near) in [
            ("cache.lnk", "did you mean `cache.link`?"),
            ("core.remotes", "did you mean `core.remote`?"),
            ("remote.s3.endpont", "did you mean `remote.s3.endpoint`?"),
            ("remote.s3.ur", "did you mean `remote.s3.url`?"),
            ("remote.NAME.KEY", "known options: url, endpoint"),
            ("xyz", "known settings: alert.command"),
            ("remote.s3", "did you mean `remote.NAME.KEY`?"),
            ("remote.s3.a.b", "did you mean `remote.NAME.KEY`?"),
        ] {
            let error = check_key(key, Layer::User).unwrap_err();
            assert_eq!(error.to_string(), format!("setting `{key}` not found"));
            assert!(error.hint_text().is_some_and(|hint| hint.starts_with(near)), "{key}: {error:?}");
        }
        for key in ["cache.link", "remote.s3.url", "remote.s3.secret_access_key", "alert.file"] {
            check_key(key, Layer::Local).unwrap();
        }
    }

    #[test]
    fn every_secret_option_is_refused_in_the_committed_layer_alone() {
        let secrets: Vec<_> = OPTIONS.into_iter().filter(|name| is_secret(name)).collect();
        assert_eq!(secrets, ["access_key_id", "secret_access_key", "session_token"]);
        for name in secrets {
            let key = format!("remote.s3.{name}");
            assert_eq!(check_key(&key, Layer::Repo).unwrap_err().kind(), Kind::Denied, "{key}");
            check_key(&key, Layer::User).unwrap();
        }
    }

    #[test]
    fn a_login_in_a_url_is_refused_without_being_shown() {
        let error = check_value("remote.o.url", "s3://user:CANARY@b/x").unwrap_err();
        assert!(error.kind() == Kind::Denied && !format!("{error:?}").contains("CANARY"), "{error:?}");
        for url in ["file:///srv/a@b", "/srv/a@b", "s3://b/a@b"] {
            check_value("remote.o.url", url).unwrap();
        }
    }

    #[test]
    fn every_default_is_a_value_that_may_be_set() {
        let defaults: Vec<_> = KEYS.iter().filter_map(|key| Some((key.name, key.default?))).collect();
        assert_eq!(defaults, [("cache.link", "reflink,copy")]);
        for (key, value) in defaults {
            check_value(key, value).unwrap();
        }
    }
}
