//! Tells a reflink from a copy, which `stat` cannot.

use fiemap::{Fiemap, FiemapExtent, FiemapExtentFlags};

use crate::fs::File;

/// Returns true if the first bytes of two files lie in the same place of one disk. False also if the file
/// system does not tell. Two disks may use the same numbers, but no link of this kind leads from one to the
/// other.
pub fn shares_blocks(one: &File, other: &File) -> bool {
    let place = |file| first_extent(file).map(|extent| (extent.fe_logical, extent.fe_physical));
    place(one).is_some_and(|found| Some(found) == place(other))
}

/// Returns the first extent of a file; `None` if its place is not known yet.
fn first_extent(file: &File) -> Option<FiemapExtent> {
    let nowhere = FiemapExtentFlags::UNKNOWN | FiemapExtentFlags::DATA_INLINE;
    let first = Fiemap::new(file).next()?.ok()?;
    Some(first).filter(|extent| !extent.fe_flags.intersects(nowhere))
}
