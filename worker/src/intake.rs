//! Takes messages from one of the lane's queues and gives them to the slots.

use std::sync::Arc;

use gristmill_shared::{Consumer, Delivery, QueueRole, TransportError, meter::WORKER_REDELIVERIES};
use tokio_util::sync::CancellationToken;

use crate::{
    handoff::Handoff,
    in_hand::InHand,
    pace::LONG,
    shop::{Shop, handoff},
    slot::{Giving, Waiting, Work},
    suspicion::that_count,
};

/// How many deliveries are taken from the transport at a time; the rest waits there, within the prefetch.
const TAKEN_AT_ONCE: usize = 64;

/// Takes messages from one of the lane's queues.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) from: QueueRole,
    /// How many deliveries are held; fewer while batches take long.
    pub(crate) prefetch: u16,
    pub(crate) prefetch_when_long: u16,
    pub(crate) shop: Arc<Shop>,
    pub(crate) work: Giving,
    /// The other end of `work`, and where to what waits there goes when batches turn out to take long.
    pub(crate) waiting: Waiting,
    pub(crate) handoffs: flume::Sender<Handoff>,
    pub(crate) leaving: CancellationToken,
}

/// A consumer, and what it has delivered that may not be settled yet.
#[derive(Debug)]
struct Source {
    consumer: Box<dyn Consumer>,
    held: Vec<Arc<InHand>>,
}

impl Intake {
    pub(crate) async fn open(&self) -> Result<Box<dyn Consumer>, TransportError> {
        let prefetch = if self.shop.pace.is_long() { self.prefetch_when_long } else { self.prefetch };
        self.shop.transport.consume(&self.from.of(&self.shop.lane), prefetch).await
    }

    /// Runs until the worker leaves; then asks for nothing more and gives away what is here already.
    ///
    /// The consumers are returned open, because what the slots still run is settled through them.
    pub(crate) async fn run(
        self,
        consumer: Box<dyn Consumer>,
    ) -> Result<Vec<Box<dyn Consumer>>, TransportError> {
        let mut source = Source { consumer, held: Vec::new() };
        let mut long = false;
        let mut retired: Option<Source> = None;
        loop {
            // A prefetch belongs to a consumer, so another one takes another consumer. The one before is kept for what
            // is settled through it; there is no third.
            if retired.as_mut().is_some_and(Source::is_settled)
                && let Some(settled) = retired.take()
            {
                settled.consumer.close().await;
            }
            let may_change = retired.is_none() && self.prefetch != self.prefetch_when_long;
            let deliveries = tokio::select! {
                deliveries = source.consumer.recv(TAKEN_AT_ONCE) => deliveries?,
                () = self.leaving.cancelled() => break,
                () = self.shop.pace.becomes(!long), if may_change => Vec::new(),
            };
            self.give(&mut source, deliveries, may_change && !long).await;
            if may_change && self.shop.pace.is_long() != long && !self.leaving.is_cancelled() {
                long = !long;
                tracing::debug!(queue = ?self.from, long, "batches take long, or no longer do: another prefetch");
                self.end(&mut source, long).await?;
                let next = Source { consumer: self.open().await?, held: Vec::new() };
                retired = Some(std::mem::replace(&mut source, next));
            }
        }
        self.end(&mut source, false).await?;
        Ok(retired.into_iter().chain([source]).map(|source| source.consumer).collect())
    }

    /// Asks for nothing more, and gives away what is here already.
    async fn end(&self, source: &mut Source, back: bool) -> Result<(), TransportError> {
        source.consumer.stop().await?;
        loop {
            let left = source.consumer.recv(TAKEN_AT_ONCE).await?;
            if left.is_empty() {
                return Ok(());
            }
            self.give(source, left, back).await;
        }
    }

    /// Waits until the slots, or those who hand back what no slot will begin, have taken everything. If it may be given
    /// `back`, that is where it goes while batches take long; what is being handed back then is awaited too, since it is
    /// in nobody else's hands.
    async fn give(&self, source: &mut Source, deliveries: Vec<Delivery>, back: bool) {
        let given = CancellationToken::new();
        let giving = async {
            give(source, deliveries, self.from, &self.shop, &self.work).await;
            given.cancel();
        };
        if !back {
            return giving.await;
        }
        let long = async {
            tokio::select! {
                biased;
                () = given.cancelled() => return,
                () = self.shop.pace.becomes(true) => {}
                () = tokio::time::sleep(LONG) => self.shop.pace.held_up(),
            }
            hand_back_all(&self.shop, &self.waiting, &self.handoffs, &given).await;
        };
        tokio::join!(giving, long);
    }
}

impl Source {
    fn is_settled(&mut self) -> bool {
        self.held.retain(|batch| !batch.is_settled());
        self.held.is_empty()
    }
}

/// Waits until the slots, or those who hand back what no slot will begin, have taken everything.
async fn give(source: &mut Source, deliveries: Vec<Delivery>, from: QueueRole, shop: &Shop, work: &Giving) {
    // So never more than the prefetch; after a lost connection what it left unsettled besides, until that has been run in
    // vain: its old receipt does nothing, and it comes again.
    source.held.retain(|batch| !batch.is_settled());
    // Judged now, since a delivery may wait here for long.
    let reconnected_at = shop.reconnected_at();
    for Delivery { message, receipt, deliveries_before: before } in deliveries {
        if before > 0 {
            tracing::debug!(id = message.id, queue = ?from, before, "delivered again");
            WORKER_REDELIVERIES.add([from.as_str()], 1);
        }
        let before = that_count(before, reconnected_at);
        let batch = Arc::new(InHand::new(receipt, from));
        source.held.push(Arc::clone(&batch));
        let next = Work { message, from, before, batch };
        work.give(next).await;
    }
}

/// Hands back whatever is given to the slots, at no cost, until the intakes have ended or it is `enough`.
///
/// Not cancel safe: what has been taken from the slots must be handed on.
pub(crate) async fn hand_back_all(
    shop: &Shop,
    waiting: &Waiting,
    handoffs: &flume::Sender<Handoff>,
    enough: &CancellationToken,
) {
    loop {
        let next = tokio::select! {
            biased;
            () = enough.cancelled() => return,
            next = waiting.next_async() => next,
        };
        let Some(Work { message, from, batch, .. }) = next else { return };
        // Fails only when the worker ends with an error; the batch then stays unsettled.
        let _ = handoffs.send_async(handoff(vec![shop.hand_back(message, from)], &batch)).await;
        batch.close();
    }
}
