//! Recognizes mlx's tags by the exact form of their names; other Git tags are neither pushed nor checked.

/// Returns true if a tag's name is that of a version, a release or a decision.
pub fn is_mlx_tag(name: &str) -> bool {
    is_version(name) || is_release(name) || is_decision(name)
}

/// Matches names such as `pets@v0.1.0`.
fn is_version(name: &str) -> bool {
    let Some((model, number)) = name.split_once("@v") else { return false };
    let parts: Vec<&str> = number.split('.').collect();
    !model.is_empty() && parts.len() == 3 && parts.into_iter().all(is_number)
}

/// Matches names such as `pets#production#7`.
fn is_release(name: &str) -> bool {
    let parts: Vec<&str> = name.split('#').collect();
    matches!(parts[..], [model, environment, number]
        if !model.is_empty() && !environment.is_empty() && is_number(number))
}

/// Matches names such as `mlx/approve/pets@v0.1.0/production/1`.
fn is_decision(name: &str) -> bool {
    let rest = name.strip_prefix("mlx/approve/").or_else(|| name.strip_prefix("mlx/reject/"));
    let parts: Vec<&str> = rest.unwrap_or_default().split('/').collect();
    matches!(parts[..], [version, environment, number]
        if is_version(version) && !environment.is_empty() && is_number(number))
}

/// Matches canonical decimal numbers of up to nine digits, so that the next number is valid, too.
fn is_number(text: &str) -> bool {
    let digits = !text.is_empty() && text.len() <= 9 && text.bytes().all(|it| it.is_ascii_digit());
    digits && (text == "0" || !text.starts_with('0'))
}

/// Returns the full id of the event's commit that a tag's message names.
pub fn audit_commit(message: &str) -> Option<String> {
    let line = message.lines().find_map(|it| it.strip_prefix("audit = \""))?;
    line.strip_suffix('"').filter(|it| is_commit_id(it)).map(str::to_owned)
}

/// Returns true for a full commit id, as opposed to a branch, a tag or an abbreviation.
pub fn is_commit_id(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_names_match_exactly() {
        for name in [
            "pets@v0.1.0",
            "pets#production#7",
            "mlx/approve/pets@v10.0.2/production/1",
            "mlx/reject/a@v0.0.0/test/9",
        ] {
            assert!(is_mlx_tag(name), "{name}");
        }
        for name in [
            "nightly#latest",
            "scratch#1",
            "notes@vacation",
            "v1.0.0",
            "pets@v1.0",
            "pets@v1.0.0-rc1",
            "pets#test#07",
            "#test#1",
            "pets#test#18446744073709551615",
            "mlx/approve/pets/production/1",
            "mlx/approve/pets@v0.1.0/production",
            "mlx/x",
        ] {
            assert!(!is_mlx_tag(name), "{name}");
        }
        let id = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(audit_commit(&format!("x\n\naudit = \"{id}\"\n")).as_deref(), Some(id));
        assert_eq!(audit_commit("x\n\naudit = \"refs/mlx/audit\"\n"), None);
    }
}
