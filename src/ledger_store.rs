//! Opening ledgers: the only place that names a store.

use std::path::Path;

use gristmill_ledger::{Ledger, LedgerError, LedgerLocation, LedgerReader};
use gristmill_sqlite::{SqliteAccess, SqliteLedger};

/// Opens or creates a ledger, and locks it until it is dropped. Blocking.
///
/// # Errors
/// If the file is not a ledger, is not writable, or is held by another sink.
pub fn open_ledger(place: LedgerLocation) -> Result<Box<dyn Ledger>, LedgerError> {
    Ok(Box::new(SqliteLedger::open(place)?))
}

/// Opens a ledger file for reading, also while a sink uses it. Creates and changes nothing.
///
/// # Errors
/// If there is none, or the file is something else.
pub(crate) fn read_ledger(path: &Path) -> Result<LedgerReader, LedgerError> {
    Ok(LedgerReader::new(Box::new(SqliteAccess::open(path)?)))
}
