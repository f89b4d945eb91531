//! Signs tags and verifies their signatures, as Git does, by running `ssh-keygen` or `gpg`.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs::{Root, Sync},
    git::Git,
    path::RepoPath,
};

const SSH: &str = "-----BEGIN SSH SIGNATURE-----";
const PGP: &str = "-----BEGIN PGP SIGNATURE-----";

/// Signing key that Git is configured to use.
#[derive(Clone, Debug)]
pub enum Signer {
    /// Path of the key.
    Ssh(PathBuf),
    /// Program and name of the key.
    Gpg(String, String),
}

/// Public key that identifies a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Type and key, such as `ssh-ed25519 AAAA…`.
    Ssh(String),
    /// Full fingerprint, in upper case.
    Gpg(String),
}

impl Key {
    /// Parses `ssh-ed25519 AAAA…` or `gpg FINGERPRINT`.
    pub fn parse(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match words[..] {
            ["gpg", fingerprint] if fingerprint.len() >= 40 && is_hex(fingerprint) => {
                Ok(Self::Gpg(fingerprint.to_ascii_uppercase()))
            }
            [kind, key, ..]
                if (kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-"))
                    && key.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                Ok(Self::Ssh(format!("{kind} {key}")))
            }
            _ => Err(Error::usage(format!("`{text}` is not a key"))
                .hint("write an SSH public key (`ssh-ed25519 AAAA…`) or `gpg FINGERPRINT`")),
        }
    }
}

impl Git {
    /// Returns the key that Git signs with, from `user.signingKey` and `gpg.format`.
    pub fn signer(&self) -> Result<Signer> {
        let config = self.repo.config_snapshot();
        let text = |key: &str| config.string(key).map(|it| it.to_string());
        let key = text("user.signingKey");
        if text("gpg.format").as_deref().unwrap_or("openpgp") == "openpgp" {
            let program = text("gpg.openpgp.program").or_else(|| text("gpg.program"));
            // Like Git, which uses the key of the committer if none is configured.
            let key = key.map_or_else(|| self.identity(), Ok)?;
            return Ok(Signer::Gpg(program.unwrap_or_else(|| "gpg".into()), key));
        }
        let key = key.ok_or_else(|| {
            Error::usage("this must be signed, but `user.signingKey` is not set in Git")
                .hint("set it, for example with `git config --global user.signingKey ~/.ssh/id_ed25519`")
        })?;
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        Ok(Signer::Ssh(key.strip_prefix("~/").map_or_else(|| PathBuf::from(&key), |rest| home.join(rest))))
    }

    /// Returns true if the tag object with these bytes is signed by one of the keys of `person`. Files for
    /// the verifying program are written to `tmp/` in `scratch`.
    pub fn is_signed_by(&self, scratch: &Root, tag: &[u8], person: &str, keys: &[Key]) -> Result<bool> {
        match (find_signature(tag, SSH), find_signature(tag, PGP)) {
            (Some(at), _) => verify_ssh(scratch, &tag[..at], &tag[at..], person, keys),
            (None, Some(at)) => verify_gpg(scratch, &tag[..at], &tag[at..], keys),
            (None, None) => Ok(false),
        }
    }
}

/// Returns the offset of the signature in a tag: of the last one, as in Git. A tag need not be UTF-8.
fn find_signature(tag: &[u8], header: &str) -> Option<usize> {
    let line = [b"\n", header.as_bytes()].concat();
    tag.windows(line.len()).rposition(|window| window == line).map(|at| at + 1)
}

impl Signer {
    /// Returns the signature to append to these bytes.
    pub(super) fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut command = match self {
            Self::Ssh(key) => {
                let mut command = Command::new("ssh-keygen");
                command.args(["-Y", "sign", "-n", "git", "-f"]).arg(key);
                command
            }
            Self::Gpg(program, key) => {
                let mut command = Command::new(program);
                command.args(["--batch", "--detach-sign", "--armor", "--local-user", key]);
                command
            }
        };
        let output = run(&mut command, bytes)?;
        if output.status.success() && !output.stdout.is_empty() {
            return Ok(output.stdout);
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::new(Kind::Denied, format!("cannot sign: {stderr}")).hint(
            "check the key's type (`git config gpg.format`: ssh or openpgp) and name \
             (`git config user.signingKey`), that the key exists, and that its agent is running",
        ))
    }
}

