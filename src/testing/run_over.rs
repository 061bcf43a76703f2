//! A whole job over any transport: a producer, a worker and a sink in this process, which are
//! restarted when their transport fails.

use std::{
    future::Future,
    num::NonZeroU16,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use gristmill_ledger::{LedgerError, LedgerLocation};
use gristmill_producer::{
    CursorDir, CursorError, JobUpdate, JobWatcher, Producer, ProducerError, SubmitOptions,
};
use gristmill_shared::{
    Account, Conclusion, Job, JobId, Lane, RegisterError, Registry, Transport, TransportError, WorkerId,
    erase,
};
use gristmill_sink::{Sink, SinkConfig, SinkError};
use gristmill_worker::{Worker, WorkerError};
use tokio_util::sync::CancellationToken;

use crate::ledger_store::{open_ledger, read_ledger};

/// The most restarts in one run, of all roles together. After that the transport counts as
/// unusable.
const RESTARTS_MAX: u32 = 1_000;

/// The pause before a role whose files are still locked is restarted.
const HELD_PAUSE: Duration = Duration::from_millis(10);

/// The number of tasks of a batch. It is small, so that a small job has many messages.
const BATCH_TASKS: u32 = 5;

/// The result of a run.
#[derive(Debug)]
pub struct FleetEnd {
    /// The job's id; its ledger is the file `ledger` in the run's directory.
    pub job: JobId,
    /// The number of tasks with each outcome, and of ignored outcomes.
    pub account: Account,
    /// The conclusion, as a user reads it.
    pub conclusion: Conclusion,
    /// True if the ledger proves that every task has exactly one outcome.
    pub verified: bool,
    /// The number of restarts of a role because of its transport.
    pub restarts: u32,
}

/// An error that ends a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// The job's kind cannot be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// An error of the producer other than of its transport.
    #[error(transparent)]
    Producer(#[from] ProducerError),
    /// The cursor cannot be written or read.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// An error of the worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// An error of the sink.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The journal cannot be read.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The job's end is in the journal, but its outcome is not in the ledger.
    #[error("job {0} ended, but the ledger does not say how")]
    Unknown(JobId),
}

impl From<LedgerError> for FleetError {
    fn from(error: LedgerError) -> Self {
        Self::Sink(error.into())
    }
}

impl FleetError {
    /// True if the files of the role before are still locked. A process that another thread is just
    /// starting holds all our locks until it executes its own program.
    fn is_held(&self) -> bool {
        matches!(
            self,
            Self::Sink(SinkError::Ledger(LedgerError::Locked { .. }))
                | Self::Cursor(CursorError::Held { .. })
                | Self::Producer(ProducerError::Cursor(CursorError::Held { .. }))
        )
    }

    /// True if the transport failed, so that a new connection may help.
    fn is_transport_error(&self) -> bool {
        match self {
            Self::Transport(_)
            | Self::Producer(ProducerError::Transport(_) | ProducerError::Store(_))
            | Self::Worker(WorkerError::Transport(_) | WorkerError::Store(_))
            | Self::Sink(SinkError::Transport(_) | SinkError::Store(_)) => true,
            Self::Register(_)
            | Self::Producer(_)
            | Self::Cursor(_)
            | Self::Worker(_)
            | Self::Sink(_)
            | Self::Unknown(_) => false,
        }
    }
}

/// Runs a job to its end with a producer, a worker of two slots and a sink. Each has connections of
/// its own, which `connect` opens to the same broker, and all use a lane of their own. A role that
/// ends because of its connection is restarted with the next one, up to 1,000 times in all. Ledger
/// and cursor are kept in `state`, a directory of this run alone.
///
/// This tests a job or a transport under faults: the account and the conclusion must not change. As
/// in production, tasks of failed attempts wait for seconds.
///
/// ```
/// use gristmill::prelude::*;
/// use gristmill::testing::{FaultRates, Faults, FaultyTransport, RepeatingTransport, run_over};
/// use gristmill_shared::memory::MemoryTransport;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Squares { below: u64 }
/// # impl Job for Squares {
/// #     const KIND: &'static str = "squares";
/// #     type Task = u64; type Output = u64; type Report = u64;
/// #     fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
/// #         (0..self.below).map(Ok)
/// #     }
/// #     fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> {
/// #         Ok(task * task)
/// #     }
/// #     fn collect(&self, report: &mut u64, _: TaskIndex, output: u64) -> ControlFlow<()> {
/// #         *report += output;
/// #         ControlFlow::Continue(())
/// #     }
/// # }
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = MemoryTransport::new();
/// let faults = Faults::new(7, FaultRates::default());
/// let connect = || {
///     let faulty = FaultyTransport::new(broker.connect(), &faults);
///     let connection = RepeatingTransport::new(faulty, 2, 7);
///     async { Ok(connection as _) }
/// };
/// let state = tempfile::tempdir()?;
/// let end = run_over(Squares { below: 100 }, state.path(), connect).await?;
/// assert_eq!(end.conclusion.text, "328350");
/// assert!(end.verified && end.account.done == 100);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`FleetError`]: the job cannot be run, or the transport not be used.
pub async fn run_over<J: Job, F>(
    job: J,
    state: &Path,
    connect: impl Fn() -> F + Send + Sync,
) -> Result<FleetEnd, FleetError>
where
    F: Future<Output = Result<Arc<dyn Transport>, TransportError>> + Send,
{
    let mut registry = Registry::default();
    registry.register::<J>()?;
    let (restarts, ended, opened) = (AtomicU32::new(0), CancellationToken::new(), OnceLock::new());
    let restarter = Restarter { connect, restarts: &restarts };
    let (ledger, cursors) = (state.join("ledger"), CursorDir::new(state.join("jobs")));
    let job = erase(job);
    let lane = Lane::new(&format!("fleet-{}", JobId::generate())).expect("a UUID has the right characters");
    let app = WorkerId::new("fleet").expect("a name of the right characters");
    // References that the roles copy each time they are started.
    let (registry, ended, opened, ledger, cursors) = (&registry, &ended, &opened, &ledger, &cursors);
    let (job, lane, app) = (&job, &lane, &app);

    let sinking = restarter.run_restarting(|transport| {
        async move {
            let config = SinkConfig::new(registry.clone(), lane.clone(), app.clone());
            let ledger = open_ledger(LedgerLocation::File(ledger.clone()))?;
            let sink = Sink::open(config, ledger)?;
            sink.run_until(transport, ended.cancelled()).await?;
            Ok(())
        }
        .boxed()
    });
    let working = restarter.run_restarting(|transport| {
        async move {
            let slots = NonZeroU16::MIN.saturating_add(1);
            let worker = Worker::new(registry.clone(), app.clone()).lane(lane.clone()).slots(slots);
            worker.run_until(transport, ended.cancelled()).await?;
            Ok(())
        }
        .boxed()
    });
    let sending = restarter.run_restarting(|transport| {
        async move {
            let producer = Producer::new(transport, app.as_str()).cursors(cursors.clone(), "");
            let options =
                SubmitOptions { lane: lane.clone(), batch: Some(BATCH_TASKS), ..SubmitOptions::default() };
            let submission = match opened.get() {
                None => producer.open(Arc::clone(job), options).await?,
                Some(id) => producer.resume(registry, cursors.load(*id)?).await?,
            };
            let _ = opened.set(submission.id()); // from then on the job is resumed
            submission.send().await?;
            Ok(())
        }
        .boxed()
    });
    let submitting = async {
        sending.await?;
        let id = *opened.get().ok_or(ProducerError::ThreadDied)?;
        restarter
            .run_restarting(|transport| {
                async move {
                    let mut watch = JobWatcher::open(&*transport, id).await?;
                    while !matches!(watch.next().await?, JobUpdate::Finished(_)) {}
                    Ok(())
                }
                .boxed()
            })
            .await?;
        ended.cancel();
        Ok(id)
    };
    let ((), (), id) = futures::try_join!(sinking, working, submitting)?;

    let mut reader = read_ledger(ledger)?;
    let view = reader.job(id)?.ok_or(FleetError::Unknown(id))?;
    Ok(FleetEnd {
        job: id,
        account: view.summary.account,
        conclusion: view.conclusion.ok_or(FleetError::Unknown(id))?,
        verified: reader.verify(id)?.ok,
        restarts: restarts.into_inner(),
    })
}

/// Restarts roles whose transport failed.
struct Restarter<'a, C> {
    connect: C,
    restarts: &'a AtomicU32,
}

impl<C, F> Restarter<'_, C>
where
    C: Fn() -> F + Sync,
    F: Future<Output = Result<Arc<dyn Transport>, TransportError>> + Send,
{
    async fn run_restarting<'r>(
        &self,
        role: impl Fn(Arc<dyn Transport>) -> BoxFuture<'r, Result<(), FleetError>> + Send + Sync,
    ) -> Result<(), FleetError> {
        loop {
            let transport = (self.connect)().await?;
            let ended = role(Arc::clone(&transport)).await;
            transport.close().await;
            match ended {
                Err(error)
                    if (error.is_transport_error() || error.is_held())
                        && self.restarts.fetch_add(1, Ordering::Relaxed) < RESTARTS_MAX =>
                {
                    tracing::debug!(%error, "restarting a role");
                    if error.is_held() {
                        tokio::time::sleep(HELD_PAUSE).await; // nothing notifies of the release
                    }
                }
                ended => return ended,
            }
        }
    }
}
