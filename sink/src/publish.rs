//! Publishes what the ledger's outbox holds, and tells progress.

use flume::{Receiver, Sender};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use gristmill_shared::{
    Address, Outgoing, Publisher, StoreError, Topic, WorkerId, publish_until_stored,
    wire::{Form, Progress},
};

use crate::{
    SinkError,
    desk::Errand,
    ledger::outbox::{OutboxBatch, Target},
};

/// Publishes each batch until the broker has it, and has it struck then; ends when the clerk has gone and everything
/// is stored. A full queue holds up its own target only.
///
/// # Errors
/// If something cannot be stored for a reason that waiting does not mend.
pub(crate) async fn empty_outbox(
    batches: Receiver<OutboxBatch>,
    errands: Sender<Errand>,
    publisher: &dyn Publisher,
) -> Result<(), SinkError> {
    let mut in_flight = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(stored) = in_flight.next() => {
                let (target, rows) = stored?;
                // A clerk who has gone strikes them next time, and readers know the repetition by its id.
                let _ = errands.send_async(Errand::Stored(target, rows)).await;
            }
            batch = batches.recv_async(), if !batches.is_disconnected() || !batches.is_empty() => {
                if let Ok(batch) = batch {
                    in_flight.push(publish(batch, publisher));
                }
            }
            else => return Ok(()),
        }
    }
}

async fn publish(batch: OutboxBatch, publisher: &dyn Publisher) -> Result<(Target, Vec<i64>), SinkError> {
    // One by one, so that one that can never be stored does not keep the others; all at once, so that they keep their
    // order and share the broker's answer.
    let publish = |(row, outgoing): (i64, Outgoing)| async move {
        let (id, form) = (outgoing.message.id.clone(), outgoing.message.form.clone());
        match publish_until_stored(publisher, vec![outgoing]).await {
            Ok(()) => Ok(row),
            Err(error @ StoreError::Refused { .. }) => {
                tracing::error!(id, form, %error, "gave up a message of the sink");
                Ok(row)
            }
            Err(error) => Err(error),
        }
    };
    let rows = join_all(batch.rows.into_iter().map(publish)).await;
    Ok((batch.target, rows.into_iter().collect::<Result<_, _>>()?))
}

/// Tells progress to whoever listens, until the clerk has gone.
pub(crate) async fn tell(news: Receiver<Vec<(Topic, Progress)>>, publisher: &dyn Publisher, app: &WorkerId) {
    while let Ok(news) = news.recv_async().await {
        let events = news.into_iter().map(|(topic, progress)| {
            let id = format!("{}/progress", progress.job);
            Outgoing { to: Address::Events(topic), message: progress.message(id, app.as_str()) }
        });
        drop(publisher.publish(events.collect()).await); // nobody waits for an event
    }
}
