//! Reason why a document cannot be read, and the limit on nesting that all formats share.

/// Deepest nesting of tables and lists. The lockfile holds parameters some levels deep, and its format, TOML,
/// is read up to a depth of 80.
pub const MAX_DEPTH: usize = 64;

/// Reason why a document cannot be read, and a hint.
#[derive(Debug)]
pub struct Fault {
    pub why: String,
    pub hint: &'static str,
}

impl Fault {
    /// Reports a mistake in the text at a place, such as `line 1 column 5`.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), hint: "correct the file, then try again" }
    }

    /// Reports a document with more than [`MAX_DEPTH`] levels.
    pub fn too_deep() -> Self {
        Self {
            why: format!("its tables and lists are nested more than {MAX_DEPTH} levels deep"),
            hint: "move such data to a file of its own, and name that file under `deps`",
        }
    }
}

/// Returns the line and column, both from 1, of a byte of a text.
pub fn place(text: &str, at: usize) -> String {
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line} column {column}")
}
