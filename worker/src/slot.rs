//! One slot: a thread that runs one task at a time. The only place where a worker runs user code.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};

use gristmill_shared::{
    Address, AnyJob, BatchRun, Chunk, Message, OpenError, Outgoing, QueueRole, StopSignal, TaskContext,
    TaskIndex,
    wire::{self, Batch, Malformed},
};

use crate::{
    handoff::{Handoffs, Upshot},
    in_hand::InHand,
    isolate::IsolatedSlot,
    seat::{ALL, Tenant},
    sequel::{Sequel, retried},
    shop::Shop,
    suspicion::{Verdict, judge},
    waiting::Waiting,
};

/// A message from one of the lane's queues, and the right to settle it.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) message: Message,
    pub(crate) from: QueueRole,
    /// How often it was delivered before, as far as that counts.
    pub(crate) before: u32,
    pub(crate) batch: Arc<InHand>,
}

/// Runs until the queues of work are closed and empty, or until the thread has lost its seat. Blocks while the broker
/// takes no outcomes.
pub(crate) fn run(shop: &Shop, tenant: &Tenant, waiting: &Waiting, handoffs: &Handoffs) {
    let isolated = shop.isolation.clone().map(|isolation| Mutex::new(IsolatedSlot::new(isolation)));
    while let Some(work) = waiting.next() {
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
            return;
        }
        work.batch.close();
        shop.counts.ends();
    }
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
                let headers = message.headers.follow();
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
        if shop.board.stop_signal(batch.job, batch.round).is_stopped() {
            self.skip(sequel);
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
        match shop.jobs.open(&shop.registry, batch) {
            Ok(job) => self.run_tasks(&*job, sequel),
            Err(OpenError::Spec(error)) => Err(Malformed::new(error)),
            Err(OpenError::UnknownKind) => {
                let message = self.work.message.clone();
                self.send(vec![shop.pass_on(message, batch.job, batch.kind.as_str())]);
                Ok(())
            }
        }
    }

    fn run_tasks(&self, job: &dyn AnyJob, sequel: &Sequel<'_>) -> Result<(), Malformed> {
        let Sequel { batch, headers, .. } = sequel;
        self.shop.counts.batches.fetch_add(1, Ordering::Relaxed);
        let stop = self.shop.board.stop_signal(batch.job, batch.round);
        let cx = TaskContext::new(batch.job, batch.first, headers.attempt, stop.clone())
            .with_revoked(self.revoked.clone());
        let mut hand_on = |chunk| self.hand_on(sequel, chunk);
        let begins = |index, deadline| self.tenant.begin_task(index, deadline);
        let run = BatchRun::new(cx, &batch.policy, self.shop.halt.clone(), &mut hand_on);
        let began = Instant::now();
        let mut run = run.watched(&begins);
        let ran = match self.isolated {
            None => job.process_batch(batch, &mut run)?,
            Some(isolated) => {
                let mut isolated = isolated.lock().unwrap_or_else(PoisonError::into_inner);
                isolated.process_batch(batch, &mut run, &self.revoked)?
            }
        };
        drop(run);
        let took = began.elapsed();
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
        let upshot = sequel.of_chunk(chunk);
        let retried = retried(&upshot.messages);
        if self.send_up_to(upshot, up_to) {
            for (outcome, tasks) in [("done", done), ("retried", retried), ("failed", errors - retried)] {
                sequel.count(outcome, tasks);
            }
            self.shop.counts.done.fetch_add(done, Ordering::Relaxed);
            self.shop.counts.errors.fetch_add(errors, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{Receipt, Settlement, Settler, Token};

    use super::*;

    #[derive(Debug)]
    struct Nobody;

    impl Settler for Nobody {
        fn settle(&self, _: Token, _: Settlement) {}
        fn extend(&self, _: Token) {}
    }

    impl Work {
        pub(crate) fn of_nothing(from: QueueRole) -> Self {
            let receipt = Receipt::new(Token { generation: 0, tag: 0 }, Arc::new(Nobody));
            Self { message: Message::default(), from, before: 0, batch: Arc::new(InHand::new(receipt, from)) }
        }
    }
}
