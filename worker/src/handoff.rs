//! Hands outcomes to the broker; a batch is settled only after everything that follows from it is stored.

use std::{mem, sync::Arc};

use futures::{StreamExt, stream::FuturesUnordered};
use gristmill_shared::{
    Address, Outgoing, Published, Publisher, StoreError,
    fail_point::{FailPoint, reached},
    meter::{WORKER_HANDOFFS_UNCONFIRMED, WORKER_STORED},
    publish_until_answered,
};

use tokio_util::sync::CancellationToken;

use crate::{in_hand::InHand, refused::instead_of};

/// How many handoffs may wait for the broker's answer at a time. When they do, slots wait, and nothing further is
/// taken from the broker than the prefetch allows.
pub(crate) const HANDOFFS_IN_FLIGHT: usize = 512;
/// How many bytes may wait for the broker's answer, give or take the last handoff.
const BYTES_IN_FLIGHT: usize = 32 << 20;
/// How many handoffs may wait for their turn. Those that do go to the broker together.
pub(crate) const HANDOFFS_QUEUED: usize = 64;

/// Messages that follow from a batch.
#[derive(Debug)]
pub(crate) struct Handoff {
    pub(crate) messages: Vec<Outgoing>,
    pub(crate) batch: Arc<InHand>,
}

impl Handoff {
    fn bytes(&self) -> usize {
        self.messages.iter().map(|outgoing| outgoing.message.body.len()).sum()
    }
}

/// Runs until something cannot be stored, or until `no_more` is given and everything handed over before is stored.
pub(crate) async fn hand_on_all(
    handoffs: flume::Receiver<Handoff>,
    publisher: &dyn Publisher,
    no_more: &CancellationToken,
) -> Result<(), StoreError> {
    let mut lots = FuturesUnordered::new();
    let mut alone = FuturesUnordered::new();
    let (mut in_flight, mut bytes_in_flight) = (0, 0);
    loop {
        WORKER_HANDOFFS_UNCONFIRMED.set([], in_flight as f64);
        let room = in_flight < HANDOFFS_IN_FLIGHT && bytes_in_flight < BYTES_IN_FLIGHT;
        tokio::select! {
            biased;
            Some(Went { left, settled, bytes }) = lots.next() => {
                in_flight -= settled;
                bytes_in_flight -= bytes;
                for handoff in left {
                    let bytes = handoff.bytes();
                    alone.push(async move { (bytes, hand_on(handoff, publisher).await) });
                }
            }
            Some((bytes, stored)) = alone.next() => {
                in_flight -= 1;
                bytes_in_flight -= bytes;
                stored?;
            }
            Ok(first) = handoffs.recv_async(), if room => {
                let mut lot = Vec::new();
                let mut next = Some(first);
                while let Some(handoff) = next {
                    in_flight += 1;
                    bytes_in_flight += handoff.bytes();
                    lot.push(handoff);
                    let room = lot.len() < HANDOFFS_QUEUED
                        && in_flight < HANDOFFS_IN_FLIGHT
                        && bytes_in_flight < BYTES_IN_FLIGHT;
                    next = room.then(|| handoffs.try_recv().ok()).flatten();
                }
                lots.push(hand_on_together(lot, publisher));
            }
            () = no_more.cancelled(), if in_flight == 0 => return Ok(()),
        }
    }
}

/// What the metrics call the place where a message goes.
fn queue(to: &Address) -> &'static str {
    match to {
        Address::Queue(queue) => queue.role.as_str(),
        Address::Journal | Address::Events(_) => "none", // nothing that follows from a batch goes there
    }
}

/// What became of handoffs that went together.
struct Went {
    /// Not everything of these was stored; what was not is left.
    left: Vec<Handoff>,
    /// How many of the others there were.
    settled: usize,
    /// How much was stored.
    bytes: usize,
}

/// Sends all that follows from some batches at once, and settles those of which everything was stored. Each of the others
/// then goes its own way: what one queue does not take holds up nobody else.
async fn hand_on_together(lot: Vec<Handoff>, publisher: &dyn Publisher) -> Went {
    lot.iter().for_each(|_| reached(FailPoint::WorkerRan));
    let messages = lot.iter().flat_map(|handoff| &handoff.messages).cloned().collect();
    let mut answers = publisher.publish(messages).await.into_iter();
    let mut went = Went { left: Vec::new(), settled: 0, bytes: 0 };
    for mut handoff in lot {
        let before = handoff.bytes();
        handoff.messages.retain(|outgoing| {
            let stored = answers.next() == Some(Published::Stored);
            if stored {
                WORKER_STORED.add([queue(&outgoing.to)], 1);
            }
            !stored
        });
        went.bytes += before - handoff.bytes();
        if handoff.messages.is_empty() {
            reached(FailPoint::WorkerStored);
            handoff.batch.close();
            went.settled += 1;
        } else {
            went.left.push(handoff);
        }
    }
    went
}

