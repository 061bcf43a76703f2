//! What is to be published: it is written with what it follows from, and goes out when that is committed.

use std::time::{Duration, Instant};

use gristmill_shared::{Lane, Message, WorkerId, meter::SINK_OUTBOX_ROWS, wire::Form};
use rusqlite::Transaction;

use super::{commit_schedule::Urgency, log_limiter::Seldom};
use crate::{
    SinkError,
    ledger::{
        Ledger,
        outbox_rows::{self, Answered, OutboxBatch, Refused, Target},
    },
};

/// The first pause before rows that the broker refused go out again, and the longest. Each time it is twice as long: a
/// broker that takes them some day has been set up anew, and each try may cost it channels.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(300);

/// Messages of the sink, on their way through the ledger to the broker.
#[derive(Debug)]
pub(crate) struct Outbox {
    lane: Lane,
    app: WorkerId,
    /// Since the last commit.
    staged: Vec<(Target, Message)>,
    /// The largest report that a job's end carries.
    report_max_bytes: usize,
    urgency: Urgency,
    /// Rows that are dealt with, to be struck: the broker has them, or the record of dead messages.
    settled: Vec<i64>,
    /// How many rows the ledger has, for whoever watches.
    rows: u64,
    targets: [TargetState; Target::ALL.len()],
    /// What was refused, by what it was.
    seldom: Seldom<(Target, String)>,
}

/// Where one target stands.
#[derive(Debug, Clone, Copy, Default)]
struct TargetState {
    /// The last row that was handed out.
    last: i64,
    /// There may be rows after that.
    waiting: bool,
    /// Rows are with the publisher; there are never more than one batch.
    in_flight: bool,
    /// When the rows that were refused go out again, if some were. They are those up to `last` that the ledger still has.
    again: Option<Instant>,
    /// The pause that came before that.
    pause: Duration,
}

impl TargetState {
    /// Every row was handed out and answered.
    fn rests(&self) -> bool {
        !self.waiting && !self.in_flight
    }

    fn refused(&mut self, now: Instant) {
        if self.again.is_none() {
            self.pause = (2 * self.pause).clamp(AGAIN_MIN, AGAIN_MAX);
            self.again = Some(now + self.pause);
        }
    }
}

impl Outbox {
    /// What an earlier sink left in the ledger goes out first.
    pub(crate) fn new(lane: Lane, app: WorkerId, report_max_bytes: usize) -> Self {
        let target = TargetState { waiting: true, ..TargetState::default() };
        Self {
            lane,
            app,
            staged: Vec::new(),
            report_max_bytes,
            urgency: Urgency::AtLeisure,
            settled: Vec::new(),
            rows: 0,
            targets: [target; Target::ALL.len()],
            seldom: Seldom::default(),
        }
    }

    /// The largest report that a job's end carries, in bytes.
    pub(crate) fn report_max_bytes(&self) -> usize {
        self.report_max_bytes
    }

    /// A fact for the journal, which somebody waits for.
    pub(crate) fn fact(&mut self, fact: &impl Form) {
        self.fact_soon(fact);
        self.urgency = Urgency::Now;
    }

    /// A fact for the journal, which may wait for others.
    pub(crate) fn fact_soon(&mut self, fact: &impl Form) {
        // Its id is its place in the ledger, which it gets there.
        self.stage(Target::Journal, fact.message(String::new(), self.app.as_str()));
    }

    /// Tasks for the lane's workers.
    pub(crate) fn tasks(&mut self, batch: Message) {
        self.stage(Target::Tasks, batch);
    }

    /// A message that is none of ours.
    pub(crate) fn dead(&mut self, message: &Message, reason: String, origin: String) {
        let mut message = message.clone();
        (message.headers.reason, message.headers.origin) = (Some(reason), Some(origin));
        self.stage(Target::Dead, message);
    }

    fn stage(&mut self, target: Target, message: Message) {
        self.staged.push((target, message));
        self.urgency = self.urgency.max(Urgency::Soon);
    }

