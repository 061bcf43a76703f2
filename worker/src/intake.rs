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

/// Runs until `leaving` is cancelled; then asks for nothing more and hands back what no slot has begun.
///
/// The consumer is returned open, because what the slots still run is settled through it.
pub(crate) async fn run(
    shop: Arc<Shop>,
    mut consumer: Box<dyn Consumer>,
    from: QueueRole,
    work: flume::Sender<Work>,
    handoffs: flume::Sender<Handoff>,
    leaving: CancellationToken,
) -> Result<Box<dyn Consumer>, TransportError> {
    let mut unbegun = Vec::new();
    'taking: loop {
        let deliveries = tokio::select! {
            deliveries = consumer.recv(TAKEN_AT_ONCE) => deliveries?,
            () = leaving.cancelled() => break,
        };
        let mut deliveries = deliveries.into_iter().map(|delivery| take(delivery, from));
        while let Some(next) = deliveries.next() {
            tokio::select! {
                given = work.send_async(next) => if let Err(flume::SendError(returned)) = given {
                    // The slots are gone; the worker ends with an error.
                    drop(returned);
                    return Ok(consumer);
                },
                () = leaving.cancelled() => {
                    unbegun.extend(deliveries);
                    break 'taking;
                }
            }
        }
    }
    consumer.stop().await?;
    loop {
        for work in unbegun.drain(..) {
            hand_back(&shop, work, &handoffs).await;
        }
        let left = consumer.recv(TAKEN_AT_ONCE).await?;
        if left.is_empty() {
            return Ok(consumer);
        }
        unbegun.extend(left.into_iter().map(|delivery| take(delivery, from)));
    }
}

/// Leaves a message that no slot has begun to others.
pub(crate) async fn hand_back(
    shop: &Shop,
    Work { message, batch, .. }: Work,
    handoffs: &flume::Sender<Handoff>,
) {
    // Fails only if the handoff has ended with an error; the batch then stays unsettled.
    let _ = handoffs.send_async(handoff(vec![shop.hand_back(message)], &batch)).await;
    batch.close();
}

fn take(Delivery { message, receipt, redelivered }: Delivery, from: QueueRole) -> Work {
    if redelivered {
        tracing::debug!(id = message.id, queue = ?from, "delivered again");
    }
    Work { message, from, batch: Arc::new(InHand::new(receipt)) }
}
