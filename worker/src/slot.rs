//! One slot: a thread that runs one task at a time. The only place where a worker runs user code.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};

use gristmill_shared::{
    Address, AnyJob, BatchRun, Chunk, Message, OpenError, Outgoing, QueueRole, TaskContext, TaskIndex,
    wire::{self, Batch, Malformed},
};

use crate::{
    handoff::Handoff,
    in_hand::InHand,
    seat::{ALL, Tenant},
    sequel::{Sequel, retried},
    shop::Shop,
    suspicion::{Verdict, judge},
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

/// What waits for a slot: a queue, and suspects, which go first. The shorter one is held, the less likely it is held
/// when its process dies of something else.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    /// As many as the prefetch of their queue.
    suspects: Arc<Mutex<VecDeque<Work>>>,
    /// Nothing stands for "look at the suspects".
    queue: flume::Receiver<Option<Work>>,
}

/// Where it comes in.
#[derive(Clone, Debug)]
pub(crate) struct Giving {
    suspects: Arc<Mutex<VecDeque<Work>>>,
    queue: flume::Sender<Option<Work>>,
}

/// A queue of this length, and room for suspects.
pub(crate) fn waiting(length: usize) -> (Giving, Waiting) {
    let (giving, queue) = flume::bounded(length);
    let suspects = Arc::default();
    (Giving { suspects: Arc::clone(&suspects), queue: giving }, Waiting { suspects, queue })
}

impl Giving {
    /// Waits for room. If nobody takes work any more, because the worker ends with an error, it stays unsettled.
    pub(crate) async fn give(&self, work: Work) {
        let next = if work.from == QueueRole::Suspect {
            self.suspects.lock().unwrap_or_else(PoisonError::into_inner).push_back(work);
            None
        } else {
            Some(work)
        };
        let _ = self.queue.send_async(next).await;
    }
}

impl Waiting {
    /// Blocks. Nothing once the queue is closed and empty.
    fn next(&self) -> Option<Work> {
        loop {
            if let Some(suspect) = self.suspect() {
                return Some(suspect);
            }
            match self.queue.recv() {
                Ok(Some(work)) => return Some(work),
                Ok(None) => {}
                Err(_) => return self.suspect(),
            }
        }
    }

    /// The same, async.
    pub(crate) async fn next_async(&self) -> Option<Work> {
        loop {
            if let Some(suspect) = self.suspect() {
                return Some(suspect);
            }
            match self.queue.recv_async().await {
                Ok(Some(work)) => return Some(work),
                Ok(None) => {}
                Err(_) => return self.suspect(),
            }
        }
    }

    fn suspect(&self) -> Option<Work> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// Runs until the queues of work are closed and empty, or until the thread has lost its seat. Blocks while the broker
/// takes no outcomes.
pub(crate) fn run(shop: &Shop, tenant: &Tenant, waiting: &Waiting, handoffs: &flume::Sender<Handoff>) {
    while let Some(work) = waiting.next() {
        shop.counts.begins();
        let work = Arc::new(work);
        tenant.begin(&work);
        let run = Run { shop, tenant, work: &work, handoffs };
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
    handoffs: &'a flume::Sender<Handoff>,
}

impl Run<'_> {
    /// What follows from all that is left of the batch.
    fn send(&self, messages: Vec<Outgoing>) {
        self.send_up_to(messages, ALL);
    }

    /// What follows from the tasks before `up_to`. False if it must not be said.
    fn send_up_to(&self, messages: Vec<Outgoing>, up_to: TaskIndex) -> bool {
        let Some(handoff) = self.tenant.may_say(messages, up_to) else { return false };
        // The receiver goes only when the whole worker ends with an error; the batch then stays unsettled.
        let _ = self.handoffs.send(handoff);
        true
    }

    fn work_on(&self) {
        let Work { message, from, .. } = self.work;
        let reason = match wire::decode::<Batch<'_>>(message) {
            Ok(batch) => {
                let _span = tracing::debug_span!(
                    "batch", trace_id = message.headers.trace_id(), job = %batch.job, first = %batch.first
                )
                .entered();
                let sequel =
                    Sequel { shop: self.shop, batch: &batch, headers: &message.headers, from: *from };
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
        let cx = TaskContext::new(batch.job, batch.first, headers.attempt, stop.clone());
        let mut hand_on = |chunk| self.hand_on(sequel, chunk);
        let begins = |index, deadline| self.tenant.begin_task(index, deadline);
        let run = BatchRun::new(cx, &batch.policy, self.shop.halt.clone(), &mut hand_on);
        let began = Instant::now();
        let ran = job.process_batch(batch, &mut run.watched(&begins))?;
        let took = began.elapsed();
        self.shop.pace.note(took);
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
        let messages = sequel.of_chunk(chunk);
        let retried = retried(&messages);
        if self.send_up_to(messages, up_to) {
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

    #[tokio::test]
    async fn suspects_go_first_and_nothing_is_left_behind() {
        let (giving, waiting) = waiting(4);
        for from in [QueueRole::Tasks, QueueRole::Again, QueueRole::Suspect] {
            giving.give(Work::of_nothing(from)).await;
        }
        drop(giving);
        let from = || waiting.next().map(|work| work.from);
        assert_eq!([from(), from()], [Some(QueueRole::Suspect), Some(QueueRole::Tasks)]);
        assert_eq!(waiting.next_async().await.map(|work| work.from), Some(QueueRole::Again));
        assert_eq!([from(), from()], [None, None]);
    }
}
