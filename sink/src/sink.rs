//! The sink as a whole: its parts, its start and its shutdown.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, pending},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use flume::Sender;
use futures::{FutureExt, future::FusedFuture};
use gristmill_ledger::{JobRecord, Ledger};
use gristmill_shared::{
    Consumer, Delivery, Health, Lane, LedgerId, OpenError, Publisher, QueueRole, Registry, Transport,
    WorkerId, wire::Serving,
};
use tokio::{sync::watch, time::timeout};

use crate::{
    SinkError,
    engine::{
        LedgerEngine,
        ledger_thread::{self, DEAD_PREFETCH, LedgerCommand, LedgerHandle, RESULTS_PREFETCH},
    },
    lane_lock::LaneLock,
    outbox_publisher,
};

/// Deliveries handed to the ledger thread at a time.
const DELIVERIES_MAX: usize = 64;
/// Time that a sink which shuts down waits for the broker to confirm the rows of the ledger's
/// outbox. The rest goes out when a sink next starts with this ledger.
const OUTBOX_GRACE: Duration = Duration::from_secs(5);

/// Settings of a [`Sink`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SinkConfig {
    /// The kinds of job that the sink can fold. A job of another kind ends at once, visibly.
    pub registry: Registry,
    /// The lane that the sink serves. It has no other sink.
    pub lane: Lane,
    /// True if the sink may take the lane over from a sink with another ledger.
    pub adopt: bool,
    /// The sender that the sink's messages name.
    pub app: WorkerId,
    /// Time without an outcome after which a job counts as stalled. `None` adapts it to the job,
    /// with a minimum of one minute.
    pub stall_after: Option<Duration>,
}

impl SinkConfig {
    /// Creates the usual settings.
    #[must_use]
    pub fn new(registry: Registry, lane: Lane, app: WorkerId) -> Self {
        Self { registry, lane, adopt: false, app, stall_after: None }
    }
}

/// A sink with an open ledger: folds the results of a lane's jobs and concludes the jobs.
#[derive(Debug)]
pub struct Sink {
    registry: Registry,
    lane: Lane,
    adopt: bool,
    app: WorkerId,
    ledger: Box<dyn Ledger>,
    stall_after: Option<Duration>,
    /// The lanes that rows of the ledger's outbox, left by an earlier sink, are addressed to.
    outbox_lanes: Vec<Lane>,
}

/// A sink that owns its lane. [`run_until`](ClaimedSink::run_until) serves it.
#[derive(Debug)]
pub struct ClaimedSink {
    sink: Sink,
    transport: Arc<dyn Transport>,
    publisher: Arc<dyn Publisher>,
    lane_lock: LaneLock,
}

/// Counts of a sink's work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SinkReport {
    /// Messages received from the results queue.
    pub messages: u64,
    /// Tasks that got an outcome.
    pub tasks: u64,
    /// Jobs that ended.
    pub jobs_ended: u64,
    /// Messages received from the dead queue.
    pub dead: u64,
}

impl fmt::Display for SinkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages, tasks, jobs_ended, dead } = self;
        write!(f, "{tasks} outcomes from {messages} messages, {jobs_ended} jobs ended, {dead} dead messages")
    }
}

impl Sink {
    /// Takes an open ledger, which it keeps until it is dropped or ends. Blocking.
    ///
    /// # Errors
    /// If the ledger cannot be read, or has a running job of the lane whose code is registered in
    /// another version, or whose parameters do not decode. Nothing has changed then.
    pub fn open(config: SinkConfig, mut ledger: Box<dyn Ledger>) -> Result<Self, SinkError> {
        let SinkConfig { registry, lane, adopt, app, stall_after } = config;
        check_running_jobs(&mut *ledger, &registry, &lane)?;
        let outbox_lanes = ledger.outbox_state()?.lanes;
        Ok(Self { registry, lane, adopt, app, ledger, stall_after, outbox_lanes })
    }

    /// Returns the unique id of the ledger.
    #[must_use]
    pub fn ledger_id(&self) -> &LedgerId {
        self.ledger.id()
    }

    /// Creates the lane's queues where they are missing, and claims the lane for this ledger.
    /// Consumes nothing yet. Dropping the future stops at once; the claim may have been published
    /// then.
    ///
    /// # Errors
    /// If the lane belongs to another ledger, or the connection to the broker is lost.
    pub async fn claim(self, transport: Arc<dyn Transport>) -> Result<ClaimedSink, SinkError> {
        transport.open_lane(&self.lane).await?;
        for lane in &self.outbox_lanes {
            transport.open_lane(lane).await?;
        }
        let publisher = transport.publisher().await?;
        let serving = Serving {
            lane: self.lane.clone(),
            ledger: self.ledger.id().clone(),
            place: format!("{} of {}", self.ledger.place(), self.app),
        };
        let who = (self.adopt, self.app.as_str());
        let lane_lock = LaneLock::acquire(&*transport, Arc::clone(&publisher), serving, who).await?;
        Ok(ClaimedSink { sink: self, transport, publisher, lane_lock })
    }

