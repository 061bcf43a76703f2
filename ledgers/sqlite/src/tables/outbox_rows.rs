//! Messages to publish, stored in the transaction that causes them.

use gristmill_shared::{
    Address, Lane, LedgerId, Message, Outgoing, QueueRole, Topic,
    wire::{Finished, WireMessage},
};
use rusqlite::{Connection, Transaction, params};

use crate::ledger::{
    columns::parse_text,
    message_columns::{encode_properties, read_message},
};

/// Rows that are published at a time, for each target.
const BATCH_MAX_ROWS: i64 = 64;
/// Size of the bodies at which a batch ends.
const BATCH_MAX_BYTES: usize = 4 << 20;
/// Size of a job's end up to which it is also published as an event. For a slow subscriber only the
/// number of waiting events is bounded: 10,000 of this size take 40 MiB of the broker's memory.
const LIVE_MAX_BYTES: usize = 4 << 10;

/// The destination of a row. Rows of one target are published in order, except those that the
/// broker rejects at first; targets do not wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum OutboxTarget {
    /// Facts about jobs.
    Journal,
    /// Tasks that are sent again.
    Tasks,
    /// Malformed or foreign messages.
    Dead,
}

impl OutboxTarget {
    pub(crate) const ALL: [Self; 3] = [Self::Journal, Self::Tasks, Self::Dead];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::Tasks => "tasks",
            Self::Dead => "dead",
        }
    }

    fn address(self, lane: &Lane) -> Address {
        match self {
            Self::Journal => Address::Journal,
            Self::Tasks => Address::Queue(QueueRole::Tasks.of(lane)),
            Self::Dead => Address::Queue(QueueRole::Dead.of(lane)),
        }
    }
}

/// Rows on their way to the broker.
#[derive(Debug)]
pub(crate) struct OutboxBatch {
    pub(crate) target: OutboxTarget,
    pub(crate) rows: Vec<(i64, Outgoing)>,
    /// Job ends among the rows, as events, which arrive earlier than the journal's. They are best
    /// effort.
    pub(crate) live: Vec<Outgoing>,
}

/// The broker's answer to a batch.
#[derive(Debug)]
pub(crate) struct OutboxAnswer {
    pub(crate) target: OutboxTarget,
    /// Rows that the broker confirmed.
    pub(crate) stored: Vec<i64>,
    /// Rows that the broker does not accept as it is configured now.
    pub(crate) refused: Vec<RefusedRow>,
}

/// A row that the broker refused.
#[derive(Debug)]
pub(crate) struct RefusedRow {
    pub(crate) row: i64,
    pub(crate) message: Message,
    pub(crate) why: String,
}

/// Inserts a message.
pub(crate) fn insert(
    transaction: &Transaction<'_>,
    target: OutboxTarget,
    lane: &Lane,
    message: &Message,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO outbox (target, lane, properties, body) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![target.as_str(), lane.as_str(), encode_properties(message), &message.body[..]])?;
    Ok(())
}

/// Deletes a message that is settled.
pub(crate) fn remove(transaction: &Transaction<'_>, seq: i64) -> rusqlite::Result<()> {
    transaction.prepare_cached("DELETE FROM outbox WHERE seq = ?1")?.execute([seq])?;
    Ok(())
}

/// Counts the messages.
pub(crate) fn count_rows(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))
}

/// Loads the lanes whose queues the rows need.
pub(crate) fn load_lanes(connection: &Connection) -> rusqlite::Result<Vec<Lane>> {
    let mut lanes = connection.prepare("SELECT DISTINCT lane FROM outbox WHERE target <> ?1")?;
    lanes.query_map([OutboxTarget::Journal.as_str()], |row| parse_text(row, 0))?.collect()
}

/// Loads the next messages after `seq` for the target. A message without an id gets one that is
/// stable when it is published again, so that readers detect repetitions.
pub(crate) fn load_batch(
    connection: &Connection,
    ledger: &LedgerId,
    target: OutboxTarget,
    seq: i64,
) -> rusqlite::Result<OutboxBatch> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, lane, properties, body FROM outbox WHERE target = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    let mut found = statement.query(params![target.as_str(), seq, BATCH_MAX_ROWS])?;
    let (mut rows, mut live, mut bytes) = (Vec::new(), Vec::new(), 0);
    while let Some(row) = found.next()? {
        let seq: i64 = row.get(0)?;
        let mut message = read_message(row, 2, 3)?;
        if message.id.is_empty() {
            message.id = format!("{ledger}/{seq}");
        }
        bytes += message.body.len();
        let lane: Lane = parse_text(row, 1)?;
        if target == OutboxTarget::Journal
            && message.form == Finished::TYPE
            && message.body.len() <= LIVE_MAX_BYTES
            && let Some(job) = message.job
        {
            let to = Address::Events(Topic::Job(lane.clone(), job));
            live.push(Outgoing { to, message: message.clone() });
        }
        rows.push((seq, Outgoing { to: target.address(&lane), message }));
        if bytes >= BATCH_MAX_BYTES {
            break;
        }
    }
    Ok(OutboxBatch { target, rows, live })
}
