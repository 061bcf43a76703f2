//! Reads the journal, a stream, from its first entry, and knows when it has caught up.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use gristmill_shared::{JournalEntry, JournalReader, TransportError};
use lapin::{message::Delivery, types::AMQPValue};
use tokio::time::timeout;

use crate::{
    feed::Feed,
    generation::Generation,
    properties,
    topology::{JOURNAL, table, text},
};

/// How long to wait for the last entry before the broker is asked whether it is still there.
const LAST_ENTRY_TIMEOUT: Duration = Duration::from_millis(500);
/// How often the last entry is looked for behind the one that was found. Only a journal that grows faster than it can
/// be read needs as many; then it is caught up with a little early.
const LAST_ENTRY_ROUNDS: usize = 1_000;

#[derive(Debug)]
pub(crate) struct AmqpJournal {
    feed: Feed,
    catch_up: CatchUp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CatchUp {
    /// When the entry with this offset has been given.
    After(i64),
    /// With the next call.
    Now,
    /// It has been told.
    Told,
}

impl AmqpJournal {
    pub(crate) async fn open(generation: Arc<Generation>) -> Result<Self, TransportError> {
        let last = last_offset(Arc::clone(&generation)).await?;
        let feed = read_from("first", generation).await?;
        Ok(Self { feed, catch_up: last.map_or(CatchUp::Now, CatchUp::After) })
    }
}

#[async_trait]
impl JournalReader for AmqpJournal {
    async fn next(&mut self) -> Result<JournalEntry, TransportError> {
        if self.catch_up == CatchUp::Now {
            self.catch_up = CatchUp::Told;
            return Ok(JournalEntry::CaughtUp);
        }
        let entry = self.feed.next().await?;
        // A reader may start beyond the last entry if the journal forgot it in the meantime.
        if matches!(self.catch_up, CatchUp::After(last) if offset(&entry) >= Some(last)) {
            self.catch_up = CatchUp::Now;
        }
        Ok(JournalEntry::Fact(properties::incoming(&entry.properties, Bytes::from(entry.data), false)))
    }
}

async fn read_from(place: &str, generation: Arc<Generation>) -> Result<Feed, TransportError> {
    let channel = generation.channel().await?;
    Feed::open(generation, channel, JOURNAL.into(), table([("x-stream-offset", text(place))])).await
}

/// The offset of the last entry there is now. Asking for `last` gives the last *chunk*, which may have many.
async fn last_offset(generation: Arc<Generation>) -> Result<Option<i64>, TransportError> {
    let mut feed = read_from("last", generation).await?;
    let mut last = match timeout(LAST_ENTRY_TIMEOUT, feed.next()).await {
        Ok(first) => offset(&first?),
        Err(_) => {
            // Nothing there, or a broker that was busy elsewhere: once it answers, what it has is here.
            feed.flush().await?;
            match feed.next_here() {
                Some(first) => offset(&first?),
                None => return Ok(None),
            }
        }
    };
    for _ in 0..LAST_ENTRY_ROUNDS {
        feed.flush().await?;
        let mut more = false;
        while let Some(entry) = feed.next_here() {
            last = last.max(offset(&entry?));
            more = true;
        }
        if !more {
            break;
        }
    }
    Ok(last)
}

fn offset(entry: &Delivery) -> Option<i64> {
    match entry.properties.headers().as_ref()?.inner().get("x-stream-offset")? {
        AMQPValue::LongLongInt(offset) => Some(*offset),
        _ => None,
    }
}
