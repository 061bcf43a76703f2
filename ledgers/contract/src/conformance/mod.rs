//! The conformance suite: the promises of [`Ledger`] and [`LedgerAccess`], as checks for any store.
//!
//! Each promise runs on a store of its own, which a [`Store`] opens, opens again, and makes fail.
//! [`flawed`] has stores that break one promise each, to prove that the suite notices.

mod bounds;
mod commits;
pub mod flawed;
mod reader_pages;
mod samples;

use std::{fmt, panic::AssertUnwindSafe, panic::catch_unwind};

use gristmill_shared::panic_text;

use crate::{Ledger, LedgerAccess, LedgerError};
use samples::Check;

/// A store that the suite may open, close and make fail. It begins empty.
pub trait Store: fmt::Debug + Sync {
    /// Opens the ledger, or creates it.
    ///
    /// # Errors
    /// If it is open already, or cannot be opened.
    fn open(&self) -> Result<Box<dyn Ledger>, LedgerError>;

    /// Closes the ledger and opens it again, as after the death of its process. A store in memory
    /// returns the same ledger.
    ///
    /// # Errors
    /// If it cannot be opened.
    fn reopen(&self, ledger: Box<dyn Ledger>) -> Result<Box<dyn Ledger>, LedgerError> {
        drop(ledger);
        self.open()
    }

    /// Opens access for a reader, or returns `None` if the store has none beside its writer.
    fn access(&self) -> Option<Result<Box<dyn LedgerAccess>, LedgerError>>;

    /// Makes the commits of the next opened ledger, or of the open one, fail after this number of
    /// steps of the store's own. `None` lets them succeed again.
    fn fail_after(&self, steps: Option<u64>);

    /// Leaves no room for what the next opened ledger, or the open one, is to store, or gives it
    /// back.
    fn set_full(&self, is_full: bool);
}

/// Makes one more store.
pub type StoreFactory<'a> = &'a dyn Fn() -> Box<dyn Store>;

/// A promise of every ledger.
#[derive(Clone, Copy)]
pub struct LedgerPromise {
    /// Its name.
    pub name: &'static str,
    check: fn(&dyn Store) -> Check,
}

impl fmt::Debug for LedgerPromise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl LedgerPromise {
    /// Checks the promise on a new store.
    ///
    /// # Errors
    /// The observation that breaks it.
    pub fn check(&self, make: StoreFactory<'_>) -> Result<(), String> {
        let store = make();
        catch_unwind(AssertUnwindSafe(|| (self.check)(&*store)))
            .unwrap_or_else(|panic| Err(format!("it panicked: {}", panic_text(&*panic)).into()))
            .map_err(|broken| broken.to_string())
    }
}

macro_rules! promises {
    ($($module:ident::$name:ident,)*) => {
        /// Every promise.
        pub const ALL_PROMISES: &[LedgerPromise] =
            &[$(LedgerPromise { name: stringify!($name), check: $module::$name },)*];
    };
}

promises! {
    commits::commit_stores_every_part,
    commits::stopped_commit_changes_nothing,
    commits::full_store_changes_nothing,
    commits::reload_equals_model,
    commits::pruned_job_cannot_be_written,
    commits::keys_and_rows_are_not_reused,
    commits::second_writer_is_refused,
    commits::id_is_kept,
    bounds::parked_messages_are_bounded,
    bounds::dead_messages_are_bounded,
    bounds::extreme_values_read_back,
    reader_pages::readers_see_whole_commits,
    reader_pages::pages_have_every_row_once,
    reader_pages::page_ends_at_its_bound,
    reader_pages::prune_spares_running_jobs,
}

/// Checks every promise, each on a store of its own.
///
/// # Panics
/// If promises are broken. The text names all of them, each with its observation.
pub fn check_all(make: StoreFactory<'_>) {
    let broken: Vec<String> = ALL_PROMISES
        .iter()
        .filter_map(|promise| Some(format!("- {}: {}", promise.name, promise.check(make).err()?)))
        .collect();
    let (count, all) = (broken.len(), ALL_PROMISES.len());
    assert!(broken.is_empty(), "{count} of {all} promises are broken:\n{}", broken.join("\n"));
}
