//! Messages that are to be published, as durably as what they follow from.

use gristmill_shared::{
    Address, Lane, LedgerId, Message, Outgoing, QueueRole, Topic,
    wire::{Finished, Form},
};
use rusqlite::{Connection, Transaction, params};

use crate::ledger::{
    columns::text,
    message_columns::{message, properties},
};

/// How many rows are published at a time, for each target.
const BATCH_MAX_ROWS: i64 = 64;
/// A batch ends when its bodies reach this size.
const BATCH_MAX_BYTES: usize = 4 << 20;
/// How large an end may be that is told live as well. What waits for a slow listener is bounded by number alone: 10,000
/// such events are 40 MiB of the broker's memory.
const LIVE_MAX_BYTES: usize = 4 << 10;

/// Where a row goes. Rows of one target go out in order, but for those that the broker refused at first; one target
/// does not wait for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    /// Facts about jobs.
    Journal,
    /// Tasks that are sent again.
    Tasks,
    /// Messages that are none of ours.
    Dead,
}

impl Target {
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
    pub(crate) target: Target,
    pub(crate) rows: Vec<(i64, Outgoing)>,
    /// Ends of jobs among them, as events: whoever waits for one has it sooner than from the journal. Nothing is lost with
    /// them.
    pub(crate) live: Vec<Outgoing>,
}

/// What became of rows that were handed out.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) target: Target,
    /// Rows that the broker has.
    pub(crate) stored: Vec<i64>,
    /// Rows that it will not take as it is set up now.
    pub(crate) refused: Vec<Refused>,
}

/// A row that the broker refused.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) row: i64,
    pub(crate) message: Message,
    pub(crate) why: String,
}

/// Adds a message.
pub(crate) fn insert(
    transaction: &Transaction<'_>,
    target: Target,
    lane: &Lane,
    letter: &Message,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO outbox (target, lane, properties, body) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![target.as_str(), lane.as_str(), properties(letter), &letter.body[..]])?;
    Ok(())
}

/// Removes a message that is dealt with.
pub(crate) fn remove(transaction: &Transaction<'_>, seq: i64) -> rusqlite::Result<()> {
    transaction.prepare_cached("DELETE FROM outbox WHERE seq = ?1")?.execute([seq])?;
    Ok(())
}

/// How many messages there are.
pub(crate) fn count(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))
}

/// The lanes whose queues the rows need.
pub(crate) fn lanes(connection: &Connection) -> rusqlite::Result<Vec<Lane>> {
    let mut lanes = connection.prepare("SELECT DISTINCT lane FROM outbox WHERE target <> ?1")?;
    lanes.query_map([Target::Journal.as_str()], |row| text(row, 0))?.collect()
}

/// The next messages after `seq` for that target. One without an id gets one that stays the same when it is published
/// again, so that readers can tell.
pub(crate) fn next(
    connection: &Connection,
    ledger: &LedgerId,
    target: Target,
    seq: i64,
) -> rusqlite::Result<OutboxBatch> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, lane, properties, body FROM outbox WHERE target = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    let mut found = statement.query(params![target.as_str(), seq, BATCH_MAX_ROWS])?;
    let (mut rows, mut live, mut bytes) = (Vec::new(), Vec::new(), 0);
    while let Some(row) = found.next()? {
        let seq: i64 = row.get(0)?;
        let mut message = message(row, 2, 3)?;
        if message.id.is_empty() {
            message.id = format!("{ledger}/{seq}");
        }
        bytes += message.body.len();
        let lane: Lane = text(row, 1)?;
        if target == Target::Journal
            && message.form == Finished::FORM
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
