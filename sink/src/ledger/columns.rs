//! Between SQLite's values and ours.

use std::{error::Error, str::FromStr};

use rusqlite::{Row, types::Type};
use serde::de::DeserializeOwned;

/// The largest number a column can hold. Task indices and totals stay below it, or their message is malformed.
pub(crate) const NUMBER_MAX: u64 = i64::MAX as u64;

/// A number that only informs, and that somebody else may have made up.
pub(super) fn int(number: u64) -> u64 {
    number.min(NUMBER_MAX)
}

/// A column that holds a name or an id.
pub(super) fn text<T: FromStr<Err: Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    row.get_ref(column)?.as_str()?.parse().map_err(|error| conversion(column, error))
}

/// A column that holds JSON.
pub(super) fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(|error| conversion(column, error))
}

/// What we wrote does not read back: the file is damaged, or somebody changed it.
pub(super) fn conversion(column: usize, error: impl Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

/// Ours as JSON.
pub(super) fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("the types that are kept have string keys and no failing Serialize")
}
