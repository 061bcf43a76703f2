//! Dead messages, recorded for people to look at.

use gristmill_shared::{Message, wire::now_ms};
use rusqlite::{Transaction, params};

use crate::ledger::{columns::clamp_int, message_columns::encode_properties};

/// Dead messages that are kept. Beyond that the oldest are dropped, and counted.
pub(crate) const DEAD_MAX_MESSAGES: u64 = 10_000;
/// Bytes that are kept of a dead message's body.
pub(crate) const DEAD_BODY_MAX_BYTES: usize = 16 << 10;

/// Inserts a message.
pub(crate) fn insert(transaction: &Transaction<'_>, reason: &str, message: &Message) -> rusqlite::Result<()> {
    let shown = &message.body[..message.body.len().min(DEAD_BODY_MAX_BYTES)];
    transaction
        .prepare_cached(
            "INSERT INTO dead (received_ms, reason, properties, bytes, body) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            clamp_int(now_ms()),
            reason,
            encode_properties(message),
            message.body.len(),
            shown
        ])?;
    Ok(())
}

/// Drops the oldest messages beyond the bound. Returns their number.
pub(crate) fn drop_oldest(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
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
