//! Publishes what the ledger's outbox holds, and tells progress.

use std::mem;

use flume::{Receiver, Sender};
use futures::{StreamExt, stream::FuturesUnordered};
use gristmill_shared::{
    Address, Outgoing, Published, Publisher, StoreError, Topic, WorkerId,
    fail_point::{FailPoint, reached},
    publish_until_answered,
    wire::{Event, Form},
};

use crate::{
    SinkError,
    engine::ledger_thread::Errand,
    ledger::outbox_rows::{Answered, OutboxBatch, Refused},
};

/// How many lots of ends may be on their way as events. Further ones are read in the journal alone.
const LIVE_MAX: usize = 4;

/// Publishes each batch until the broker has answered all of it, and says what it answered; ends when the clerk has gone
/// and nothing is on its way. A full queue holds up its own target only. Ends are told live as well, once; nobody depends on that.
///
/// # Errors
/// If something cannot be stored for a reason that waiting does not mend.
pub(crate) async fn empty_outbox(
    batches: Receiver<OutboxBatch>,
    errands: Sender<Errand>,
    publisher: &dyn Publisher,
) -> Result<(), SinkError> {
    let (mut in_flight, mut live) = (FuturesUnordered::new(), FuturesUnordered::new());
    loop {
        tokio::select! {
            Some(answered) = in_flight.next() => {
                // A clerk who has gone strikes them next time, and readers know the repetition by its id.
                let _ = errands.send_async(Errand::Answered(answered?)).await;
            }
            batch = batches.recv_async(), if !batches.is_disconnected() || !batches.is_empty() => {
                if let Ok(mut batch) = batch {
                    reached(FailPoint::SinkTelling);
                    let ends = mem::take(&mut batch.live);
                    if !ends.is_empty() && live.len() < LIVE_MAX {
                        live.push(publisher.publish(ends));
                    }
                    in_flight.push(publish(batch, publisher));
                }
            }
            Some(_) = live.next() => {} // nobody waits for an event
            else => return Ok(()),
        }
    }
}

/// Publishes the rows together, which keeps their order. Those that the broker refuses at first are tried again alone,
/// and so come later than what was to follow on them.
async fn publish(batch: OutboxBatch, publisher: &dyn Publisher) -> Result<Answered, SinkError> {
    let OutboxBatch { target, rows, .. } = batch;
    let answers = publisher.publish(rows.iter().map(|(_, outgoing)| outgoing.clone()).collect()).await;
    if answers.len() != rows.len() {
        return Err(StoreError::Lost.into()); // of some of them nobody knows
    }
    let mut answered = Answered { target, stored: Vec::with_capacity(rows.len()), refused: Vec::new() };
    for ((row, outgoing), answer) in rows.into_iter().zip(answers) {
        let message = outgoing.message.clone();
        let refusal = match answer {
            Published::Stored => None,
            Published::Refused(why) => Some(why),
            Published::Denied(why) => return Err(StoreError::Denied { to: outgoing.to, why }.into()),
            // The next try ends well, or says what is wrong.
            Published::Rejected | Published::Unroutable | Published::Unknown => {
                publish_until_answered(publisher, vec![outgoing]).await?.pop().map(|(_, why)| why)
            }
        };
        match refusal {
            None => answered.stored.push(row),
            Some(why) => answered.refused.push(Refused { row, message, why }),
        }
    }
    Ok(answered)
}

/// Tells progress and stalls to whoever listens, until the clerk has gone.
pub(crate) async fn tell(news: Receiver<Vec<(Topic, Event)>>, publisher: &dyn Publisher, app: &WorkerId) {
    let app = app.as_str();
    while let Ok(news) = news.recv_async().await {
        let events = news.into_iter().map(|(topic, event)| {
            let message = match event {
                Event::Progress(progress) => progress.message(format!("{}/progress", progress.job), app),
                Event::Missing(missing) => missing.message(format!("{}/missing", missing.job), app),
                Event::Finished(finished) => finished.message(format!("{}/finished", finished.job), app),
                Event::Worker(beat) => beat.message(format!("{}/beat", beat.worker), app),
            };
            Outgoing { to: Address::Events(topic), message }
        });
        drop(publisher.publish(events.collect()).await); // nobody waits for an event
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use gristmill_shared::{Lane, Message, QueueRole};

    use super::*;
    use crate::ledger::outbox_rows::Target;

    /// Answers as it was told to, call by call, and then always that it has stored; notes the ids of every call.
    #[derive(Debug, Default)]
    struct Scripted {
        answers: Mutex<Vec<Vec<Published>>>,
        calls: Mutex<Vec<Vec<String>>>,
    }

    #[async_trait]
    impl Publisher for Scripted {
        async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
            let ids = batch.iter().map(|outgoing| outgoing.message.id.clone()).collect();
            self.calls.lock().unwrap().push(ids);
            self.answers.lock().unwrap().pop().unwrap_or_else(|| vec![Published::Stored; batch.len()])
        }
    }

    fn batch() -> OutboxBatch {
        let to = Address::Queue(QueueRole::Tasks.of(&Lane::default()));
        let row = |row: i64| {
            (row, Outgoing { to: to.clone(), message: Message { id: row.to_string(), ..Message::default() } })
        };
        OutboxBatch { target: Target::Tasks, rows: (1..=4).map(row).collect(), live: Vec::new() }
    }

    async fn publish_with(answers: Vec<Vec<Published>>) -> (Result<Answered, SinkError>, Vec<String>) {
        let publisher = Scripted { answers: Mutex::new(answers), ..Scripted::default() };
        let end = publish(batch(), &publisher).await;
        (end, publisher.calls.into_inner().unwrap().iter().map(|ids| ids.join(" ")).collect())
    }

    #[tokio::test]
    async fn rows_go_out_together_and_only_what_was_rejected_goes_again() {
        use Published::{Refused, Rejected, Stored};
        let (end, calls) = publish_with(Vec::new()).await;
        assert_eq!((end.unwrap().stored, calls), (vec![1, 2, 3, 4], vec!["1 2 3 4".to_owned()]));

        let (end, calls) =
            publish_with(vec![vec![Rejected, Refused("too large".into()), Stored, Rejected]]).await;
        assert_eq!(end.unwrap().stored, [1, 3, 4]);
        assert_eq!(calls, ["1 2 3 4", "1", "4"]);
    }

    #[tokio::test]
    async fn what_is_refused_at_once_or_later_is_not_taken_for_stored() {
        use Published::{Refused, Rejected, Stored};
        let refused = || Refused("too large".into());
        // The last answer comes first.
        let (end, _) = publish_with(vec![vec![refused()], vec![Stored, refused(), Rejected, Stored]]).await;
        let answered = end.unwrap();
        assert_eq!(answered.stored, [1, 4]);
        let refused: Vec<_> =
            answered.refused.iter().map(|row| (row.row, &*row.message.id, &*row.why)).collect();
        assert_eq!(refused, [(2, "2", "too large"), (3, "3", "too large")]);
    }

    #[tokio::test]
    async fn what_waiting_does_not_mend_is_an_error() {
        use Published::{Stored, Unknown, Unroutable};
        for (answer, expected) in [(Unknown, "lost"), (Unroutable, "gristmill.default.tasks does not exist")]
        {
            // The last answer comes first.
            let (end, _) =
                publish_with(vec![vec![answer.clone()], vec![Stored, answer, Stored, Stored]]).await;
            let error = gristmill_shared::error_chain(&end.unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        assert!(publish_with(vec![vec![Stored]]).await.0.is_err(), "an answer is missing");
    }
}
