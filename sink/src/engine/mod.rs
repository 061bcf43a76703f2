//! The clerk: takes in messages, and enters them into the ledger in groups. The only one who changes anything; works
//! on one thread, and knows nothing of the broker.

mod commit_schedule;
mod dead_recorder;
pub(crate) mod ledger_thread;
mod log_limiter;
mod outbox;
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

use gristmill_shared::{
    Delivery, JobId, Lane, Message, QueueRole, Receipt, Registry, Topic, WorkerId,
    fail_point::{FailPoint, reached},
    meter::{SINK_COMMIT_SECONDS, SINK_JOBS_ENDED, SINK_MESSAGES},
    wire::{
        Audit, Batch, Event, FINISHED_REPORT_MAX_BYTES, Malformed, Missing, Opened, Reopen, ToSink, decode,
    },
};

pub(crate) use outbox::Outbox;

use crate::{
    LedgerPlace, SinkError, SinkReport,
    job::Job,
    ledger::{
        Ledger, Record,
        outbox_rows::{Answered, OutboxBatch},
    },
};
use commit_schedule::Urgency;
use dead_recorder::DeadLetters;
use parking::Parking;
use progress::News;
use stalls::Stalls;

/// How many jobs are kept in memory between two commits; beyond that those that rest are loaded again when they move.
const JOBS_IN_MEMORY: usize = 1_000;

/// The largest report that a job's end carries if the ledger is in memory, in bytes: there is no
/// other place to read it. Together with a conclusion of 1 MiB, escaped, it fits a message of every
/// transport.
const UNKEPT_REPORT_MAX_BYTES: usize = 8 << 20;

/// The largest report that a job's end carries, in bytes.
fn report_max_bytes(ledger: &Ledger) -> usize {
    match ledger.place() {
        LedgerPlace::File(_) => FINISHED_REPORT_MAX_BYTES,
        LedgerPlace::Memory => UNKEPT_REPORT_MAX_BYTES,
    }
}

/// Folds messages into jobs, and commits what came of it.
///
/// Whatever fails, fails the clerk as a whole: what is in memory is thrown away with it, and the messages, which were
/// not acknowledged, come again.
#[derive(Debug)]
pub(crate) struct Clerk {
    ledger: Ledger,
    registry: Registry,
    lane: Lane,
    app: WorkerId,
    jobs: HashMap<JobId, Job>,
    outbox: Outbox,
    parking: Parking,
    dead: DeadLetters,
    news: News,
    stalls: Stalls,
    /// Stalls that are not committed.
    stalled: Vec<(Topic, Missing)>,
    /// Of messages that are not committed.
    receipts: Vec<Receipt>,
    /// Since when the youngest of the jobs has been running that they are about.
    running_since: Option<Instant>,
    report: SinkReport,
}

/// What follows from a commit.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    /// To be acknowledged.
    pub(crate) receipts: Vec<Receipt>,
    /// To be published; [`Clerk::answered`] wants to know what became of it.
    pub(crate) outbox: Vec<OutboxBatch>,
}

impl Clerk {
    pub(crate) fn new(ledger: Ledger, registry: Registry, lane: Lane, app: WorkerId) -> Self {
        Self {
            registry,
            outbox: Outbox::new(lane.clone(), app.clone(), report_max_bytes(&ledger)),
            ledger,
            lane,
            app,
            jobs: HashMap::new(),
            parking: Parking::default(),
            dead: DeadLetters::default(),
            news: News::default(),
            stalls: Stalls::new(None),
            stalled: Vec::new(),
            receipts: Vec::new(),
            running_since: None,
            report: SinkReport::default(),
        }
    }

    /// Decides how long a job may go without an outcome before it is said to stall.
    pub(crate) fn stall_after(self, after: Option<Duration>) -> Self {
        Self { stalls: Stalls::new(after), ..self }
    }

    /// Watches the jobs that an earlier sink left running; before anything is taken in.
    pub(crate) fn watch_running(&mut self) -> Result<(), SinkError> {
        let lane = &self.lane;
        let running =
            self.ledger.read("jobs are read", |connection| Record::load_running(connection, lane))?;
        let now = Instant::now();
        for Record { opened, counts, stalled_ms, .. } in running {
            self.stalls.watch(opened.job, counts.mean_time(), stalled_ms.is_some(), now);
        }
        self.stalls.count();
        self.outbox.count(&self.ledger)
    }

    /// Whether the broker works just now: while it does not, no job is said to stall.
    pub(crate) fn broker_works(&mut self, works: bool) {
        self.stalls.suspend(!works, Instant::now());
    }

    /// When a job may be found to stall.
    pub(crate) fn stalls_due(&self) -> Option<Instant> {
        self.stalls.due()
    }

