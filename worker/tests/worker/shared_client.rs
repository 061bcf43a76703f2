//! A client that tasks on different slots share, on the memory transport.

use std::{
    num::NonZeroU16,
    ops::ControlFlow,
    sync::{Arc, Condvar, LazyLock, Mutex},
    time::Duration,
};

use gristmill_shared::{
    Address, Headers, Job, JobError, JobId, Kind, Lane, Outgoing, Policy, QueueRole, Registry, Round,
    TaskContext, TaskError, TaskIndex, Transport,
    memory::MemoryTransport,
    publish_until_stored,
    wire::{self, Batch, Results},
};
use gristmill_worker::Worker;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

const WAIT_MAX: Duration = Duration::from_secs(60);

/// A number to double, with the sender for the answer.
type ClientRequest = (u64, oneshot::Sender<u64>);

/// The connection of the client, driven by a task that its first user spawned, as in HTTP clients.
static SHARED_CLIENT: LazyLock<Mutex<Option<mpsc::Sender<ClientRequest>>>> = LazyLock::new(Mutex::default);
/// The flag for which the first task holds its slot: the second task has its answer.
static ANSWERED_FLAG: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

fn wait_for_answer() {
    drop(ANSWERED_FLAG.1.wait_while(ANSWERED_FLAG.0.lock().unwrap(), |answered| !*answered).unwrap());
}

fn note_answer() {
    *ANSWERED_FLAG.0.lock().unwrap() = true;
    ANSWERED_FLAG.1.notify_all();
}

fn client() -> mpsc::Sender<ClientRequest> {
    let mut client = SHARED_CLIENT.lock().unwrap();
    let connect = || {
        let (client, requests) = mpsc::channel(1);
        tokio::spawn(drive(requests));
        client
    };
    client.get_or_insert_with(connect).clone()
}

async fn drive(mut requests: mpsc::Receiver<ClientRequest>) {
    while let Some((number, answer)) = requests.recv().await {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let _ = answer.send(number * 2);
    }
}

async fn ask(number: u64) -> Result<u64, TaskError> {
    let (answer, answered) = oneshot::channel();
    client().send((number, answer)).await?;
    Ok(answered.await?)
}

/// Task 0 connects, uses the client and then computes; task 1 uses the client meanwhile.
#[derive(Serialize, Deserialize)]
struct Sharing;

impl Job for Sharing {
    const KIND: &'static str = "sharing";
    type Task = u64;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, task: u64, cx: &TaskContext) -> Result<u64, TaskError> {
        let answer = cx.block_on(ask(task))??;
        if task == 0 {
            send_second();
            wait_for_answer();
        } else {
            note_answer();
        }
        Ok(answer)
    }
    fn collect(&self, _: &mut u64, _: TaskIndex, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

static FIRST_IS_BUSY: LazyLock<(flume::Sender<()>, flume::Receiver<()>)> =
    LazyLock::new(|| flume::bounded(1));

fn send_second() {
    FIRST_IS_BUSY.0.send(()).unwrap();
}

fn batch(task: u64) -> Outgoing {
    let message = Batch {
        job: JobId::generate(),
        kind: Kind::new("sharing").unwrap(),
        spec: &to_raw_value(&json!(null)).unwrap(),
        policy: Policy::default(),
        round: Round(0),
        stage: 0,
        spent: 0,
        version: 0,
        build: None,
        first: TaskIndex(task),
        count: 1,
        tasks: &to_raw_value(&[task]).unwrap(),
    }
    .to_message(Headers::default(), "test");
    Outgoing { to: Address::Queue(QueueRole::Tasks.of(&Lane::default())), message }
}

/// With one runtime a thread, the connection would stand still while the slot that opened it
/// computes.
#[tokio::test(flavor = "multi_thread")]
async fn slots_share_a_client() {
    let transport = MemoryTransport::new();
    transport.open_lane(&Lane::default()).await.unwrap();
    let publisher = transport.publisher().await.unwrap();
    let mut registry = Registry::default();
    registry.register::<Sharing>().unwrap();
    let worker = Worker::new(registry, "test-worker".parse().unwrap()).slots(NonZeroU16::new(2).unwrap());
    let (leave, left) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run_until(Arc::clone(&transport) as _, async {
        let _ = left.await;
    }));
    publish_until_stored(&*publisher, vec![batch(0)]).await.unwrap();
    timeout(WAIT_MAX, FIRST_IS_BUSY.1.recv_async()).await.unwrap().unwrap();
    publish_until_stored(&*publisher, vec![batch(1)]).await.unwrap();

    let mut results = transport.consume(&QueueRole::Results.of(&Lane::default()), 2).await.unwrap();
    let mut outputs = Vec::new();
    while outputs.len() < 2 {
        let deliveries = timeout(WAIT_MAX, results.recv(2)).await.expect("the client answers no more");
        for delivery in deliveries.unwrap() {
            let results: Results<'_> = wire::decode(&delivery.message).unwrap();
            outputs.extend(results.done.iter().map(|span| span.outputs.get().to_owned()));
            delivery.receipt.ack();
        }
    }
    outputs.sort();
    assert_eq!(outputs, ["[0]", "[2]"]);
    leave.send(()).unwrap();
    let report = timeout(WAIT_MAX, worker).await.unwrap().unwrap().unwrap();
    assert_eq!(report.done, 2);
}
