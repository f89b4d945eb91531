//! Reads and writes Parquet files column by column, each column whole.
//!
//! Values use plain encoding, without dictionaries and without compression. So a file cannot contain more
//! values than its length allows, and one that claims more is rejected before memory is allocated for them.
//! The store compresses the files anyway.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use parquet::{
    basic::{Compression, Encoding, Type},
    column::{page::Page, reader::get_typed_column_reader},
    data_type::{ByteArray, ByteArrayType, DataType, FloatType},
    errors::ParquetError,
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
        reader::{FileReader as _, RowGroupReader, SerializedFileReader},
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::{parser::parse_message_type, types::SchemaDescriptor},
};

use crate::error::{Error, Kind, Result};

pub type Parquet<T> = std::result::Result<T, ParquetError>;

/// Number of rows in a row group.
const GROUP_ROWS: usize = 50_000;
/// Key and value of the format version in the file's metadata.
const FORMAT: (&str, &str) = ("mlx.format", "1");

/// Writer of one row group. Columns are written in the order of the schema.
pub struct GroupWriter<'s>(SerializedRowGroupWriter<'s, Vec<u8>>);

/// Writes a table; `fill` writes all columns of a range of rows.
pub fn write(
    schema: &str,
    rows: usize,
    fill: impl Fn(Range<usize>, &mut GroupWriter<'_>) -> Parquet<()>,
) -> Result<Vec<u8>> {
    let put = || -> Parquet<Vec<u8>> {
        let schema = Arc::new(parse_message_type(schema)?);
        let format = KeyValue::new(FORMAT.0.to_owned(), FORMAT.1.to_owned());
        let settings = WriterProperties::builder()
            .set_created_by("mlx".to_owned())
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_offset_index_disabled(true)
            .set_key_value_metadata(Some(vec![format]))
            .build();
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(settings))?;
        for start in (0..rows).step_by(GROUP_ROWS) {
            let mut group = GroupWriter(writer.next_row_group()?);
            fill(start..rows.min(start + GROUP_ROWS), &mut group)?;
            group.0.close()?;
        }
        writer.into_inner()
    };
    put().map_err(|it| Error::new(Kind::Internal, "cannot write a table").with_source(it))
}

impl GroupWriter<'_> {
    fn put<T: DataType>(
        &mut self,
        values: &[T::T],
        definition_levels: Option<&[i16]>,
        repetition_levels: Option<&[i16]>,
    ) -> Parquet<()> {
        let missing = || ParquetError::General("the schema has no more columns".into());
        let mut column = self.0.next_column()?.ok_or_else(missing)?;
        column.typed::<T>().write_batch(values, definition_levels, repetition_levels)?;
        column.close()
    }

    pub fn numbers<T: DataType>(&mut self, values: impl Iterator<Item = T::T>) -> Parquet<()> {
        self.put::<T>(&values.collect::<Vec<_>>(), None, None)
    }

    pub fn texts(&mut self, values: impl Iterator<Item = String>) -> Parquet<()> {
        let values: Vec<_> = values.map(|text| ByteArray::from(text.into_bytes())).collect();
        self.put::<ByteArrayType>(&values, None, None)
    }

    pub fn optional<T: DataType>(&mut self, values: impl Iterator<Item = Option<T::T>>) -> Parquet<()> {
        let (mut definition_levels, mut present) = (Vec::new(), Vec::new());
        for value in values {
            definition_levels.push(i16::from(value.is_some()));
            present.extend(value);
        }
        self.put::<T>(&present, Some(&definition_levels), None)
    }

    pub fn lists<'v>(&mut self, rows: impl Iterator<Item = &'v [f32]>) -> Parquet<()> {
        let (mut definition_levels, mut repetition_levels, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            // An empty list is one entry without a value.
            definition_levels.extend(std::iter::repeat_n(i16::from(!row.is_empty()), row.len().max(1)));
            repetition_levels.extend((0..row.len().max(1)).map(|index| i16::from(index > 0)));
            values.extend_from_slice(row);
        }
        self.put::<FloatType>(&values, Some(&definition_levels), Some(&repetition_levels))
    }
}

/// Reader of one row group. Columns are read in the order of the schema.
pub struct GroupReader<'s> {
    group: Box<dyn RowGroupReader + 's>,
    /// Index of the next column.
    next: usize,
    /// Number of rows in the group.
    pub rows: usize,
    /// Largest size of all values still to be read, in bytes.
    budget: usize,
}

/// Entries of a column, with Parquet's levels.
struct Column<T> {
    /// 1 for an entry that has a value, otherwise 0.
    definition_levels: Vec<i16>,
    /// 0 for an entry that starts a row, otherwise 1.
    repetition_levels: Vec<i16>,
    values: Vec<T>,
}

