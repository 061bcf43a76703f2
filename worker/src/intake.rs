//! Takes messages from one of the lane's queues and gives them to the slots.

use std::sync::Arc;

use gristmill_shared::{Consumer, Delivery, QueueRole, TransportError};
use tokio_util::sync::CancellationToken;

use crate::{
    handoff::Handoff,
    in_hand::InHand,
    shop::{Shop, handoff},
    slot::Work,
    suspicion::that_count,
};

/// How many deliveries are taken from the transport at a time; the rest waits there, within the prefetch.
const TAKEN_AT_ONCE: usize = 64;

/// Runs until `leaving` is cancelled; then asks for nothing more and gives away what is here already.
///
/// The consumer is returned open, because what the slots still run is settled through it.
pub(crate) async fn run(
    mut consumer: Box<dyn Consumer>,
    from: QueueRole,
    shop: Arc<Shop>,
    work: flume::Sender<Work>,
    leaving: CancellationToken,
) -> Result<Box<dyn Consumer>, TransportError> {
    loop {
        let deliveries = tokio::select! {
            deliveries = consumer.recv(TAKEN_AT_ONCE) => deliveries?,
            () = leaving.cancelled() => break,
        };
        give(deliveries, from, &shop, &work).await;
    }
    consumer.stop().await?;
    loop {
        let left = consumer.recv(TAKEN_AT_ONCE).await?;
        if left.is_empty() {
            return Ok(consumer);
        }
        give(left, from, &shop, &work).await;
    }
}

/// Waits until the slots, or those who hand back what no slot will begin, have taken everything.
async fn give(deliveries: Vec<Delivery>, from: QueueRole, shop: &Shop, work: &flume::Sender<Work>) {
    // Judged now, since a delivery may wait here for long.
    let reconnected_at = shop.reconnected_at();
    for Delivery { message, receipt, deliveries_before: before } in deliveries {
        if before > 0 {
            tracing::debug!(id = message.id, queue = ?from, before, "delivered again");
        }
        let before = that_count(before, reconnected_at);
        let next = Work { message, from, before, batch: Arc::new(InHand::new(receipt)) };
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
    while let Ok(Work { message, from, batch, .. }) = work.recv_async().await {
        // Fails only when the worker ends with an error; the batch then stays unsettled.
        let _ = handoffs.send_async(handoff(vec![shop.hand_back(message, from)], &batch)).await;
        batch.close();
    }
}
