//! The single writer of the ledger: folds messages and commits them in groups. Runs on one thread
//! and does not use the broker.

pub(crate) mod commit_schedule;
mod dead_recorder;
pub(crate) mod ledger_thread;
mod parking;
mod progress;
mod stalls;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    mem,
    time::{Duration, Instant},
};

use gristmill_ledger::{Changes, Committed, JobRecord, Ledger, LedgerError, LedgerLocation};
use gristmill_shared::{
    Delivery, JobId, Lane, Message, QueueRole, Receipt, Registry, Topic, WorkerId,
    fail_point::{FailPoint, reached},
    metrics::{SINK_COMMIT_SECONDS, SINK_JOBS_ENDED, SINK_MESSAGES},
    wire::{
        Audit, Batch, Event, FINISHED_REPORT_MAX_BYTES, Malformed, Missing, Opened, Reopen, SinkMessage,
        decode,
    },
};

use crate::{
    SinkError, SinkReport,
    job::ActiveJob,
    outbox::{Outbox, OutboxAnswer, OutboxBatch},
};
use commit_schedule::Urgency;
use dead_recorder::DeadRecorder;
use parking::Parking;
use progress::ProgressThrottle;
use stalls::StallDetector;

/// Jobs kept in memory between two commits. Beyond that all are dropped and loaded again on their
/// next message.
const JOBS_MAX_IN_MEMORY: usize = 1_000;

/// The largest report that a job's end carries if the ledger is in memory, in bytes: there is no
/// other place to read it. Together with a conclusion of 1 MiB, escaped, it fits a message of every
/// transport.
const UNKEPT_REPORT_MAX_BYTES: usize = 8 << 20;

/// Returns the largest report that a job's end carries, in bytes.
fn report_max_bytes(ledger: &dyn Ledger) -> usize {
    match ledger.place() {
        LedgerLocation::File(_) => FINISHED_REPORT_MAX_BYTES,
        LedgerLocation::Memory => UNKEPT_REPORT_MAX_BYTES,
    }
}

/// Folds messages into jobs, and commits the changes.
///
/// Any error ends the engine as a whole: its memory is discarded, and the messages, which were not
/// acknowledged, are redelivered.
#[derive(Debug)]
pub(crate) struct LedgerEngine {
    ledger: Box<dyn Ledger>,
    registry: Registry,
    lane: Lane,
    app: WorkerId,
    jobs: HashMap<JobId, ActiveJob>,
    outbox: Outbox,
    parking: Parking,
    dead: DeadRecorder,
    progress: ProgressThrottle,
    stalls: StallDetector,
    /// Stalls that are not committed.
    stalled: Vec<(Topic, Missing)>,
    /// Receipts of messages that are not committed.
    receipts: Vec<Receipt>,
    /// The time since which the youngest job with uncommitted results has been running.
    running_since: Option<Instant>,
    report: SinkReport,
}

/// The consequences of a commit.
#[derive(Debug, Default)]
pub(crate) struct CommitResult {
    /// Receipts to acknowledge.
    pub(crate) receipts: Vec<Receipt>,
    /// Batches to publish; their answers go to [`LedgerEngine::apply_answer`].
    pub(crate) outbox: Vec<OutboxBatch>,
}

impl LedgerEngine {
    pub(crate) fn new(ledger: Box<dyn Ledger>, registry: Registry, lane: Lane, app: WorkerId) -> Self {
        Self {
            registry,
            outbox: Outbox::new(lane.clone(), app.clone(), report_max_bytes(&*ledger)),
            ledger,
            lane,
            app,
            jobs: HashMap::new(),
            parking: Parking::default(),
            dead: DeadRecorder::default(),
            progress: ProgressThrottle::default(),
            stalls: StallDetector::new(None),
            stalled: Vec::new(),
            receipts: Vec::new(),
            running_since: None,
            report: SinkReport::default(),
        }
    }

    /// Sets the time without an outcome after which a job counts as stalled.
    pub(crate) fn stall_after(self, after: Option<Duration>) -> Self {
        Self { stalls: StallDetector::new(after), ..self }
    }

