//! Messages about jobs that this ledger does not know yet.

use gristmill_shared::{JobId, Message};
use rusqlite::{Connection, Transaction, params};

use super::letter::{message, properties};

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
    let mut dropped = 0;
    loop {
        let (messages, bytes): (u64, u64) = transaction
            .prepare_cached("SELECT count(*), coalesce(sum(length(body)), 0) FROM parked")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let over = messages.saturating_sub(PARKED_MAX_MESSAGES).max(u64::from(bytes > PARKED_MAX_BYTES));
        if over == 0 {
            break;
        }
        transaction
            .prepare_cached("DELETE FROM parked WHERE seq IN (SELECT seq FROM parked ORDER BY seq LIMIT ?1)")?
            .execute([over])?;
        dropped += over;
    }
    if dropped > 0 {
        transaction.execute("UPDATE ledger SET parked_dropped = parked_dropped + ?1", [dropped])?;
    }
    Ok(dropped)
}
