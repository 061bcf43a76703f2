//! Messages to publish, stored in the transaction that causes them.

use gristmill_ledger::{OutboxRow, OutboxState, OutboxTarget, PageBound};
use gristmill_shared::{Lane, Message};
use rusqlite::{Connection, Transaction, params};

use crate::{
    columns::parse_text,
    message_columns::{encode_properties, read_message},
};

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

/// Loads the number of messages, and the lanes whose queues they need.
pub(crate) fn load_state(connection: &Connection) -> rusqlite::Result<OutboxState> {
    let rows = connection.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))?;
    let mut lanes = connection.prepare("SELECT DISTINCT lane FROM outbox WHERE target <> ?1")?;
    let lanes = lanes.query_map([OutboxTarget::Journal.as_str()], |row| parse_text(row, 0))?;
    Ok(OutboxState { rows, lanes: lanes.collect::<Result<_, _>>()? })
}

/// Loads the next messages after `after` for the target.
pub(crate) fn load_page(
    connection: &Connection,
    target: OutboxTarget,
    after: i64,
    bound: PageBound,
) -> rusqlite::Result<Vec<OutboxRow>> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, lane, properties, body FROM outbox WHERE target = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    let mut found = statement.query(params![target.as_str(), after, bound.rows])?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.next()? {
        let message = read_message(row, 2, 3)?;
        bytes += message.body.len();
        rows.push(OutboxRow { row: row.get(0)?, lane: parse_text(row, 1)?, message });
        if bytes >= bound.bytes {
            break;
        }
    }
    Ok(rows)
}
