//! Jobs over a broker, submitted by a long-running process.

use std::{fmt, future::pending, marker::PhantomData, sync::Arc};

use gristmill_ledger::LedgerLocation;
use gristmill_producer::{
    CancelOutcome, JobWatcher, Producer, ProducerError, SplitReport, SubmitOptions, cancel,
};
use gristmill_shared::{
    ConnectOptions, Credentials, Job, JobId, Lane, Outcome, Registry, Transport, WorkerId, erase_shared,
};
use gristmill_sink::{Sink, SinkConfig};
use gristmill_worker::Worker;
use tokio::task::JoinHandle;

use super::{Error, processor_count};
use crate::{build_id::build_id, ledger_store::open_ledger, transports::connect_with};

/// A connection to a broker, for a service that submits jobs and may be a worker and the sink of
/// its lane as well.
///
/// The jobs of a client share the lane and the reader of the journal, which are opened for the
/// first job. The tasks of a later small job reach a worker after one round trip to the broker.
/// Clones share the connection. A lost connection is restored automatically.
///
/// ```
/// use gristmill::{Client, LedgerLocation, MemoryTransport, Registry, prelude::*};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Square(u64);
/// # impl Job for Square {
/// #     const KIND: &'static str = "square";
/// #     type Task = u64; type Output = u64; type Report = u64;
/// #     fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
/// #         std::iter::once(Ok(self.0))
/// #     }
/// #     fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> {
/// #         Ok(task * task)
/// #     }
/// #     fn collect(&self, report: &mut u64, _: TaskIndex, output: u64) -> ControlFlow<()> {
/// #         *report = output;
/// #         ControlFlow::Continue(())
/// #     }
/// # }
///
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::over(MemoryTransport::new()); // or Client::connect(url).await?
///
/// // This process is the lane's sink and a worker, too.
/// let mut registry = Registry::default();
/// registry.register::<Square>()?;
/// let sink = client.sink(registry.clone(), LedgerLocation::Memory)?;
/// tokio::spawn(sink.run_until(client.transport(), std::future::pending()));
/// tokio::spawn(client.worker(registry).run_until(client.transport(), std::future::pending()));
///
/// for number in 1..=3 {
///     assert_eq!(client.run(Square(number)).await?.into_answer()?, number * number);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    producer: Producer,
    app: WorkerId,
    lane: Lane,
}

