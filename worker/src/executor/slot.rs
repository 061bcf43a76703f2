//! One slot: a thread that runs one task at a time. The only place where a worker runs user code.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};

use gristmill_shared::{
    Address, AnyJob, BatchRun, Chunk, Headers, Message, OpenError, Outgoing, QueueRole, StopSignal,
    TaskContext, TaskIndex,
    wire::{self, Batch, Malformed},
};

use super::{
    held_task::RunningBatch,
    job_cache::drop_job,
    lease::{ALL, Tenant},
};
use crate::{
    context::Shop,
    delivery::Work,
    isolate::{IsolatedSlot, JobTraits},
    outbound::{ChunkCounts, Handoffs, Sequel, Upshot, next_wait},
    poison::{Verdict, judge},
    release::{Release, Unfit},
    run_queue::Waiting,
};

/// Runs until the queues of work are closed and empty, or until the thread has lost its seat. Blocks while the broker
/// takes no outcomes.
pub(crate) fn run(shop: &Shop, tenant: &Tenant, waiting: &Waiting, handoffs: &Handoffs) {
    let isolated = shop.isolation.clone().map(|isolation| Mutex::new(IsolatedSlot::new(isolation)));
    let forget_ended = || {
        shop.jobs.forget_ended();
        if let Some(isolated) = &isolated {
            isolated.lock().unwrap_or_else(PoisonError::into_inner).forget_ended();
        }
    };
    let mut seen_ends = 0;
    while let Some(work) = waiting.next(&mut seen_ends, forget_ended) {
        shop.counts.begins();
        let work = Arc::new(work);
        let revoked = tenant.begin(&work);
        let run = Run { shop, tenant, work: &work, handoffs, revoked, isolated: isolated.as_ref() };
        if shop.halt.is_stopped() {
            run.send(vec![shop.hand_back(work.message.clone(), work.from)]);
        } else {
            run.work_on();
        }
        if !tenant.end() {
            if shop.halt.is_stopped() {
                shop.jobs.clear(); // it may be the last
            }
            return;
        }
        work.batch.close();
        shop.counts.ends();
    }
    shop.jobs.clear(); // what another slot still uses, that one drops
}

struct Run<'a> {
    shop: &'a Shop,
    tenant: &'a Tenant,
    work: &'a Work,
    handoffs: &'a Handoffs,
    revoked: StopSignal,
    isolated: Option<&'a Mutex<IsolatedSlot>>,
}

