//! Feature tables: a folder with numbers that NumPy reads, the pictures they belong to, and where both came
//! from.
//!
//! `table.npy` (N×D, float32), `rows.txt` (a digest a line, sorted), `features.toml`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::{Doing, Error, Result},
    fs::{Root, Sync},
    model::settings::Backbone,
    path::RepoPath,
};

/// Features of pictures.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub width: usize,
    /// Digest → row.
    pub rows: BTreeMap<Digest, Vec<f32>>,
}

/// Where a table came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    pub format: u64,
    /// Name and version of what computed it; another may differ by up to 1e-4.
    pub engine: String,
    /// Digest of the backbone's file.
    pub backbone_digest: Digest,
    /// Digest of the pictures' folder.
    pub data_digest: Digest,
    /// Digest of the list of sides.
    pub split_digest: Digest,
    /// Pictures that cannot be decoded, set aside.
    pub damaged: Vec<RepoPath>,
    /// How pictures were prepared.
    pub backbone: Backbone,
}

pub const FORMAT: u64 = 1;
/// The learnt backbone's name in the folder.
pub const BACKBONE: &str = "backbone.onnx";

/// Writes a table into a folder.
pub fn write(files: &Root, folder: &RepoPath, table: &Table, about: &About) -> Result<()> {
    let rows: String = table.rows.keys().map(|it| format!("{it}\n")).collect();
    let text =
        toml::to_string(about).map_err(|it| Error::new(crate::error::Kind::Internal, it.to_string()))?;
    files.write(&folder.join(b"table.npy")?, &npy(table), Sync::Later)?;
    files.write(&folder.join(b"rows.txt")?, rows.as_bytes(), Sync::Later)?;
    files.write(&folder.join(b"features.toml")?, text.as_bytes(), Sync::Later)
}

/// NumPy's format, version 1.0: a head padded to 64 bytes, then the numbers, little-endian.
fn npy(table: &Table) -> Vec<u8> {
    let shape = format!("({}, {})", table.rows.len(), table.width);
    let mut head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let padding = 64 - (10 + head.len() + 1) % 64;
    head.push_str(&" ".repeat(padding));
    head.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend_from_slice(&u16::try_from(head.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(head.as_bytes());
    table.rows.values().flatten().for_each(|it| out.extend_from_slice(&it.to_le_bytes()));
    out
}

/// Reads a table from a folder.
pub fn read(files: &Root, folder: &RepoPath) -> Result<(Table, About)> {
    let broken = |why: &str| {
        Error::corrupt(format!("`{folder}` is not a feature table: {why}"))
            .hint("`mlx data features` or `mlx repro` makes it anew")
    };
    let text =
        files.read(&folder.join(b"features.toml")?).doing(|| format!("`{folder}` is not a feature table"))?;
    let about: About = toml::from_str(&String::from_utf8_lossy(&text)).map_err(|it| broken(it.message()))?;
    if about.format != FORMAT {
        return Err(broken("its format is unknown"));
    }
    let rows = files.read(&folder.join(b"rows.txt")?)?;
    let digests = String::from_utf8_lossy(&rows).lines().map(str::parse).collect::<Result<Vec<Digest>>>()?;
    let bytes = files.read(&folder.join(b"table.npy")?)?;
    let head = bytes
        .get(8..10)
        .map(|it| 10 + usize::from(u16::from_le_bytes([it[0], it[1]])))
        .ok_or_else(|| broken("it is short"))?;
    let data = bytes.get(head..).ok_or_else(|| broken("it is short"))?;
    let width = (data.len() / 4).checked_div(digests.len()).unwrap_or(0);
    if data.len() != width * 4 * digests.len() || digests.windows(2).any(|it| it[0] >= it[1]) {
        return Err(broken("rows and numbers do not fit"));
    }
    let values: Vec<f32> = data.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it)).collect();
    let rows = digests.into_iter().zip(values.chunks(width.max(1)).map(<[f32]>::to_vec)).collect();
    Ok((Table { width, rows }, about))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_writes() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let folder = RepoPath::from_text("features").unwrap();
        let rows = (0..7_u8).map(|it| (Digest::of(&[it]), vec![f32::from(it), 0.5, -1e-9])).collect();
        let table = Table { width: 3, rows };
        let digest = Digest::of(b"x");
        let about = About {
            format: FORMAT,
            engine: "rten".into(),
            backbone_digest: digest,
            data_digest: digest,
            split_digest: digest,
            damaged: vec![RepoPath::from_text("data/cat/bad%25.jpg").unwrap()],
            backbone: Backbone::default(),
        };
        write(&root, &folder, &table, &about).unwrap();
        let (read_table, read_about) = read(&root, &folder).unwrap();
        assert_eq!((read_table.rows, read_about), (table.rows, about));
        let bytes = root.read(&folder.join(b"table.npy").unwrap()).unwrap();
        assert_eq!((bytes.len() - 7 * 3 * 4) % 64, 0, "the head ends at a multiple of 64 bytes");
    }
}
