//! Feature tables: a folder with the features of images, readable by NumPy, and their provenance.
//!
//! ```text
//! table.npy       features, N×D, float32
//! rows.txt        digests of the images, one per line, sorted; line i belongs to row i
//! features.toml   engine, backbone, and digests of the inputs
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::{Error, Result, WithContext},
    fs::{Root, Sync},
    model::settings::Backbone,
    path::RepoPath,
};

/// Features of images.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Number of features per image.
    pub width: usize,
    /// Features by image digest.
    pub rows: BTreeMap<Digest, Vec<f32>>,
}

/// Provenance of a table: the contents of `features.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    pub format: u64,
    /// Name and version of the engine that computed it; other engines may differ by up to 1e-4.
    pub engine: String,
    /// Digest of the backbone's file.
    pub backbone_digest: Digest,
    /// Digest of the folder of images.
    pub data_digest: Digest,
    /// Digest of the split file.
    pub split_digest: Digest,
    /// Images that cannot be decoded and are not in the table.
    pub damaged: Vec<RepoPath>,
    /// Preprocessing of the images, and the backbone's file.
    pub backbone: Backbone,
}

pub const FORMAT: u64 = 1;
/// File name of a learned backbone in the table's folder.
pub const BACKBONE: &str = "backbone.onnx";

/// Writes a table to a folder.
pub fn write(files: &Root, folder: &RepoPath, table: &Table, metadata: &Metadata) -> Result<()> {
    let rows: String = table.rows.keys().map(|digest| format!("{digest}\n")).collect();
    let text =
        toml::to_string(metadata).map_err(|it| Error::new(crate::error::Kind::Internal, it.to_string()))?;
    files.write(&folder.join(b"table.npy")?, &to_npy(table), Sync::Later)?;
    files.write(&folder.join(b"rows.txt")?, rows.as_bytes(), Sync::Later)?;
    files.write(&folder.join(b"features.toml")?, text.as_bytes(), Sync::Later)
}

/// Encodes a table in NumPy's format, version 1.0: a header padded to a multiple of 64 bytes, then the
/// numbers, little-endian.
fn to_npy(table: &Table) -> Vec<u8> {
    let shape = format!("({}, {})", table.rows.len(), table.width);
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let padding = 64 - (10 + header.len() + 1) % 64;
    header.push_str(&" ".repeat(padding));
    header.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend_from_slice(&u16::try_from(header.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    table.rows.values().flatten().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
    out
}

/// Reads a table from a folder.
pub fn read(files: &Root, folder: &RepoPath) -> Result<(Table, Metadata)> {
    let invalid = |why: &str| {
        Error::corrupt(format!("`{folder}` is not a feature table: {why}"))
            .hint("compute it again: `mlx repro` or `mlx data features`")
    };
    let text = files
        .read(&folder.join(b"features.toml")?)
        .context(|| format!("`{folder}` is not a feature table"))?;
    let metadata: Metadata =
        toml::from_str(&String::from_utf8_lossy(&text)).map_err(|it| invalid(it.message()))?;
    if metadata.format != FORMAT {
        return Err(invalid("its format is unknown"));
    }
    let rows = files.read(&folder.join(b"rows.txt")?)?;
    let digests = String::from_utf8_lossy(&rows).lines().map(str::parse).collect::<Result<Vec<Digest>>>()?;
    let bytes = files.read(&folder.join(b"table.npy")?)?;
    let header_end = bytes
        .get(8..10)
        .map(|length| 10 + usize::from(u16::from_le_bytes([length[0], length[1]])))
        .ok_or_else(|| invalid("`table.npy` is truncated"))?;
    let data = bytes.get(header_end..).ok_or_else(|| invalid("`table.npy` is truncated"))?;
    let width = (data.len() / 4).checked_div(digests.len()).unwrap_or(0);
    if data.len() != width * 4 * digests.len() || digests.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(invalid("`rows.txt` does not match `table.npy`"));
    }
    let values: Vec<f32> = data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let rows = digests.into_iter().zip(values.chunks(width.max(1)).map(<[f32]>::to_vec)).collect();
    Ok((Table { width, rows }, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_table_is_read_back() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let folder = RepoPath::from_text("features").unwrap();
        let rows =
            (0..7_u8).map(|value| (Digest::of(&[value]), vec![f32::from(value), 0.5, -1e-9])).collect();
        let table = Table { width: 3, rows };
        let digest = Digest::of(b"x");
        let metadata = Metadata {
            format: FORMAT,
            engine: "rten".into(),
            backbone_digest: digest,
            data_digest: digest,
            split_digest: digest,
            damaged: vec![RepoPath::from_text("data/cat/bad%25.jpg").unwrap()],
            backbone: Backbone::default(),
        };
        write(&root, &folder, &table, &metadata).unwrap();
        let (read_table, read_about) = read(&root, &folder).unwrap();
        assert_eq!((read_table.rows, read_about), (table.rows, metadata));
        let bytes = root.read(&folder.join(b"table.npy").unwrap()).unwrap();
        assert_eq!((bytes.len() - 7 * 3 * 4) % 64, 0, "the header ends at a multiple of 64 bytes");
    }
}