impl Run<'_> {
    /// What follows from all that is left of the batch.
    fn send(&self, messages: Vec<Outgoing>) {
        self.send_up_to(messages.into(), ALL);
    }

    /// What follows from the tasks before `up_to`. False if it must not be said.
    fn send_up_to(&self, upshot: Upshot, up_to: TaskIndex) -> bool {
        let Some(handoff) = self.tenant.may_say(upshot, up_to) else { return false };
        self.handoffs.send(handoff);
        true
    }

    fn work_on(&self) {
        let Work { message, from, .. } = self.work;
        let reason = match wire::decode::<Batch<'_>>(message) {
            Ok(batch) => {
                let headers = Headers { delay_ms: 0, ..message.headers.follow() }; // it has waited
                let _span = tracing::debug_span!(
                    "batch", trace_id = headers.trace_id(), span_id = headers.span_id(),
                    parent_id = message.headers.span_id(), job = %batch.job, first = %batch.first, tasks = batch.count
                )
                .entered();
                let sequel = Sequel { shop: self.shop, batch: &batch, headers: &headers, from: *from };
                match self.treat(&sequel) {
                    Ok(()) => return,
                    Err(malformed) => malformed.reason,
                }
            }
            Err(malformed) => malformed.reason,
        };
        self.send(vec![self.shop.bury(message.clone(), *from, &reason)]);
    }

    /// Everything of it is ours, unless it is malformed on a second look.
    fn treat(&self, sequel: &Sequel<'_>) -> Result<(), Malformed> {
        let (shop, batch) = (self.shop, sequel.batch);
        let stop = shop.board.stop_signal(batch.job, batch.round);
        if stop.is_stopped() {
            self.skip(sequel);
            return Ok(());
        }
        // Before it is judged: nothing of it is run here, so it cannot kill this worker.
        if self.work.from == QueueRole::Again
            && let Some(message) = next_wait(shop, &self.work.message)
        {
            self.send(vec![message]);
            return Ok(());
        }
        match judge(self.work.from, self.work.before, batch.count) {
            Verdict::Run => {}
            Verdict::Split => {
                tracing::info!(
                    job = %batch.job, first = %batch.first, tasks = batch.count, deliveries = self.work.before,
                    "a batch came again and again; taking it apart, since a task of it may kill its worker"
                );
                self.send(sequel.of_suspicion()?);
                return Ok(());
            }
            Verdict::Loss => {
                let loss = sequel.of_loss()?;
                let for_good = matches!(&loss.to, Address::Queue(queue) if queue.role == QueueRole::Results);
                sequel.count(if for_good { "failed" } else { "lost" }, 1);
                self.send(vec![loss]);
                return Ok(());
            }
        }
        if batch.policy.same_build && !shop.is_own_build(batch) {
            return self.release(sequel, &Unfit::Build);
        }
        self.tenant.identify(RunningBatch::new(batch, &self.work.message.headers, stop.clone()));
        self.work.running.set(batch.first); // also while the job reads its parameters and tasks
        let unfit = match shop.jobs.open(&shop.registry, batch, &stop) {
            Ok(job) => {
                let ran = self.run_tasks(&*job, sequel, &stop);
                drop_job(job);
                return ran;
            }
            Err(OpenError::Spec(error)) if shop.is_own_build(batch) => return Err(Malformed::new(error)),
            Err(OpenError::Spec(error)) => Unfit::Spec(error.to_string()),
            Err(OpenError::Version { here, wanted, .. }) => Unfit::Version { here, wanted },
            Err(OpenError::UnknownKind) => {
                Unfit::UnknownKind { known: shop.registry.kinds().map(ToString::to_string).collect() }
            }
        };
        self.release(sequel, &unfit)
    }

    /// Leaves the batch to other workers, at no cost. A batch that was delivered before goes to the
    /// suspects, as if it had come once more, so that its earlier deliveries count.
    fn release(&self, sequel: &Sequel<'_>, unfit: &Unfit) -> Result<(), Malformed> {
        let (batch, message) = (sequel.batch, &self.work.message);
        let headers = match self.shop.release(batch, &message.headers, self.work.from, unfit) {
            Release::To(to, headers) if self.work.before == 0 || self.work.from == QueueRole::Suspect => {
                let message = Message { headers, ..message.clone() };
                self.send(vec![Outgoing { to: self.shop.to(to), message }]);
                None
            }
            Release::To(_, headers) => Some(headers),
            Release::Never => return Err(Malformed::new(unfit.text(&batch.kind))),
        };
        if let Some(headers) = &headers {
            self.send(Sequel { headers, ..*sequel }.of_suspicion()?);
        }
        sequel.count("released", batch.count.into());
        self.shop.releases.released(tokio::time::Instant::now());
        Ok(())
    }

    fn run_tasks(&self, job: &dyn AnyJob, sequel: &Sequel<'_>, stop: &StopSignal) -> Result<(), Malformed> {
        let Sequel { batch, headers, .. } = sequel;
        self.shop.counts.batches.fetch_add(1, Ordering::Relaxed);
        let cx = TaskContext::new(batch.job, batch.first, headers.attempt, stop.clone())
            .with_revoked(self.revoked.clone());
        let mut hand_on = |chunk| self.hand_on(sequel, chunk);
        let begins = |index, deadline| self.tenant.begin_task(index, deadline);
        let run = BatchRun::new(cx, &batch.policy, self.shop.halt.clone(), &mut hand_on);
        let mut run = run.watched(&begins).noting(&self.work.running);
        let began = Instant::now();
        let ran = match self.isolated {
            None => job.process_batch(batch, &mut run)?,
            Some(isolated) => {
                let mut isolated = isolated.lock().unwrap_or_else(PoisonError::into_inner);
                let traits =
                    JobTraits { sends_tasks: job.sends_tasks(&batch.policy), in_flight: job.in_flight() };
                isolated.process_batch(batch, traits, &mut run, stop, &self.revoked)?
            }
        };
        let prepare_time = run.prepare_time();
        let unprepared = run.unprepared().map(ToOwned::to_owned);
        drop(run);
        if let Some(reason) = unprepared.filter(|_| ran == 0 && !stop.is_stopped()) {
            return self.release(sequel, &Unfit::Unprepared(reason));
        }
        self.shop.releases.ran();
        let took = began.elapsed().saturating_sub(prepare_time);
        self.shop.pace.note(took, self.work.message.body.len());
        sequel.measure(ran, took);
        tracing::debug!(tasks = ran, of = batch.count, ?took, "a batch ran");
        if ran < batch.count && !stop.is_stopped() {
            let rest = sequel.of_leaving(batch.first.plus(ran.into()))?;
            self.send(rest.into_iter().collect());
        } else {
            sequel.count("skipped", (batch.count - ran.min(batch.count)).into());
        }
        Ok(())
    }

    /// Nobody needs this batch any more.
    fn skip(&self, sequel: &Sequel<'_>) {
        let tasks = sequel.batch.count.into();
        self.shop.counts.skipped.fetch_add(tasks, Ordering::Relaxed);
        sequel.count("skipped", tasks);
    }

    fn hand_on(&self, sequel: &Sequel<'_>, chunk: Chunk) {
        let (done, errors) =
            (chunk.done.iter().map(|done| u64::from(done.count)).sum(), chunk.failed.len() as u64);
        let Some(up_to) = chunk.end() else { return }; // nothing is in it
        let (upshot, ChunkCounts { retried, released }) = sequel.of_chunk(chunk);
        let errors = errors - released;
        if self.send_up_to(upshot, up_to) {
            let failed = errors - retried;
            for (outcome, tasks) in
                [("done", done), ("retried", retried), ("released", released), ("failed", failed)]
            {
                sequel.count(outcome, tasks);
            }
            self.shop.counts.done.fetch_add(done, Ordering::Relaxed);
            self.shop.counts.errors.fetch_add(errors, Ordering::Relaxed);
        }
    }
}