impl Client {
    /// Connects to the broker at `url` by a transport of
    /// [`built_in_transports`](crate::built_in_transports). Tries for 10 s.
    ///
    /// # Errors
    /// [`Error::Transport`]. No error shows the password.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::connect_with(url, &Credentials::default()).await
    }

    /// Connects like [`Client::connect`], with a password or certificates that are not in the URL.
    ///
    /// # Errors
    /// The errors of [`Client::connect`], or if a file cannot be read.
    pub async fn connect_with(url: &str, access: &Credentials) -> Result<Self, Error> {
        let app = WorkerId::generate("client");
        let options = ConnectOptions::new(url).credentials(access.clone()).name(app.as_str());
        let transport = connect_with(&options).await?;
        Ok(Self::new(transport, app))
    }

    /// Returns a client that uses a connected transport, of any kind.
    #[must_use]
    pub fn over(transport: Arc<dyn Transport>) -> Self {
        Self::new(transport, WorkerId::generate("client"))
    }

    fn new(transport: Arc<dyn Transport>, app: WorkerId) -> Self {
        let producer = Producer::new(Arc::clone(&transport), app.as_str()).build(build_id());
        Self { transport, producer, app, lane: Lane::default() }
    }

    /// Sets the lane. Defaults to the lane `default`.
    #[must_use]
    pub fn lane(self, lane: Lane) -> Self {
        Self { lane, ..self }
    }

    /// Returns the connection, for a worker or a sink.
    #[must_use]
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.transport)
    }

    /// Returns the default options of [`Client::submit`], to be changed for
    /// [`Client::submit_with`].
    #[must_use]
    pub fn options(&self) -> SubmitOptions {
        SubmitOptions { lane: self.lane.clone(), ..SubmitOptions::default() }
    }

    /// Submits a job and returns when the broker has stored its opening. The tasks are split and
    /// sent in the background, on the runtime of the caller.
    ///
    /// The job is a value, or an [`Arc`] if the caller keeps it: then name its type,
    /// `submit::<MyJob>(arc)`. Dropping the future may leave the job open without its tasks.
    ///
    /// # Errors
    /// [`Error::Producer`] if the job refuses its parameters, or the connection is lost.
    pub async fn submit<J: Job>(&self, job: impl Into<Arc<J>>) -> Result<JobHandle<J>, Error> {
        self.submit_with(job, self.options()).await
    }

    /// Submits like [`Client::submit`], with options, which also name the lane.
    ///
    /// # Errors
    /// The errors of [`Client::submit`].
    pub async fn submit_with<J: Job>(
        &self,
        job: impl Into<Arc<J>>,
        options: SubmitOptions,
    ) -> Result<JobHandle<J>, Error> {
        let (mut submission, watch) =
            self.producer.open_watched(erase_shared::<J>(job.into()), options).await?;
        let id = submission.id();
        let client = self.clone();
        let sending = tokio::spawn(async move {
            let report = submission.send_until(pending()).await?;
            // Until the job has ended, so that no task is left without an outcome.
            submission.send_refused_until(pending()).await?;
            Ok(report)
        });
        Ok(JobHandle { id, client, watch, sending, kind: PhantomData })
    }

    /// Submits a job and waits for its end.
    ///
    /// # Errors
    /// The errors of [`Client::submit`] and [`JobHandle::wait`].
    pub async fn run<J: Job>(&self, job: impl Into<Arc<J>>) -> Result<Outcome<J::Report>, Error> {
        self.submit(job).await?.wait().await
    }

    /// Waits for the end of any job, submitted anywhere, and returns its outcome, even if it ended
    /// long ago. Waits forever for an unknown id. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Report`] if the job ended without a report that fits `J`; otherwise if the
    /// connection is lost.
    pub async fn wait<J: Job>(&self, job: JobId) -> Result<Outcome<J::Report>, Error> {
        self.transport.open_lane(&self.lane).await?;
        Ok(JobWatcher::open(&*self.transport, job).await?.outcome::<J>().await?)
    }

    /// Cancels a job: workers drop its queued tasks and stop the running ones. `reason` is for the
    /// record.
    ///
    /// # Errors
    /// If the connection is lost, or the broker does not accept the messages.
    pub async fn cancel(&self, job: JobId, reason: &str) -> Result<CancelOutcome, Error> {
        let Self { transport, app, lane, .. } = self;
        Ok(cancel(&**transport, lane, job, Some(lane.clone()), reason, app.as_str()).await?)
    }

    /// Returns a worker for the client's lane with one slot per processor. It works while
    /// [`run_until`](Worker::run_until) is awaited, which takes [`Client::transport`].
    #[must_use]
    pub fn worker(&self, registry: Registry) -> Worker {
        Worker::new(registry, self.app.clone())
            .build(build_id())
            .lane(self.lane.clone())
            .slots(processor_count())
    }

    /// Opens or creates a ledger, and returns the sink for the client's lane; a lane has one sink.
    /// The sink serves while [`run_until`](Sink::run_until) is awaited, which takes
    /// [`Client::transport`]. Blocking.
    ///
    /// # Errors
    /// [`Error::Sink`] if the file is no ledger, cannot be written, or is held by another sink.
    pub fn sink(&self, registry: Registry, ledger: LedgerLocation) -> Result<Sink, Error> {
        let config = SinkConfig::new(registry, self.lane.clone(), self.app.clone());
        Ok(Sink::open(config, open_ledger(ledger)?)?)
    }

    /// Closes the connection for all clones, and for its workers and sinks, which should have ended
    /// before.
    pub async fn close(self) {
        self.transport.close().await;
    }
}

/// A job that a [`Client`] has submitted.
///
/// Dropping the handle changes nothing: the tasks are still sent, and the job can be waited for by
/// its id.
pub struct JobHandle<J> {
    id: JobId,
    client: Client,
    watch: JobWatcher,
    sending: JoinHandle<Result<SplitReport, ProducerError>>,
    kind: PhantomData<fn() -> J>,
}

impl<J: Job> JobHandle<J> {
    /// Returns the job's id.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Waits for the job's end and returns its outcome. Dropping the future does not affect the
    /// job; [`Client::wait`] waits for it again.
    ///
    /// # Errors
    /// [`Error::Producer`] if the job could not be split or sent; [`Error::Report`] if it ended
    /// without a report; otherwise if the connection is lost.
    pub async fn wait(self) -> Result<Outcome<J::Report>, Error> {
        let Self { mut watch, sending, .. } = self;
        let sent = async {
            match sending.await {
                Ok(sent) => sent.map_err(Error::from),
                Err(died) => Err(Error::Defect(died.to_string())),
            }
        };
        let ended = async { watch.finished().await.map_err(Error::from) };
        let (_, finished) = futures::try_join!(sent, ended)?;
        Ok(finished.outcome::<J>()?)
    }

    /// Cancels the job, like [`Client::cancel`].
    ///
    /// # Errors
    /// The errors of [`Client::cancel`].
    pub fn cancel(&self, reason: &str) -> impl Future<Output = Result<CancelOutcome, Error>> + Send + use<J> {
        // The future may be sent to another thread; a borrow of the handle may not.
        let (client, id, reason) = (self.client.clone(), self.id, reason.to_owned());
        async move { client.cancel(id, &reason).await }
    }
}

impl<J: Job> fmt::Debug for JobHandle<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobHandle").field("kind", &J::KIND).field("id", &self.id).finish_non_exhaustive()
    }
}
