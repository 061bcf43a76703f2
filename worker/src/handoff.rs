//! Hands outcomes to the broker; a batch is settled only after everything that follows from it is stored.

use std::{mem, sync::Arc};

use futures::{StreamExt, stream::FuturesUnordered};
use gristmill_shared::{
    Address, Outgoing, Publisher, StoreError,
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
/// How many handoffs may wait for their turn.
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
    let mut in_flight = FuturesUnordered::new();
    let mut bytes_in_flight = 0;
    loop {
        WORKER_HANDOFFS_UNCONFIRMED.set([], in_flight.len() as f64);
        let room = in_flight.len() < HANDOFFS_IN_FLIGHT && bytes_in_flight < BYTES_IN_FLIGHT;
        tokio::select! {
            biased;
            Some((bytes, stored)) = in_flight.next() => {
                bytes_in_flight -= bytes;
                stored?;
            }
            Ok(handoff) = handoffs.recv_async(), if room => {
                let bytes = handoff.bytes();
                bytes_in_flight += bytes;
                in_flight.push(async move { (bytes, hand_on(handoff, publisher).await) });
            }
            () = no_more.cancelled(), if in_flight.is_empty() => return Ok(()),
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

async fn hand_on(Handoff { messages, batch }: Handoff, publisher: &dyn Publisher) -> Result<(), StoreError> {
    reached(FailPoint::WorkerRan);
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
