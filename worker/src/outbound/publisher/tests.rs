use std::{
    sync::{Mutex, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt;
use gristmill_shared::{
    DoneTasks, JobId, Lane, Message, QueueRole, Receipt, Round, Settler, TaskIndex, Token,
    wire::{RESULTS_MESSAGE_BYTES, Results, decode},
};

use super::*;
use crate::{delivery::tests::Acks, outbound::merge::Source, run_queue::waiting};

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

/// A broker that takes nothing of so many bytes or more, and keeps what it stored.
#[derive(Debug)]
struct Narrow(usize, Mutex<Vec<Outgoing>>);

#[async_trait]
impl Publisher for Narrow {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
        let answer = |outgoing: Outgoing| {
            if outgoing.message.body.len() >= self.0 {
                return Published::Refused("it is too large".into());
            }
            self.1.lock().unwrap().push(outgoing);
            Published::Stored
        };
        batch.into_iter().map(answer).collect()
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
    let outputs =
        Outputs::new(Source { job, round: Round(0), version: 0 }, None, Duration::from_micros(5), done);
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
        sleep_until(begin + Duration::from_millis(80)).await;
        handoffs.send_async(outputs(job, 1, &acks)).await;
        sleep_until(begin + Duration::from_millis(98)).await;
        assert!(sent(0), "they wait");
        sleep_until(begin + Duration::from_millis(102)).await;
        assert!(sent(2), "but not for long");
        handoffs.send_async(outputs(job, 2, &acks)).await;
        sleep_until(begin + Duration::from_millis(150)).await;
        assert!(sent(2));
        let idle = waiting.clone();
        let slot = std::thread::spawn(move || idle.next(&mut 0, || {}).is_none());
        // Not awaited: the clock, with nothing else to wait for, would go on to when they have waited long enough.
        while waiting.runs_dry().now_or_never().is_none() {
            std::thread::yield_now();
        }
        tokio::task::yield_now().await;
        assert!(sent(3), "a slot has nothing to do");
        assert_eq!(begin.elapsed(), Duration::from_millis(150), "they would go by now anyway");
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
    assert_eq!(hand_on(went.left.pop().unwrap(), &*Shop::of_nothing().await, &publisher).await, Ok(1));
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
        results.done.iter().map(|done| (done.first.0, done.count, done.outputs.get().to_owned())).collect()
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
        let outputs = Outputs::new(Source { job, round: Round(0), version: 0 }, None, Duration::ZERO, done);
        handoff(Upshot { outputs, messages: Vec::new() }, &acks)
    };
    hand_on_all_of((0..5).map(large).collect(), &publisher).await;
    assert_eq!((publisher.stored.lock().unwrap().len(), acks.0.load(Ordering::Relaxed)), (3, 5));

    // Short ones with gaps between them take far more room than what they say.
    let (publisher, job) = (Refusing::default(), JobId::generate());
    let scattered = |number: u64| {
        let indices = (number * 2_000..(number + 1) * 2_000).step_by(2).map(TaskIndex);
        let done = indices.map(|index| DoneTasks::of(index, &[1])).collect();
        let outputs = Outputs::new(Source { job, round: Round(0), version: 0 }, None, Duration::ZERO, done);
        handoff(Upshot { outputs, messages: Vec::new() }, &acks)
    };
    hand_on_all_of((0..20).map(scattered).collect(), &publisher).await;
    let sizes: Vec<_> = publisher.stored.lock().unwrap().iter().map(|message| message.body.len()).collect();
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

#[tokio::test]
async fn a_batch_that_is_too_large_to_go_on_goes_to_the_dead_and_ends_no_worker() {
    let shop = Shop::of_nothing().await;
    let publisher = Narrow(16 << 20, Mutex::default());
    let message = Message { id: "foreign".into(), body: vec![b' '; 17 << 20].into(), ..Message::default() };
    let outgoing = shop.hand_back(message.clone(), QueueRole::Tasks);
    let parcel = Parcel { outgoing, ends: Vec::new() };
    assert_eq!(hand_on(parcel, &shop, &publisher).await, Ok(0));
    let stored = publisher.1.lock().unwrap().pop().unwrap();
    assert_eq!(stored.to, shop.to(QueueRole::Dead));
    assert!(
        stored.message.headers.reason.unwrap().starts_with("it is too large"),
        "with what the broker said"
    );

    // What takes not even that ends the worker, and nothing is acked.
    let parcel = Parcel { outgoing: shop.hand_back(message, QueueRole::Tasks), ends: Vec::new() };
    let refused = hand_on(parcel, &shop, &Narrow(1, Mutex::default())).await;
    assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
}
