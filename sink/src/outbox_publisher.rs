//! Publication of the ledger's outbox and of progress events.

use std::mem;

use flume::{Receiver, Sender};
use futures::{StreamExt, stream::FuturesUnordered};
use gristmill_shared::{
    Address, Outgoing, PublishError, Published, Publisher, Topic, WorkerId,
    fail_point::{FailPoint, reached},
    publish_until_answered,
    wire::{Event, WireMessage},
};

use crate::{
    SinkError,
    engine::ledger_thread::LedgerCommand,
    outbox::{OutboxAnswer, OutboxBatch, RefusedRow},
};

/// Groups of job ends that may be in flight as events. Further ends are in the journal only.
const LIVE_MAX_GROUPS: usize = 4;

/// Publishes each batch until the broker has answered all of it, and reports the answers. Returns
/// when the ledger thread has ended and nothing is in flight. A full queue delays its own target
/// only. Job ends are also published once as events, best effort.
///
/// # Errors
/// If a row cannot be stored for a reason that waiting does not resolve.
pub(crate) async fn drain_outbox(
    batches: Receiver<OutboxBatch>,
    commands: Sender<LedgerCommand>,
    publisher: &dyn Publisher,
) -> Result<(), SinkError> {
    let (mut in_flight, mut live) = (FuturesUnordered::new(), FuturesUnordered::new());
    loop {
        tokio::select! {
            Some(answered) = in_flight.next() => {
                // If the ledger thread has ended, the next one deletes the rows; readers detect the
                // repetition by its id.
                let _ = commands.send_async(LedgerCommand::OutboxAnswered(answered?)).await;
            }
            batch = batches.recv_async(), if !batches.is_disconnected() || !batches.is_empty() => {
                if let Ok(mut batch) = batch {
                    reached(FailPoint::SinkTelling);
                    let ends = mem::take(&mut batch.live);
                    if !ends.is_empty() && live.len() < LIVE_MAX_GROUPS {
                        live.push(publisher.publish(ends));
                    }
                    in_flight.push(publish_batch(batch, publisher));
                }
            }
            Some(_) = live.next() => {} // events are best effort
            else => return Ok(()),
        }
    }
}

/// Publishes the rows together, which keeps their order. Rows that the broker rejects at first are
/// retried one by one, and so arrive after the rows that follow them.
async fn publish_batch(batch: OutboxBatch, publisher: &dyn Publisher) -> Result<OutboxAnswer, SinkError> {
    let OutboxBatch { target, rows, .. } = batch;
    let answers = publisher.publish(rows.iter().map(|(_, outgoing)| outgoing.clone()).collect()).await;
    if answers.len() != rows.len() {
        return Err(PublishError::Lost.into()); // the fate of some is unknown
    }
    let mut answered = OutboxAnswer { target, stored: Vec::with_capacity(rows.len()), refused: Vec::new() };
    for ((row, outgoing), answer) in rows.into_iter().zip(answers) {
        let message = outgoing.message.clone();
        let refusal = match answer {
            Published::Confirmed => None,
            Published::Invalid(why) => Some(why),
            Published::Forbidden(why) => return Err(PublishError::Forbidden { to: outgoing.to, why }.into()),
            // The retry succeeds, or returns the reason.
            Published::Nacked | Published::Unroutable | Published::Unknown => {
                publish_until_answered(publisher, vec![outgoing]).await?.pop().map(|(_, why)| why)
            }
        };
        match refusal {
            None => answered.stored.push(row),
            Some(why) => answered.refused.push(RefusedRow { row, message, why }),
        }
    }
    Ok(answered)
}