    /// Watches the jobs that an earlier sink left running. Called before the first message.
    pub(crate) fn watch_running(&mut self) -> Result<(), SinkError> {
        let running = self.ledger.running(&self.lane)?;
        let now = Instant::now();
        for JobRecord { opened, counts, stalled_ms, .. } in running {
            self.stalls.watch(opened.job, counts.mean_time(), stalled_ms.is_some(), now);
        }
        self.stalls.update_gauges();
        self.outbox.load_row_count(&mut *self.ledger)
    }

    /// Notes whether the broker works. While it does not, no job counts as stalled.
    pub(crate) fn set_broker_works(&mut self, works: bool) {
        self.stalls.set_suspended(!works, Instant::now());
    }

    /// Returns the earliest time at which a job can stall.
    pub(crate) fn stalls_due(&self) -> Option<Instant> {
        self.stalls.due()
    }

    /// Marks jobs that have had no outcome for too long, and reports their missing tasks.
    pub(crate) fn find_stalls(&mut self) -> Result<(), SinkError> {
        let stalled = self.stalls.find_stalled(Instant::now());
        self.stalls.update_gauges();
        for (id, since_ms) in stalled {
            self.load(id)?;
            let stalled = self.jobs.get_mut(&id).and_then(|job| job.mark_stalled(since_ms, &mut self.outbox));
            self.stalled.extend(stalled);
        }
        Ok(())
    }

    /// Folds a message from the results queue.
    pub(crate) fn accept_result(
        &mut self,
        Delivery { message, receipt, .. }: Delivery,
    ) -> Result<(), SinkError> {
        self.report.messages += 1;
        SINK_MESSAGES.add([QueueRole::Results.as_str()], 1);
        self.receipts.push(receipt);
        let headers = &message.headers;
        let _span = tracing::debug_span!(
            "results",
            trace_id = headers.trace_id(),
            span_id = headers.follow().span_id(),
            parent_id = headers.span_id()
        )
        .entered();
        tracing::debug!(id = message.id, form = message.form, from = message.app, "taking in");
        self.fold(&message)
    }

    /// Processes a message from the dead queue.
    pub(crate) fn accept_dead(
        &mut self,
        Delivery { message, receipt, .. }: Delivery,
    ) -> Result<(), SinkError> {
        self.report.dead += 1;
        SINK_MESSAGES.add([QueueRole::Dead.as_str()], 1);
        self.receipts.push(receipt);
        self.process_dead(&message)
    }

    /// Applies the broker's answer to a batch of the outbox. Refused rows are kept and sent again
    /// later, but a refused dead message is processed as if it had come from the dead queue.
    pub(crate) fn apply_answer(&mut self, answered: OutboxAnswer) -> Result<(), SinkError> {
        let dead = self.outbox.apply_answer(answered, Instant::now());
        dead.iter().try_for_each(|message| self.process_dead(message))
    }

    /// Returns the number of messages that wait for a commit.
    pub(crate) fn unacked(&self) -> usize {
        self.receipts.len()
    }

    /// Returns the urgency of a commit, or `None` if there is nothing to commit.
    pub(crate) fn urgency(&self) -> Option<Urgency> {
        (self.unacked() > 0).then_some(Urgency::Batched).max(self.outbox.urgency())
    }

    /// Returns the time since which the youngest job with uncommitted results has been running, or
    /// `None` if only other changes are pending.
    pub(crate) fn running_since(&self) -> Option<Instant> {
        self.running_since
    }

    /// Returns the committed batches that can be published now.
    pub(crate) fn next_outbox(&mut self) -> Result<Vec<OutboxBatch>, SinkError> {
        self.outbox.next_batches(&mut *self.ledger, Instant::now())
    }

    /// Returns when refused rows may be sent again.
    pub(crate) fn outbox_due(&self) -> Option<Instant> {
        self.outbox.due()
    }

    /// Commits all changes. After an error none of them is in the ledger, and the engine is
    /// consumed.
    pub(crate) fn commit(mut self) -> Result<(Self, CommitResult), SinkError> {
        self.save()?;
        let outbox = self.next_outbox()?;
        let receipts = mem::take(&mut self.receipts);
        self.running_since = None;
        Ok((self, CommitResult { receipts, outbox }))
    }

