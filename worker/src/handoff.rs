//! Hands outcomes to the broker; a batch is settled only after everything that follows from it is stored.

use std::sync::Arc;

use futures::{StreamExt, stream::FuturesUnordered};
use gristmill_shared::{
    Outgoing, Publisher, StoreError,
    fail_point::{FailPoint, reached},
    publish_until_stored,
};

use tokio_util::sync::CancellationToken;

use crate::in_hand::InHand;

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

async fn hand_on(Handoff { messages, batch }: Handoff, publisher: &dyn Publisher) -> Result<(), StoreError> {
    reached(FailPoint::WorkerRan);
    match publish_until_stored(publisher, messages).await {
        Ok(()) => reached(FailPoint::WorkerStored),
        // The next worker could do no better, and the batch would go from one to the other for ever.
        Err(StoreError::Refused { to, why }) => {
            tracing::error!(%to, why, "gave up a message that follows from a batch; its tasks have no outcome");
        }
        Err(error) => return Err(error),
    }
    batch.close();
    Ok(())
}
