//! The location of a ledger.

use std::{fmt, path::PathBuf};

/// The location of a ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LedgerLocation {
    /// A file, which is created if it does not exist, together with its folders.
    File(PathBuf),
    /// Memory only: the ledger is lost when the process ends.
    Memory,
}

impl fmt::Display for LedgerLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Memory => f.write_str("(in memory)"),
        }
    }
}
