//! Reads the journal, a stream, from its first entry, and knows when it has caught up.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use gristmill_shared::{JournalEntry, JournalReader, TransportError};
use lapin::{message::Delivery, types::AMQPValue};
use tokio::time::timeout;

use crate::{
    consume::stream_reader::Feed,
    connection::generation::{ANSWER_TIMEOUT, Generation},
    connection::handle::{Line, Link},
    publish::properties,
    consume::resubscribe::Renewed,
    topology::{JOURNAL, table, text},
};

/// How long to wait for the last entry before the broker is asked whether it is still there.
const LAST_ENTRY_TIMEOUT: Duration = Duration::from_millis(500);
/// The same, where there was an entry before the connection was lost: a broker that has just started is slow.
const LAST_ENTRY_AGAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the last entry is looked for behind the one that was found. Only a journal that grows faster than it can
/// be read needs as many; then it is caught up with a little early.
const LAST_ENTRY_ROUNDS: usize = 1_000;

pub(crate) struct AmqpJournal {
    reading: Renewed<Reading>,
    /// The last entry that was given.
    given: Option<Given>,
    told: bool,
}

/// An entry by its place and name. The name tells whether the journal there is still the same.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Given {
    offset: i64,
    id: String,
}

/// The journal, read from some place on, on one channel.
struct Reading {
    feed: Feed,
    /// Taken from the feed already.
    ahead: Option<Delivery>,
    catch_up: CatchUp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CatchUp {
    /// When the entry with this offset has been given.
    After(i64),
    Now,
}

impl AmqpJournal {
    pub(crate) async fn open(link: Arc<Link>) -> Result<Self, TransportError> {
        let line = Line::clone(&link);
        let from_start = |generation| Reading::begin(line.clone(), generation, None);
        let reading = Renewed::make(link, "reading the journal".into(), from_start).await?;
        Ok(Self { reading, given: None, told: false })
    }
}

#[async_trait]
impl JournalReader for AmqpJournal {
    async fn next(&mut self) -> Result<JournalEntry, TransportError> {
        loop {
            let (line, given) = (self.reading.line().clone(), self.given.clone());
            let reading = self
                .reading
                .get(|| move |generation| Reading::begin(line.clone(), generation, given.clone()));
            let reading = reading.await?;
            if !self.told && reading.catch_up == CatchUp::Now {
                self.told = true;
                return Ok(JournalEntry::CaughtUp);
            }
            match reading.next().await {
                Ok(entry) => {
                    self.given = Given::of(&entry);
                    let (properties, body) = (entry.properties, Bytes::from(entry.data));
                    return Ok(JournalEntry::Fact(properties::incoming(&properties, body, false)));
                }
                Err(error) => {
                    let generation = reading.feed.generation();
                    self.reading.lost(generation, &error);
                }
            }
        }
    }
}

impl Reading {
    /// Goes on after the entry that was given last, or at the start if there is none, or if it is not there any more
    /// because the journal was made anew.
    async fn begin(
        line: Line,
        generation: Arc<Generation>,
        given: Option<Given>,
    ) -> Result<Self, TransportError> {
        line.journal_ready(&generation).await?;
        let patience = if given.is_some() { LAST_ENTRY_AGAIN_TIMEOUT } else { LAST_ENTRY_TIMEOUT };
        let last = last_offset(Arc::clone(&generation), patience).await?;
        let catch_up = last.map_or(CatchUp::Now, CatchUp::After);
        if let Some(given) = given.filter(|given| last >= Some(given.offset)) {
            let mut feed = read_from(AMQPValue::LongLongInt(given.offset), Arc::clone(&generation)).await?;
            let Ok(entry) = timeout(ANSWER_TIMEOUT, feed.next()).await else {
                return Err(generation
                    .end
                    .disconnected(&format!("no entry {} of the journal", given.offset)));
            };
            let entry = entry?;
            let same = Given::of(&entry).is_some_and(|found| found == given);
            let later = offset(&entry) > Some(given.offset); // the journal has forgotten what was in between
            if same || later {
                let catch_up = if last == Some(given.offset) { CatchUp::Now } else { catch_up };
                return Ok(Self { feed, ahead: later.then_some(entry), catch_up });
            }
        }
        let feed = read_from(text("first"), generation).await?;
        Ok(Self { feed, ahead: None, catch_up })
    }

    /// The next entry. Cancel safe.
    async fn next(&mut self) -> Result<Delivery, TransportError> {
        let entry = match self.ahead.take() {
            Some(entry) => entry,
            None => self.feed.next().await?,
        };
        // A reader may start beyond the last entry if the journal forgot it in the meantime.
        if matches!(self.catch_up, CatchUp::After(last) if offset(&entry) >= Some(last)) {
            self.catch_up = CatchUp::Now;
        }
        Ok(entry)
    }
}

impl Given {
    fn of(entry: &Delivery) -> Option<Self> {
        let id = entry.properties.message_id().as_ref().map_or_else(String::new, ToString::to_string);
        offset(entry).map(|offset| Self { offset, id })
    }
}

impl fmt::Debug for AmqpJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { given, told, .. } = self;
        f.debug_struct("AmqpJournal").field("given", given).field("told", told).finish_non_exhaustive()
    }
}

async fn read_from(place: AMQPValue, generation: Arc<Generation>) -> Result<Feed, TransportError> {
    let channel = generation.channel().await?;
    Feed::open(generation, channel, JOURNAL.into(), table([("x-stream-offset", place)])).await
}

/// The offset of the last entry there is now. Asking for `last` gives the last *chunk*, which may have many.
async fn last_offset(generation: Arc<Generation>, patience: Duration) -> Result<Option<i64>, TransportError> {
    let mut feed = read_from(text("last"), generation).await?;
    let mut last = match timeout(patience, feed.next()).await {
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
