//! Columns of a Parquet file, written and read whole, one after another.
//!
//! Values stand plainly, without dictionaries and without compression. So a file cannot hold more than it
//! is long, and one that claims to is refused before anything is set aside for it; the store compresses
//! what it can anyhow.

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

/// Rows written together.
const GROUP: usize = 50_000;
const FORMAT: (&str, &str) = ("mlx.format", "1");

/// Where the columns of some rows are written, in the order of the schema.
pub struct Sink<'s>(SerializedRowGroupWriter<'s, Vec<u8>>);

/// Writes a table; `fill` writes all columns of a range of rows.
pub fn write(
    schema: &str,
    rows: usize,
    fill: impl Fn(Range<usize>, &mut Sink<'_>) -> Parquet<()>,
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
        for start in (0..rows).step_by(GROUP) {
            let mut sink = Sink(writer.next_row_group()?);
            fill(start..rows.min(start + GROUP), &mut sink)?;
            sink.0.close()?;
        }
        writer.into_inner()
    };
    put().map_err(|it| Error::new(Kind::Internal, "cannot write a table").because(it))
}

impl Sink<'_> {
    fn put<T: DataType>(
        &mut self,
        values: &[T::T],
        given: Option<&[i16]>,
        starts: Option<&[i16]>,
    ) -> Parquet<()> {
        let missing = || ParquetError::General("the schema has no more columns".into());
        let mut column = self.0.next_column()?.ok_or_else(missing)?;
        column.typed::<T>().write_batch(values, given, starts)?;
        column.close()
    }

    pub fn numbers<T: DataType>(&mut self, values: impl Iterator<Item = T::T>) -> Parquet<()> {
        self.put::<T>(&values.collect::<Vec<_>>(), None, None)
    }

    pub fn texts(&mut self, values: impl Iterator<Item = String>) -> Parquet<()> {
        self.put::<ByteArrayType>(
            &values.map(|it| ByteArray::from(it.into_bytes())).collect::<Vec<_>>(),
            None,
            None,
        )
    }

    pub fn optional<T: DataType>(&mut self, values: impl Iterator<Item = Option<T::T>>) -> Parquet<()> {
        let (mut given, mut found) = (Vec::new(), Vec::new());
        for value in values {
            given.push(i16::from(value.is_some()));
            found.extend(value);
        }
        self.put::<T>(&found, Some(&given), None)
    }

    pub fn lists<'v>(&mut self, rows: impl Iterator<Item = &'v [f32]>) -> Parquet<()> {
        let (mut given, mut starts, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            // An empty list is a place with nothing in it.
            given.extend(std::iter::repeat_n(i16::from(!row.is_empty()), row.len().max(1)));
            starts.extend((0..row.len().max(1)).map(|at| i16::from(at > 0)));
            values.extend_from_slice(row);
        }
        self.put::<FloatType>(&values, Some(&given), Some(&starts))
    }
}

/// Where the columns of some rows are read, in the order of the schema.
pub struct Source<'s> {
    group: Box<dyn RowGroupReader + 's>,
    next: usize,
    pub rows: usize,
    /// Bytes that all values still to come can have.
    budget: usize,
}

/// The values of a column: which are given, which start a row, and those that are given.
struct Column<T> {
    given: Vec<i16>,
    starts: Vec<i16>,
    values: Vec<T>,
}

/// Reads a table of this schema; `take` reads all columns of some rows.
pub fn read<R>(
    what: &str,
    schema: &str,
    bytes: &[u8],
    take: impl Fn(&mut Source<'_>) -> Parquet<Vec<R>>,
) -> Result<Vec<R>> {
    let read = || -> Parquet<Vec<R>> {
        let file = SerializedFileReader::new(Bytes::copy_from_slice(bytes))?;
        check(&file, schema)?;
        let mut found = Vec::new();
        let mut budget = bytes.len();
        for at in 0..file.num_row_groups() {
            let group = file.get_row_group(at)?;
            let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(usize::MAX);
            if rows > budget {
                return Err(wrong("it claims more rows than it can hold"));
            }
            let mut source = Source { group, next: 0, rows, budget };
            found.append(&mut take(&mut source)?);
            budget = source.budget;
        }
        Ok(found)
    };
    // What the bytes are is not up to us, and the crate that reads them may panic.
    let read = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(wrong("it is damaged")));
    read.map_err(|it| Error::corrupt(format!("{what} cannot be read")).because(it))
}

