//! A batch that is being worked on, and the one rule of settling it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use gristmill_shared::{Message, QueueRole, Receipt, RunningIndex, meter::WORKER_DELIVERIES_HELD};

/// A message from one of the lane's queues, and the right to settle it.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) message: Message,
    pub(crate) from: QueueRole,
    /// How often it was delivered before, as far as that counts.
    pub(crate) before: u32,
    pub(crate) batch: Arc<InHand>,
    /// The one of its tasks that runs.
    pub(crate) running: RunningIndex,
}

/// A batch in this worker's hands. It is acked when its slot is through with it **and** everything that follows from
/// it is stored: when the last of the open ends closes. If one never closes, the batch is delivered again elsewhere.
#[derive(Debug)]
pub(crate) struct InHand {
    receipt: Mutex<Option<Receipt>>,
    from: QueueRole,
    open_ends: AtomicUsize,
}

impl InHand {
    /// With one open end: the slot's.
    pub(crate) fn new(receipt: Receipt, from: QueueRole) -> Self {
        WORKER_DELIVERIES_HELD.rise([from.as_str()]);
        Self { receipt: Mutex::new(Some(receipt)), from, open_ends: AtomicUsize::new(1) }
    }

    /// Something that follows from the batch is on its way to the broker.
    pub(crate) fn open(&self) {
        self.open_ends.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it has been acked.
    pub(crate) fn is_settled(&self) -> bool {
        self.open_ends.load(Ordering::Acquire) == 0
    }

    /// It is stored, or the slot is through.
    pub(crate) fn close(&self) {
        if self.open_ends.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(receipt) = self.receipt.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            receipt.ack();
            WORKER_DELIVERIES_HELD.fall([self.from.as_str()]);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use gristmill_shared::{Settlement, Settler, Token};

    use super::*;

    #[derive(Debug)]
    struct Nobody;

    impl Settler for Nobody {
        fn settle(&self, _: Token, _: Settlement) {}
        fn extend(&self, _: Token) {}
    }

    impl Work {
        pub(crate) fn of_nothing(from: QueueRole) -> Self {
            let receipt = Receipt::new(Token { generation: 0, tag: 0 }, Arc::new(Nobody));
            Self {
                message: Message::default(),
                from,
                before: 0,
                batch: Arc::new(InHand::new(receipt, from)),
                running: RunningIndex::default(),
            }
        }
    }

    /// Counts acks, and takes nothing else.
    #[derive(Debug, Default)]
    pub(crate) struct Acks(pub(crate) AtomicUsize);

    impl Settler for Acks {
        fn settle(&self, _: Token, how: Settlement) {
            assert_eq!(how, Settlement::Ack);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn extend(&self, _: Token) {}
    }

    #[test]
    fn a_batch_is_acked_once_and_only_after_its_last_open_end() {
        let acks = Arc::new(Acks::default());
        let settler: Arc<dyn Settler> = Arc::clone(&acks) as _;
        let batch = InHand::new(Receipt::new(Token { generation: 0, tag: 1 }, settler), QueueRole::Tasks);
        batch.open();
        batch.open();
        batch.close();
        batch.close();
        assert_eq!(acks.0.load(Ordering::Relaxed), 0, "acked although the slot was not through");
        batch.close();
        assert_eq!(acks.0.load(Ordering::Relaxed), 1);
    }
}
