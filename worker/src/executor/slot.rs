//! One slot: a thread that runs one task at a time. User code of a worker runs only here.

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
    lease::{END_OF_BATCH, LeaseHolder},
};
use crate::{
    context::WorkerContext,
    delivery::BatchDelivery,
    isolate::{IsolatedSlot, JobTraits},
    outbound::{ChunkCounts, Outbound, OutboundQueue, OutcomeBuilder, next_retry_step},
    poison::{PoisonVerdict, classify},
    release::{Release, Unfit},
    run_queue::RunQueueReceiver,
};

/// Runs batches on slot `number` until the run queue is closed and empty, or until the thread has
/// lost its lease. Blocks while the broker takes no outcomes.
pub(crate) fn run(
    number: u32,
    context: &WorkerContext,
    holder: &LeaseHolder,
    run_receiver: &RunQueueReceiver,
    outbound_queue: &OutboundQueue,
) {
    let isolated =
        context.isolation.clone().map(|isolation| Mutex::new(IsolatedSlot::new(isolation, number)));
    let forget_ended = || {
        context.jobs.forget_ended();
        if let Some(isolated) = &isolated {
            isolated.lock().unwrap_or_else(PoisonError::into_inner).forget_ended();
        }
    };
    let mut seen_cleanups = 0;
    while let Some(delivery) = run_receiver.next(&mut seen_cleanups, forget_ended) {
        context.counts.batch_started();
        let delivery = Arc::new(delivery);
        let revoked = holder.begin_batch(&delivery);
        let run = BatchExecution {
            slot: number,
            context,
            holder,
            delivery: &delivery,
            outbound_queue,
            revoked,
            isolated: isolated.as_ref(),
        };
        if context.halt.is_stopped() {
            run.emit(vec![context.requeue(delivery.message.clone(), delivery.from)]);
        } else {
            run.run_batch();
        }
        if !holder.end_batch() {
            if context.halt.is_stopped() {
                context.jobs.clear(); // this may be the last slot
            }
            return;
        }
        delivery.in_flight.complete_part();
        context.counts.batch_finished();
    }
    context.jobs.clear(); // a job that another slot still uses is dropped there
}

/// The execution of one batch on a slot.
struct BatchExecution<'a> {
    slot: u32,
    context: &'a WorkerContext,
    holder: &'a LeaseHolder,
    delivery: &'a BatchDelivery,
    outbound_queue: &'a OutboundQueue,
    revoked: StopSignal,
    isolated: Option<&'a Mutex<IsolatedSlot>>,
}