/// Sends until everything that follows from a batch is stored, and settles it.
async fn hand_on(Handoff { messages, batch }: Handoff, publisher: &dyn Publisher) -> Result<(), StoreError> {
    let mut left = messages;
    while !left.is_empty() {
        let mut queues: Vec<_> = left.iter().map(|outgoing| queue(&outgoing.to)).collect();
        let refused = publish_until_answered(publisher, mem::take(&mut left)).await?;
        for (Outgoing { to, .. }, _) in &refused {
            queues.iter().position(|name| *name == queue(to)).map(|place| queues.swap_remove(place));
        }
        queues.into_iter().for_each(|queue| WORKER_STORED.add([queue], 1));
        for (Outgoing { to, message }, why) in refused {
            tracing::warn!(%to, bytes = message.body.len(), why, "the broker would not take results; sending less at a time");
            match instead_of(&message, &why) {
                Some(parts) => {
                    left.extend(parts.into_iter().map(|message| Outgoing { to: to.clone(), message }))
                }
                // The batch stays unsettled: nothing is acked that did not come to something.
                None => return Err(StoreError::Refused { to, why }),
            }
        }
    }
    reached(FailPoint::WorkerStored);
    batch.close();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use async_trait::async_trait;
    use gristmill_shared::{Lane, Message, QueueRole, Receipt, Settlement, Settler, Token};

    use super::*;

    /// Says no to these, once each; and keeps the ids of what it stored.
    #[derive(Debug, Default)]
    struct Refusing {
        refuses: Mutex<Vec<&'static str>>,
        stored: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Publisher for Refusing {
        async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
            let answer = |Outgoing { message, .. }: Outgoing| {
                let mut refuses = self.refuses.lock().unwrap();
                if let Some(place) = refuses.iter().position(|id| *id == message.id) {
                    refuses.remove(place);
                    return Published::Rejected;
                }
                self.stored.lock().unwrap().push(message.id);
                Published::Stored
            };
            batch.into_iter().map(answer).collect()
        }
    }

    #[derive(Debug, Default)]
    struct Acks(AtomicUsize);

    impl Settler for Acks {
        fn settle(&self, _: Token, how: Settlement) {
            assert_eq!(how, Settlement::Ack);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn extend(&self, _: Token) {}
    }

    /// Of a batch with whose tasks the slot is through.
    fn handoff(ids: &[&str], acks: &Arc<Acks>) -> Handoff {
        let settler: Arc<dyn Settler> = Arc::clone(acks) as _;
        let receipt = Receipt::new(Token { generation: 0, tag: 1 }, settler);
        let to = Address::Queue(QueueRole::Results.of(&Lane::default()));
        let message = |id: &&str| Message { id: (*id).into(), ..Message::default() };
        let messages = ids.iter().map(|id| Outgoing { to: to.clone(), message: message(id) }).collect();
        Handoff { messages, batch: Arc::new(InHand::new(receipt, QueueRole::Tasks)) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_of_one_batch_holds_up_no_other_and_is_sent_again_alone() {
        let publisher = Refusing { refuses: Mutex::new(vec!["b"]), ..Refusing::default() };
        let acks = Arc::new(Acks::default());
        let lot = vec![handoff(&["a", "b"], &acks), handoff(&["c"], &acks)];
        let mut went = hand_on_together(lot, &publisher).await;
        assert_eq!((went.settled, acks.0.load(Ordering::Relaxed)), (1, 1), "b is not stored");
        hand_on(went.left.pop().unwrap(), &publisher).await.unwrap();
        assert_eq!(acks.0.load(Ordering::Relaxed), 2);
        assert_eq!(*publisher.stored.lock().unwrap(), ["a", "c", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_waits_goes_and_nothing_is_left_at_the_end() {
        let publisher = Refusing { refuses: Mutex::new(vec!["1", "2"]), ..Refusing::default() };
        let (acks, no_more) = (Arc::new(Acks::default()), CancellationToken::new());
        let (sender, handoffs) = flume::bounded(4);
        for id in ["0", "1", "2", "3"] {
            sender.send(handoff(&[id], &acks)).unwrap();
        }
        no_more.cancel();
        hand_on_all(handoffs, &publisher, &no_more).await.unwrap();
        let mut stored = publisher.stored.lock().unwrap().clone();
        stored.sort();
        assert_eq!(
            (stored, acks.0.load(Ordering::Relaxed)),
            (["0", "1", "2", "3"].map(String::from).to_vec(), 4)
        );
    }
}