/// Publishes progress and stalls as events until the ledger thread has ended.
pub(crate) async fn publish_events(
    events: Receiver<Vec<(Topic, Event)>>,
    publisher: &dyn Publisher,
    app: &WorkerId,
) {
    let app = app.as_str();
    while let Ok(events) = events.recv_async().await {
        let events = events.into_iter().map(|(topic, event)| {
            let message = match event {
                Event::Progress(progress) => progress.message(format!("{}/progress", progress.job), app),
                Event::Missing(missing) => missing.message(format!("{}/missing", missing.job), app),
                Event::Finished(finished) => finished.message(format!("{}/finished", finished.job), app),
                Event::Worker(beat) => beat.message(format!("{}/beat", beat.worker), app),
            };
            Outgoing { to: Address::Events(topic), message }
        });
        drop(publisher.publish(events.collect()).await); // events are best effort
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use gristmill_shared::{Lane, Message, QueueRole};

    use super::*;
    use gristmill_ledger::OutboxTarget;

    /// Answers call by call from a script, then always `Confirmed`; records the ids of every call.
    #[derive(Debug, Default)]
    struct ScriptedPublisher {
        answers: Mutex<Vec<Vec<Published>>>,
        calls: Mutex<Vec<Vec<String>>>,
    }

    #[async_trait]
    impl Publisher for ScriptedPublisher {
        async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
            let ids = batch.iter().map(|outgoing| outgoing.message.id.clone()).collect();
            self.calls.lock().unwrap().push(ids);
            self.answers.lock().unwrap().pop().unwrap_or_else(|| vec![Published::Confirmed; batch.len()])
        }
    }

    fn batch() -> OutboxBatch {
        let to = Address::Queue(QueueRole::Tasks.of(&Lane::default()));
        let row = |row: i64| {
            (row, Outgoing { to: to.clone(), message: Message { id: row.to_string(), ..Message::default() } })
        };
        OutboxBatch { target: OutboxTarget::Tasks, rows: (1..=4).map(row).collect(), live: Vec::new() }
    }

    async fn publish_with(answers: Vec<Vec<Published>>) -> (Result<OutboxAnswer, SinkError>, Vec<String>) {
        let publisher = ScriptedPublisher { answers: Mutex::new(answers), ..ScriptedPublisher::default() };
        let end = publish_batch(batch(), &publisher).await;
        (end, publisher.calls.into_inner().unwrap().iter().map(|ids| ids.join(" ")).collect())
    }

    /// Rows are published together; only those that were rejected are published again.
    #[tokio::test]
    async fn rejected_rows_are_retried() {
        use Published::{Confirmed, Invalid, Nacked};
        let (end, calls) = publish_with(Vec::new()).await;
        assert_eq!((end.unwrap().stored, calls), (vec![1, 2, 3, 4], vec!["1 2 3 4".to_owned()]));

        let (end, calls) =
            publish_with(vec![vec![Nacked, Invalid("too large".into()), Confirmed, Nacked]]).await;
        assert_eq!(end.unwrap().stored, [1, 3, 4]);
        assert_eq!(calls, ["1 2 3 4", "1", "4"]);
    }

    /// Rows refused at first or on the retry do not count as stored.
    #[tokio::test]
    async fn refused_rows_are_not_stored() {
        use Published::{Confirmed, Invalid, Nacked};
        let refused = || Invalid("too large".into());
        // The last answer comes first.
        let (end, _) =
            publish_with(vec![vec![refused()], vec![Confirmed, refused(), Nacked, Confirmed]]).await;
        let answered = end.unwrap();
        assert_eq!(answered.stored, [1, 4]);
        let refused: Vec<_> =
            answered.refused.iter().map(|row| (row.row, &*row.message.id, &*row.why)).collect();
        assert_eq!(refused, [(2, "2", "too large"), (3, "3", "too large")]);
    }

    #[tokio::test]
    async fn lasting_failure_is_an_error() {
        use Published::{Confirmed, Unknown, Unroutable};
        for (answer, expected) in [(Unknown, "lost"), (Unroutable, "gristmill.default.tasks does not exist")]
        {
            // The last answer comes first.
            let (end, _) =
                publish_with(vec![vec![answer.clone()], vec![Confirmed, answer, Confirmed, Confirmed]]).await;
            let error = gristmill_shared::error_chain(&end.unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        assert!(publish_with(vec![vec![Confirmed]]).await.0.is_err(), "an answer is missing");
    }
}
