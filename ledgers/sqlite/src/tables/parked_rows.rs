//! Messages about jobs that this ledger does not know yet.

use gristmill_ledger::{PARKED_MAX_BYTES, PARKED_MAX_MESSAGES, ParkedJob, ParkedMessages};
use gristmill_shared::{JobId, Message};
use rusqlite::{Connection, Transaction, params};

use crate::{
    columns::parse_text,
    message_columns::{encode_properties, read_message},
};

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

/// Counts the messages by job.
pub(crate) fn count_by_job(connection: &Connection) -> rusqlite::Result<ParkedMessages> {
    let mut rows = connection
        .prepare("SELECT job, count(*), sum(length(body)) FROM parked GROUP BY job ORDER BY min(seq)")?;
    let row = |row: &rusqlite::Row<'_>| {
        Ok(ParkedJob { job: parse_text(row, 0)?, messages: row.get(1)?, bytes: row.get(2)? })
    };
    let jobs = rows.query_map([], row)?.collect::<Result<_, _>>()?;
    let dropped = connection.query_row("SELECT parked_dropped FROM ledger", [], |row| row.get(0))?;
    Ok(ParkedMessages { jobs, dropped })
}
