//! The kept outputs of a job in the order of their tasks, pulled one by one.

use std::{collections::VecDeque, iter, vec};

use gristmill_ledger::{JobKey, KeptOutputs, Ledger, LedgerError, PageBound};
use gristmill_shared::TaskIndex;
use serde_json::value::RawValue;

/// Rows of stored outputs that are in memory at a time. A row has the outputs of one span of a
/// message.
const FOLD_PAGE_MAX_ROWS: usize = 64;
/// The size of the outputs at which such a page ends.
const FOLD_PAGE_MAX_BYTES: usize = 4 << 20;

/// The kept outputs in the ledger and those of the next commit, merged by index.
pub(super) struct OrderedOutputs<'a> {
    ledger: &'a mut dyn Ledger,
    /// The job in the ledger, until all of its rows there have been read.
    stored: Option<JobKey>,
    /// The rows that were read last.
    page: VecDeque<KeptOutputs>,
    /// One more than the first index of the last row that was read.
    from: u64,
    /// The rows of the next commit, by their first index.
    staged: iter::Peekable<vec::IntoIter<&'a KeptOutputs>>,
    /// The index of the first output of `row`.
    first: u64,
    row: iter::Enumerate<vec::IntoIter<Box<RawValue>>>,
    /// The error that ended the iteration early.
    failure: Option<LedgerError>,
}

impl<'a> OrderedOutputs<'a> {
    /// Creates the sequence. `stored` is the job's key, if the ledger has the job.
    pub(super) fn new(ledger: &'a mut dyn Ledger, stored: Option<JobKey>, staged: &'a [KeptOutputs]) -> Self {
        let mut staged: Vec<&KeptOutputs> = staged.iter().collect();
        staged.sort_by_key(|outputs| outputs.first);
        Self {
            ledger,
            stored,
            page: VecDeque::new(),
            from: 0,
            staged: staged.into_iter().peekable(),
            first: 0,
            row: Vec::new().into_iter().enumerate(),
            failure: None,
        }
    }

    /// Returns the error that ended the sequence early, if there was one.
    pub(super) fn finish(self) -> Result<(), LedgerError> {
        self.failure.map_or(Ok(()), Err)
    }

    /// Takes the next row. Returns false at the end.
    fn next_row(&mut self) -> Result<bool, LedgerError> {
        if self.page.is_empty()
            && let Some(job) = self.stored
        {
            let bound = PageBound { rows: FOLD_PAGE_MAX_ROWS, bytes: FOLD_PAGE_MAX_BYTES };
            self.page = self.ledger.kept_outputs(job, self.from, bound)?.into();
            match self.page.back() {
                Some(last) => self.from = last.first.saturating_add(1),
                None => self.stored = None,
            }
        }
        let next_stored = self.page.front().map_or(u64::MAX, |stored| stored.first);
        let staged = self.staged.next_if(|staged| staged.first < next_stored);
        let row = match staged {
            Some(staged) => Some((staged.first, parse(&staged.outputs))),
            None => self.page.pop_front().map(|stored| (stored.first, parse(&stored.outputs))),
        };
        let Some((first, outputs)) = row else { return Ok(false) };
        let outputs = outputs.map_err(|error| LedgerError::Storage {
            place: self.ledger.place().clone(),
            doing: "outputs are read",
            source: format!("those from task {first} on: {error}").into(),
        })?;
        (self.first, self.row) = (first, outputs.into_iter().enumerate());
        Ok(true)
    }
}

fn parse(outputs: &str) -> serde_json::Result<Vec<Box<RawValue>>> {
    serde_json::from_str(outputs)
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
