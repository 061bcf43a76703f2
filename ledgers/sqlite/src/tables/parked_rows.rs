//! Messages about jobs that this ledger does not know yet.

use gristmill_shared::{JobId, Message};
use rusqlite::{Connection, Transaction, params};

use crate::ledger::message_columns::{encode_properties, read_message};

/// Messages that may be parked. Beyond that the oldest are dropped, and counted.
pub(crate) const PARKED_MAX_MESSAGES: u64 = 10_000;
/// Bytes of bodies that may be parked. Beyond that the oldest messages are dropped, and counted.
pub(crate) const PARKED_MAX_BYTES: u64 = 64 << 20;

/// Loads the messages about a job, in the order of their arrival.
pub(crate) fn load(connection: &Connection, job: JobId) -> rusqlite::Result<Vec<Message>> {
    let mut rows =
        connection.prepare_cached("SELECT properties, body FROM parked WHERE job = ?1 ORDER BY seq")?;
    rows.query_map([job.to_string()], |row| read_message(row, 0, 1))?.collect()
}

/// Inserts a message.
pub(crate) fn insert(transaction: &Transaction<'_>, job: JobId, message: &Message) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO parked (job, properties, body) VALUES (?1, ?2, ?3)")?
        .execute(params![job.to_string(), encode_properties(message), &message.body[..]])?;
    Ok(())
}

/// Deletes all messages about a job.
pub(crate) fn remove(transaction: &Transaction<'_>, job: JobId) -> rusqlite::Result<()> {
    transaction.prepare_cached("DELETE FROM parked WHERE job = ?1")?.execute([job.to_string()])?;
    Ok(())
}

/// Drops the oldest messages beyond the bounds. Returns their number.
pub(crate) fn drop_oldest(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    // Counted from the newest on: drops the first that exceeds a bound, and all older ones.
    let dropped = transaction
        .prepare_cached(
            "DELETE FROM parked WHERE seq <= (
                 SELECT max(seq) FROM (
                     SELECT seq, count(*) OVER newer AS messages, sum(length(body)) OVER newer AS bytes
                     FROM parked WINDOW newer AS (ORDER BY seq DESC ROWS UNBOUNDED PRECEDING))
                 WHERE messages > ?1 OR bytes > ?2)",
        )?
        .execute([PARKED_MAX_MESSAGES, PARKED_MAX_BYTES])? as u64;
    if dropped > 0 {
        transaction.execute("UPDATE ledger SET parked_dropped = parked_dropped + ?1", [dropped])?;
    }
    Ok(dropped)
}
