//! Takes messages from one of the lane's queues and gives them to the slots.

mod prefetch;

pub(crate) use prefetch::{LOWEST, PER_SLOT, Pace};

use std::{sync::Arc, time::Duration};

use futures::future::select_all;
use gristmill_shared::{
    Consumer, Delivery, QueueRole, RunningIndex, TransportError, meter::WORKER_REDELIVERIES,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    context::Shop,
    delivery::{InHand, Work},
    outbound::{Handoff, Handoffs},
    poison::that_count,
    run_queue::{Giving, Waiting},
};
use prefetch::{FORGOTTEN_AFTER, HELD_UP, START};

/// How many deliveries are taken from the transport at a time; the rest waits there, within the prefetch.
const TAKEN_AT_ONCE: usize = 64;
/// How many former consumers of a queue there may be for whose last deliveries somebody still works. With more of them
/// the prefetch stays what it is.
const RETIRED_MAX: usize = 4;

/// How often is looked whether the last deliveries of a former consumer are settled, while there is one. To be told of each
/// would cost every batch something.
const RETIRED_LOOK: Duration = Duration::from_secs(1);

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
    pub(crate) handoffs: Handoffs,
    pub(crate) leaving: CancellationToken,
}

/// A consumer, and what it has delivered that may not be settled yet.
#[derive(Debug)]
pub(crate) struct Source {
    /// The level that it belongs to.
    level: usize,
    consumer: Box<dyn Consumer>,
    held: Vec<Arc<InHand>>,
}

impl Intake {
    /// At the level where every worker begins.
    pub(crate) async fn open(&self) -> Result<Vec<Source>, TransportError> {
        let mut sources = Vec::new();
        for level in LOWEST..=START {
            sources.extend(self.open_level(level).await?);
        }
        Ok(sources)
    }

    /// A prefetch belongs to a consumer for good. So each level has a consumer of its own, for what is held there beyond
    /// the level below: going up disturbs none of those that are there. None if the level adds nothing.
    async fn open_level(&self, level: usize) -> Result<Option<Source>, TransportError> {
        let below = if level == LOWEST { 0 } else { self.prefetch[level - 1] };
        let more = self.prefetch[level].saturating_sub(below);
        if more == 0 {
            return Ok(None);
        }
        let consumer = self.shop.transport.consume(&self.from.of(&self.shop.lane), more).await?;
        Ok(Some(Source { level, consumer, held: Vec::new() }))
    }

    /// Runs until the worker leaves; then asks for nothing more and gives away what is here already.
    ///
    /// The consumers are returned open, because what the slots still run is settled through them.
    pub(crate) async fn run(
        self,
        mut sources: Vec<Source>,
    ) -> Result<Vec<Box<dyn Consumer>>, TransportError> {
        let pace = &self.shop.pace;
        // Those of higher levels, for what is settled through them. They are dropped last, else what they give up would
        // come to the others, which are about to go, and so be delivered once more for nothing.
        let mut retired: Vec<Source> = Vec::new();
        let (mut level, mut since) = (START, 0);
        let mut pauses = self.shop.releases.pauses();
        loop {
            // Dropped, which waits for nothing, and at once: what the broker still sent when the consumer was stopped
            // comes again only when its channel has closed.
            retired.retain_mut(|source| !source.is_settled());
            let may_change =
                self.prefetch[LOWEST] != self.prefetch[PER_SLOT.len() - 1] && retired.len() < RETIRED_MAX;
            let received = tokio::select! {
                received = receive(&mut sources) => Some(received?),
                () = self.leaving.cancelled() => break,
                Ok(()) = pauses.changed() => {
                    let until = *pauses.borrow_and_update();
                    for mut source in sources.drain(..) {
                        self.end(&mut source, false).await?;
                        retired.push(source);
                    }
                    tokio::select! {
                        () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)) => {}
                        () = self.leaving.cancelled() => break,
                    }
                    sources = self.open().await?;
                    (level, since) = (START, pace.ended());
                    continue;
                }
                () = pace.becomes(level != LOWEST), if may_change => None,
                () = tokio::time::sleep(FORGOTTEN_AFTER), if may_change && level > START => None,
                () = tokio::time::sleep(RETIRED_LOOK), if !retired.is_empty() => None,
            };
            let mut full = false;
            if let Some((at, deliveries)) = received {
                let held = sources.iter_mut().map(Source::held).sum::<usize>() + deliveries.len();
                // A quarter, since word of what was settled last is still on its way to the broker; and so many batches have
                // ended meanwhile that their mean says something.
                full = held >= usize::from(self.prefetch[level].div_ceil(4))
                    && pace.ended() >= since + u64::from(self.prefetch[level])
                    && self.prefetch.get(level + 1).is_some_and(|more| pace.has_room_for(*more));
                self.give(&mut sources[at], deliveries, may_change && level != LOWEST).await;
            }
            let next = pace.level(level, full);
            if may_change && next != level && !self.leaving.is_cancelled() {
                let (from, to) = (self.prefetch[level], self.prefetch[next]);
                tracing::debug!(queue = ?self.from, from, to, "batches take less or more time: another prefetch");
                (level, since) = (next, pace.ended());
                while let Some(mut above) = sources.pop_if(|source| source.level > level) {
                    self.end(&mut above, true).await?;
                    retired.push(above);
                }
                if to > from {
                    sources.extend(self.open_level(level).await?);
                }
            }
        }
        for source in &mut sources {
            self.end(source, false).await?;
        }
        Ok(sources.into_iter().chain(retired).map(|source| source.consumer).collect())
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
    /// How many of its deliveries are not settled.
    fn held(&mut self) -> usize {
        self.held.retain(|batch| !batch.is_settled());
        self.held.len()
    }

    fn is_settled(&mut self) -> bool {
        self.held() == 0
    }
}

/// Waits for deliveries of one of them, and says of which. Cancel safe.
async fn receive(sources: &mut [Source]) -> Result<(usize, Vec<Delivery>), TransportError> {
    let receiving = sources.iter_mut().map(|source| source.consumer.recv(TAKEN_AT_ONCE));
    let (deliveries, at, _) = select_all(receiving).await;
    Ok((at, deliveries?))
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
            WORKER_REDELIVERIES.add([from.as_str()], 1);
        }
        let before = that_count(before, reconnected_at);
        let batch = Arc::new(InHand::new(receipt, from));
        source.held.push(Arc::clone(&batch));
        Work { message, from, before, batch, running: RunningIndex::default() }
    });
    work.give(taken.collect()).await;
}

/// Hands back whatever is given to the slots, at no cost, until the intakes have ended or it is `enough`.
///
/// Not cancel safe: what has been taken from the slots must be handed on.
pub(crate) async fn hand_back_all(
    shop: &Shop,
    waiting: &Waiting,
    handoffs: &Handoffs,
    enough: &CancellationToken,
) {
    loop {
        let next = tokio::select! {
            biased;
            () = enough.cancelled() => return,
            next = waiting.next_async() => next,
        };
        let Some(Work { message, from, batch, .. }) = next else { return };
        let back = vec![shop.hand_back(message, from)];
        handoffs.send_async(Handoff::new(back.into(), &batch)).await;
        batch.close();
    }
}
