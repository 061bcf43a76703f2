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
use crate::{delivery::tests::AckCounter, outbound::merge::OutputSource, run_queue::run_queue};

/// A publisher that rejects each of these messages once, and keeps what it stored.
#[derive(Debug, Default)]
struct RejectingPublisher {
    rejected_ids: Mutex<Vec<&'static str>>,
    stored: Mutex<Vec<Message>>,
}

impl RejectingPublisher {
    fn ids(&self) -> Vec<String> {
        self.stored.lock().unwrap().iter().map(|message| message.id.clone()).collect()
    }
}

/// A publisher that refuses bodies of this number of bytes or more, and keeps what it stored.
#[derive(Debug)]
struct LimitedPublisher(usize, Mutex<Vec<Outgoing>>);

#[async_trait]
impl Publisher for LimitedPublisher {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
        let answer = |outgoing: Outgoing| {
            if outgoing.message.body.len() >= self.0 {
                return Published::Invalid("it is too large".into());
            }
            self.1.lock().unwrap().push(outgoing);
            Published::Confirmed
        };
        batch.into_iter().map(answer).collect()
    }
}

#[async_trait]
impl Publisher for RejectingPublisher {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Published> {
        let answer = |Outgoing { message, .. }: Outgoing| {
            let mut rejected_ids = self.rejected_ids.lock().unwrap();
            if let Some(place) = rejected_ids.iter().position(|id| *id == message.id) {
                rejected_ids.remove(place);
                return Published::Nacked;
            }
            self.stored.lock().unwrap().push(message);
            Published::Confirmed
        };
        batch.into_iter().map(answer).collect()
    }
}

impl PublishRequest {
    pub(crate) fn complete(self) {
        let parts = self.outbound.messages.len() + usize::from(self.outbound.outputs.is_some());
        (0..parts).for_each(|_| self.batch.complete_part());
    }
}

fn outgoing(id: &str) -> Outgoing {
    let to = Address::Queue(QueueRole::Results.of(&Lane::default()));
    Outgoing { to, message: Message { id: id.into(), ..Message::default() } }
}

/// A request of a batch whose slot has finished it.
fn request(outbound: Outbound, acks: &Arc<AckCounter>) -> PublishRequest {
    let settler: Arc<dyn Settler> = Arc::clone(acks) as _;
    let receipt = Receipt::new(Token { generation: 0, tag: 1 }, settler);
    let batch = Arc::new(InFlightBatch::new(receipt, QueueRole::Tasks));
    let request = PublishRequest::new(outbound, &batch);
    batch.complete_part();
    request
}

fn messages(ids: &[&str], acks: &Arc<AckCounter>) -> PublishRequest {
    request(ids.iter().map(|id| outgoing(id)).collect::<Vec<_>>().into(), acks)
}

fn outputs(job: JobId, first: u64, acks: &Arc<AckCounter>) -> PublishRequest {
    let done = vec![DoneTasks::from_outputs(TaskIndex(first), &[first])];
    let outputs = MergedOutputs::new(
        OutputSource { job, round: Round(0), version: 0 },
        None,
        Duration::from_micros(5),
        done,
    );
    request(Outbound { outputs, messages: Vec::new() }, acks)
}

/// Sends all requests at once, and publishes them.
async fn publish_requests(given: Vec<PublishRequest>, publisher: &RejectingPublisher) {
    let (outbound_queue, outbound_receiver) = outbound_channel();
    let all_emitted = CancellationToken::new();
    let (_run_sender, run_receiver) = run_queue(1);
    given.into_iter().for_each(|request| outbound_queue.send(request));
    all_emitted.cancel();
    publish_outbound(
        &*WorkerContext::for_test().await,
        outbound_receiver,
        publisher,
        &run_receiver,
        &all_emitted,
    )
    .await
    .unwrap();
}