    /// Whether there is something to save.
    pub(crate) fn has_changed(&self) -> bool {
        !self.staged.is_empty() || !self.settled.is_empty()
    }

    /// How soon somebody wants it saved.
    pub(crate) fn urgency(&self) -> Option<Urgency> {
        self.has_changed().then_some(self.urgency)
    }

    /// The broker has answered these rows; the next ones may follow. Facts and tasks that it refuses stay in the ledger, and
    /// go out again later. Answers the dead messages that it refuses: they are struck, for whoever asks to deal with.
    pub(crate) fn answered(&mut self, answered: Answered, now: Instant) -> Vec<Message> {
        let Answered { target, stored, refused } = answered;
        self.settled.extend(stored);
        let state = &mut self.targets[target as usize];
        state.in_flight = false;
        let mut dead = Vec::new();
        for Refused { row, message, why } in refused {
            let (id, form, to) = (&message.id, &message.form, target.as_str());
            let is_due = self.seldom.is_due((target, form.clone()));
            if target == Target::Dead {
                if is_due {
                    tracing::warn!(
                        id,
                        form,
                        why,
                        "the broker refuses a dead message; it is recorded all the same"
                    );
                }
                self.settled.push(row);
                dead.push(message);
            } else {
                if is_due {
                    tracing::error!(
                        id,
                        form,
                        to,
                        why,
                        "the broker refuses a message of the sink; it is kept and sent again later (hint: let the \
                         broker take such messages; `gristmill doctor` says what it takes)"
                    );
                }
                state.refused(now);
            }
        }
        dead
    }

    /// When rows that were refused may go out again; if others are to be struck, after that is committed.
    pub(crate) fn due(&self) -> Option<Instant> {
        let resting = self.targets.iter().filter(|state| state.rests() && self.settled.is_empty());
        resting.filter_map(|state| state.again).min()
    }

    /// Counts what an earlier sink left.
    pub(crate) fn count(&mut self, ledger: &Ledger) -> Result<(), SinkError> {
        self.rows = ledger.read("the outbox is read", outbox_rows::count)?;
        SINK_OUTBOX_ROWS.set([], self.rows as f64);
        Ok(())
    }

    /// Writes what changed.
    pub(crate) fn save(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        self.rows = (self.rows + self.staged.len() as u64).saturating_sub(self.settled.len() as u64);
        SINK_OUTBOX_ROWS.set([], self.rows as f64);
        for row in self.settled.drain(..) {
            outbox_rows::remove(transaction, row)?;
        }
        for (target, message) in self.staged.drain(..) {
            outbox_rows::insert(transaction, target, &self.lane, &message)?;
            self.targets[target as usize].waiting = true;
        }
        self.urgency = Urgency::AtLeisure;
        Ok(())
    }