    /// Finds jobs that have had no outcome for too long, and says what is missing.
    pub(crate) fn find_stalls(&mut self) -> Result<(), SinkError> {
        let stalled = self.stalls.look(Instant::now());
        self.stalls.count();
        for (id, since_ms) in stalled {
            self.load(id)?;
            let stalled = self.jobs.get_mut(&id).and_then(|job| job.stall(since_ms, &mut self.outbox));
            self.stalled.extend(stalled);
        }
        Ok(())
    }

    /// Takes in a message from the results queue.
    pub(crate) fn take(&mut self, Delivery { message, receipt, .. }: Delivery) -> Result<(), SinkError> {
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

    /// Takes in a message from the dead queue.
    pub(crate) fn take_dead(&mut self, Delivery { message, receipt, .. }: Delivery) -> Result<(), SinkError> {
        self.report.dead += 1;
        SINK_MESSAGES.add([QueueRole::Dead.as_str()], 1);
        self.receipts.push(receipt);
        self.bury(&message)
    }

    /// The broker has answered what was handed out. What it refuses is kept and goes out again; but a message for the dead
    /// queue is dealt with as if it had come from there.
    pub(crate) fn answered(&mut self, answered: Answered) -> Result<(), SinkError> {
        let dead = self.outbox.answered(answered, Instant::now());
        dead.iter().try_for_each(|message| self.bury(message))
    }

    /// How many messages wait for a commit.
    pub(crate) fn held(&self) -> usize {
        self.receipts.len()
    }

    /// How soon what there is to commit is to be committed; nothing if there is nothing.
    pub(crate) fn urgency(&self) -> Option<Urgency> {
        (self.held() > 0).then_some(Urgency::Soon).max(self.outbox.urgency())
    }

    /// Since when the youngest of the jobs has been running whose progress is to be committed; nothing if all that is to be
    /// committed is something else.
    pub(crate) fn running_since(&self) -> Option<Instant> {
        self.running_since
    }

    /// What has been committed and can go out now.
    pub(crate) fn outbox(&mut self) -> Result<Vec<OutboxBatch>, SinkError> {
        self.outbox.next(&self.ledger, Instant::now())
    }

    /// When what the broker refused may go out again.
    pub(crate) fn outbox_due(&self) -> Option<Instant> {
        self.outbox.due()
    }

    /// Writes all that was taken in. After an error nothing of it is in the ledger, and there is no clerk any more.
    pub(crate) fn commit(mut self) -> Result<(Self, Committed), SinkError> {
        self.save()?;
        let outbox = self.outbox()?;
        let receipts = mem::take(&mut self.receipts);
        self.running_since = None;
        Ok((self, Committed { receipts, outbox }))
    }

    /// When there is progress to tell.
    pub(crate) fn news_due(&self) -> Option<Instant> {
        self.news.due()
    }

    /// Progress that is to be told now.
    pub(crate) fn take_news(&mut self) -> Vec<(Topic, Event)> {
        self.news.take()
    }

    /// What was done so far.
    pub(crate) fn report(&self) -> SinkReport {
        self.report
    }

    fn fold(&mut self, message: &Message) -> Result<(), SinkError> {
        let folded = match ToSink::decode(message) {
            Ok(body) => self.fold_body(body, message)?,
            Err(malformed) => Err(malformed),
        };
        if let Err(malformed) = folded {
            let origin = QueueRole::Results.of(&self.lane).to_string();
            self.outbox.dead(message, malformed.reason, origin);
        }
        Ok(())
    }

    fn fold_body(&mut self, body: ToSink<'_>, message: &Message) -> Result<Result<(), Malformed>, SinkError> {
        let id = body.job();
        match &body {
            ToSink::Reopen(reopen) => return self.reopen(reopen).map(Ok),
            ToSink::Audit(audit) => return self.audit(audit).map(Ok),
            _ => {}
        }
        if !self.load(id)? {
            return match body {
                ToSink::Opened(opened) => self.open(opened),
                _ => {
                    self.parking.park(id, message);
                    Ok(Ok(()))
                }
            };
        }
        let (Some(job), outbox) = (self.jobs.get_mut(&id), &mut self.outbox) else { return Ok(Ok(())) };
        match body {
            ToSink::Results(results) => {
                self.running_since = self.running_since.max(Some(job.since()));
                let folded = job.results(&results, outbox);
                reached(FailPoint::SinkFolded);
                return Ok(folded);
            }
            ToSink::Sealed(sealed) => return Ok(job.sealed(sealed.into(), outbox)),
            ToSink::Opened(opened) => {
                let findings = job.findings(&self.ledger, outbox.report_max_bytes())?;
                job.opened_again(&opened, findings, outbox);
            }
            ToSink::Aborted(aborted) => job.aborted(&aborted.reason, outbox),
            ToSink::Cancelled(cancelled) => job.cancelled(&cancelled.reason, outbox),
            ToSink::Reopen(_) | ToSink::Audit(_) => {}
        }
        Ok(Ok(()))
    }

    /// Makes sure that the job is in memory; answers whether there is one.
    fn load(&mut self, id: JobId) -> Result<bool, SinkError> {
        if self.jobs.contains_key(&id) {
            return Ok(true);
        }
        let job = Job::load(&self.ledger, id, &self.registry, &mut self.outbox)?;
        Ok(job.is_some_and(|job| self.jobs.insert(id, job).is_none()))
    }

    fn open(&mut self, opened: Opened) -> Result<Result<(), Malformed>, SinkError> {
        let id = opened.job;
        match Job::open(opened, &self.registry, &mut self.outbox) {
            Ok(job) => drop(self.jobs.insert(id, job)),
            Err(malformed) => return Ok(Err(malformed)),
        }
        for message in self.parking.leave(id, &self.ledger)? {
            if decode::<Batch<'_>>(&message).is_ok() {
                self.bury(&message)?;
            } else {
                self.fold(&message)?;
            }
        }
        Ok(Ok(()))
    }