/// Reads a table of this schema; `take` reads all columns of a row group, and `what` is how errors call the
/// table.
pub fn read<R>(
    what: &str,
    schema: &str,
    bytes: &[u8],
    take: impl Fn(&mut GroupReader<'_>) -> Parquet<Vec<R>>,
) -> Result<Vec<R>> {
    let read = || -> Parquet<Vec<R>> {
        let file = SerializedFileReader::new(Bytes::copy_from_slice(bytes))?;
        check(&file, schema)?;
        let mut found = Vec::new();
        let mut budget = bytes.len();
        for index in 0..file.num_row_groups() {
            let group = file.get_row_group(index)?;
            let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(usize::MAX);
            if rows > budget {
                return Err(invalid("it claims more rows than its size allows"));
            }
            let mut reader = GroupReader { group, next: 0, rows, budget };
            found.append(&mut take(&mut reader)?);
            budget = reader.budget;
        }
        Ok(found)
    };
    // The bytes are untrusted, and the Parquet crate may panic on invalid ones.
    let read = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(invalid("it is damaged")));
    read.map_err(|it| Error::corrupt(format!("{what} cannot be read")).with_source(it))
}

pub fn invalid(why: &str) -> ParquetError {
    ParquetError::General(why.to_owned())
}

/// Checks the format version and the columns.
fn check(file: &SerializedFileReader<Bytes>, schema: &str) -> Parquet<()> {
    let metadata = file.metadata().file_metadata();
    let mut entries = metadata.key_value_metadata().into_iter().flatten();
    let format = entries.find(|entry| entry.key == FORMAT.0);
    match format.and_then(|entry| entry.value.as_deref()) {
        Some(version) if version == FORMAT.1 => {}
        Some(_) => return Err(invalid("it was written by a newer mlx")),
        None => return Err(invalid("it was not written by mlx")),
    }
    let expected = SchemaDescriptor::new(Arc::new(parse_message_type(schema)?));
    let found = metadata.schema_descr();
    let same = found.num_columns() == expected.num_columns()
        && found.columns().iter().zip(expected.columns()).all(|(a, b)| {
            (a.path(), a.physical_type(), a.max_def_level(), a.max_rep_level())
                == (b.path(), b.physical_type(), b.max_def_level(), b.max_rep_level())
        });
    if same { Ok(()) } else { Err(invalid("it has other columns")) }
}

impl GroupReader<'_> {
    fn column<T: DataType>(&mut self) -> Parquet<Column<T::T>> {
        let index = self.next;
        self.next += 1;
        let mut pages = self.group.get_column_page_reader(index)?;
        let mut claimed = 0_usize;
        while let Some(page) = pages.get_next_page()? {
            let Page::DataPage { num_values, encoding: Encoding::PLAIN, .. } = page else {
                return Err(invalid("its encoding is not supported"));
            };
            claimed = claimed.saturating_add(num_values as usize);
        }
        if claimed > self.budget.max(self.rows) {
            return Err(invalid("it claims more values than its size allows"));
        }
        let mut reader = get_typed_column_reader::<T>(self.group.get_column_reader(index)?);
        let (mut definition_levels, mut repetition_levels, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let (rows, ..) = reader.read_records(
            self.rows,
            Some(&mut definition_levels),
            Some(&mut repetition_levels),
            &mut values,
        )?;
        if rows != self.rows {
            return Err(invalid("its columns have different lengths"));
        }
        let width = match T::get_physical_type() {
            Type::BOOLEAN => 0,
            Type::INT64 => 8,
            _ => 4,
        };
        self.charge(values.len() * width)?;
        Ok(Column { definition_levels, repetition_levels, values })
    }

    /// Charges values to the budget. Pages that share bytes would exceed it.
    fn charge(&mut self, bytes: usize) -> Parquet<()> {
        let rest = self.budget.checked_sub(bytes);
        self.budget = rest.ok_or_else(|| invalid("its values are larger than its size allows"))?;
        Ok(())
    }

    pub fn numbers<T: DataType>(&mut self) -> Parquet<Vec<T::T>> {
        Ok(self.column::<T>()?.values)
    }

    pub fn texts(&mut self) -> Parquet<Vec<String>> {
        let values = self.column::<ByteArrayType>()?.values;
        self.charge(values.iter().map(ByteArray::len).sum())?;
        let text = |bytes: &ByteArray| Ok(bytes.as_utf8()?.to_owned());
        values.iter().map(text).collect()
    }

    pub fn optional<T: DataType>(&mut self) -> Parquet<Vec<Option<T::T>>> {
        let Column { definition_levels, values, .. } = self.column::<T>()?;
        let mut values = values.into_iter();
        Ok(definition_levels.iter().map(|&level| if level > 0 { values.next() } else { None }).collect())
    }

    pub fn lists(&mut self) -> Parquet<Vec<Vec<f32>>> {
        let Column { definition_levels, repetition_levels, values } = self.column::<FloatType>()?;
        let mut values = values.into_iter();
        let mut rows: Vec<Vec<f32>> = Vec::with_capacity(self.rows);
        for (definition, repetition) in definition_levels.into_iter().zip(repetition_levels) {
            if repetition == 0 {
                rows.push(Vec::new());
            }
            let row = rows.last_mut().ok_or_else(|| invalid("the first list has no start"))?;
            if definition > 0 {
                row.extend(values.next());
            }
        }
        Ok(rows)
    }
}