    /// Returns when events are due.
    pub(crate) fn events_due(&self) -> Option<Instant> {
        self.progress.due()
    }

    /// Takes the events that are due now.
    pub(crate) fn take_events(&mut self) -> Vec<(Topic, Event)> {
        self.progress.take()
    }

    /// Returns the counts of the work so far.
    pub(crate) fn report(&self) -> SinkReport {
        self.report
    }

    fn fold(&mut self, message: &Message) -> Result<(), SinkError> {
        let folded = match SinkMessage::decode(message) {
            Ok(body) => self.fold_body(body, message)?,
            Err(malformed) => Err(malformed),
        };
        if let Err(malformed) = folded {
            let origin = QueueRole::Results.of(&self.lane).to_string();
            self.outbox.push_dead(message, malformed.reason, origin);
        }
        Ok(())
    }

    fn fold_body(
        &mut self,
        body: SinkMessage<'_>,
        message: &Message,
    ) -> Result<Result<(), Malformed>, SinkError> {
        let id = body.job();
        match &body {
            SinkMessage::Reopen(reopen) => return self.reopen(reopen).map(Ok),
            SinkMessage::Audit(audit) => return self.audit(audit).map(Ok),
            _ => {}
        }
        if !self.load(id)? {
            return match body {
                SinkMessage::Opened(opened) => self.open(opened),
                _ => {
                    self.parking.park(id, message);
                    Ok(Ok(()))
                }
            };
        }
        let (Some(job), outbox) = (self.jobs.get_mut(&id), &mut self.outbox) else { return Ok(Ok(())) };
        match body {
            SinkMessage::Results(results) => {
                self.running_since = self.running_since.max(Some(job.in_memory_since()));
                let folded = job.fold_results(&results, outbox);
                reached(FailPoint::SinkFolded);
                return Ok(folded);
            }
            SinkMessage::Sealed(sealed) => return Ok(job.apply_seal(sealed.into(), outbox)),
            SinkMessage::Opened(opened) => {
                let details = job.end_details(&mut *self.ledger, outbox.report_max_bytes())?;
                job.open_again(&opened, details, outbox);
            }
            SinkMessage::Aborted(aborted) => job.abort(&aborted.reason, outbox),
            SinkMessage::Cancelled(cancelled) => job.cancel(&cancelled.reason, outbox),
            SinkMessage::Reopen(_) | SinkMessage::Audit(_) => {}
        }
        Ok(Ok(()))
    }

    /// Loads the job unless it is in memory. Returns whether the ledger knows it.
    fn load(&mut self, id: JobId) -> Result<bool, SinkError> {
        if self.jobs.contains_key(&id) {
            return Ok(true);
        }
        let job = ActiveJob::load(&mut *self.ledger, id, &self.registry, &mut self.outbox)?;
        Ok(job.is_some_and(|job| self.jobs.insert(id, job).is_none()))
    }