    /// A batch that nobody can work with is given up, anything else is recorded.
    fn bury(&mut self, message: &Message) -> Result<(), SinkError> {
        if let Err(malformed) = self.give_up(message)? {
            self.dead.record(message, malformed.reason);
        }
        Ok(())
    }

    fn give_up(&mut self, message: &Message) -> Result<Result<(), Malformed>, SinkError> {
        let batch = match decode::<Batch<'_>>(message) {
            Ok(batch) => batch,
            Err(malformed) => return Ok(Err(malformed)),
        };
        if !self.load(batch.job)? {
            self.parking.park(batch.job, message);
            return Ok(Ok(()));
        }
        let Some(job) = self.jobs.get_mut(&batch.job) else { return Ok(Ok(())) };
        Ok(job.given_up(&batch, &message.headers, &mut self.outbox))
    }

    /// A request about a job that is not known is not parked: what failed of it is not known either, and what waits for
    /// a job is folded in one commit with it.
    fn reopen(&mut self, reopen: &Reopen) -> Result<(), SinkError> {
        self.save()?; // a job is reopened as it is in the ledger
        let id = reopen.job;
        self.load(id)?;
        let Some(job) = self.jobs.get_mut(&id) else {
            tracing::warn!(job = %id, "no tasks are sent again: this ledger does not know the job");
            return Ok(());
        };
        let outbox = (&self.app, &mut self.outbox);
        match job.reopen(reopen, &self.ledger, &self.registry, outbox)? {
            Ok(tasks) => tracing::info!(job = %id, tasks, "failed tasks are sent again"),
            Err(why) => tracing::warn!(job = %id, why, "no tasks are sent again"),
        }
        Ok(())
    }

    /// A question about a job that is not known is not parked either: an answer that comes late answers nothing.
    fn audit(&mut self, audit: &Audit) -> Result<(), SinkError> {
        let id = audit.job;
        self.load(id)?;
        match self.jobs.get(&id) {
            Some(job) => self.outbox.fact(&job.missing(audit.from)),
            None => tracing::warn!(job = %id, "nothing is known of a job that somebody asks about"),
        }
        Ok(())
    }

    fn save(&mut self) -> Result<(), SinkError> {
        let Self { ledger, registry, jobs, outbox, parking, dead, news, stalls, stalled, report, .. } = self;
        let mut changed: Vec<&mut Job> = jobs.values_mut().filter(|job| job.has_changed()).collect();
        changed.iter_mut().for_each(|job| job.prepare(outbox));
        if changed.is_empty() && !outbox.has_changed() && !parking.has_changed() && !dead.has_changed() {
            return Ok(());
        }
        let (mut moved, began) = (vec![0; changed.len()], Instant::now());
        ledger.write(|transaction| {
            for (job, moved) in changed.iter_mut().zip(&mut moved) {
                *moved = job.save(transaction, outbox)?;
            }
            parking.save(transaction)?;
            dead.save(transaction)?;
            outbox.save(transaction)
        })?;
        SINK_COMMIT_SECONDS.record([], began.elapsed().as_secs_f64());
        let tasks = moved.iter().sum::<u64>();
        if tasks > 0 {
            reached(FailPoint::SinkCommitted);
        }
        report.tasks += tasks;
        let now = Instant::now();
        for (job, moved) in changed.into_iter().zip(moved) {
            job.count(registry);
            if job.has_ended() {
                stalls.forget(job.id());
            } else {
                stalls.watch(job.id(), job.mean_time(), false, now);
                if moved > 0 {
                    stalls.moved(job.id(), job.mean_time(), now);
                }
            }
            if let Some(told) = job.news() {
                if job.has_ended() {
                    report.jobs_ended += 1;
                    SINK_JOBS_ENDED.add([registry.label(job.kind()), job.state().as_str()], 1);
                }
                news.add(told, job.has_ended());
            }
        }
        stalls.count();
        news.add_stalls(stalled.drain(..));
        jobs.retain(|_, job| !job.has_ended());
        if jobs.len() > JOBS_IN_MEMORY {
            jobs.clear(); // all of them are in the ledger as they are here
        }
        Ok(())
    }
}
