//! Dead messages, recorded for people to look at.

use gristmill_ledger::{DEAD_BODY_MAX_BYTES, DEAD_MAX_MESSAGES, DeadMessage, DeadMessages, DeadRow};
use gristmill_shared::Message;
use rusqlite::{Connection, Row, Transaction, params};

use crate::{
    columns::{clamp_int, parse_json},
    message_columns::{StoredMessage, encode_properties},
};

/// Inserts a message.
pub(crate) fn insert(transaction: &Transaction<'_>, dead: &DeadMessage) -> rusqlite::Result<()> {
    let DeadMessage { received_ms, reason, message } = dead;
    let shown = &message.body[..message.body.len().min(DEAD_BODY_MAX_BYTES)];
    transaction
        .prepare_cached(
            "INSERT INTO dead (received_ms, reason, properties, bytes, body) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            clamp_int(*received_ms),
            reason,
            encode_properties(message),
            message.body.len(),
            shown
        ])?;
    Ok(())
}

/// Drops the oldest messages beyond the bound, and counts them.
pub(crate) fn drop_oldest(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
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
    Ok(())
}

/// Counts the messages, including those that were dropped.
pub(crate) fn count_all(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT (SELECT count(*) FROM dead) + (SELECT dead_dropped FROM ledger)";
    connection.query_row(sql, [], |row| row.get(0))
}

/// Loads all messages, the newest first.
pub(crate) fn load_all(connection: &Connection) -> rusqlite::Result<DeadMessages> {
    let mut rows = connection
        .prepare("SELECT received_ms, reason, properties, bytes, body FROM dead ORDER BY seq DESC")?;
    let messages = rows.query_map([], read_row)?.collect::<Result<_, _>>()?;
    let dropped = connection.query_row("SELECT dead_dropped FROM ledger", [], |row| row.get(0))?;
    Ok(DeadMessages { messages, dropped })
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<DeadRow> {
    let StoredMessage(Message { id, form, job, app, headers, .. }) = parse_json(row, 2)?;
    let (received_ms, reason, bytes) = (row.get(0)?, row.get(1)?, row.get(3)?);
    let body = String::from_utf8_lossy(row.get_ref(4)?.as_blob()?).into_owned();
    Ok(DeadRow { received_ms, reason, origin: headers.origin, id, form, app, job, bytes, body })
}
