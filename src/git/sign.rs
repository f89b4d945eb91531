//! Signatures of tags, made and checked as Git makes and checks them: by `ssh-keygen` and `gpg`.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::{
    error::{Doing, Error, Kind, Result},
    fs::{Root, Sync},
    git::Git,
    path::RepoPath,
};

const SSH: &str = "-----BEGIN SSH SIGNATURE-----";
const PGP: &str = "-----BEGIN PGP SIGNATURE-----";

/// A key that Git is set up to sign with.
#[derive(Clone, Debug)]
pub enum Signer {
    Ssh(PathBuf),
    /// The program, and the name of the key.
    Gpg(String, String),
}

/// A key that a person is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `ssh-ed25519 AAAA…`
    Ssh(String),
    /// The whole fingerprint, in capitals.
    Gpg(String),
}

impl Key {
    /// Reads `ssh-ed25519 AAAA…` or `gpg FINGERPRINT`.
    pub fn parse(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let plain = |it: &str| it.bytes().all(|it| it.is_ascii_graphic());
        match words[..] {
            ["gpg", print] if print.len() >= 40 && print.bytes().all(|it| it.is_ascii_hexdigit()) => {
                Ok(Self::Gpg(print.to_ascii_uppercase()))
            }
            [kind, key, ..]
                if (kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-"))
                    && plain(key) =>
            {
                Ok(Self::Ssh(format!("{kind} {key}")))
            }
            _ => Err(Error::usage(format!("`{text}` is no key"))
                .hint("write an SSH public key (`ssh-ed25519 AAAA…`) or `gpg FINGERPRINT`")),
        }
    }
}

impl Git {
    /// The key that Git signs with: `user.signingKey`, of the kind that `gpg.format` says.
    pub fn signer(&self) -> Result<Signer> {
        let config = self.repo.config_snapshot();
        let text = |key: &str| config.string(key).map(|it| it.to_string());
        let key = text("user.signingKey");
        if text("gpg.format").as_deref().unwrap_or("openpgp") == "openpgp" {
            let program = text("gpg.openpgp.program").or_else(|| text("gpg.program"));
            // Without a name for it Git takes the key of who you are.
            let key = key.map_or_else(|| self.whoami(), Ok)?;
            return Ok(Signer::Gpg(program.unwrap_or_else(|| "gpg".into()), key));
        }
        let key = key.ok_or_else(|| {
            Error::usage("this has to be signed, and Git knows no key of yours")
                .hint("git config --global user.signingKey ~/.ssh/id_ed25519")
        })?;
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        Ok(Signer::Ssh(key.strip_prefix("~/").map_or_else(|| PathBuf::from(&key), |it| home.join(it))))
    }

    /// Whether these bytes of a tag are signed by one of these keys of `person`.
    pub fn is_signed_by(&self, scratch: &Root, tag: &[u8], person: &str, keys: &[Key]) -> Result<bool> {
        match (signature(tag, SSH), signature(tag, PGP)) {
            (Some(at), _) => verify_ssh(scratch, &tag[..at], &tag[at..], person, keys),
            (None, Some(at)) => verify_gpg(scratch, &tag[..at], &tag[at..], keys),
            (None, None) => Ok(false),
        }
    }
}

/// Where the signature starts. Git takes the last one, too; a tag's bytes need not be UTF-8.
fn signature(tag: &[u8], mark: &str) -> Option<usize> {
    let line = [b"\n", mark.as_bytes()].concat();
    tag.windows(line.len()).rposition(|it| it == line).map(|it| it + 1)
}

impl Signer {
    /// The signature that stands behind these bytes.
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
        let output = feed(&mut command, bytes)?;
        if output.status.success() && !output.stdout.is_empty() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::new(Kind::Denied, format!("it cannot be signed: {said}"))
            .hint("`git config gpg.format` says of which kind (ssh or openpgp) and `user.signingKey` which key; is it there, and is its agent running?"))
    }
}

