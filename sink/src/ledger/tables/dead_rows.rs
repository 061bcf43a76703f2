//! Messages that were none of ours, for people to look at.

use gristmill_shared::{Message, wire::now_ms};
use rusqlite::{Transaction, params};

use crate::ledger::{columns::int, message_columns::properties};

/// How many dead messages are kept. Beyond that the oldest go, and are counted.
pub(crate) const DEAD_MAX_MESSAGES: u64 = 10_000;
/// How much of a dead message's body is kept.
pub(crate) const DEAD_BODY_MAX_BYTES: usize = 16 << 10;

/// Adds a message.
pub(crate) fn insert(transaction: &Transaction<'_>, reason: &str, letter: &Message) -> rusqlite::Result<()> {
    let shown = &letter.body[..letter.body.len().min(DEAD_BODY_MAX_BYTES)];
    transaction
        .prepare_cached(
            "INSERT INTO dead (received_ms, reason, properties, bytes, body) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![int(now_ms()), reason, properties(letter), letter.body.len(), shown])?;
    Ok(())
}

/// Drops the oldest messages until no more are left than may be; answers how many went.
pub(crate) fn keep_bounds(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    let messages: u64 =
        transaction.prepare_cached("SELECT count(*) FROM dead")?.query_row([], |row| row.get(0))?;
    let dropped = messages.saturating_sub(DEAD_MAX_MESSAGES);
    if dropped > 0 {
        transaction.execute(
            "DELETE FROM dead WHERE seq IN (SELECT seq FROM dead ORDER BY seq LIMIT ?1)",
            [dropped],
        )?;
        transaction.execute("UPDATE ledger SET dead_dropped = dead_dropped + ?1", [dropped])?;
    }
    Ok(dropped)
}
