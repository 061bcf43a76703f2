//! A whole job over any transport: a producer, a worker and a sink in this process, started again when they fall.

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
use gristmill_producer::{CursorDir, CursorError, News, Producer, ProducerError, SubmitOptions, Watch};
use gristmill_shared::{
    Account, Conclusion, Job, JobId, Lane, RegisterError, Registry, Transport, TransportError, WorkerId,
    erase,
};
use gristmill_sink::{LedgerPlace, LedgerReader, Sink, SinkConfig, SinkError};
use gristmill_worker::{Worker, WorkerError};
use tokio_util::sync::CancellationToken;

/// How often the roles of one run are started again, all together, before the transport is called unusable.
const RESTARTS_MAX: u32 = 1_000;

/// How long a role waits for files that are still held, each time.
const HELD_PAUSE: Duration = Duration::from_millis(10);

/// How many tasks a batch has: few, so that a small job has many messages.
const BATCH: u32 = 5;

/// What a run came to.
#[derive(Debug)]
pub struct FleetEnd {
    /// The job's id; its ledger is the file `ledger` in the run's directory.
    pub job: JobId,
    /// How many tasks have which outcome, and what was ignored.
    pub account: Account,
    /// What the user would read.
    pub conclusion: Conclusion,
    /// Whether the ledger proves that every task has exactly one outcome.
    pub verified: bool,
    /// How often a role ended because of its transport, and was started again.
    pub restarts: u32,
}

/// Why a run came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// The job's kind cannot be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The producer's own reason, which is not the transport.
    #[error(transparent)]
    Producer(#[from] ProducerError),
    /// The cursor was not written, or not read.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// The worker's own reason.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The sink's own reason.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The journal was not readable.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Its outcome is not in the ledger, though its end is in the journal.
    #[error("job {0} ended, but the ledger does not say how")]
    Unknown(JobId),
}

impl FleetError {
    /// Whether the files of the role before are not let go of yet: a process that another thread is just starting holds
    /// all that we hold, until it runs its own program.
    fn is_held(&self) -> bool {
        matches!(
            self,
            Self::Sink(SinkError::Held { .. })
                | Self::Cursor(CursorError::Held { .. })
                | Self::Producer(ProducerError::Cursor(CursorError::Held { .. }))
        )
    }

    /// Whether the transport is to blame, and a new connection may help.
    fn is_the_transports(&self) -> bool {
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

/// Runs a job to its end with a producer, a worker of two slots and a sink, each on connections of its own that
/// `connect` opens to one and the same broker, on a lane of their own. A role that ends because of its connection is started again with the
/// next one, up to 1,000 times in all; ledger and cursor are kept in `state`, a directory of this run alone.
///
/// So a job or a transport of one's own can be put through anything: the account and the conclusion must come out the
/// same. The tasks of failed tries wait for seconds, as they do for users.
///
/// ```
/// use gristmill::{prelude::*, testing::{FaultRates, Faults, Faulty, Repeating, run_over}};
/// use gristmill_shared::memory::MemoryTransport;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Squares { below: u64 }
/// # impl Job for Squares {
/// #     const KIND: &'static str = "squares";
/// #     type Task = u64; type Output = u64; type Report = u64;
/// #     fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send { (0..self.below).map(Ok) }
/// #     fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> { Ok(task * task) }
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
///     let connection = Repeating::new(Faulty::new(broker.connect(), &faults), 2, 7);
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
    let keeper = Keeper { connect, restarts: &restarts };
    let (ledger, cursors) = (state.join("ledger"), CursorDir::new(state.join("jobs")));
    let job = erase(job);
    let lane = Lane::new(&format!("fleet-{}", JobId::generate())).expect("a UUID has the right characters");
    let app = WorkerId::new("fleet").expect("a name of the right characters");
    // What the roles borrow each time they are started.
    let (registry, ended, opened, ledger, cursors) = (&registry, &ended, &opened, &ledger, &cursors);
    let (job, lane, app) = (&job, &lane, &app);

    let sinking = keeper.keep(|transport| {
        async move {
            let sink = Sink::open(SinkConfig {
                registry: registry.clone(),
                lane: lane.clone(),
                ledger: LedgerPlace::File(ledger.clone()),
                adopt: false,
                stall_after: None,
                app: app.clone(),
            })?;
            sink.run_until(transport, ended.cancelled()).await?;
            Ok(())
        }
        .boxed()
    });
    let working = keeper.keep(|transport| {
        async move {
            let slots = NonZeroU16::MIN.saturating_add(1);
            let worker = Worker::new(registry.clone(), app.clone()).lane(lane.clone()).slots(slots);
            worker.run_until(transport, ended.cancelled()).await?;
            Ok(())
        }
        .boxed()
    });
    let sending = keeper.keep(|transport| {
        async move {
            let producer = Producer::new(transport, app.as_str()).cursors(cursors.clone(), "");
            let options =
                SubmitOptions { lane: lane.clone(), batch: Some(BATCH), ..SubmitOptions::default() };
            let submission = match opened.get() {
                None => producer.open(Arc::clone(job), options).await?,
                Some(id) => producer.resume(registry, cursors.load(*id)?).await?,
            };
            let _ = opened.set(submission.id()); // it is resumed from then on
            submission.send().await?;
            Ok(())
        }
        .boxed()
    });
    let submitting = async {
        sending.await?;
        let id = *opened.get().ok_or(ProducerError::Died)?;
        keeper
            .keep(|transport| {
                async move {
                    let mut watch = Watch::open(&*transport, id).await?;
                    while !matches!(watch.next().await?, News::Finished(_)) {}
                    Ok(())
                }
                .boxed()
            })
            .await?;
        ended.cancel();
        Ok(id)
    };
    let ((), (), id) = futures::try_join!(sinking, working, submitting)?;

    let reader = LedgerReader::open(ledger)?;
    let view = reader.job(id)?.ok_or(FleetError::Unknown(id))?;
    Ok(FleetEnd {
        job: id,
        account: view.summary.account,
        conclusion: view.conclusion.ok_or(FleetError::Unknown(id))?,
        verified: reader.verify(id)?.ok,
        restarts: restarts.into_inner(),
    })
}

/// Starts roles again.
struct Keeper<'a, C> {
    connect: C,
    restarts: &'a AtomicU32,
}

impl<C, F> Keeper<'_, C>
where
    C: Fn() -> F + Sync,
    F: Future<Output = Result<Arc<dyn Transport>, TransportError>> + Send,
{
    async fn keep<'r>(
        &self,
        role: impl Fn(Arc<dyn Transport>) -> BoxFuture<'r, Result<(), FleetError>> + Send + Sync,
    ) -> Result<(), FleetError> {
        loop {
            let transport = (self.connect)().await?;
            let ended = role(Arc::clone(&transport)).await;
            transport.close().await;
            match ended {
                Err(error)
                    if (error.is_the_transports() || error.is_held())
                        && self.restarts.fetch_add(1, Ordering::Relaxed) < RESTARTS_MAX =>
                {
                    tracing::debug!(%error, "a role is started again");
                    if error.is_held() {
                        tokio::time::sleep(HELD_PAUSE).await; // nothing tells when
                    }
                }
                ended => return ended,
            }
        }
    }
}