    /// What can go out now: at most one batch for each target.
    pub(crate) fn next(&mut self, ledger: &Ledger, now: Instant) -> Result<Vec<OutboxBatch>, SinkError> {
        let mut batches = Vec::new();
        for target in Target::ALL {
            let state = &mut self.targets[target as usize];
            if state.rests() && self.settled.is_empty() && state.again.is_some_and(|again| now >= again) {
                // All that the ledger still has was refused.
                (state.last, state.waiting, state.again) = (0, true, None);
            }
            if state.in_flight || !state.waiting {
                continue;
            }
            let batch = ledger.read("the outbox is read", |connection| {
                outbox_rows::next(connection, ledger.id(), target, state.last)
            })?;
            match batch.rows.last() {
                None => {
                    state.waiting = false;
                    if state.again.is_none() {
                        state.pause = Duration::ZERO;
                    }
                }
                Some((last, _)) => {
                    (state.last, state.in_flight) = (*last, true);
                    batches.push(batch);
                }
            }
        }
        Ok(batches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LedgerPlace, tests::toy_jobs};

    /// An outbox with facts in its ledger, and a clock.
    struct Post {
        ledger: Ledger,
        outbox: Outbox,
        now: Instant,
    }

    impl Post {
        fn new(facts: usize) -> Self {
            let ledger = Ledger::open(LedgerPlace::Memory).unwrap();
            let outbox = Outbox::new(Lane::default(), toy_jobs::app(), usize::MAX);
            let mut post = Self { ledger, outbox, now: Instant::now() };
            post.add(facts);
            post
        }

        fn add(&mut self, facts: usize) {
            let job = toy_jobs::Submitted::toy();
            (0..facts).for_each(|_| self.outbox.fact(&job.opened));
            self.save();
        }

        fn save(&mut self) {
            self.ledger.write(|transaction| self.outbox.save(transaction)).unwrap();
        }

        /// All that goes out just now, where the broker refuses some.
        fn send(&mut self, refuses: impl Fn(i64) -> bool) -> Vec<i64> {
            let mut sent = Vec::new();
            loop {
                self.save();
                let Some(batch) = self.outbox.next(&self.ledger, self.now).unwrap().pop() else {
                    return sent;
                };
                let mut answered = Answered { target: batch.target, stored: Vec::new(), refused: Vec::new() };
                for (row, outgoing) in batch.rows {
                    sent.push(row);
                    if refuses(row) {
                        let refused = Refused { row, message: outgoing.message, why: "too large".into() };
                        answered.refused.push(refused);
                    } else {
                        answered.stored.push(row);
                    }
                }
                assert!(self.outbox.answered(answered, self.now).is_empty(), "facts are no dead messages");
            }
        }

        /// How long until what was refused goes out again; goes on then.
        fn pause(&mut self) -> Option<u64> {
            let due = self.outbox.due()?;
            let pause = due - std::mem::replace(&mut self.now, due);
            Some(pause.as_secs())
        }
    }

    #[test]
    fn a_fact_that_is_refused_is_kept_and_sent_again_after_growing_pauses() {
        let mut post = Post::new(3);
        assert_eq!(post.send(|row| row == 2), [1, 2, 3], "those after it do not wait for it");
        let mut pauses = Vec::new();
        for _ in 0..11 {
            assert!(post.send(|_| false).is_empty(), "it is not due");
            pauses.extend(post.pause());
            assert_eq!(post.send(|row| row == 2), [2]);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        post.add(1);
        assert_eq!(post.send(|row| row == 2), [4], "what comes later does not wait for it either");
        post.pause();
        assert_eq!(post.send(|_| false), [2]);
        assert_eq!(
            (post.pause(), post.ledger.read("rows are counted", outbox_rows::count).unwrap()),
            (None, 0)
        );
        post.add(1);
        post.send(|_| true);
        assert_eq!(post.pause(), Some(1), "the pauses begin anew");
    }

    #[test]
    fn many_that_are_refused_keep_nobody_from_their_turn() {
        let mut post = Post::new(200);
        assert_eq!(post.send(|row| row <= 150), Vec::from_iter(1..=200));
        post.pause();
        post.add(1);
        assert_eq!(post.send(|row| row <= 150), [201], "what is new goes first");
        assert_eq!(post.pause(), Some(0));
        assert_eq!(post.send(|row| row <= 150), Vec::from_iter(1..=150));
        post.pause();
        assert_eq!(post.send(|_| false), Vec::from_iter(1..=150));
    }

    #[test]
    fn what_is_to_be_struck_is_struck_before_anything_goes_out_again() {
        let mut post = Post::new(2);
        let batch = post.outbox.next(&post.ledger, post.now).unwrap().remove(0);
        let (row, outgoing) = &batch.rows[1];
        let refused = Refused { row: *row, message: outgoing.message.clone(), why: "too large".into() };
        let answered = Answered { target: batch.target, stored: vec![1], refused: vec![refused] };
        post.outbox.answered(answered, post.now);
        post.outbox.next(&post.ledger, post.now).unwrap();
        assert_eq!(post.outbox.due(), None);
        post.now += AGAIN_MAX;
        assert!(post.outbox.next(&post.ledger, post.now).unwrap().is_empty());
        assert_eq!(post.send(|_| false), [2]);
    }
}
