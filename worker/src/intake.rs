//! Takes messages from one of the lane's queues and gives them to the slots.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gristmill_shared::{Consumer, Delivery, QueueRole, TransportError};
use tokio_util::sync::CancellationToken;

use crate::{
    handoff::Handoff,
    in_hand::InHand,
    pace::{FORGOTTEN_AFTER, HELD_UP, LOWEST, PER_SLOT, START},
    shop::{Shop, handoff},
    slot::Work,
    suspicion::that_count,
    waiting::{Giving, Waiting},
};

/// How many deliveries are taken from the transport at a time; the rest waits there, within the prefetch.
const TAKEN_AT_ONCE: usize = 64;
/// A former consumer is kept for so long after the last ack that went through it: RabbitMQ forgets acks of a channel whose
/// queue is slow to take them when the channel closes, and delivers again.
const LINGER: Duration = Duration::from_secs(1);
/// How many former consumers of a queue there may be for whose last deliveries somebody still works. With more of them
/// the prefetch stays what it is; there are three changes from the start to the highest level.
const RETIRED_MAX: usize = 4;

/// Takes messages from one of the lane's queues.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) from: QueueRole,
    /// How many deliveries are held, by the pace's level.
    pub(crate) prefetch: [u16; PER_SLOT.len()],
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
    /// Since when nothing is held, of one that is retired.
    settled_at: Option<Instant>,
}

impl Intake {
    /// At the level where every worker begins.
    pub(crate) async fn open(&self) -> Result<Box<dyn Consumer>, TransportError> {
        self.open_at(START).await
    }

    async fn open_at(&self, level: usize) -> Result<Box<dyn Consumer>, TransportError> {
        self.shop.transport.consume(&self.from.of(&self.shop.lane), self.prefetch[level]).await
    }

    /// Runs until the worker leaves; then asks for nothing more and gives away what is here already.
    ///
    /// The consumers are returned open, because what the slots still run is settled through them.
    pub(crate) async fn run(
        self,
        consumer: Box<dyn Consumer>,
    ) -> Result<Vec<Box<dyn Consumer>>, TransportError> {
        let pace = &self.shop.pace;
        // A prefetch belongs to a consumer, so another one takes another consumer. Those before are kept for what is
        // settled through them. They are dropped last, else what they give up would come to the other one, which is about
        // to go, and so be delivered once more for nothing.
        let mut retired: Vec<Source> = Vec::new();
        let mut source = Source::new(consumer);
        let (mut level, mut since) = (START, 0);
        loop {
            retired.retain_mut(|source| !source.is_over()); // dropped, which waits for nothing
            let may_change = self.prefetch[LOWEST] != self.prefetch[START] && retired.len() < RETIRED_MAX;
            let deliveries = tokio::select! {
                deliveries = source.consumer.recv(TAKEN_AT_ONCE) => deliveries?,
                () = self.leaving.cancelled() => break,
                () = pace.becomes(level != LOWEST), if may_change => Vec::new(),
                () = tokio::time::sleep(FORGOTTEN_AFTER), if may_change && level > START => Vec::new(),
            };
            // And so many batches have ended meanwhile that their mean says something.
            let full = source.holds_half(self.prefetch[level], deliveries.len())
                && pace.ended() >= since + u64::from(self.prefetch[level]);
            self.give(&mut source, deliveries, may_change && level != LOWEST).await;
            let next = pace.level(level, full);
            if may_change && next != level && !self.leaving.is_cancelled() {
                let (from, to) = (self.prefetch[level], self.prefetch[next]);
                (level, since) = (next, pace.ended());
                if from != to {
                    tracing::debug!(queue = ?self.from, from, to, "batches take less or more time: another prefetch");
                    self.end(&mut source, true).await?;
                    let next = Source::new(self.open_at(level).await?);
                    retired.push(std::mem::replace(&mut source, next));
                }
            }
        }
        self.end(&mut source, false).await?;
        Ok([source].into_iter().chain(retired).map(|source| source.consumer).collect())
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
                () = self.work.standstill(HELD_UP) => self.shop.pace.held_up(),
            }
            hand_back_all(&self.shop, &self.waiting, &self.handoffs, &given).await;
        };
        tokio::join!(giving, long);
    }
}

impl Source {
    fn new(consumer: Box<dyn Consumer>) -> Self {
        Self { consumer, held: Vec::new(), settled_at: None }
    }

    /// Whether everything has been settled for long enough.
    fn is_over(&mut self) -> bool {
        self.is_settled() && self.settled_at.get_or_insert_with(Instant::now).elapsed() >= LINGER
    }

    fn is_settled(&mut self) -> bool {
        self.held.retain(|batch| !batch.is_settled());
        self.held.is_empty()
    }

    /// Whether these deliveries, and what was not settled before them, are half of the prefetch: then the broker seems to
    /// have more, since word of what was settled last is still on its way to it.
    fn holds_half(&mut self, prefetch: u16, deliveries: usize) -> bool {
        self.held.retain(|batch| !batch.is_settled());
        deliveries > 0 && self.held.len() + deliveries >= usize::from(prefetch.div_ceil(2))
    }
}

/// Waits until the slots, or those who hand back what no slot will begin, have taken everything.
async fn give(source: &mut Source, deliveries: Vec<Delivery>, from: QueueRole, shop: &Shop, work: &Giving) {
    // So never more than the prefetch; after a lost connection what it left unsettled besides, until that has been run in
    // vain: its old receipt does nothing, and it comes again.
    source.held.retain(|batch| !batch.is_settled());
    // Judged now, since a delivery may wait here for long.
    let reconnected_at = shop.reconnected_at();
    let taken = deliveries.into_iter().map(|Delivery { message, receipt, deliveries_before: before }| {
        if before > 0 {
            tracing::debug!(id = message.id, queue = ?from, before, "delivered again");
        }
        let before = that_count(before, reconnected_at);
        let batch = Arc::new(InHand::new(receipt));
        source.held.push(Arc::clone(&batch));
        Work { message, from, before, batch }
    });
    work.give(taken.collect()).await;
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
