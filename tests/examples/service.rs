//! The example `service`: client, worker and sink in one program, over RabbitMQ.

use std::path::PathBuf;

use gristmill::{Client, LedgerLocation, Registry, prelude::*};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    broker_url,
    harness::{Process, Site, within},
};

/// Returns the path of the example, which cargo puts beside the tests.
fn service() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/service");
    assert!(path.exists(), "{} is missing (hint: cargo build --examples)", path.display());
    path
}

#[tokio::test]
async fn service_prints_typed_reports() {
    let site = Site::new();
    let ledger = site.path("letters.ledger");
    // The second start finds its ledger and its lane again.
    for _ in 0..2 {
        let mut command = site.program(service());
        command.args([broker_url(), site.lane().to_string()]).arg(&ledger);
        let ended = within("the service", Process::start("service", command).output()).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        let lines: Vec<_> = ended.stdout.lines().map(|line| line.split_once(": ").unwrap()).collect();
        let told: Vec<_> = lines.iter().map(|(_, told)| *told).collect();
        assert_eq!(told.len(), 3, "{ended:?}");
        assert_eq!(told[0], "\"Mill\" has 3 different letters, {'i': 1, 'l': 2, 'm': 1}");
        for (job, _) in lines {
            let verified =
                site.json(&format!("sink verify {job} --json --ledger {}", ledger.display())).await;
            assert_eq!(verified["ok"], true, "{verified}");
        }
    }
    let ended = site.program(service()).output().await.unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && stderr.contains("hint: service URL LANE LEDGER"), "{stderr}");
}

/// A job whose tasks run until they are stopped.
#[derive(Serialize, Deserialize)]
struct ServiceJob {}

impl Job for ServiceJob {
    const KIND: &'static str = "endless";
    type Task = ();
    type Output = ();
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<(), JobError>> + Send {
        std::iter::repeat_with(|| Ok(())).take(100)
    }
    fn process(&self, (): (), cx: &TaskContext) -> Result<(), TaskError> {
        loop {
            cx.check()?;
            std::thread::yield_now();
        }
    }
    fn collect(&self, count: &mut u64, _: TaskIndex, (): ()) -> ControlFlow<()> {
        *count += 1;
        ControlFlow::Continue(())
    }
}

#[tokio::test]
async fn client_cancels_and_waits_by_id() {
    let site = Site::new();
    let client = Client::connect(&broker_url()).await.unwrap().lane(site.lane());
    let mut registry = Registry::default();
    registry.register::<ServiceJob>().unwrap();
    let leave = CancellationToken::new();
    let sink = client.sink(registry.clone(), LedgerLocation::Memory).unwrap();
    let sink = tokio::spawn(sink.run_until(client.transport(), leave.clone().cancelled_owned()));
    let worker = client.worker(registry).run_until(client.transport(), leave.clone().cancelled_owned());
    let worker = tokio::spawn(worker);

    let job = client.submit(ServiceJob {}).await.unwrap();
    let (id, cancelled) = (job.id(), job.cancel("enough").await.unwrap());
    assert_eq!(cancelled, gristmill::CancelOutcome::Broadcast);
    let outcome = within("the end", job.wait()).await.unwrap();
    assert_eq!((outcome.report, outcome.account.stopped.as_deref()), (0, Some("cancelled: enough")));
    assert!(!outcome.is_answered());
    // Once more, by its id alone.
    let again = within("the end", client.wait::<ServiceJob>(id)).await.unwrap();
    assert_eq!(again.account, outcome.account);
    assert_eq!(client.cancel(id, "again").await.unwrap(), gristmill::CancelOutcome::AlreadyEnded);

    leave.cancel();
    within("the sink", sink).await.unwrap().unwrap();
    within("the worker", worker).await.unwrap().unwrap();
    client.close().await;
}
