//! Hands outcomes to the broker; a batch is settled only after everything that follows from it is stored.
//!
//! While an answer of the broker is awaited, or while all slots are at work on batches that take a while, further outcomes
//! gather, and outputs among them travel together. So a lone batch's go at once, and the more there are, the fewer messages they
//! take.

use std::{mem, sync::Arc};

use futures::{StreamExt, executor::block_on, stream::FuturesUnordered};
use gristmill_shared::{
    Address, Outgoing, Published, Publisher, Queue, QueueRole, StoreError,
    fail_point::{FailPoint, reached},
    meter::{WORKER_HANDOFFS_UNCONFIRMED, WORKER_STORED},
    publish_until_answered,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{merge::Outputs, oversize::instead_of};
use crate::{context::Shop, delivery::InHand, run_queue::Waiting};

/// How many handoffs may wait for their turn. Those that do go to the broker together.
const HANDOFFS_WAITING: usize = 512;
/// As soon as there is so much of them, a lot is complete: it is encoded in one go.
const LOT_BYTES: usize = 4 << 20;
/// No further lot goes while so many messages and outputs of batches are on their way. When as many others wait for their turn,
/// slots wait, and nothing further is taken from the broker than the prefetch allows.
const HANDOFFS_IN_FLIGHT: usize = 512;
/// How many bytes may be on their way or wait for their turn.
const BYTES_HELD: u32 = 32 << 20;
/// How many lots may be on their way: while the answer to one comes, the next one goes.
const LOTS_IN_FLIGHT: usize = 2;

/// What came of some of a batch's tasks.
#[derive(Debug, Default)]
pub(crate) struct Upshot {
    /// Outputs for the sink.
    pub(crate) outputs: Option<Outputs>,
    /// All else, each a message of its own.
    pub(crate) messages: Vec<Outgoing>,
}

impl From<Vec<Outgoing>> for Upshot {
    fn from(messages: Vec<Outgoing>) -> Self {
        Self { outputs: None, messages }
    }
}

/// What follows from a batch, of which an end is open for each part until that is stored.
#[derive(Debug)]
pub(crate) struct Handoff {
    upshot: Upshot,
    batch: Arc<InHand>,
}

impl Handoff {
    /// Opens the ends.
    pub(crate) fn new(upshot: Upshot, batch: &Arc<InHand>) -> Self {
        let parts = upshot.messages.len() + usize::from(upshot.outputs.is_some());
        (0..parts).for_each(|_| batch.open());
        Self { upshot, batch: Arc::clone(batch) }
    }

    /// Nothing follows.
    fn is_empty(&self) -> bool {
        self.upshot.outputs.is_none() && self.upshot.messages.is_empty()
    }
}

/// Where handoffs are given, from anywhere.
#[derive(Debug, Clone)]
pub(crate) struct Handoffs {
    queue: flume::Sender<(Handoff, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
}

/// Where they come out. When it goes, nobody waits for room any more.
#[derive(Debug)]
pub(crate) struct ToHandOn {
    queue: flume::Receiver<(Handoff, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
}

impl Drop for ToHandOn {
    fn drop(&mut self) {
        self.room.close();
    }
}

/// Both ends of the queue of handoffs.
pub(crate) fn handoffs() -> (Handoffs, ToHandOn) {
    let (queue, waiting) = flume::bounded(HANDOFFS_WAITING);
    let room = Arc::new(Semaphore::new(BYTES_HELD as usize));
    (Handoffs { queue, room: Arc::clone(&room) }, ToHandOn { queue: waiting, room })
}

impl Handoffs {
    /// Blocks while there is no room. Lost when the worker has ended with an error; the batch then stays unsettled.
    pub(crate) fn send(&self, handoff: Handoff) {
        if handoff.is_empty() {
            return;
        }
        let room = match Arc::clone(&self.room).try_acquire_many_owned(bytes(&handoff)) {
            Ok(room) => Ok(room),
            Err(_) => block_on(Arc::clone(&self.room).acquire_many_owned(bytes(&handoff))),
        };
        if let Ok(room) = room {
            let _ = self.queue.send((handoff, room));
        }
    }

    /// [`Handoffs::send`], async. Not cancel safe.
    pub(crate) async fn send_async(&self, handoff: Handoff) {
        if handoff.is_empty() {
            return;
        }
        if let Ok(room) = Arc::clone(&self.room).acquire_many_owned(bytes(&handoff)).await {
            let _ = self.queue.send_async((handoff, room)).await;
        }
    }
}

/// How much room it takes; not more than there is.
fn bytes(Handoff { upshot: Upshot { outputs, messages }, .. }: &Handoff) -> u32 {
    let messages = messages.iter().map(|outgoing| outgoing.message.body.len()).sum::<usize>();
    let all = outputs.as_ref().map_or(0, Outputs::bytes) + messages;
    u32::try_from(all).unwrap_or(BYTES_HELD).min(BYTES_HELD)
}

/// An open end of a batch.
#[derive(Debug)]
struct End {
    batch: Arc<InHand>,
    /// What all parts of a handoff take, until the last of them is stored.
    _room: Arc<OwnedSemaphorePermit>,
}

impl End {
    /// What it was open for is stored.
    fn close(self) {
        reached(FailPoint::WorkerStored);
        self.batch.close();
    }
}

/// A message, and what is open until it is stored.
#[derive(Debug)]
struct Parcel {
    outgoing: Outgoing,
    ends: Vec<End>,
}

/// What goes to the broker together.
#[derive(Debug, Default)]
struct Lot {
    /// Of a job and round each, but if they are too many for a message.
    outputs: Vec<(Outputs, Vec<End>)>,
    parcels: Vec<Parcel>,
    handoffs: usize,
    bytes: usize,
}

impl Lot {
    fn add(&mut self, (Handoff { upshot, batch }, room): (Handoff, OwnedSemaphorePermit)) {
        reached(FailPoint::WorkerRan);
        self.handoffs += 1;
        self.bytes += room.num_permits();
        let room = Arc::new(room);
        let end = || End { batch: Arc::clone(&batch), _room: Arc::clone(&room) };
        if let Some(outputs) = upshot.outputs {
            match self.outputs.iter_mut().find(|(others, _)| others.goes_with(&outputs)) {
                Some((others, ends)) => {
                    others.join(outputs);
                    ends.push(end());
                }
                None => self.outputs.push((outputs, vec![end()])),
            }
        }
        self.parcels
            .extend(upshot.messages.into_iter().map(|outgoing| Parcel { outgoing, ends: vec![end()] }));
    }

    fn is_complete(&self) -> bool {
        self.handoffs >= HANDOFFS_WAITING || self.bytes >= LOT_BYTES
    }

    fn parcels(self, shop: &Shop) -> Vec<Parcel> {
        let outputs = self.outputs.into_iter();
        let outputs = outputs.map(|(outputs, ends)| Parcel { outgoing: outputs.message(shop), ends });
        outputs.chain(self.parcels).collect()
    }
}

/// Runs until something cannot be stored, or until `no_more` is given and everything handed over before is stored. `waiting`
/// is where slots find their work.
pub(crate) async fn hand_on_all(
    shop: &Shop,
    to_hand_on: ToHandOn,
    publisher: &dyn Publisher,
    waiting: &Waiting,
    no_more: &CancellationToken,
) -> Result<(), StoreError> {
    let queue = &to_hand_on.queue;
    let mut lots = FuturesUnordered::new();
    let mut alone = FuturesUnordered::new();
    let mut in_flight = 0;
    let (mut lot, mut due) = (Lot::default(), Instant::now());
    loop {
        WORKER_HANDOFFS_UNCONFIRMED.set([], in_flight as f64);
        let room = lots.len() < LOTS_IN_FLIGHT && in_flight < HANDOFFS_IN_FLIGHT;
        tokio::select! {
            biased;
            Some(Went { left, settled }) = lots.next() => {
                in_flight -= settled;
                alone.extend(left.into_iter().map(|parcel| hand_on(parcel, shop, publisher)));
            }
            Some(settled) = alone.next() => in_flight -= settled?,
            Ok(next) = queue.recv_async(), if room && !lot.is_complete() => {
                if lot.handoffs == 0 {
                    due = Instant::now() + shop.pace.company();
                }
                lot.add(next);
                while !lot.is_complete()
                    && let Ok(next) = queue.try_recv()
                {
                    lot.add(next);
                }
                if lot.is_complete() {
                    due = Instant::now();
                }
            }
            () = first_of(sleep_until(due), waiting.runs_dry(), no_more.cancelled()), if lot.handoffs > 0 => {
                let parcels = mem::take(&mut lot).parcels(shop);
                in_flight += parcels.iter().map(|parcel| parcel.ends.len()).sum::<usize>();
                lots.push(hand_on_together(parcels, publisher));
            }
            () = no_more.cancelled(), if in_flight == 0 && lot.handoffs == 0 => return Ok(()),
        }
    }
}

/// Waits for one of them.
async fn first_of(one: impl Future, another: impl Future, third: impl Future) {
    tokio::select! {
        biased;
        _ = one => {}
        _ = another => {}
        _ = third => {}
    }
}

/// What the metrics call the place where a message goes.
fn queue(to: &Address) -> &'static str {
    match to {
        Address::Queue(queue) => queue.role.as_str(),
        Address::Journal | Address::Events(_) => "none", // nothing that follows from a batch goes there
    }
}

/// What became of parcels that went together.
struct Went {
    /// These were not stored.
    left: Vec<Parcel>,
    /// How many ends were closed with the others.
    settled: usize,
}

/// Sends all at once, and closes the ends of what was stored. Each of the others then goes its own way: what one queue does
/// not take holds up nobody else.
async fn hand_on_together(parcels: Vec<Parcel>, publisher: &dyn Publisher) -> Went {
    let messages = parcels.iter().map(|parcel| parcel.outgoing.clone()).collect();
    let mut answers = publisher.publish(messages).await.into_iter();
    let (stored, left): (Vec<_>, Vec<_>) =
        parcels.into_iter().partition(|_| answers.next() == Some(Published::Stored));
    let mut settled = 0;
    for Parcel { outgoing, ends } in stored {
        WORKER_STORED.add([queue(&outgoing.to)], 1);
        settled += ends.len();
        ends.into_iter().for_each(End::close);
    }
    Went { left, settled }
}

/// Sends until it, or what goes instead of it, is stored, and closes its ends; answers how many there were.
async fn hand_on(
    Parcel { outgoing, ends }: Parcel,
    shop: &Shop,
    publisher: &dyn Publisher,
) -> Result<usize, StoreError> {
    let mut left = vec![outgoing];
    while !left.is_empty() {
        let mut queues: Vec<_> = left.iter().map(|outgoing| queue(&outgoing.to)).collect();
        let refused = publish_until_answered(publisher, mem::take(&mut left)).await?;
        for (Outgoing { to, .. }, _) in &refused {
            queues.iter().position(|name| *name == queue(to)).map(|place| queues.swap_remove(place));
        }
        queues.into_iter().for_each(|queue| WORKER_STORED.add([queue], 1));
        for (Outgoing { to, message }, why) in refused {
            if let Some(parts) = instead_of(&message, &why) {
                tracing::warn!(%to, bytes = message.body.len(), why, "the broker would not take results; sending less at a time");
                left.extend(parts.into_iter().map(|message| Outgoing { to: to.clone(), message }));
                continue;
            }
            match to {
                // Somebody else put it into our queue, larger than we send any. It must not end one worker after another.
                Address::Queue(Queue { role, .. })
                    if !matches!(role, QueueRole::Results | QueueRole::Dead) =>
                {
                    left.push(shop.bury(message, role, &why));
                }
                // The batch stays unsettled: nothing is acked that did not come to something.
                to => return Err(StoreError::Refused { to, why }),
            }
        }
    }
    let settled = ends.len();
    ends.into_iter().for_each(End::close);
    Ok(settled)
}

#[cfg(test)]
mod tests;
