//! Conversions between SQLite's values and the ledger's.

use std::{error::Error, str::FromStr};

use gristmill_ledger::NUMBER_MAX;
use rusqlite::{Row, types::Type};
use serde::de::DeserializeOwned;

/// Clamps a number that is informative only and may come from a foreign message.
pub(crate) fn clamp_int(number: u64) -> u64 {
    number.min(NUMBER_MAX)
}

/// Parses a column that holds a name or an id.
pub(crate) fn parse_text<T: FromStr<Err: Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    row.get_ref(column)?.as_str()?.parse().map_err(|error| conversion_error(column, error))
}

/// Parses a column that holds JSON.
pub(crate) fn parse_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(|error| conversion_error(column, error))
}

/// Returns the error for a value that does not read back: the file is damaged or was changed.
pub(crate) fn conversion_error(column: usize, error: impl Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

/// Encodes a value of the sink as JSON.
pub(crate) fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("the types that are kept have string keys and no failing Serialize")
}
