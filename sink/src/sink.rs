//! The sink as a whole: what it is made of, and how it starts and leaves.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, pending},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use flume::Sender;
use futures::{FutureExt, future::FusedFuture};
use gristmill_shared::{
    Consumer, Delivery, Health, Lane, LedgerId, OpenError, Publisher, QueueRole, Registry, Transport,
    WorkerId, wire::Serving,
};
use tokio::{sync::watch, time::timeout};

use crate::{
    LedgerPlace, SinkError,
    engine::{
        Clerk,
        ledger_thread::{self, DEAD_PREFETCH, Desk, Errand, RESULTS_PREFETCH},
    },
    lane_lock::Claim,
    ledger::{Ledger, Record, outbox_rows},
    outbox_publisher,
};

/// How many deliveries are handed to the clerk at a time.
const DELIVERIES_MAX: usize = 64;
/// How long a leaving sink waits for the broker to take what the ledger's outbox holds. What is left goes out when a
/// sink starts with this ledger again.
const OUTBOX_GRACE: Duration = Duration::from_secs(5);

/// What a sink is made of.
#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// The kinds of job it can fold. A job of another kind ends at once, visibly.
    pub registry: Registry,
    /// The lane it serves, alone.
    pub lane: Lane,
    /// Where its ledger is.
    pub ledger: LedgerPlace,
    /// Whether it may take the lane from a sink with another ledger.
    pub adopt: bool,
    /// What its messages say they come from.
    pub app: WorkerId,
    /// After how long without an outcome a job is said to stall; none for as long as suits the job, a minute or more.
    pub stall_after: Option<Duration>,
}

/// A sink with an open ledger: folds the results of a lane's jobs, and says how they ended.
#[derive(Debug)]
pub struct Sink {
    registry: Registry,
    lane: Lane,
    adopt: bool,
    app: WorkerId,
    ledger: Ledger,
    stall_after: Option<Duration>,
    /// Where an earlier sink wanted to send what the ledger's outbox still holds.
    outbox_lanes: Vec<Lane>,
}

/// A sink that has a lane for its own, and serves it as soon as it is [run](ClaimedSink::run_until).
#[derive(Debug)]
pub struct ClaimedSink {
    sink: Sink,
    transport: Arc<dyn Transport>,
    publisher: Arc<dyn Publisher>,
    claim: Claim,
}

/// What a sink did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SinkReport {
    /// Messages taken in from the results queue.
    pub messages: u64,
    /// Tasks that got an outcome.
    pub tasks: u64,
    /// Jobs that ended.
    pub jobs_ended: u64,
    /// Messages taken in from the dead queue.
    pub dead: u64,
}

impl fmt::Display for SinkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages, tasks, jobs_ended, dead } = self;
        write!(f, "{tasks} outcomes from {messages} messages, {jobs_ended} jobs ended, {dead} dead messages")
    }
}

impl Sink {
    /// Opens the ledger, or makes it, and holds it until the sink is dropped or ends. Blocking.
    ///
    /// # Errors
    /// If the file is no ledger, cannot be written, or is held by another sink, or if it has a
    /// running job of the lane whose code is registered in another version, or whose parameters do
    /// not decode. Then nothing was changed.
    pub fn open(config: SinkConfig) -> Result<Self, SinkError> {
        let SinkConfig { registry, lane, ledger, adopt, app, stall_after } = config;
        let ledger = Ledger::open(ledger)?;
        refuse_other_code(&ledger, &registry, &lane)?;
        let outbox_lanes = ledger.read("the outbox is read", outbox_rows::lanes)?;
        Ok(Self { registry, lane, adopt, app, ledger, stall_after, outbox_lanes })
    }

    /// What tells its ledger from all others.
    #[must_use]
    pub fn ledger_id(&self) -> &LedgerId {
        self.ledger.id()
    }

    /// Makes the lane's queues where they are missing, and claims the lane for this ledger. Nothing is taken from it
    /// yet. Dropping the future leaves at once; the claim may stand then.
    ///
    /// # Errors
    /// If the lane belongs to another ledger, or the broker goes.
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
        let claim = Claim::stake(&*transport, Arc::clone(&publisher), serving, who).await?;
        Ok(ClaimedSink { sink: self, transport, publisher, claim })
    }

    /// [Claims](Sink::claim) the lane and [serves](ClaimedSink::run_until) it until `shutdown` resolves, which may be
    /// before it has begun to.
    ///
    /// # Errors
    /// Those of the two.
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

