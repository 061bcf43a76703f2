//! A delivered batch while it is in flight, and the rule for acking it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use gristmill_shared::{Message, QueueRole, Receipt, RunningIndex, metrics::WORKER_DELIVERIES_HELD};

/// A message from one of the lane's queues, and the right to settle it.
#[derive(Debug)]
pub(crate) struct BatchDelivery {
    pub(crate) message: Message,
    pub(crate) from: QueueRole,
    /// Number of earlier deliveries that count towards poison detection.
    pub(crate) redeliveries: u32,
    pub(crate) in_flight: Arc<InFlightBatch>,
    /// The index of the task that runs now.
    pub(crate) running: RunningIndex,
}

/// The receipt of a batch that is in flight. The batch is acked when its slot has finished it
/// **and** everything that follows from it is stored, that is, when its last pending part
/// completes. If a part never completes, the batch is delivered again elsewhere.
#[derive(Debug)]
pub(crate) struct InFlightBatch {
    receipt: Mutex<Option<Receipt>>,
    from: QueueRole,
    pending_parts: AtomicUsize,
}

impl InFlightBatch {
    /// A batch with one pending part, the slot's.
    pub(crate) fn new(receipt: Receipt, from: QueueRole) -> Self {
        WORKER_DELIVERIES_HELD.inc([from.as_str()]);
        Self { receipt: Mutex::new(Some(receipt)), from, pending_parts: AtomicUsize::new(1) }
    }

    /// Adds a pending part: an outcome of the batch that is on its way to the broker.
    pub(crate) fn add_part(&self) {
        self.pending_parts.fetch_add(1, Ordering::Relaxed);
    }

    /// True if the batch has been acked.
    pub(crate) fn is_settled(&self) -> bool {
        self.pending_parts.load(Ordering::Acquire) == 0
    }

    /// Completes a part: its outcome is stored, or the slot has finished the batch. The last one
    /// acks the batch.
    pub(crate) fn complete_part(&self) {
        if self.pending_parts.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(receipt) = self.receipt.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            receipt.ack();
            WORKER_DELIVERIES_HELD.dec([self.from.as_str()]);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use gristmill_shared::{Settlement, Settler, Token};

    use super::*;

    #[derive(Debug)]
    struct NullSettler;

    impl Settler for NullSettler {
        fn settle(&self, _: Token, _: Settlement) {}
        fn extend(&self, _: Token) {}
    }

    impl BatchDelivery {
        pub(crate) fn for_test(from: QueueRole) -> Self {
            let receipt = Receipt::new(Token { generation: 0, tag: 0 }, Arc::new(NullSettler));
            Self {
                message: Message::default(),
                from,
                redeliveries: 0,
                in_flight: Arc::new(InFlightBatch::new(receipt, from)),
                running: RunningIndex::default(),
            }
        }
    }

    /// A settler that counts acks and panics at any other settlement.
    #[derive(Debug, Default)]
    pub(crate) struct AckCounter(pub(crate) AtomicUsize);

    impl Settler for AckCounter {
        fn settle(&self, _: Token, how: Settlement) {
            assert_eq!(how, Settlement::Ack);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn extend(&self, _: Token) {}
    }

    /// A batch is acked once, and only after its last pending part.
    #[test]
    fn ack_waits_for_the_last_part() {
        let acks = Arc::new(AckCounter::default());
        let settler: Arc<dyn Settler> = Arc::clone(&acks) as _;
        let batch =
            InFlightBatch::new(Receipt::new(Token { generation: 0, tag: 1 }, settler), QueueRole::Tasks);
        batch.add_part();
        batch.add_part();
        batch.complete_part();
        batch.complete_part();
        assert_eq!(acks.0.load(Ordering::Relaxed), 0, "acked although the slot was not through");
        batch.complete_part();
        assert_eq!(acks.0.load(Ordering::Relaxed), 1);
    }
}
