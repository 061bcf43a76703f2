//! Hands outcomes to the broker; a batch is settled only after everything that follows from it is stored.
//!
//! While an answer of the broker is awaited, or while all slots are at work on batches that take a while, further outcomes
//! gather, and outputs among them travel together. So a lone batch's go at once, and the more there are, the fewer messages they
//! take.

use std::{mem, sync::Arc};

use futures::{StreamExt, executor::block_on, stream::FuturesUnordered};
use gristmill_shared::{
    Address, Outgoing, Published, Publisher, StoreError,
    fail_point::{FailPoint, reached},
    meter::{WORKER_HANDOFFS_UNCONFIRMED, WORKER_STORED},
    publish_until_answered,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{in_hand::InHand, outputs::Outputs, refused::instead_of, shop::Shop, waiting::Waiting};

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
                alone.extend(left.into_iter().map(|parcel| hand_on(parcel, publisher)));
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

/// Sends until it is stored, and closes its ends; answers how many there were.
async fn hand_on(Parcel { outgoing, ends }: Parcel, publisher: &dyn Publisher) -> Result<usize, StoreError> {
    let mut left = vec![outgoing];
    while !left.is_empty() {
        let mut queues: Vec<_> = left.iter().map(|outgoing| queue(&outgoing.to)).collect();
        let refused = publish_until_answered(publisher, mem::take(&mut left)).await?;
        for (Outgoing { to, .. }, _) in &refused {
            queues.iter().position(|name| *name == queue(to)).map(|place| queues.swap_remove(place));
        }
        queues.into_iter().for_each(|queue| WORKER_STORED.add([queue], 1));
        for (Outgoing { to, message }, why) in refused {
            tracing::warn!(%to, bytes = message.body.len(), why, "the broker would not take results; sending less at a time");
            match instead_of(&message, &why) {
                Some(parts) => {
                    left.extend(parts.into_iter().map(|message| Outgoing { to: to.clone(), message }))
                }
                // The batch stays unsettled: nothing is acked that did not come to something.
                None => return Err(StoreError::Refused { to, why }),
            }
        }
    }
    let settled = ends.len();
    ends.into_iter().for_each(End::close);
    Ok(settled)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use async_trait::async_trait;
    use gristmill_shared::{
        DoneTasks, JobId, Lane, Message, QueueRole, Receipt, Round, Settlement, Settler, TaskIndex, Token,
        wire::{RESULTS_MESSAGE_BYTES, Results, decode},
    };

    use super::*;
    use crate::waiting::waiting;

    /// Says no to these, once each; and keeps what it stored.
    #[derive(Debug, Default)]
    struct Refusing {
        refuses: Mutex<Vec<&'static str>>,
        stored: Mutex<Vec<Message>>,
    }

    impl Refusing {
        fn ids(&self) -> Vec<String> {
            self.stored.lock().unwrap().iter().map(|message| message.id.clone()).collect()
        }
    }

    #[async_trait]
    impl Publisher for Refusing {
        async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
            let answer = |Outgoing { message, .. }: Outgoing| {
                let mut refuses = self.refuses.lock().unwrap();
                if let Some(place) = refuses.iter().position(|id| *id == message.id) {
                    refuses.remove(place);
                    return Published::Rejected;
                }
                self.stored.lock().unwrap().push(message);
                Published::Stored
            };
            batch.into_iter().map(answer).collect()
        }
    }

    #[derive(Debug, Default)]
    struct Acks(AtomicUsize);

    impl Settler for Acks {
        fn settle(&self, _: Token, how: Settlement) {
            assert_eq!(how, Settlement::Ack);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn extend(&self, _: Token) {}
    }

    impl Handoff {
        pub(crate) fn stored(self) {
            let parts = self.upshot.messages.len() + usize::from(self.upshot.outputs.is_some());
            (0..parts).for_each(|_| self.batch.close());
        }
    }

    fn outgoing(id: &str) -> Outgoing {
        let to = Address::Queue(QueueRole::Results.of(&Lane::default()));
        Outgoing { to, message: Message { id: id.into(), ..Message::default() } }
    }

    /// Of a batch with whose tasks the slot is through.
    fn handoff(upshot: Upshot, acks: &Arc<Acks>) -> Handoff {
        let settler: Arc<dyn Settler> = Arc::clone(acks) as _;
        let receipt = Receipt::new(Token { generation: 0, tag: 1 }, settler);
        let batch = Arc::new(InHand::new(receipt, QueueRole::Tasks));
        let handoff = Handoff::new(upshot, &batch);
        batch.close();
        handoff
    }

    fn messages(ids: &[&str], acks: &Arc<Acks>) -> Handoff {
        handoff(ids.iter().map(|id| outgoing(id)).collect::<Vec<_>>().into(), acks)
    }

    fn outputs(job: JobId, first: u64, acks: &Arc<Acks>) -> Handoff {
        let done = vec![DoneTasks::of(TaskIndex(first), &[first])];
        let outputs = Outputs::new((job, Round(0)), None, Duration::from_micros(5), done);
        handoff(Upshot { outputs, messages: Vec::new() }, acks)
    }

    /// Everything that is handed on, at once.
    async fn hand_on_all_of(given: Vec<Handoff>, publisher: &Refusing) {
        let (handoffs, to_hand_on) = handoffs();
        let no_more = CancellationToken::new();
        let (_work, waiting) = waiting(1);
        given.into_iter().for_each(|handoff| handoffs.send(handoff));
        no_more.cancel();
        hand_on_all(&*Shop::of_nothing().await, to_hand_on, publisher, &waiting, &no_more).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn while_all_slots_are_at_work_for_long_outcomes_wait_for_company_until_one_is_idle() {
        let (publisher, acks, job) = (Refusing::default(), Arc::new(Acks::default()), JobId::generate());
        let shop = Shop::of_nothing().await;
        (0..60).for_each(|_| shop.pace.note(Duration::from_millis(100), 1_000));
        let (handoffs, to_hand_on) = handoffs();
        let (work, waiting) = waiting(1);
        let no_more = CancellationToken::new();
        let begin = Instant::now();
        let sent = |count| acks.0.load(Ordering::Relaxed) == count;
        let slots = async {
            handoffs.send_async(outputs(job, 0, &acks)).await;
            sleep_until(begin + Duration::from_millis(40)).await;
            handoffs.send_async(outputs(job, 1, &acks)).await;
            sleep_until(begin + Duration::from_millis(48)).await;
            assert!(sent(0), "they wait");
            sleep_until(begin + Duration::from_millis(52)).await;
            assert!(sent(2), "but not for long");
            handoffs.send_async(outputs(job, 2, &acks)).await;
            sleep_until(begin + Duration::from_millis(60)).await;
            assert!(sent(2));
            let idle = waiting.clone();
            let slot = std::thread::spawn(move || idle.next().is_none());
            waiting.runs_dry().await;
            tokio::task::yield_now().await;
            sleep_until(begin + Duration::from_millis(62)).await;
            assert!(sent(3), "a slot has nothing to do");
            drop(work);
            assert!(slot.join().unwrap());
            no_more.cancel();
        };
        let ((), handed_on) =
            futures::join!(slots, hand_on_all(&shop, to_hand_on, &publisher, &waiting, &no_more));
        handed_on.unwrap();
        assert_eq!(publisher.ids().len(), 2, "two travelled together");
    }

    #[tokio::test]
    async fn what_is_refused_of_one_batch_holds_up_no_other_and_is_sent_again_alone() {
        let publisher = Refusing { refuses: Mutex::new(vec!["b"]), ..Refusing::default() };
        let acks = Arc::new(Acks::default());
        let mut lot = Lot::default();
        let room = Arc::new(Semaphore::new(2));
        for handoff in [messages(&["a", "b"], &acks), messages(&["c"], &acks)] {
            lot.add((handoff, Arc::clone(&room).try_acquire_owned().unwrap()));
        }
        let mut went = hand_on_together(lot.parcels, &publisher).await;
        assert_eq!((went.settled, acks.0.load(Ordering::Relaxed)), (2, 1), "b is not stored");
        assert_eq!(room.available_permits(), 1);
        assert_eq!(hand_on(went.left.pop().unwrap(), &publisher).await, Ok(1));
        assert_eq!((acks.0.load(Ordering::Relaxed), room.available_permits()), (2, 2));
        assert_eq!(publisher.ids(), ["a", "c", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_waits_goes_and_nothing_is_left_at_the_end() {
        let publisher = Refusing { refuses: Mutex::new(vec!["1", "2"]), ..Refusing::default() };
        let acks = Arc::new(Acks::default());
        hand_on_all_of(["0", "1", "2", "3"].map(|id| messages(&[id], &acks)).into(), &publisher).await;
        let mut stored = publisher.ids();
        stored.sort();
        assert_eq!(
            (stored, acks.0.load(Ordering::Relaxed)),
            (["0", "1", "2", "3"].map(String::from).to_vec(), 4)
        );
    }

    #[tokio::test]
    async fn outputs_of_a_job_that_wait_together_travel_together_and_settle_each_of_their_batches() {
        let (publisher, acks) = (Refusing::default(), Arc::new(Acks::default()));
        let (one, other) = (JobId::generate(), JobId::generate());
        let given = [(one, 8), (one, 2), (other, 5), (one, 1), (one, 9)];
        hand_on_all_of(given.map(|(job, first)| outputs(job, first, &acks)).into(), &publisher).await;
        assert_eq!(acks.0.load(Ordering::Relaxed), given.len());
        let stored = publisher.stored.lock().unwrap();
        let results: Vec<Results<'_>> = stored.iter().map(|message| decode(message).unwrap()).collect();
        let spans = |results: &Results<'_>| -> Vec<_> {
            results
                .done
                .iter()
                .map(|done| (done.first.0, done.count, done.outputs.get().to_owned()))
                .collect()
        };
        assert_eq!((results[0].job, results[0].busy_us, results.len()), (one, 20, 2));
        assert_eq!(spans(&results[0]), [(1, 2, "[1,2]".into()), (8, 2, "[8,9]".into())]);
        assert_eq!((results[1].job, spans(&results[1])), (other, vec![(5, 1, "[5]".into())]));
    }

    #[tokio::test]
    async fn outputs_that_are_too_many_for_a_message_travel_in_several() {
        let (publisher, acks, job) = (Refusing::default(), Arc::new(Acks::default()), JobId::generate());
        let large = |first| {
            let done = vec![DoneTasks::of(TaskIndex(first), &["x".repeat(RESULTS_MESSAGE_BYTES / 2 - 100)])];
            let outputs = Outputs::new((job, Round(0)), None, Duration::ZERO, done);
            handoff(Upshot { outputs, messages: Vec::new() }, &acks)
        };
        hand_on_all_of((0..5).map(large).collect(), &publisher).await;
        assert_eq!((publisher.stored.lock().unwrap().len(), acks.0.load(Ordering::Relaxed)), (3, 5));

        // Short ones with gaps between them take far more room than what they say.
        let (publisher, job) = (Refusing::default(), JobId::generate());
        let scattered = |number: u64| {
            let indices = (number * 2_000..(number + 1) * 2_000).step_by(2).map(TaskIndex);
            let done = indices.map(|index| DoneTasks::of(index, &[1])).collect();
            let outputs = Outputs::new((job, Round(0)), None, Duration::ZERO, done);
            handoff(Upshot { outputs, messages: Vec::new() }, &acks)
        };
        hand_on_all_of((0..20).map(scattered).collect(), &publisher).await;
        let sizes: Vec<_> =
            publisher.stored.lock().unwrap().iter().map(|message| message.body.len()).collect();
        assert!(sizes.len() > 1 && sizes.iter().all(|size| *size <= RESULTS_MESSAGE_BYTES), "{sizes:?}");
    }

    #[tokio::test]
    async fn who_brings_more_than_there_is_room_for_waits() {
        let acks = Arc::new(Acks::default());
        let (handoffs, to_hand_on) = handoffs();
        let large = |id: &str| {
            let mut outgoing = outgoing(id);
            outgoing.message.body = vec![0; BYTES_HELD as usize + 1].into();
            handoff(vec![outgoing].into(), &acks)
        };
        handoffs.send_async(large("more than there is room for, alone")).await;
        let mut second = std::pin::pin!(handoffs.send_async(large("and one more")));
        assert!(futures::poll!(&mut second).is_pending());
        drop(to_hand_on.queue.recv().unwrap());
        second.await;
    }

    #[tokio::test]
    async fn nobody_waits_for_a_worker_that_has_ended() {
        let acks = Arc::new(Acks::default());
        let (handoffs, to_hand_on) = handoffs();
        let large = || {
            let mut outgoing = outgoing("large");
            outgoing.message.body = vec![0; BYTES_HELD as usize].into();
            handoff(vec![outgoing].into(), &acks)
        };
        handoffs.send(large());
        let waiting = std::thread::spawn({
            let (handoffs, large) = (handoffs.clone(), large());
            move || handoffs.send(large)
        });
        drop(to_hand_on);
        waiting.join().unwrap();
        assert_eq!(acks.0.load(Ordering::Relaxed), 0);
    }
}