/// Makes sure that the running jobs of known kinds can be folded.
fn refuse_other_code(ledger: &Ledger, registry: &Registry, lane: &Lane) -> Result<(), SinkError> {
    let running = ledger.read("jobs are read", |connection| Record::load_running(connection, lane))?;
    for Record { opened, version, .. } in running {
        let why = match registry.open(&opened.kind, version, &opened.spec) {
            Ok(_) | Err(OpenError::UnknownKind) => continue,
            Err(error) => error.to_string(),
        };
        let path = match ledger.place() {
            LedgerPlace::File(path) => path.clone(),
            LedgerPlace::Memory => PathBuf::from("in memory"),
        };
        return Err(SinkError::OtherCode { path, job: opened.job, why });
    }
    Ok(())
}

impl ClaimedSink {
    /// Serves the lane until `shutdown` resolves; then takes nothing more, commits what it has and acknowledges it.
    ///
    /// Dropping the future leaves at once: what was handed over is still committed, and what was not acknowledged
    /// comes again.
    ///
    /// # Errors
    /// [`SinkError`] if the broker goes, the ledger fails, or another ledger takes the lane over.
    pub async fn run_until(self, shutdown: impl Future<Output = ()> + Send) -> Result<SinkReport, SinkError> {
        let Self { sink, transport, publisher, claim } = self;
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

        let clerk = Clerk::new(ledger, registry, lane, app.clone()).stall_after(stall_after);
        let Desk { errands, outbox, news, end } = ledger_thread::start(clerk)?;
        let mut outbox = pin!(outbox_publisher::empty_outbox(outbox, errands.clone(), &*publisher).fuse());
        let mut news = pin!(outbox_publisher::tell(news, &*publisher, &app));
        // Nothing is wrong if we are told to leave; or the clerk has gone, who says why himself.
        let wrong = tokio::select! {
            () = &mut shutdown => None,
            wrong = receive(&mut *results, &errands, Errand::Take) => wrong,
            wrong = receive(&mut *dead, &errands, Errand::TakeDead) => wrong,
            wrong = claim.until_lost() => Some(wrong),
            stored = &mut outbox => stored.err(),
            () = &mut news => None,
            never = follow_health(transport.health(), &errands) => match never {},
        };

        // The consumers stay until the clerk has acknowledged: dropping them hands back what is not.
        let _ = errands.send_async(Errand::Leave).await; // fails if he has gone
        let report = end.await.unwrap_or_else(|_| Err(SinkError::Died("it ended without a word".into())));
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        let report = report?;
        results.close().await;
        dead.close().await;
        drop(errands);
        if !outbox.is_terminated() {
            match timeout(OUTBOX_GRACE, outbox).await {
                Ok(stored) => stored?,
                Err(_) => {
                    tracing::warn!("the broker does not take all facts; they go out when a sink starts again")
                }
            }
        }
        Ok(report)
    }
}

/// Hands deliveries to the clerk; answers why that ended. Nothing if the clerk has gone, who says why himself.
async fn receive(
    consumer: &mut dyn Consumer,
    errands: &Sender<Errand>,
    errand: impl Fn(Vec<Delivery>) -> Errand + Send,
) -> Option<SinkError> {
    loop {
        match consumer.recv(DELIVERIES_MAX).await {
            Ok(deliveries) => errands.send_async(errand(deliveries)).await.ok()?,
            Err(error) => return Some(error.into()),
        }
    }
}

/// Lets the clerk know whether the broker works.
async fn follow_health(mut health: watch::Receiver<Health>, errands: &Sender<Errand>) -> Infallible {
    loop {
        // Who has no queue to take from, because somebody deleted it, is the first who must be told of missing tasks.
        let works = matches!(*health.borrow_and_update(), Health::Well | Health::Interrupted(_));
        if errands.send_async(Errand::Broker { works }).await.is_err() || health.changed().await.is_err() {
            return pending().await; // somebody else knows why it is over
        }
    }
}

#[cfg(test)]
mod tests;