    fn open(&mut self, opened: Opened) -> Result<Result<(), Malformed>, SinkError> {
        let id = opened.job;
        match ActiveJob::open(opened, &self.registry, &mut self.outbox) {
            Ok(job) => drop(self.jobs.insert(id, job)),
            Err(malformed) => return Ok(Err(malformed)),
        }
        for message in self.parking.take_parked(id, &mut *self.ledger)? {
            if decode::<Batch<'_>>(&message).is_ok() {
                self.process_dead(&message)?;
            } else {
                self.fold(&message)?;
            }
        }
        Ok(Ok(()))
    }

    /// Fails the tasks of a batch that no worker can process, and records any other message.
    fn process_dead(&mut self, message: &Message) -> Result<(), SinkError> {
        if let Err(malformed) = self.fail_dead_batch(message)? {
            self.dead.record(message, malformed.reason);
        }
        Ok(())
    }

    fn fail_dead_batch(&mut self, message: &Message) -> Result<Result<(), Malformed>, SinkError> {
        let batch = match decode::<Batch<'_>>(message) {
            Ok(batch) => batch,
            Err(malformed) => return Ok(Err(malformed)),
        };
        if !self.load(batch.job)? {
            self.parking.park(batch.job, message);
            return Ok(Ok(()));
        }
        let Some(job) = self.jobs.get_mut(&batch.job) else { return Ok(Ok(())) };
        Ok(job.fail_batch(&batch, &message.headers, &mut self.outbox))
    }

    /// Reopens a job. A request about an unknown job is not parked: its failures are unknown too,
    /// and messages parked for a job are folded in one commit with its opening.
    fn reopen(&mut self, reopen: &Reopen) -> Result<(), SinkError> {
        self.save()?; // a job is reopened as it is in the ledger
        let id = reopen.job;
        self.load(id)?;
        let Some(job) = self.jobs.get_mut(&id) else {
            tracing::warn!(job = %id, "no tasks are sent again: this ledger does not know the job");
            return Ok(());
        };
        let outbox = (&self.app, &mut self.outbox);
        match job.reopen(reopen, &mut *self.ledger, &self.registry, outbox)? {
            Ok(tasks) => tracing::info!(job = %id, tasks, "failed tasks are sent again"),
            Err(why) => tracing::warn!(job = %id, why, "no tasks are sent again"),
        }
        Ok(())
    }

    /// Answers an audit. A question about an unknown job is not parked either: a late answer helps
    /// no one.
    fn audit(&mut self, audit: &Audit) -> Result<(), SinkError> {
        let id = audit.job;
        self.load(id)?;
        match self.jobs.get(&id) {
            Some(job) => self.outbox.push_fact(&job.missing_tasks(audit.from)),
            None => tracing::warn!(job = %id, "an audit asks about a job that this ledger does not know"),
        }
        Ok(())
    }

    fn save(&mut self) -> Result<(), SinkError> {
        let Self { ledger, registry, jobs, outbox, parking, dead, progress, stalls, stalled, report, .. } =
            self;
        let mut changed: Vec<&mut ActiveJob> = jobs.values_mut().filter(|job| job.has_changed()).collect();
        for job in &mut changed {
            job.prepare(&mut **ledger, outbox)?;
        }
        if changed.is_empty() && !outbox.has_changed() && !parking.has_changed() && !dead.has_changed() {
            return Ok(());
        }
        let began = Instant::now();
        let mut changes = Changes::default();
        parking.stage(&mut changes);
        dead.stage(&mut changes);
        outbox.stage_changes(&mut changes);
        changes.jobs = changed.iter_mut().map(|job| job.stage()).collect();
        let Committed { keys, parked_dropped } = ledger.commit(&changes)?;
        drop(changes);
        if keys.len() != changed.len() {
            let why = format!("it returned {} keys for {} jobs", keys.len(), changed.len());
            let (place, doing) = (ledger.place().clone(), "results are written");
            return Err(LedgerError::Storage { place, doing, source: why.into() }.into());
        }
        Parking::record_dropped(parked_dropped);
        let moved: Vec<u64> = changed.iter_mut().zip(keys).map(|(job, key)| job.record_commit(key)).collect();
        SINK_COMMIT_SECONDS.record([], began.elapsed().as_secs_f64());
        let tasks = moved.iter().sum::<u64>();
        if tasks > 0 {
            reached(FailPoint::SinkCommitted);
        }
        report.tasks += tasks;
        let now = Instant::now();
        for (job, moved) in changed.into_iter().zip(moved) {
            job.record_metrics(registry);
            if job.has_ended() {
                stalls.forget(job.id());
            } else {
                stalls.watch(job.id(), job.mean_time(), false, now);
                if moved > 0 {
                    stalls.record_progress(job.id(), job.mean_time(), now);
                }
            }
            if let Some(told) = job.progress() {
                if job.has_ended() {
                    report.jobs_ended += 1;
                    SINK_JOBS_ENDED.add([registry.metric_label(job.kind()), job.state().as_str()], 1);
                }
                progress.record(told, job.has_ended());
            }
        }
        stalls.update_gauges();
        progress.record_stalls(stalled.drain(..));
        jobs.retain(|_, job| !job.has_ended());
        if jobs.len() > JOBS_MAX_IN_MEMORY {
            jobs.clear(); // all of them are in the ledger as they are here
        }
        Ok(())
    }
}
