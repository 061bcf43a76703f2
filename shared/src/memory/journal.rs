//! The journal: kept for all who read it, from its start or from as far back as its bounds allow.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use tokio::{sync::watch, task::coop::consume_budget};

use super::{Connection, broker::Broker, lock};
use crate::{JournalEntry, JournalReader, Message, Published, TransportError};

/// How many facts the journal keeps. Beyond that the oldest go.
pub(super) const JOURNAL_MAX_FACTS: usize = 100_000;
/// How many bytes of bodies the journal keeps. Beyond that the oldest go.
pub(super) const JOURNAL_MAX_BYTES: usize = 64 << 20;

pub(super) struct Journal {
    kept: Mutex<Kept>,
    /// The number that the next fact will have.
    end: watch::Sender<u64>,
}

#[derive(Default)]
struct Kept {
    facts: VecDeque<Message>,
    bytes: usize,
    /// The number of the oldest of them.
    first: u64,
}

impl Journal {
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
        Published::Stored
    }

    /// The fact with that number, or the oldest there is after it; with its own number.
    fn read(&self, number: u64) -> Option<(u64, Message)> {
        let kept = lock(&self.kept);
        let number = number.max(kept.first);
        let place = usize::try_from(number - kept.first).ok()?;
        kept.facts.get(place).map(|fact| (number, fact.clone()))
    }
}

pub(super) struct MemoryJournal {
    broker: Arc<Broker>,
    connection: Connection,
    end: watch::Receiver<u64>,
    next: u64,
    /// Where the journal ended when it was opened, until that is reached and told.
    catch_up: Option<u64>,
}

impl MemoryJournal {
    pub(super) fn open(broker: Arc<Broker>, connection: Connection) -> Self {
        let end = broker.journal.end.subscribe();
        let catch_up = Some(*end.borrow());
        Self { broker, connection, end, next: 0, catch_up }
    }
}

#[async_trait]
impl JournalReader for MemoryJournal {
    async fn next(&mut self) -> Result<JournalEntry, TransportError> {
        consume_budget().await; // a long journal must not keep others off the thread
        loop {
            self.connection.alive()?;
            if self.catch_up.take_if(|end| self.next >= *end).is_some() {
                return Ok(JournalEntry::CaughtUp);
            }
            if let Some((number, fact)) = self.broker.journal.read(self.next) {
                self.next = number + 1;
                return Ok(JournalEntry::Fact(fact));
            }
            let grows = self.end.wait_for(|end| *end > self.next);
            // It can only fail if the journal is gone, and the broker holds that.
            let _ = self.connection.unless_closed(grows).await?;
        }
    }
}

impl fmt::Debug for MemoryJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryJournal").field("next", &self.next).finish_non_exhaustive()
    }
}
