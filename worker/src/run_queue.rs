//! What waits for a slot: intakes bring it in lots, slots take it one by one.
//!
//! A thread that must be woken costs as much as a tiny batch, so an intake is not woken for each batch that is taken, but
//! when as many are left as there are slots.

use std::{
    collections::VecDeque,
    mem,
    pin::pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gristmill_shared::QueueRole;
use tokio::sync::Notify;

use crate::delivery::Work;

/// Where slots take work from, and whoever hands back what no slot will begin.
#[derive(Clone, Debug)]
pub(crate) struct Waiting(Arc<Shared>);

/// Where an intake brings it. When the last of these goes, no more will come.
#[derive(Debug)]
pub(crate) struct Giving(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// For threads: there is work, or there will be none.
    some: Condvar,
    /// The same, for tasks.
    some_async: Notify,
    /// Few are left.
    few_left: Notify,
    /// A slot finds nothing.
    dry: Notify,
    /// How many are few.
    few: usize,
}

#[derive(Debug, Default)]
struct State {
    /// They go first. The shorter one is held, the less likely it is held when its process dies of something else.
    suspects: VecDeque<Work>,
    /// At most `few` and a lot of each intake.
    queue: VecDeque<Work>,
    givers: usize,
    /// How many slots wait for work.
    idle: usize,
    /// How many were taken so far.
    taken: u64,
    /// Number of times that slots were asked to drop what has ended, before they take work.
    ends: u64,
}

/// An intake is to bring more when as few are left as there are slots.
pub(crate) fn waiting(slots: usize) -> (Giving, Waiting) {
    let state = Mutex::new(State { givers: 1, ..State::default() });
    let (some, some_async) = (Condvar::new(), Notify::new());
    let (few_left, dry) = (Notify::new(), Notify::new());
    let shared = Arc::new(Shared { state, some, some_async, few_left, dry, few: slots });
    (Giving(Arc::clone(&shared)), Waiting(shared))
}

impl Shared {
    /// Nothing panics under the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Giving {
    /// Gives the lot at once, and waits until few are left. Cancelled, all of it has been given.
    pub(crate) async fn give(&self, lot: Vec<Work>) {
        self.0.state().extend(lot);
        self.0.some.notify_all();
        self.0.some_async.notify_waiters();
        loop {
            let mut few_left = pin!(self.0.few_left.notified());
            few_left.as_mut().enable(); // what is taken from here on is heard
            if self.0.state().len() <= self.0.few {
                return;
            }
            few_left.await;
        }
    }

    /// Waits until nothing has been taken for so long, or up to twice that.
    pub(crate) async fn standstill(&self, time: Duration) {
        let mut taken = self.0.state().taken;
        loop {
            tokio::time::sleep(time).await;
            let now = self.0.state().taken;
            if mem::replace(&mut taken, now) == now {
                return;
            }
        }
    }
}

impl Clone for Giving {
    fn clone(&self) -> Self {
        self.0.state().givers += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Giving {
    fn drop(&mut self) {
        self.0.state().givers -= 1;
        self.0.some.notify_all();
        self.0.some_async.notify_waiters();
    }
}

impl Waiting {
    /// Blocks. Nothing once no more will come. `tidy_up` is called, without the lock, when
    /// [`Waiting::tidy_up`] asked for it since `seen`, which is the slot's own count.
    pub(crate) fn next(&self, seen: &mut u64, tidy_up: impl Fn()) -> Option<Work> {
        let mut state = self.0.state();
        loop {
            if mem::replace(seen, state.ends) != state.ends {
                drop(state);
                tidy_up();
                state = self.0.state();
            }
            if let Some(work) = self.take(&mut state) {
                return Some(work);
            }
            if state.givers == 0 {
                return None;
            }
            state.idle += 1;
            self.0.dry.notify_waiters();
            state = self.0.some.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Has each slot tidy up: at once if it waits for work, else before it takes some.
    pub(crate) fn tidy_up(&self) {
        self.0.state().ends += 1;
        self.0.some.notify_all();
    }

    /// Waits until a slot has nothing to do.
    pub(crate) async fn runs_dry(&self) {
        loop {
            let mut dry = pin!(self.0.dry.notified());
            dry.as_mut().enable(); // what happens from here on is heard
            if self.0.state().idle > 0 {
                return;
            }
            dry.await;
        }
    }

    /// The same, async. Cancel safe.
    pub(crate) async fn next_async(&self) -> Option<Work> {
        loop {
            let mut some = pin!(self.0.some_async.notified());
            some.as_mut().enable();
            let (work, givers) = {
                let mut state = self.0.state();
                (self.take(&mut state), state.givers)
            };
            if work.is_some() || givers == 0 {
                return work;
            }
            some.await;
        }
    }

    fn take(&self, state: &mut State) -> Option<Work> {
        let work = state.suspects.pop_front().or_else(|| state.queue.pop_front())?;
        state.taken += 1;
        if state.len() == self.0.few {
            self.0.few_left.notify_waiters();
        }
        Some(work)
    }
}

impl State {
    fn extend(&mut self, lot: Vec<Work>) {
        for work in lot {
            match work.from {
                QueueRole::Suspect => self.suspects.push_back(work),
                _ => self.queue.push_back(work),
            }
        }
    }

    fn len(&self) -> usize {
        self.suspects.len() + self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn works<const N: usize>(from: [QueueRole; N]) -> Vec<Work> {
        from.into_iter().map(Work::of_nothing).collect()
    }

    #[tokio::test]
    async fn suspects_go_first_and_nothing_is_left_behind() {
        let (giving, waiting) = waiting(4);
        giving.give(works([QueueRole::Tasks, QueueRole::Again, QueueRole::Suspect])).await;
        drop(giving);
        let from = || waiting.next(&mut 0, || {}).map(|work| work.from);
        assert_eq!([from(), from()], [Some(QueueRole::Suspect), Some(QueueRole::Tasks)]);
        assert_eq!(waiting.next_async().await.map(|work| work.from), Some(QueueRole::Again));
        assert_eq!([from(), from()], [None, None]);
    }

    #[tokio::test]
    async fn whoever_gives_waits_until_few_are_left() {
        let (giving, waiting) = waiting(1);
        let mut given = pin!(giving.give(works([QueueRole::Tasks; 3])));
        for _ in 0..2 {
            assert!(given.as_mut().now_or_never().is_none());
            waiting.next(&mut 0, || {}).unwrap();
        }
        given.await;
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_work_and_by_the_end() {
        let (giving, waiting) = waiting(1);
        let mut next = pin!(waiting.next_async());
        assert!(next.as_mut().now_or_never().is_none());
        giving.give(works([QueueRole::Again])).await;
        assert!(next.await.is_some());
        let taker = std::thread::spawn({
            let waiting = waiting.clone();
            move || waiting.next(&mut 0, || {}).is_none()
        });
        let mut next = pin!(waiting.next_async());
        assert!(next.as_mut().now_or_never().is_none());
        drop(giving);
        assert!(next.await.is_none() && taker.join().unwrap());
    }

    #[tokio::test]
    async fn each_idle_slot_tidies_up() {
        let (giving, waiting) = waiting(2);
        let (tidied, told) = flume::bounded(8);
        let slots = [1, 2].map(|number| {
            let (waiting, tidied) = (waiting.clone(), tidied.clone());
            std::thread::spawn(move || waiting.next(&mut 0, || tidied.send(number).unwrap()).is_none())
        });
        waiting.runs_dry().await;
        waiting.tidy_up();
        let both = async { (told.recv_async().await.unwrap(), told.recv_async().await.unwrap()) };
        let both = tokio::time::timeout(Duration::from_secs(10), both).await;
        let (first, second) = both.expect("each slot tidies up");
        assert_eq!(first + second, 3, "each slot, since each has what the others do not know of");
        drop(giving);
        assert!(slots.into_iter().all(|slot| slot.join().unwrap()));
        assert_eq!(told.drain().count(), 0, "once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_standstill_is_when_nothing_is_taken() {
        let (giving, waiting) = waiting(8);
        giving.give(works([QueueRole::Tasks; 3])).await;
        let (start, second) = (tokio::time::Instant::now(), Duration::from_secs(1));
        let taking = async {
            for _ in 0..2 {
                tokio::time::sleep(second / 2).await;
                waiting.next(&mut 0, || {});
            }
        };
        tokio::join!(giving.standstill(second), taking);
        let after = start.elapsed();
        assert!((second * 2..=second * 3).contains(&after), "{after:?}");
    }
}
