//! A slot's seat: which batch it has, which task of it runs since when, and whose word about it counts.
//!
//! A thread cannot be ended from outside. The thread loses the seat, in one step with the batch,
//! when a task runs on long after its time limit or after its job's stop, and when the grace of a
//! leaving worker ends. Later messages of the thread about the batch are dropped, and the crew does
//! what is left to do.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gristmill_shared::{StopSignal, TaskIndex};
use tokio::sync::Notify;

use super::held_task::{HeldTask, RunningBatch};
use crate::{
    context::Shop,
    delivery::Work,
    outbound::{Handoff, Upshot},
};

/// How long after its time limit a task may take to notice it by itself.
pub(crate) const OVERDUE_GRACE: Duration = Duration::from_secs(2);

/// A slot's seat.
#[derive(Debug)]
pub(crate) struct Seat {
    state: Mutex<State>,
    /// Told when a task begins that is to be watched.
    wake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// Who has the seat: one more each time it is taken away.
    tenant: u32,
    turn: Option<Turn>,
    /// The tasks in which threads are stuck that had the seat before, each with the number of its
    /// thread.
    stuck: Vec<(u32, HeldTask)>,
}

impl State {
    fn lose(&mut self, shop: &Shop) -> Option<Turn> {
        let mut turn = self.turn.take()?;
        if let Some(task) = turn.task(Instant::now()) {
            self.stuck.push((self.tenant, HeldTask { stuck: true, ..task }));
        }
        self.tenant += 1;
        turn.revoked.stop();
        shop.counts.stuck(); // before its thread can take itself off
        Some(turn)
    }
}

/// After every task.
pub(crate) const ALL: TaskIndex = TaskIndex(u64::MAX);

/// A batch on a slot.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) work: Arc<Work>,
    /// What came of the tasks before this one has been handed on.
    pub(crate) handed_on: TaskIndex,
    running: Option<Running>,
    began: Instant,
    /// The identity of the batch; known before its first task begins.
    batch: Option<RunningBatch>,
    /// The task that ran at the last sample, and when it was first seen to run.
    seen: Option<(TaskIndex, Instant)>,
    /// The time when the watcher learned that the job was stopped.
    stopped_at: Option<Instant>,
    /// Given when the batch is taken from the thread, so that its child processes end.
    revoked: StopSignal,
}

impl Turn {
    fn new(work: &Arc<Work>) -> Self {
        Self {
            work: Arc::clone(work),
            handed_on: TaskIndex(0),
            running: None,
            began: Instant::now(),
            batch: None,
            seen: None,
            stopped_at: None,
            revoked: StopSignal::new(),
        }
    }

    /// Samples which task runs. None while outcomes are handed on.
    fn task(&mut self, now: Instant) -> Option<HeldTask> {
        let batch = self.batch.as_ref()?;
        let index = self.work.running.get();
        let Some(index) = index.filter(|_| self.handed_on != ALL) else {
            self.seen = None;
            return None;
        };
        let since = match (self.seen, self.running) {
            (_, Some(running)) if running.index == index => running.began,
            (Some((seen, since)), _) if seen == index => since,
            _ if index == batch.first => self.began,
            _ => now,
        };
        self.seen = Some((index, since));
        Some(HeldTask { batch: batch.clone(), index, since, stuck: false })
    }

    /// Returns when the grace after its job's stop ends, if the job was stopped.
    fn stop_end(&mut self, now: Instant, stop_grace: Duration) -> Option<Instant> {
        let is_stopped = self.batch.as_ref().is_some_and(|batch| batch.stop.is_stopped());
        if !is_stopped || self.handed_on == ALL {
            return None;
        }
        if self.stopped_at.is_none() {
            self.stopped_at = Some(now);
            let _ = self.task(now); // it runs since then at the latest
        }
        self.stopped_at?.checked_add(stop_grace)
    }
}

/// A task with a time limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) index: TaskIndex,
    pub(crate) began: Instant,
    deadline: Instant,
}