/// Outcomes are delayed while all slots run long batches, until one slot is idle.
#[tokio::test(start_paused = true)]
async fn outcomes_coalesce_until_idle() {
    let (publisher, acks, job) =
        (RejectingPublisher::default(), Arc::new(AckCounter::default()), JobId::generate());
    let context = WorkerContext::for_test().await;
    (0..60).for_each(|_| context.prefetch.record_batch(Duration::from_millis(100), 1_000));
    let (outbound_queue, outbound_receiver) = outbound_channel();
    let (run_sender, run_receiver) = run_queue(1);
    let all_emitted = CancellationToken::new();
    let begin = Instant::now();
    let sent = |count| acks.0.load(Ordering::Relaxed) == count;
    let slots = async {
        outbound_queue.send_async(outputs(job, 0, &acks)).await;
        sleep_until(begin + Duration::from_millis(80)).await;
        outbound_queue.send_async(outputs(job, 1, &acks)).await;
        sleep_until(begin + Duration::from_millis(98)).await;
        assert!(sent(0), "they are delayed");
        sleep_until(begin + Duration::from_millis(102)).await;
        assert!(sent(2), "but not for long");
        outbound_queue.send_async(outputs(job, 2, &acks)).await;
        sleep_until(begin + Duration::from_millis(150)).await;
        assert!(sent(2));
        let idle = run_receiver.clone();
        let slot = std::thread::spawn(move || idle.next(&mut 0, || {}).is_none());
        // Not awaited: the paused clock would otherwise advance to the end of the delay.
        while run_receiver.wait_idle().now_or_never().is_none() {
            std::thread::yield_now();
        }
        tokio::task::yield_now().await;
        assert!(sent(3), "a slot has nothing to do");
        assert_eq!(begin.elapsed(), Duration::from_millis(150), "they would go by now anyway");
        drop(run_sender);
        assert!(slot.join().unwrap());
        all_emitted.cancel();
    };
    let ((), published) = futures::join!(
        slots,
        publish_outbound(&context, outbound_receiver, &publisher, &run_receiver, &all_emitted)
    );
    published.unwrap();
    assert_eq!(publisher.ids().len(), 2, "two travelled together");
}

/// A rejected message delays no other one, and is retried alone.
#[tokio::test]
async fn rejected_message_delays_no_other() {
    let publisher =
        RejectingPublisher { rejected_ids: Mutex::new(vec!["b"]), ..RejectingPublisher::default() };
    let acks = Arc::new(AckCounter::default());
    let mut pending = PublishBatch::default();
    let room = Arc::new(Semaphore::new(2));
    for request in [messages(&["a", "b"], &acks), messages(&["c"], &acks)] {
        pending.add((request, Arc::clone(&room).try_acquire_owned().unwrap()));
    }
    let mut answer = publish_batch(pending.messages, &publisher).await;
    assert_eq!((answer.completed, acks.0.load(Ordering::Relaxed)), (2, 1), "b is not stored");
    assert_eq!(room.available_permits(), 1);
    assert_eq!(
        publish_one(answer.unstored.pop().unwrap(), &*WorkerContext::for_test().await, &publisher).await,
        Ok(1)
    );
    assert_eq!((acks.0.load(Ordering::Relaxed), room.available_permits()), (2, 2));
    assert_eq!(publisher.ids(), ["a", "c", "b"]);
}

#[tokio::test(start_paused = true)]
async fn all_queued_requests_are_stored() {
    let publisher =
        RejectingPublisher { rejected_ids: Mutex::new(vec!["1", "2"]), ..RejectingPublisher::default() };
    let acks = Arc::new(AckCounter::default());
    publish_requests(["0", "1", "2", "3"].map(|id| messages(&[id], &acks)).into(), &publisher).await;
    let mut stored = publisher.ids();
    stored.sort();
    assert_eq!(
        (stored, acks.0.load(Ordering::Relaxed)),
        (["0", "1", "2", "3"].map(String::from).to_vec(), 4)
    );
}

