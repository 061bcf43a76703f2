//! Messages about jobs that this ledger does not know yet.

use gristmill_shared::{JobId, Message};
use rusqlite::{Connection, Transaction, params};

use crate::ledger::message_columns::{message, properties};

/// How many messages may be parked. Beyond that the oldest go, and are counted.
pub(crate) const PARKED_MAX_MESSAGES: u64 = 10_000;
/// How many bytes of bodies may be parked. Beyond that the oldest go, and are counted.
pub(crate) const PARKED_MAX_BYTES: u64 = 64 << 20;

/// The messages about a job, in the order of their arrival.
pub(crate) fn load(connection: &Connection, job: JobId) -> rusqlite::Result<Vec<Message>> {
    let mut rows =
        connection.prepare_cached("SELECT properties, body FROM parked WHERE job = ?1 ORDER BY seq")?;
    rows.query_map([job.to_string()], |row| message(row, 0, 1))?.collect()
}

/// Adds a message.
pub(crate) fn insert(transaction: &Transaction<'_>, job: JobId, letter: &Message) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO parked (job, properties, body) VALUES (?1, ?2, ?3)")?
        .execute(params![job.to_string(), properties(letter), &letter.body[..]])?;
    Ok(())
}

/// Removes all messages about a job.
pub(crate) fn remove(transaction: &Transaction<'_>, job: JobId) -> rusqlite::Result<()> {
    transaction.prepare_cached("DELETE FROM parked WHERE job = ?1")?.execute([job.to_string()])?;
    Ok(())
}

/// Drops the oldest messages until no more are left than may be; answers how many went.
pub(crate) fn keep_bounds(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    // Counted from the newest on: the first that is too much goes, and all that are older.
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