fn verify_ssh(scratch: &Root, payload: &[u8], signature: &[u8], person: &str, keys: &[Key]) -> Result<bool> {
    let lines: String = keys
        .iter()
        .filter_map(|key| if let Key::Ssh(text) = key { Some(format!("signer {text}\n")) } else { None })
        .collect();
    if lines.is_empty() || person.is_empty() {
        return Ok(false);
    }
    let allowed = ScratchFile::new(scratch, "allowed", lines.as_bytes())?;
    let signature = ScratchFile::new(scratch, "signature", signature)?;
    let mut command = Command::new("ssh-keygen");
    command
        .args(["-Y", "verify", "-n", "git", "-I", "signer", "-f"])
        .arg(allowed.path())
        .arg("-s")
        .arg(signature.path());
    Ok(run(&mut command, payload)?.status.success())
}

fn verify_gpg(scratch: &Root, payload: &[u8], signature: &[u8], keys: &[Key]) -> Result<bool> {
    let signature = ScratchFile::new(scratch, "signature", signature)?;
    let mut command = Command::new("gpg");
    command.args(["--batch", "--status-fd", "1", "--verify"]).arg(signature.path()).arg("-");
    let output = run(&mut command, payload)?;
    let status = String::from_utf8_lossy(&output.stdout).into_owned();
    // The line has the fingerprint of the signing key first and that of the primary key last.
    let valid = status.lines().filter_map(|line| line.strip_prefix("[GNUPG:] VALIDSIG "));
    let fingerprints: Vec<&str> =
        valid.flat_map(|row| row.split(' ').take(1).chain(row.split(' ').next_back())).collect();
    let good = status.contains("[GNUPG:] GOODSIG ");
    let is_signer = |key: &Key| matches!(key, Key::Gpg(print) if fingerprints.contains(&print.as_str()));
    Ok(output.status.success() && good && keys.iter().any(is_signer))
}

/// Temporary file for another program to read; removed when dropped.
struct ScratchFile<'s> {
    root: &'s Root,
    path: RepoPath,
}

impl<'s> ScratchFile<'s> {
    fn new(root: &'s Root, name: &str, bytes: &[u8]) -> Result<Self> {
        let path =
            RepoPath::from_text(&format!("tmp/{name}-{}-{}", std::process::id(), crate::fs::coarse_now()))?;
        root.write_mode(&path, bytes, Sync::Later, 0o600)?;
        Ok(Self { root, path })
    }

    fn path(&self) -> PathBuf {
        self.path.on_disk(Path::new(self.root.path()))
    }
}

impl Drop for ScratchFile<'_> {
    fn drop(&mut self) {
        let _removed = self.root.remove(&self.path);
    }
}

/// Runs a command with this input and captures its output.
fn run(command: &mut Command, input: &[u8]) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let context = || format!("cannot run `{name}`");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C");
    let mut child = command.spawn().context(context)?;
    // The program may exit without reading its input.
    let _unread = child.stdin.take().map(|mut stdin| stdin.write_all(input));
    child.wait_with_output().context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_signature_is_found_among_any_bytes() {
        let head = [&[0xfc; 300][..], b"\n-----BEGIN SSH SIGNATURE-----\nx\n"].concat();
        let tag = [&head[..], b"-----BEGIN SSH SIGNATURE-----\ny\n"].concat();
        assert_eq!(find_signature(&tag, SSH), Some(head.len()));
        assert_eq!(find_signature(&tag, PGP), None);
        assert_eq!(find_signature(b"see -----BEGIN SSH SIGNATURE-----", SSH), None);
    }

    #[test]
    fn ssh_keys_and_gpg_fingerprints_are_parsed() {
        let fingerprint = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(Key::parse(&format!("gpg {fingerprint}")).unwrap(), Key::Gpg(fingerprint.to_uppercase()));
        assert_eq!(Key::parse("ssh-ed25519 AAAAC3 ada@park").unwrap(), Key::Ssh("ssh-ed25519 AAAAC3".into()));
        for bad in ["", "gpg 0123", "AAAAC3", "ssh-ed25519", "* ssh-ed25519 AAAA"] {
            assert!(Key::parse(bad).is_err(), "{bad}");
        }
    }
}
