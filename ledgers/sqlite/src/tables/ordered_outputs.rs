//! The kept outputs of a job in the order of their tasks, pulled one by one.

use std::vec;

use gristmill_shared::TaskIndex;
use rusqlite::{Connection, Rows};
use serde_json::value::RawValue;

use crate::ledger::columns::conversion_error;

/// Passes the kept outputs of a job to `fold`, in the order of their indices. At most one row is in
/// memory: the outputs of one span of a message.
///
/// # Errors
/// If the ledger cannot be read; `fold` saw only the outputs before the damage then.
pub(crate) fn fold_outputs<T>(
    connection: &Connection,
    job: i64,
    fold: impl FnOnce(&mut dyn Iterator<Item = (TaskIndex, Box<RawValue>)>) -> T,
) -> rusqlite::Result<T> {
    let mut statement =
        connection.prepare_cached("SELECT first, outputs FROM outputs WHERE job = ?1 ORDER BY first")?;
    let mut outputs = OrderedOutputs {
        rows: statement.query([job])?,
        first: 0,
        row: Vec::new().into_iter().enumerate(),
        failure: None,
    };
    let folded = fold(&mut outputs);
    outputs.failure.map_or(Ok(folded), Err)
}

struct OrderedOutputs<'s> {
    rows: Rows<'s>,
    /// The index of the first output of `row`.
    first: u64,
    row: std::iter::Enumerate<vec::IntoIter<Box<RawValue>>>,
    /// The error that ended the iteration early.
    failure: Option<rusqlite::Error>,
}

impl OrderedOutputs<'_> {
    /// Reads the next row. Returns false at the end.
    fn next_row(&mut self) -> rusqlite::Result<bool> {
        let Some(row) = self.rows.next()? else { return Ok(false) };
        self.first = row.get(0)?;
        let outputs: Vec<Box<RawValue>> =
            serde_json::from_str(row.get_ref(1)?.as_str()?).map_err(|error| conversion_error(1, error))?;
        self.row = outputs.into_iter().enumerate();
        Ok(true)
    }
}

impl Iterator for OrderedOutputs<'_> {
    type Item = (TaskIndex, Box<RawValue>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((place, output)) = self.row.next() {
                return Some((TaskIndex(self.first).plus(place as u64), output));
            }
            match self.next_row() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.failure = Some(error);
                    return None;
                }
            }
        }
    }
}