pub fn wrong(why: &str) -> ParquetError {
    ParquetError::General(why.to_owned())
}

fn check(file: &SerializedFileReader<Bytes>, schema: &str) -> Parquet<()> {
    let about = file.metadata().file_metadata();
    let format = about.key_value_metadata().and_then(|it| it.iter().find(|it| it.key == FORMAT.0));
    match format.and_then(|it| it.value.as_deref()) {
        Some(it) if it == FORMAT.1 => {}
        Some(_) => return Err(wrong("it was written by a newer mlx")),
        None => return Err(wrong("mlx did not write it")),
    }
    let expected = SchemaDescriptor::new(Arc::new(parse_message_type(schema)?));
    let found = about.schema_descr();
    let same = found.num_columns() == expected.num_columns()
        && found.columns().iter().zip(expected.columns()).all(|(a, b)| {
            (a.path(), a.physical_type(), a.max_def_level(), a.max_rep_level())
                == (b.path(), b.physical_type(), b.max_def_level(), b.max_rep_level())
        });
    if same { Ok(()) } else { Err(wrong("its columns are others")) }
}

impl Source<'_> {
    fn column<T: DataType>(&mut self) -> Parquet<Column<T::T>> {
        let at = self.next;
        self.next += 1;
        let mut pages = self.group.get_column_page_reader(at)?;
        let mut claimed = 0_usize;
        while let Some(page) = pages.get_next_page()? {
            let Page::DataPage { num_values, encoding: Encoding::PLAIN, .. } = page else {
                return Err(wrong("it is encoded as mlx encodes nothing"));
            };
            claimed = claimed.saturating_add(num_values as usize);
        }
        if claimed > self.budget.max(self.rows) {
            return Err(wrong("it claims more values than it can hold"));
        }
        let mut reader = get_typed_column_reader::<T>(self.group.get_column_reader(at)?);
        let mut column = Column { given: Vec::new(), starts: Vec::new(), values: Vec::new() };
        let Column { given, starts, values } = &mut column;
        let (rows, ..) = reader.read_records(self.rows, Some(given), Some(starts), values)?;
        if rows != self.rows {
            return Err(wrong("its columns are of different lengths"));
        }
        let width = match T::get_physical_type() {
            Type::BOOLEAN => 0,
            Type::INT64 => 8,
            _ => 4,
        };
        self.spend(column.values.len() * width)?;
        Ok(column)
    }

    fn spend(&mut self, bytes: usize) -> Parquet<()> {
        let rest = self.budget.checked_sub(bytes);
        self.budget = rest.ok_or_else(|| wrong("its rows share bytes"))?;
        Ok(())
    }

    pub fn numbers<T: DataType>(&mut self) -> Parquet<Vec<T::T>> {
        Ok(self.column::<T>()?.values)
    }

    pub fn texts(&mut self) -> Parquet<Vec<String>> {
        let values = self.column::<ByteArrayType>()?.values;
        self.spend(values.iter().map(ByteArray::len).sum())?;
        let text = |it: &ByteArray| Ok(it.as_utf8()?.to_owned());
        values.iter().map(text).collect()
    }

    pub fn optional<T: DataType>(&mut self) -> Parquet<Vec<Option<T::T>>> {
        let Column { given, values, .. } = self.column::<T>()?;
        let mut values = values.into_iter();
        Ok(given.iter().map(|&it| if it > 0 { values.next() } else { None }).collect())
    }

    pub fn lists(&mut self) -> Parquet<Vec<Vec<f32>>> {
        let Column { given, starts, values } = self.column::<FloatType>()?;
        let mut values = values.into_iter();
        let mut rows: Vec<Vec<f32>> = Vec::with_capacity(self.rows);
        for (given, start) in given.into_iter().zip(starts) {
            if start == 0 {
                rows.push(Vec::new());
            }
            let row = rows.last_mut().ok_or_else(|| wrong("a list starts nowhere"))?;
            if given > 0 {
                row.extend(values.next());
            }
        }
        Ok(rows)
    }
}
