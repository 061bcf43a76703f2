//! Hands outcomes to the broker; a batch is settled only after everything that follows from it is stored.

use std::sync::Arc;

use futures::{StreamExt, stream::FuturesUnordered};
use gristmill_shared::{Outgoing, Publisher, StoreError, publish_until_stored};

use tokio_util::sync::CancellationToken;

use crate::in_hand::InHand;

/// How many handoffs may wait for the broker's answer at a time. When they do, slots wait, and nothing further is
/// taken from the broker than the prefetch allows.
pub(crate) const HANDOFFS_IN_FLIGHT: usize = 512;
/// How many handoffs may wait for their turn.
pub(crate) const HANDOFFS_QUEUED: usize = 64;

/// Messages that follow from a batch.
#[derive(Debug)]
pub(crate) struct Handoff {
    pub(crate) messages: Vec<Outgoing>,
    pub(crate) batch: Arc<InHand>,
}

/// Runs until something cannot be stored, or until `no_more` is given and everything handed over before is stored.
pub(crate) async fn hand_on_all(
    handoffs: flume::Receiver<Handoff>,
    publisher: &dyn Publisher,
    no_more: &CancellationToken,
) -> Result<(), StoreError> {
    let mut in_flight = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(stored) = in_flight.next() => stored?,
            Ok(Handoff { messages, batch }) = handoffs.recv_async(), if in_flight.len() < HANDOFFS_IN_FLIGHT => {
                in_flight.push(async move {
                    publish_until_stored(publisher, messages).await.map(|()| batch.close())
                });
            }
            () = no_more.cancelled(), if in_flight.is_empty() => return Ok(()),
        }
    }
}