fn verify_ssh(scratch: &Root, payload: &[u8], signature: &[u8], person: &str, keys: &[Key]) -> Result<bool> {
    let lines: String = keys
        .iter()
        .filter_map(|it| if let Key::Ssh(key) = it { Some(format!("signer {key}\n")) } else { None })
        .collect();
    if lines.is_empty() || person.is_empty() {
        return Ok(false);
    }
    let (allowed, written) =
        (Scratch::new(scratch, "allowed", lines.as_bytes())?, Scratch::new(scratch, "signature", signature)?);
    let mut command = Command::new("ssh-keygen");
    command
        .args(["-Y", "verify", "-n", "git", "-I", "signer", "-f"])
        .arg(allowed.path())
        .arg("-s")
        .arg(written.path());
    Ok(feed(&mut command, payload)?.status.success())
}

fn verify_gpg(scratch: &Root, payload: &[u8], signature: &[u8], keys: &[Key]) -> Result<bool> {
    let written = Scratch::new(scratch, "signature", signature)?;
    let mut command = Command::new("gpg");
    command.args(["--batch", "--status-fd", "1", "--verify"]).arg(written.path()).arg("-");
    let output = feed(&mut command, payload)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // The last word of the line is the print of the primary key, the third that of the key that signed.
    let valid = said.lines().filter_map(|it| it.strip_prefix("[GNUPG:] VALIDSIG "));
    let prints: Vec<&str> =
        valid.flat_map(|it| it.split(' ').take(1).chain(it.split(' ').next_back())).collect();
    let good = said.contains("[GNUPG:] GOODSIG ");
    Ok(output.status.success()
        && good
        && keys.iter().any(|it| matches!(it, Key::Gpg(print) if prints.contains(&print.as_str()))))
}

/// A file for another program to read, gone when dropped.
struct Scratch<'s> {
    root: &'s Root,
    path: RepoPath,
}

impl<'s> Scratch<'s> {
    fn new(root: &'s Root, name: &str, bytes: &[u8]) -> Result<Self> {
        let path = RepoPath::from_text(&format!("tmp/{name}-{}-{}", std::process::id(), crate::fs::tick()))?;
        root.write_mode(&path, bytes, Sync::Later, 0o600)?;
        Ok(Self { root, path })
    }

    fn path(&self) -> PathBuf {
        self.path.on_disk(Path::new(self.root.path()))
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let _gone = self.root.remove(&self.path);
    }
}

fn feed(command: &mut Command, input: &[u8]) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let doing = || format!("cannot run `{name}`");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C");
    let mut child = command.spawn().doing(doing)?;
    // It may end without reading.
    let _ended = child.stdin.take().map(|mut it| it.write_all(input));
    child.wait_with_output().doing(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_signature_is_found_among_any_bytes() {
        let head = [&[0xfc; 300][..], b"\n-----BEGIN SSH SIGNATURE-----\nx\n"].concat();
        let tag = [&head[..], b"-----BEGIN SSH SIGNATURE-----\ny\n"].concat();
        assert_eq!(signature(&tag, SSH), Some(head.len()));
        assert_eq!(signature(&tag, PGP), None);
        assert_eq!(signature(b"see -----BEGIN SSH SIGNATURE-----", SSH), None);
    }

    #[test]
    fn keys_are_of_two_kinds() {
        let print = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(Key::parse(&format!("gpg {print}")).unwrap(), Key::Gpg(print.to_uppercase()));
        assert_eq!(Key::parse("ssh-ed25519 AAAAC3 ada@park").unwrap(), Key::Ssh("ssh-ed25519 AAAAC3".into()));
        for bad in ["", "gpg 0123", "AAAAC3", "ssh-ed25519", "* ssh-ed25519 AAAA"] {
            assert!(Key::parse(bad).is_err(), "{bad}");
        }
    }
}
