//! Takes messages from one of the lane's queues and gives them to the slots.

use std::sync::Arc;

use gristmill_shared::{Consumer, Delivery, QueueRole, TransportError};
use tokio_util::sync::CancellationToken;

use crate::{
    handoff::Handoff,
    in_hand::InHand,
    shop::{Shop, handoff},
    slot::Work,
};

/// How many deliveries are taken from the transport at a time; the rest waits there, within the prefetch.
const TAKEN_AT_ONCE: usize = 64;

/// Runs until `leaving` is cancelled; then asks for nothing more and gives away what is here already.
///
/// The consumer is returned open, because what the slots still run is settled through it.
pub(crate) async fn run(
    mut consumer: Box<dyn Consumer>,
    from: QueueRole,
    work: flume::Sender<Work>,
    leaving: CancellationToken,
) -> Result<Box<dyn Consumer>, TransportError> {
    loop {
        let deliveries = tokio::select! {
            deliveries = consumer.recv(TAKEN_AT_ONCE) => deliveries?,
            () = leaving.cancelled() => break,
        };
        give(deliveries, from, &work).await;
    }
    consumer.stop().await?;
    loop {
        let left = consumer.recv(TAKEN_AT_ONCE).await?;
        if left.is_empty() {
            return Ok(consumer);
        }
        give(left, from, &work).await;
    }
}

/// Waits until the slots, or those who hand back what no slot will begin, have taken everything.
async fn give(deliveries: Vec<Delivery>, from: QueueRole, work: &flume::Sender<Work>) {
    for Delivery { message, receipt, redelivered } in deliveries {
        if redelivered {
            tracing::debug!(id = message.id, queue = ?from, "delivered again");
        }
        let next = Work { message, from, batch: Arc::new(InHand::new(receipt)) };
        // Fails only when the worker ends with an error; the batch then stays unsettled.
        let _ = work.send_async(next).await;
    }
}

/// Hands back whatever is given to the slots, at no cost, until the intakes have ended.
pub(crate) async fn hand_back_all(
    shop: &Shop,
    work: flume::Receiver<Work>,
    handoffs: flume::Sender<Handoff>,
) {
    while let Ok(Work { message, batch, .. }) = work.recv_async().await {
        // Fails only when the worker ends with an error; the batch then stays unsettled.
        let _ = handoffs.send_async(handoff(vec![shop.hand_back(message)], &batch)).await;
        batch.close();
    }
}