/// Outputs of one job share a message, and each of their batches is settled.
#[tokio::test]
async fn outputs_of_a_job_are_merged() {
    let (publisher, acks) = (RejectingPublisher::default(), Arc::new(AckCounter::default()));
    let (one, other) = (JobId::generate(), JobId::generate());
    let given = [(one, 8), (one, 2), (other, 5), (one, 1), (one, 9)];
    publish_requests(given.map(|(job, first)| outputs(job, first, &acks)).into(), &publisher).await;
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
async fn large_outputs_are_split() {
    let (publisher, acks, job) =
        (RejectingPublisher::default(), Arc::new(AckCounter::default()), JobId::generate());
    let large = |first| {
        let done =
            vec![DoneTasks::from_outputs(TaskIndex(first), &["x".repeat(RESULTS_MESSAGE_BYTES / 2 - 100)])];
        let outputs =
            MergedOutputs::new(OutputSource { job, round: Round(0), version: 0 }, None, Duration::ZERO, done);
        request(Outbound { outputs, messages: Vec::new() }, &acks)
    };
    publish_requests((0..5).map(large).collect(), &publisher).await;
    assert_eq!((publisher.stored.lock().unwrap().len(), acks.0.load(Ordering::Relaxed)), (3, 5));

    // Short outputs with gaps between them take far more bytes than their values.
    let (publisher, job) = (RejectingPublisher::default(), JobId::generate());
    let scattered = |number: u64| {
        let indices = (number * 2_000..(number + 1) * 2_000).step_by(2).map(TaskIndex);
        let done = indices.map(|index| DoneTasks::from_outputs(index, &[1])).collect();
        let outputs =
            MergedOutputs::new(OutputSource { job, round: Round(0), version: 0 }, None, Duration::ZERO, done);
        request(Outbound { outputs, messages: Vec::new() }, &acks)
    };
    publish_requests((0..20).map(scattered).collect(), &publisher).await;
    let sizes: Vec<_> = publisher.stored.lock().unwrap().iter().map(|message| message.body.len()).collect();
    assert!(sizes.len() > 1 && sizes.iter().all(|size| *size <= RESULTS_MESSAGE_BYTES), "{sizes:?}");
}

#[tokio::test]
async fn sender_waits_for_free_bytes() {
    let acks = Arc::new(AckCounter::default());
    let (outbound_queue, outbound_receiver) = outbound_channel();
    let large = |id: &str| {
        let mut outgoing = outgoing(id);
        outgoing.message.body = vec![0; OUTBOUND_MAX_BYTES as usize + 1].into();
        request(vec![outgoing].into(), &acks)
    };
    outbound_queue.send_async(large("more than there is room for, alone")).await;
    let mut second = std::pin::pin!(outbound_queue.send_async(large("and one more")));
    assert!(futures::poll!(&mut second).is_pending());
    drop(outbound_receiver.queue.recv().unwrap());
    second.await;
}

#[tokio::test]
async fn ended_worker_blocks_no_sender() {
    let acks = Arc::new(AckCounter::default());
    let (outbound_queue, outbound_receiver) = outbound_channel();
    let large = || {
        let mut outgoing = outgoing("large");
        outgoing.message.body = vec![0; OUTBOUND_MAX_BYTES as usize].into();
        request(vec![outgoing].into(), &acks)
    };
    outbound_queue.send(large());
    let waiting = std::thread::spawn({
        let (outbound_queue, large) = (outbound_queue.clone(), large());
        move || outbound_queue.send(large)
    });
    drop(outbound_receiver);
    waiting.join().unwrap();
    assert_eq!(acks.0.load(Ordering::Relaxed), 0);
}

/// A batch that exceeds the broker's limit does not end the worker.
#[tokio::test]
async fn oversize_batch_is_dead_lettered() {
    let context = WorkerContext::for_test().await;
    let publisher = LimitedPublisher(16 << 20, Mutex::default());
    let message = Message { id: "foreign".into(), body: vec![b' '; 17 << 20].into(), ..Message::default() };
    let outgoing = context.requeue(message.clone(), QueueRole::Tasks);
    let guarded = GuardedMessage { outgoing, guards: Vec::new() };
    assert_eq!(publish_one(guarded, &context, &publisher).await, Ok(0));
    let stored = publisher.1.lock().unwrap().pop().unwrap();
    assert_eq!(stored.to, context.address(QueueRole::Dead));
    assert!(
        stored.message.headers.reason.unwrap().starts_with("it is too large"),
        "with the reason of the broker"
    );

    // A broker that refuses even that message ends the worker, and no batch is acked.
    let guarded = GuardedMessage { outgoing: context.requeue(message, QueueRole::Tasks), guards: Vec::new() };
    let refused = publish_one(guarded, &context, &LimitedPublisher(1, Mutex::default())).await;
    assert!(matches!(refused, Err(PublishError::Invalid { .. })), "{refused:?}");
}