    /// [Claims](Sink::claim) the lane and [serves](ClaimedSink::run_until) it until `shutdown`
    /// resolves, possibly before the claim.
    ///
    /// # Errors
    /// The errors of both.
    pub async fn run_until(
        self,
        transport: Arc<dyn Transport>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<SinkReport, SinkError> {
        let mut shutdown = pin!(shutdown);
        let claimed = tokio::select! {
            () = &mut shutdown => return Ok(SinkReport::default()),
            claimed = self.claim(transport) => claimed?,
        };
        claimed.run_until(shutdown).await
    }
}

/// Checks that this program can fold the running jobs of known kinds.
fn check_running_jobs(ledger: &mut dyn Ledger, registry: &Registry, lane: &Lane) -> Result<(), SinkError> {
    for JobRecord { opened, version, .. } in ledger.running(lane)? {
        let why = match registry.open(&opened.kind, version, &opened.spec) {
            Ok(_) | Err(OpenError::UnknownKind) => continue,
            Err(error) => error.to_string(),
        };
        return Err(SinkError::IncompatibleJob { place: ledger.place().clone(), job: opened.job, why });
    }
    Ok(())
}

impl ClaimedSink {
    /// Serves the lane until `shutdown` resolves; then consumes no more, commits and acknowledges
    /// what it has.
    ///
    /// Dropping the future stops at once: deliveries that were handed over are still committed, and
    /// unacknowledged ones are redelivered.
    ///
    /// # Errors
    /// [`SinkError`] if the connection to the broker is lost, the ledger fails, or another ledger
    /// takes the lane over.
    pub async fn run_until(self, shutdown: impl Future<Output = ()> + Send) -> Result<SinkReport, SinkError> {
        let Self { sink, transport, publisher, lane_lock } = self;
        let Sink { registry, lane, app, ledger, stall_after, .. } = sink;
        let mut shutdown = pin!(shutdown);
        let consumers = async {
            let results = transport.consume(&QueueRole::Results.of(&lane), RESULTS_PREFETCH).await?;
            Ok::<_, SinkError>((results, transport.consume(&QueueRole::Dead.of(&lane), DEAD_PREFETCH).await?))
        };
        let (mut results, mut dead) = tokio::select! {
            () = &mut shutdown => return Ok(SinkReport::default()),
            consumers = consumers => consumers?,
        };
        tracing::info!(%lane, ledger = %ledger.place(), %transport, "serving");

        let engine = LedgerEngine::new(ledger, registry, lane, app.clone()).stall_after(stall_after);
        let LedgerHandle { commands, outbox, events, end } = ledger_thread::spawn(engine)?;
        let mut outbox = pin!(outbox_publisher::drain_outbox(outbox, commands.clone(), &*publisher).fuse());
        let mut events = pin!(outbox_publisher::publish_events(events, &*publisher, &app));
        // `None` if `shutdown` resolved, or if the ledger thread has ended: `end` has its reason
        // then.
        let wrong = tokio::select! {
            () = &mut shutdown => None,
            wrong = forward_deliveries(&mut *results, &commands, LedgerCommand::Results) => wrong,
            wrong = forward_deliveries(&mut *dead, &commands, LedgerCommand::Dead) => wrong,
            wrong = lane_lock.wait_lost() => Some(wrong),
            stored = &mut outbox => stored.err(),
            () = &mut events => None,
            never = forward_health(transport.health(), &commands) => match never {},
        };

        // The consumers stay open until the ledger thread has acknowledged: dropping them requeues
        // the rest.
        let _ = commands.send_async(LedgerCommand::Shutdown).await; // fails if the thread has ended
        let report =
            end.await.unwrap_or_else(|_| Err(SinkError::ThreadDied("it ended without a result".into())));
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        let report = report?;
        results.close().await;
        dead.close().await;
        drop(commands);
        if !outbox.is_terminated() {
            match timeout(OUTBOX_GRACE, outbox).await {
                Ok(stored) => stored?,
                Err(_) => {
                    tracing::warn!(
                        "the broker has not confirmed all facts; the next start of the sink publishes them"
                    )
                }
            }
        }
        Ok(report)
    }
}

/// Forwards deliveries to the ledger thread. Returns the error that ended it, or `None` if the
/// ledger thread has ended, which reports its own reason.
async fn forward_deliveries(
    consumer: &mut dyn Consumer,
    commands: &Sender<LedgerCommand>,
    command: impl Fn(Vec<Delivery>) -> LedgerCommand + Send,
) -> Option<SinkError> {
    loop {
        match consumer.recv(DELIVERIES_MAX).await {
            Ok(deliveries) => commands.send_async(command(deliveries)).await.ok()?,
            Err(error) => return Some(error.into()),
        }
    }
}

/// Reports to the ledger thread whether the broker works.
async fn forward_health(mut health: watch::Receiver<Health>, commands: &Sender<LedgerCommand>) -> Infallible {
    loop {
        // `Interrupted` includes a missing queue: if it was deleted, the report of missing tasks
        // matters most.
        let works = matches!(*health.borrow_and_update(), Health::Ready | Health::Degraded(_));
        if commands.send_async(LedgerCommand::BrokerHealth { works }).await.is_err()
            || health.changed().await.is_err()
        {
            return pending().await; // `end` has the reason
        }
    }
}

#[cfg(test)]
mod tests;
