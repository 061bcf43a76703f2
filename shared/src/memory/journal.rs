//! The journal: stored for every reader, from its start or as far back as its bounds allow.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use tokio::{sync::watch, task::coop::consume_budget};

use super::{MemoryConnection, lock};
use crate::{JournalEntry, JournalReader, Message, Published, TransportError};

/// The number of facts that the journal keeps. Beyond that it drops the oldest.
pub(super) const JOURNAL_MAX_FACTS: usize = 100_000;
/// The total size of the bodies that the journal keeps, in bytes. Beyond that it drops the oldest
/// facts.
pub(super) const JOURNAL_MAX_BYTES: usize = 64 << 20;

pub(super) struct StoredJournal {
    kept: Mutex<JournalBuffer>,
    /// The number of the next fact.
    end: watch::Sender<u64>,
}

#[derive(Default)]
struct JournalBuffer {
    facts: VecDeque<Message>,
    bytes: usize,
    /// The number of the oldest fact.
    first: u64,
}

impl StoredJournal {
    pub(super) fn new() -> Self {
        Self { kept: Mutex::default(), end: watch::Sender::new(0) }
    }

    pub(super) fn append(&self, fact: Message) -> Published {
        let mut kept = lock(&self.kept);
        kept.bytes += fact.body.len();
        kept.facts.push_back(fact);
        while kept.facts.len() > JOURNAL_MAX_FACTS || kept.bytes > JOURNAL_MAX_BYTES {
            let Some(oldest) = kept.facts.pop_front() else { break };
            kept.bytes -= oldest.body.len();
            kept.first += 1;
        }
        self.end.send_modify(|end| *end += 1);
        Published::Confirmed
    }

    /// Returns the fact with that number, or the oldest one after it, with its own number.
    fn read(&self, number: u64) -> Option<(u64, Message)> {
        let kept = lock(&self.kept);
        let number = number.max(kept.first);
        let place = usize::try_from(number - kept.first).ok()?;
        kept.facts.get(place).map(|fact| (number, fact.clone()))
    }
}

pub(super) struct MemoryJournalReader {
    journal: Arc<StoredJournal>,
    connection: MemoryConnection,
    end: watch::Receiver<u64>,
    next: u64,
    /// The end of the journal when the reader was opened, until `CaughtUp` is returned.
    catch_up: Option<u64>,
}

impl MemoryJournalReader {
    pub(super) fn open(journal: Arc<StoredJournal>, connection: MemoryConnection) -> Self {
        let end = journal.end.subscribe();
        let catch_up = Some(*end.borrow());
        Self { journal, connection, end, next: 0, catch_up }
    }
}

#[async_trait]
impl JournalReader for MemoryJournalReader {
    async fn next(&mut self) -> Result<JournalEntry, TransportError> {
        consume_budget().await; // a long journal must not starve other tasks of the thread
        loop {
            self.connection.check_open()?;
            if self.catch_up.take_if(|end| self.next >= *end).is_some() {
                return Ok(JournalEntry::CaughtUp);
            }
            if let Some((number, fact)) = self.journal.read(self.next) {
                self.next = number + 1;
                return Ok(JournalEntry::Fact(fact));
            }
            let grows = self.end.wait_for(|end| *end > self.next);
            // Fails only if the journal is gone, and this reader holds it.
            let _ = self.connection.cancel_on_close(grows).await?;
        }
    }
}

impl fmt::Debug for MemoryJournalReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryJournalReader").field("next", &self.next).finish_non_exhaustive()
    }
}