/// What is found on a seat.
#[derive(Debug)]
pub(crate) enum Look {
    /// No task that has a time limit, or whose job was stopped.
    Idle,
    /// One that may run until then.
    Until(Instant),
    /// One whose job was stopped and that did not end within the grace: the seat is lost, and its
    /// batch is the finder's.
    Stopped(Turn, HeldTask),
    /// One that was to have ended. It has lost the seat, and its batch is the finder's.
    Overdue(Turn, Running),
}

impl Seat {
    pub(crate) fn new(wake: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), wake })
    }

    /// Whoever sits down now.
    pub(crate) fn sit(self: &Arc<Self>, shop: Arc<Shop>, ends: flume::Sender<bool>) -> Tenant {
        let number = self.lock().tenant;
        Tenant { seat: Arc::clone(self), number, shop, ends }
    }

    /// Looks whether a task is overdue, or goes on `stop_grace` after its job was stopped, and
    /// takes the seat and the batch away if one does.
    pub(crate) fn look(&self, now: Instant, stop_grace: Duration, shop: &Shop) -> Look {
        let mut state = self.lock();
        let Some(turn) = &mut state.turn else { return Look::Idle };
        let overdue_end = turn.running.and_then(|running| running.deadline.checked_add(OVERDUE_GRACE));
        if let Some(stop_end) = turn.stop_end(now, stop_grace) {
            let end = overdue_end.map_or(stop_end, |end| end.min(stop_end));
            if now < end {
                return Look::Until(end);
            }
            let Some(task) = turn.task(now) else {
                // Its thread waits for the broker, and begins no further task.
                turn.stopped_at = Some(now);
                return now.checked_add(stop_grace).map_or(Look::Idle, Look::Until);
            };
            return state.lose(shop).map_or(Look::Idle, |turn| Look::Stopped(turn, task));
        }
        let (Some(mut running), Some(end)) = (turn.running, overdue_end) else { return Look::Idle };
        if now < end {
            return Look::Until(end);
        }
        // Of several in flight it is the one that holds the thread.
        running.index = turn.work.running.get().unwrap_or(running.index);
        state.lose(shop).map_or(Look::Idle, |turn| Look::Overdue(turn, running))
    }

    /// Returns the task that the slot runs now and those in which its former threads are stuck.
    pub(crate) fn tasks(&self, now: Instant) -> Vec<HeldTask> {
        let mut state = self.lock();
        let running = state.turn.as_mut().and_then(|turn| turn.task(now));
        running.into_iter().chain(state.stuck.iter().map(|(_, task)| task.clone())).collect()
    }

    /// Takes the seat and the batch away, unless there is none, or all of it has been handed on.
    pub(crate) fn take(&self, shop: &Shop) -> Option<Turn> {
        let mut state = self.lock();
        if state.turn.as_ref().is_some_and(|turn| turn.handed_on == ALL) {
            return None;
        }
        state.lose(shop)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's claim to its seat.
#[derive(Debug)]
pub(crate) struct Tenant {
    seat: Arc<Seat>,
    number: u32,
    shop: Arc<Shop>,
    /// Told at the end, whether it was in order; not by a thread that has lost its seat.
    ends: flume::Sender<bool>,
}

impl Tenant {
    /// Begins a batch. The signal that it returns is given if the batch is taken from this
    /// thread.
    pub(crate) fn begin(&self, work: &Arc<Work>) -> StopSignal {
        let turn = Turn::new(work);
        let revoked = turn.revoked.clone();
        let _ = self.state().map(|mut state| state.turn = Some(turn));
        revoked
    }

    /// Says what the batch is, before any code of its job runs.
    pub(crate) fn identify(&self, batch: RunningBatch) {
        let is_stopped = batch.stop.is_stopped();
        if let Some(turn) = self.state().as_mut().and_then(|state| state.turn.as_mut()) {
            turn.batch = Some(batch);
        }
        if is_stopped {
            self.seat.wake.notify_one(); // the watcher may have looked before
        }
    }

    /// Begins a task with a time limit, or ends the watch over the one before, if there is no
    /// deadline. False if the seat is lost.
    pub(crate) fn begin_task(&self, index: TaskIndex, deadline: Option<Instant>) -> bool {
        let Some(mut state) = self.state() else { return false };
        let Some(turn) = &mut state.turn else { return false };
        let Some(deadline) = deadline else {
            turn.running = None;
            return true;
        };
        let running = Running { index, began: Instant::now(), deadline };
        let watched = turn.running.replace(running).is_some();
        drop(state);
        if !watched {
            self.seat.wake.notify_one(); // else whoever watches looks here anyway, when the task before was due
        }
        true
    }

    /// Something follows from the tasks before `up_to`: a handoff, for which ends of the batch are open from now on, so
    /// that nobody else can settle the batch before that is stored. Nothing if the seat is lost: then it must not be
    /// said. While it is said no task runs.
    pub(crate) fn may_say(&self, upshot: Upshot, up_to: TaskIndex) -> Option<Handoff> {
        let mut state = self.state()?;
        let turn = state.turn.as_mut()?;
        turn.running = None;
        turn.handed_on = up_to;
        Some(Handoff::new(upshot, &turn.work.batch))
    }

    /// The batch is done with. False if the seat was lost: then somebody else has done with it.
    pub(crate) fn end(&self) -> bool {
        self.state().is_some_and(|mut state| {
            state.turn = None;
            true
        })
    }

    /// Nothing if the seat is lost.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        Some(self.seat.lock()).filter(|state| state.tenant == self.number)
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        let mut state = self.seat.lock();
        if state.tenant == self.number {
            let _ = self.ends.try_send(!std::thread::panicking()); // nobody listens once the worker has left
        } else {
            state.stuck.retain(|(number, _)| *number != self.number);
            self.shop.counts.came_free();
        }
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{Message, Outgoing, QueueRole};

    use super::*;

    fn a_message(shop: &Shop) -> Upshot {
        vec![Outgoing { to: shop.to(QueueRole::Results), message: Message::default() }].into()
    }

    #[tokio::test]
    async fn what_is_being_said_when_the_seat_is_taken_keeps_the_batch_open() {
        let shop = Shop::of_nothing().await;
        let seat = Seat::new(Arc::default());
        let tenant = seat.sit(Arc::clone(&shop), flume::bounded(1).0);
        let work = Arc::new(Work::of_nothing(QueueRole::Tasks));
        let revoked = tenant.begin(&work);
        let said = tenant.may_say(a_message(&shop), TaskIndex(3)).unwrap();
        assert!(!revoked.is_stopped());
        assert_eq!(seat.take(&shop).unwrap().handed_on, TaskIndex(3));
        assert!(revoked.is_stopped());
        work.batch.close(); // whoever took it is through with it
        assert!(!work.batch.is_settled(), "before what was said is stored");
        assert!(tenant.may_say(Upshot::default(), ALL).is_none(), "the seat is lost");
        said.stored();
        assert!(work.batch.is_settled());
    }

    #[tokio::test]
    async fn time_limit_ends_while_a_state_is_opened() {
        let shop = Shop::of_nothing().await;
        let seat = Seat::new(Arc::default());
        let tenant = seat.sit(Arc::clone(&shop), flume::bounded(1).0);
        tenant.begin(&Arc::new(Work::of_nothing(QueueRole::Tasks)));
        let now = Instant::now();
        let look = |seat: &Seat| seat.look(now + 2 * OVERDUE_GRACE, Duration::from_secs(10), &shop);
        assert!(tenant.begin_task(TaskIndex(3), Some(now)));
        assert!(tenant.begin_task(TaskIndex(3), None));
        assert!(matches!(look(&seat), Look::Idle));
        assert!(tenant.begin_task(TaskIndex(3), Some(now)));
        assert!(matches!(look(&seat), Look::Overdue(..)));
        assert!(!tenant.begin_task(TaskIndex(3), None), "the seat is lost");
    }

    #[tokio::test]
    async fn who_has_said_everything_keeps_the_seat() {
        let shop = Shop::of_nothing().await;
        let seat = Seat::new(Arc::default());
        let tenant = seat.sit(Arc::clone(&shop), flume::bounded(1).0);
        let revoked = tenant.begin(&Arc::new(Work::of_nothing(QueueRole::Tasks)));
        assert!(tenant.may_say(Upshot::default(), ALL).is_some());
        assert!(seat.take(&shop).is_none());
        assert!(tenant.end());
        assert!(seat.take(&shop).is_none(), "there is nothing to take");
        assert!(!revoked.is_stopped());
    }
}
