//! A client that tasks on different slots share, on the memory transport.

use std::{
    ops::ControlFlow,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use gristmill_shared::{Job, JobError, Outgoing, QueueRole, TaskContext, TaskError, TaskIndex};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::support::{
    ReleaseFlag, RunningWorker, TEST_TIMEOUT, TestBatch, consume, open_lane, publish, record_results,
    test_worker, within,
};

/// A number to double, with the sender for the answer.
type ClientRequest = (u64, oneshot::Sender<u64>);

/// The connection of the client, driven by a task that its first user spawned, as in HTTP clients.
static SHARED_CLIENT: LazyLock<Mutex<Option<mpsc::Sender<ClientRequest>>>> = LazyLock::new(Mutex::default);
/// The flag for which the first task holds its slot: the second task has its answer.
static ANSWERED_FLAG: ReleaseFlag = ReleaseFlag::new();

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
            ANSWERED_FLAG.wait();
        } else {
            ANSWERED_FLAG.release();
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
    TestBatch { first: task, ..TestBatch::of(Sharing::KIND) }.outgoing(&[task])
}

/// With one runtime a thread, the connection would stand still while the slot that opened it
/// computes.
#[tokio::test(flavor = "multi_thread")]
async fn slots_share_a_client() {
    let transport = open_lane().await;
    let worker = RunningWorker::start(test_worker::<Sharing>(2), Arc::clone(&transport) as _);
    publish(&*transport, vec![batch(0)]).await;
    within(FIRST_IS_BUSY.1.recv_async()).await.unwrap();
    publish(&*transport, vec![batch(1)]).await;

    let mut results = consume(&*transport, QueueRole::Results, 2).await;
    let mut outputs = Vec::new();
    while outputs.len() < 2 {
        let deliveries = timeout(TEST_TIMEOUT, results.recv(2)).await.expect("the client answers no more");
        record_results(deliveries.unwrap(), |results| {
            outputs.extend(results.done.iter().map(|span| span.outputs.get().to_owned()));
        });
    }
    outputs.sort();
    assert_eq!(outputs, ["[0]", "[2]"]);
    assert_eq!(worker.stop().await.done, 2);
}
