//! Readers of the journal and of events with one flaw.

use std::collections::VecDeque;

use async_trait::async_trait;
use futures::{FutureExt, future::pending};
use tokio::task::yield_now;

use super::{Flaw, flaw_memory::FlawMemory};
use crate::{EventReader, JournalEntry, JournalReader, Message, TransportError};

#[derive(Debug)]
pub(super) struct FlawedJournal {
    inner: Box<dyn JournalReader>,
    flaw: Flaw,
    caught_up: u32,
}

impl FlawedJournal {
    pub(super) fn new(inner: Box<dyn JournalReader>, flaw: Flaw) -> Self {
        Self { inner, flaw, caught_up: 0 }
    }
}

#[async_trait]
impl JournalReader for FlawedJournal {
    async fn next(&mut self) -> Result<JournalEntry, TransportError> {
        let again = match self.flaw {
            Flaw::CatchesUpEarly => self.caught_up == 0,
            Flaw::CatchesUpTwice => self.caught_up == 1,
            _ => false,
        };
        if again {
            self.caught_up += 1;
            return Ok(JournalEntry::CaughtUp);
        }
        loop {
            let entry = await_flawed(self.flaw, self.inner.next()).await?;
            match (&entry, self.flaw) {
                (JournalEntry::CaughtUp, Flaw::NeverCatchesUp) => {}
                (JournalEntry::Fact(_), Flaw::StartsAtEnd) if self.caught_up == 0 => {}
                _ => {
                    self.caught_up += u32::from(matches!(entry, JournalEntry::CaughtUp));
                    return Ok(entry);
                }
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct FlawedEvents {
    inner: Box<dyn EventReader>,
    flaw: Flaw,
    repeated: VecDeque<Message>,
}

impl FlawedEvents {
    pub(super) fn new(inner: Box<dyn EventReader>, flaw: Flaw, memory: &FlawMemory) -> Self {
        Self { inner, flaw, repeated: memory.events.lock().unwrap().clone() }
    }
}

#[async_trait]
impl EventReader for FlawedEvents {
    async fn next(&mut self) -> Result<Message, TransportError> {
        if let Some(event) = self.repeated.pop_front() {
            return Ok(event);
        }
        await_flawed(self.flaw, self.inner.next()).await
    }
}

/// Awaits `next`, with the flaw if it is one of waiting.
pub(super) async fn await_flawed<T>(flaw: Flaw, next: impl Future<Output = T> + Send) -> T {
    match flaw {
        Flaw::MissesWakeUps => match next.now_or_never() {
            Some(output) => output,
            None => pending().await,
        },
        Flaw::LosesOnCancel => {
            let output = next.await;
            yield_now().await;
            output
        }
        _ => next.await,
    }
}
