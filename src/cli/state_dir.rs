//! The directory of a program's persistent state.

use std::path::PathBuf;

use clap::Args;
use gristmill_producer::CursorDir;
use gristmill_shared::Lane;

use crate::exit::Failure;

/// The state directory.
#[derive(Debug, Clone, Args)]
pub(crate) struct StateFlags {
    /// The directory of ledgers and cursors [default: gristmill in XDG_STATE_HOME, else
    /// ~/.local/state/gristmill]
    #[arg(long, global = true, env = "GRISTMILL_STATE", value_name = "DIR")]
    state: Option<PathBuf>,
}

impl StateFlags {
    fn dir(&self) -> Result<PathBuf, Failure> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        self.state
            .clone()
            .or_else(|| var("XDG_STATE_HOME").map(|dir| dir.join("gristmill")))
            .or_else(|| var("HOME").map(|dir| dir.join(".local/state/gristmill")))
            .ok_or_else(|| Failure::usage("no place for state: HOME is not set (hint: pass --state DIR)"))
    }

    /// Returns the directory of the cursors of jobs that were submitted here.
    pub(crate) fn cursors(&self) -> Result<CursorDir, Failure> {
        Ok(CursorDir::new(self.dir()?.join("jobs")))
    }

    /// Returns the default path of the ledger of a lane's sink.
    pub(crate) fn ledger(&self, lane: &Lane) -> Result<PathBuf, Failure> {
        Ok(self.dir()?.join(format!("{lane}.ledger")))
    }
}
