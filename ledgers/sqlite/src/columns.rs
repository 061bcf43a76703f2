//! Conversions between SQLite's values and the sink's.

use std::{error::Error, str::FromStr};

use rusqlite::{Row, types::Type};
use serde::de::DeserializeOwned;

/// The largest number that a column can hold. A message with a task index or total above it is
/// malformed.
pub(crate) const NUMBER_MAX: u64 = i64::MAX as u64;

/// Clamps a number that is informative only and may come from a foreign message.
pub(super) fn clamp_int(number: u64) -> u64 {
    number.min(NUMBER_MAX)
}

/// Parses a column that holds a name or an id.
pub(super) fn parse_text<T: FromStr<Err: Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    row.get_ref(column)?.as_str()?.parse().map_err(|error| conversion_error(column, error))
}

/// Parses a column that holds JSON.
pub(super) fn parse_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(|error| conversion_error(column, error))
}

/// Returns the error for a value that does not read back: the file is damaged or was changed.
pub(super) fn conversion_error(column: usize, error: impl Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

/// Encodes a value of the sink as JSON.
pub(super) fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("the types that are kept have string keys and no failing Serialize")
}