impl BatchExecution<'_> {
    /// Publishes messages that settle all that is left of the batch.
    fn emit(&self, messages: Vec<Outgoing>) {
        self.emit_up_to(messages.into(), END_OF_BATCH);
    }

    /// Publishes the outcomes of the tasks before `up_to`. Returns false if the lease is lost: then
    /// they are discarded.
    fn emit_up_to(&self, outbound: Outbound, up_to: TaskIndex) -> bool {
        let Some(request) = self.holder.emit_if_held(outbound, up_to) else { return false };
        self.outbound_queue.send(request);
        true
    }

    /// Decodes the batch and runs it; a malformed one goes to the dead queue.
    fn run_batch(&self) {
        let BatchDelivery { message, from, .. } = self.delivery;
        let reason = match wire::decode::<Batch<'_>>(message) {
            Ok(batch) => {
                let headers = Headers { delay_ms: 0, ..message.headers.follow() }; // it is over
                let _span = tracing::debug_span!(
                    "batch", trace_id = headers.trace_id(), span_id = headers.span_id(),
                    parent_id = message.headers.span_id(), job = %batch.job, first = %batch.first, tasks = batch.count
                )
                .entered();
                let builder =
                    OutcomeBuilder { context: self.context, batch: &batch, headers: &headers, from: *from };
                match self.dispatch(&builder) {
                    Ok(()) => return,
                    Err(malformed) => malformed.reason,
                }
            }
            Err(malformed) => malformed.reason,
        };
        self.emit(vec![self.context.dead_letter(message.clone(), *from, &reason)]);
    }

    /// Decides on the decoded batch and runs it. Every outcome is published here, unless the batch
    /// turns out to be malformed.
    fn dispatch(&self, builder: &OutcomeBuilder<'_>) -> Result<(), Malformed> {
        let (context, batch) = (self.context, builder.batch);
        let stop = context.tracker.stop_signal(batch.job, batch.round);
        if stop.is_stopped() {
            self.skip(builder);
            return Ok(());
        }
        // Before poison detection: no task of it runs here, so it cannot crash this worker.
        if self.delivery.from == QueueRole::Requeued
            && let Some(message) = next_retry_step(context, &self.delivery.message)
        {
            self.emit(vec![message]);
            return Ok(());
        }
        match classify(self.delivery.from, self.delivery.redeliveries, batch.count) {
            PoisonVerdict::Run => {}
            PoisonVerdict::Split => {
                tracing::info!(
                    job = %batch.job, first = %batch.first, tasks = batch.count, deliveries = self.delivery.redeliveries,
                    "a batch was redelivered several times; splitting it, since one of its tasks may crash its worker"
                );
                self.emit(builder.split_suspect()?);
                return Ok(());
            }
            PoisonVerdict::Loss => {
                let loss = builder.record_crash()?;
                let is_final = matches!(&loss.to, Address::Queue(queue) if queue.role == QueueRole::Results);
                builder.count(if is_final { "failed" } else { "lost" }, 1);
                self.emit(vec![loss]);
                return Ok(());
            }
        }
        if batch.policy.same_build && !context.is_own_build(batch) {
            return self.release(builder, &Unfit::Build);
        }
        self.holder.identify(RunningBatch::new(batch, &self.delivery.message.headers, stop.clone()));
        self.delivery.running.set(batch.first); // also while the job reads its parameters and tasks
        let unfit = match context.jobs.open(&context.registry, batch, &stop) {
            Ok(job) => {
                let ran = self.run_tasks(&*job, builder, &stop);
                drop_job(job);
                return ran;
            }
            Err(OpenError::Spec(error)) if context.is_own_build(batch) => return Err(Malformed::new(error)),
            Err(OpenError::Spec(error)) => Unfit::Spec(error.to_string()),
            Err(OpenError::Version { here, wanted, .. }) => Unfit::Version { here, wanted },
            Err(OpenError::UnknownKind) => {
                Unfit::UnknownKind { known: context.registry.kinds().map(ToString::to_string).collect() }
            }
        };
        self.release(builder, &unfit)
    }

    /// Leaves the batch to other workers, at no cost. A redelivered batch goes to the suspects, as
    /// if it had come once more, so that its earlier deliveries count.
    fn release(&self, builder: &OutcomeBuilder<'_>, unfit: &Unfit) -> Result<(), Malformed> {
        let (batch, message) = (builder.batch, &self.delivery.message);
        let headers = match self.context.release(batch, &message.headers, self.delivery.from, unfit) {
            Release::Requeue(to, headers)
                if self.delivery.redeliveries == 0 || self.delivery.from == QueueRole::Suspect =>
            {
                let message = Message { headers, ..message.clone() };
                self.emit(vec![Outgoing { to: self.context.address(to), message }]);
                None
            }
            Release::Requeue(_, headers) => Some(headers),
            Release::Fail => return Err(Malformed::new(unfit.text(&batch.kind))),
        };
        if let Some(headers) = &headers {
            self.emit(OutcomeBuilder { headers, ..*builder }.split_suspect()?);
        }
        builder.count("released", batch.count.into());
        self.context.releases.record_release(tokio::time::Instant::now());
        Ok(())
    }

    fn run_tasks(
        &self,
        job: &dyn AnyJob,
        builder: &OutcomeBuilder<'_>,
        stop: &StopSignal,
    ) -> Result<(), Malformed> {
        let OutcomeBuilder { batch, headers, .. } = builder;
        self.context.counts.batches.fetch_add(1, Ordering::Relaxed);
        let cx = TaskContext::new(batch.job, batch.first, headers.attempt, stop.clone())
            .with_revoked(self.revoked.clone())
            .with_slot(self.slot);
        let mut emit_chunk = |chunk| self.emit_chunk(builder, chunk);
        let begins = |index, deadline| self.holder.begin_task(index, deadline);
        let run = BatchRun::new(cx, &batch.policy, self.context.halt.clone(), &mut emit_chunk);
        let mut run = run.on_task_start(&begins).with_running_index(&self.delivery.running);
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
        let unprepared = run.unprepared_reason().map(ToOwned::to_owned);
        drop(run);
        if let Some(reason) = unprepared.filter(|_| ran == 0 && !stop.is_stopped()) {
            return self.release(builder, &Unfit::Unprepared(reason));
        }
        self.context.releases.record_run();
        let took = began.elapsed().saturating_sub(prepare_time);
        self.context.prefetch.record_batch(took, self.delivery.message.body.len());
        builder.measure(ran, took);
        tracing::debug!(tasks = ran, of = batch.count, ?took, "a batch ran");
        if ran < batch.count && !stop.is_stopped() {
            let rest = builder.requeue_rest(batch.first.plus(ran.into()))?;
            self.emit(rest.into_iter().collect());
        } else {
            builder.count("skipped", (batch.count - ran.min(batch.count)).into());
        }
        Ok(())
    }

    /// Skips a batch that is no longer needed.
    fn skip(&self, builder: &OutcomeBuilder<'_>) {
        let tasks = builder.batch.count.into();
        self.context.counts.skipped.fetch_add(tasks, Ordering::Relaxed);
        builder.count("skipped", tasks);
    }

    /// Publishes the outcomes of a chunk, and counts them if the lease is held.
    fn emit_chunk(&self, builder: &OutcomeBuilder<'_>, chunk: Chunk) {
        let (done, errors) =
            (chunk.done.iter().map(|done| u64::from(done.count)).sum(), chunk.failed.len() as u64);
        let Some(up_to) = chunk.end() else { return }; // the chunk is empty
        let (outbound, ChunkCounts { retried, released }) = builder.build_chunk(chunk);
        let errors = errors - released;
        if self.emit_up_to(outbound, up_to) {
            let failed = errors - retried;
            for (outcome, tasks) in
                [("done", done), ("retried", retried), ("released", released), ("failed", failed)]
            {
                builder.count(outcome, tasks);
            }
            self.context.counts.done.fetch_add(done, Ordering::Relaxed);
            self.context.counts.errors.fetch_add(errors, Ordering::Relaxed);
        }
    }
}
