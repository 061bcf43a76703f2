//! A reader of the journal, a stream, from its first entry, which reports when it has caught up.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use gristmill_shared::{JournalEntry, JournalReader, TransportError};
use lapin::{message::Delivery, types::AMQPValue};
use tokio::time::timeout;

use super::{resubscribe::AutoRecover, stream_reader::StreamReader};
use crate::{
    connection::{ConnectionHandle, CurrentConnection, Generation, REPLY_TIMEOUT},
    publish::properties,
    topology::{JOURNAL_QUEUE, table, text},
};

/// Time to wait for the last entry before a round trip shows if there is one.
const LAST_ENTRY_TIMEOUT: Duration = Duration::from_millis(500);
/// The same after a reconnect, if an entry was read before: a broker that has just started is slow.
const LAST_ENTRY_RECOVERY_TIMEOUT: Duration = Duration::from_secs(3);
/// Number of rounds in which entries after the last known one are looked for. Only a journal that
/// grows faster than it is read needs as many; catching up is then reported a little early.
const LAST_ENTRY_ROUNDS: usize = 1_000;

pub(crate) struct AmqpJournal {
    stream: AutoRecover<JournalStream>,
    /// The last entry that was returned.
    last_given: Option<EntryPosition>,
    caught_up_sent: bool,
}

/// An entry by its offset and message id. The id shows if the journal is still the same.
#[derive(Clone, PartialEq, Eq, Debug)]
struct EntryPosition {
    offset: i64,
    id: String,
}

/// The journal from some offset on, read on one channel.
struct JournalStream {
    reader: StreamReader,
    /// An entry that was read ahead.
    buffered: Option<Delivery>,
    catch_up: CatchUp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CatchUp {
    /// Caught up when the entry with this offset has been returned.
    After(i64),
    Done,
}

impl AmqpJournal {
    pub(crate) async fn open(handle: Arc<ConnectionHandle>) -> Result<Self, TransportError> {
        let connection = CurrentConnection::clone(&handle);
        let from_start = |generation| JournalStream::open(connection.clone(), generation, None);
        let stream = AutoRecover::open(handle, "reading the journal".into(), from_start).await?;
        Ok(Self { stream, last_given: None, caught_up_sent: false })
    }
}

#[async_trait]
impl JournalReader for AmqpJournal {
    async fn next(&mut self) -> Result<JournalEntry, TransportError> {
        loop {
            let (connection, last_given) = (self.stream.connection().clone(), self.last_given.clone());
            let stream = self.stream.get(|| {
                move |generation| JournalStream::open(connection.clone(), generation, last_given.clone())
            });
            let stream = stream.await?;
            if !self.caught_up_sent && stream.catch_up == CatchUp::Done {
                self.caught_up_sent = true;
                return Ok(JournalEntry::CaughtUp);
            }
            match stream.next().await {
                Ok(entry) => {
                    self.last_given = EntryPosition::from_entry(&entry);
                    let (properties, body) = (entry.properties, Bytes::from(entry.data));
                    return Ok(JournalEntry::Fact(properties::decode(&properties, body, false)));
                }
                Err(error) => {
                    let generation = stream.reader.generation();
                    self.stream.mark_lost(generation, &error);
                }
            }
        }
    }
}

impl JournalStream {
    /// Opens the stream after the last returned entry. Starts with the first entry if there was
    /// none, or if the journal has been made again since.
    async fn open(
        connection: CurrentConnection,
        generation: Arc<Generation>,
        last_given: Option<EntryPosition>,
    ) -> Result<Self, TransportError> {
        connection.wait_for_journal(&generation).await?;
        let patience = if last_given.is_some() { LAST_ENTRY_RECOVERY_TIMEOUT } else { LAST_ENTRY_TIMEOUT };
        let last = last_offset(Arc::clone(&generation), patience).await?;
        let catch_up = last.map_or(CatchUp::Done, CatchUp::After);
        if let Some(last_given) = last_given.filter(|last_given| last >= Some(last_given.offset)) {
            let mut reader =
                open_stream(AMQPValue::LongLongInt(last_given.offset), Arc::clone(&generation)).await?;
            let Ok(entry) = timeout(REPLY_TIMEOUT, reader.next()).await else {
                return Err(generation.end.disconnect_error(&format!(
                    "the journal did not return its entry {}",
                    last_given.offset
                )));
            };
            let entry = entry?;
            let same = EntryPosition::from_entry(&entry).is_some_and(|found| found == last_given);
            let later = entry_offset(&entry) > Some(last_given.offset); // the journal dropped those in between
            if same || later {
                let catch_up = if last == Some(last_given.offset) { CatchUp::Done } else { catch_up };
                return Ok(Self { reader, buffered: later.then_some(entry), catch_up });
            }
        }
        let reader = open_stream(text("first"), generation).await?;
        Ok(Self { reader, buffered: None, catch_up })
    }

    /// Returns the next entry. Cancel safe.
    async fn next(&mut self) -> Result<Delivery, TransportError> {
        let entry = match self.buffered.take() {
            Some(entry) => entry,
            None => self.reader.next().await?,
        };
        // A reader may start beyond the last entry if the journal dropped it in the meantime.
        if matches!(self.catch_up, CatchUp::After(last) if entry_offset(&entry) >= Some(last)) {
            self.catch_up = CatchUp::Done;
        }
        Ok(entry)
    }
}

impl EntryPosition {
    fn from_entry(entry: &Delivery) -> Option<Self> {
        let id = entry.properties.message_id().as_ref().map_or_else(String::new, ToString::to_string);
        entry_offset(entry).map(|offset| Self { offset, id })
    }
}

impl fmt::Debug for AmqpJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { last_given, caught_up_sent, .. } = self;
        f.debug_struct("AmqpJournal")
            .field("last_given", last_given)
            .field("caught_up_sent", caught_up_sent)
            .finish_non_exhaustive()
    }
}

async fn open_stream(place: AMQPValue, generation: Arc<Generation>) -> Result<StreamReader, TransportError> {
    let channel = generation.open_channel().await?;
    StreamReader::open(generation, channel, JOURNAL_QUEUE.into(), table([("x-stream-offset", place)])).await
}

/// Returns the offset of the current last entry. The offset spec `last` means the last *chunk*,
/// which may hold many entries.
async fn last_offset(generation: Arc<Generation>, patience: Duration) -> Result<Option<i64>, TransportError> {
    let mut reader = open_stream(text("last"), generation).await?;
    let mut last = match timeout(patience, reader.next()).await {
        Ok(first) => entry_offset(&first?),
        Err(_) => {
            // The journal is empty, or the broker is busy: after a round trip, all existing entries
            // have arrived.
            reader.flush().await?;
            match reader.try_next() {
                Some(first) => entry_offset(&first?),
                None => return Ok(None),
            }
        }
    };
    for _ in 0..LAST_ENTRY_ROUNDS {
        reader.flush().await?;
        let mut more = false;
        while let Some(entry) = reader.try_next() {
            last = last.max(entry_offset(&entry?));
            more = true;
        }
        if !more {
            break;
        }
    }
    Ok(last)
}

fn entry_offset(entry: &Delivery) -> Option<i64> {
    match entry.properties.headers().as_ref()?.inner().get("x-stream-offset")? {
        AMQPValue::LongLongInt(offset) => Some(*offset),
        _ => None,
    }
}
