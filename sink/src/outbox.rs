//! The outbox: messages are written in the transaction that causes them, and published once it is
//! committed.

use std::time::{Duration, Instant};

use gristmill_ledger::{Changes, Ledger, OutboxRow, OutboxTarget, PageBound};
use gristmill_shared::{
    Address, Backoff, Lane, LedgerId, LogLimiter, Message, Outgoing, QueueRole, Topic, WorkerId,
    metrics::SINK_OUTBOX_ROWS,
    wire::{Finished, WireMessage},
};

use crate::{SinkError, engine::commit_schedule::Urgency};

/// Rows that are published at a time, for each target.
const BATCH_MAX_ROWS: usize = 64;
/// Size of the bodies at which a batch ends.
const BATCH_MAX_BYTES: usize = 4 << 20;
/// Size of a job's end up to which it is also published as an event. For a slow subscriber only the
/// number of waiting events is bounded: 10,000 of this size take 40 MiB of the broker's memory.
const LIVE_MAX_BYTES: usize = 4 << 10;

/// The first pause before refused rows are sent again, and the longest. Each pause is twice the one
/// before: the broker accepts such rows only after a change of its configuration, and each attempt
/// may cost it channels.
const RESEND_PAUSE_MIN: Duration = Duration::from_secs(1);
const RESEND_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Rows on their way to the broker.
#[derive(Debug)]
pub(crate) struct OutboxBatch {
    pub(crate) target: OutboxTarget,
    pub(crate) rows: Vec<(i64, Outgoing)>,
    /// Job ends among the rows, as events, which arrive earlier than the journal's. They are best
    /// effort.
    pub(crate) live: Vec<Outgoing>,
}

/// The broker's answer to a batch.
#[derive(Debug)]
pub(crate) struct OutboxAnswer {
    pub(crate) target: OutboxTarget,
    /// Rows that the broker confirmed.
    pub(crate) stored: Vec<i64>,
    /// Rows that the broker does not accept as it is configured now.
    pub(crate) refused: Vec<RefusedRow>,
}

/// A row that the broker refused.
#[derive(Debug)]
pub(crate) struct RefusedRow {
    pub(crate) row: i64,
    pub(crate) message: Message,
    pub(crate) why: String,
}

/// Messages of the sink, on their way through the ledger to the broker.
#[derive(Debug)]
pub(crate) struct Outbox {
    lane: Lane,
    app: WorkerId,
    /// Messages since the last commit.
    staged: Vec<(OutboxTarget, Message)>,
    /// The largest report that a job's end carries, in bytes.
    report_max_bytes: usize,
    urgency: Urgency,
    /// Rows to delete: the broker has confirmed them, or they are recorded as dead messages.
    settled: Vec<i64>,
    /// The number of rows in the ledger, for the gauge.
    rows: u64,
    targets: [TargetState; OutboxTarget::ALL.len()],
    /// Keyed by target and message type.
    log_limiter: LogLimiter<(OutboxTarget, String)>,
}

/// The publication state of one target.
#[derive(Debug)]
struct TargetState {
    /// The last row that was handed out.
    last_row: i64,
    /// True if there may be rows after `last_row`.
    has_more: bool,
    /// True while the publisher has a batch; there is never more than one.
    in_flight: bool,
    /// When refused rows are sent again, if there are any: the rows up to `last_row` that the
    /// ledger still has.
    resend_at: Option<Instant>,
    /// The pauses before further attempts.
    backoff: Backoff,
}

impl TargetState {
    /// Returns the state at the start, when there may be rows of an earlier sink.
    fn new() -> Self {
        let backoff = Backoff::exact(RESEND_PAUSE_MIN, RESEND_PAUSE_MAX);
        Self { last_row: 0, has_more: true, in_flight: false, resend_at: None, backoff }
    }

    /// True if every row was handed out and answered.
    fn is_idle(&self) -> bool {
        !self.has_more && !self.in_flight
    }

    fn schedule_resend(&mut self, now: Instant) {
        if self.resend_at.is_none() {
            self.resend_at = Some(now + self.backoff.next_pause());
        }
    }
}

impl Outbox {
    /// Creates an outbox. Rows that an earlier sink left in the ledger go out first.
    pub(crate) fn new(lane: Lane, app: WorkerId, report_max_bytes: usize) -> Self {
        Self {
            lane,
            app,
            staged: Vec::new(),
            report_max_bytes,
            urgency: Urgency::Lazy,
            settled: Vec::new(),
            rows: 0,
            targets: OutboxTarget::ALL.map(|_| TargetState::new()),
            log_limiter: LogLimiter::default(),
        }
    }

    /// Returns the largest report that a job's end carries, in bytes.
    pub(crate) fn report_max_bytes(&self) -> usize {
        self.report_max_bytes
    }

    /// Adds a fact for the journal that a caller waits for.
    pub(crate) fn push_fact(&mut self, fact: &impl WireMessage) {
        self.push_fact_batched(fact);
        self.urgency = Urgency::Immediate;
    }

    /// Adds a fact for the journal that may wait for others.
    pub(crate) fn push_fact_batched(&mut self, fact: &impl WireMessage) {
        // Its id is its row in the ledger, which is not known yet.
        self.stage(OutboxTarget::Journal, fact.message(String::new(), self.app.as_str()));
    }

    /// Adds a batch of tasks for the lane's workers.
    pub(crate) fn push_tasks(&mut self, batch: Message) {
        self.stage(OutboxTarget::Tasks, batch);
    }

    /// Adds a malformed or foreign message for the dead queue.
    pub(crate) fn push_dead(&mut self, message: &Message, reason: String, origin: String) {
        let mut message = message.clone();
        (message.headers.reason, message.headers.origin) = (Some(reason), Some(origin));
        self.stage(OutboxTarget::Dead, message);
    }

    fn stage(&mut self, target: OutboxTarget, message: Message) {
        self.staged.push((target, message));
        self.urgency = self.urgency.max(Urgency::Batched);
    }

    /// True if there is something to save.
    pub(crate) fn has_changed(&self) -> bool {
        !self.staged.is_empty() || !self.settled.is_empty()
    }

    /// Returns the urgency of saving, or `None` if there is nothing to save.
    pub(crate) fn urgency(&self) -> Option<Urgency> {
        self.has_changed().then_some(self.urgency)
    }

    /// Applies the broker's answer to a batch, after which the next batch may follow. Refused facts
    /// and tasks stay in the ledger and are sent again later. Returns the refused dead messages,
    /// whose rows are deleted: the caller processes them.
    pub(crate) fn apply_answer(&mut self, answered: OutboxAnswer, now: Instant) -> Vec<Message> {
        let OutboxAnswer { target, stored, refused } = answered;
        self.settled.extend(stored);
        let state = &mut self.targets[target as usize];
        state.in_flight = false;
        let mut dead = Vec::new();
        for RefusedRow { row, message, why } in refused {
            let (id, form, to) = (&message.id, &message.form, target.as_str());
            let should_log = self.log_limiter.should_log((target, form.clone()));
            if target == OutboxTarget::Dead {
                if should_log {
                    tracing::warn!(
                        id,
                        form,
                        why,
                        "the broker refuses a dead message; the ledger records it instead"
                    );
                }
                self.settled.push(row);
                dead.push(message);
            } else {
                if should_log {
                    tracing::error!(
                        id,
                        form,
                        to,
                        why,
                        "the broker refuses a message of the sink; it is kept and sent again later (hint: let the \
                         broker take such messages; `gristmill doctor` says what it takes)"
                    );
                }
                state.schedule_resend(now);
            }
        }
        dead
    }

    /// Returns when refused rows may be sent again. Rows that wait for deletion come first: the
    /// result is `None` until that is committed.
    pub(crate) fn due(&self) -> Option<Instant> {
        let resting = self.targets.iter().filter(|state| state.is_idle() && self.settled.is_empty());
        resting.filter_map(|state| state.resend_at).min()
    }

    /// Counts the rows that an earlier sink left.
    pub(crate) fn load_row_count(&mut self, ledger: &mut dyn Ledger) -> Result<(), SinkError> {
        self.rows = ledger.outbox_state()?.rows;
        SINK_OUTBOX_ROWS.set([], self.rows as f64);
        Ok(())
    }

    /// Moves the changes into a commit.
    pub(crate) fn stage_changes(&mut self, changes: &mut Changes<'_>) {
        self.rows = (self.rows + self.staged.len() as u64).saturating_sub(self.settled.len() as u64);
        SINK_OUTBOX_ROWS.set([], self.rows as f64);
        changes.settled.append(&mut self.settled);
        for (target, message) in self.staged.drain(..) {
            self.targets[target as usize].has_more = true;
            changes.outbox.push((target, self.lane.clone(), message));
        }
        self.urgency = Urgency::Lazy;
    }

    /// Returns the batches that can be published now, at most one for each target.
    pub(crate) fn next_batches(
        &mut self,
        ledger: &mut dyn Ledger,
        now: Instant,
    ) -> Result<Vec<OutboxBatch>, SinkError> {
        let (mut batches, bound) = (Vec::new(), PageBound { rows: BATCH_MAX_ROWS, bytes: BATCH_MAX_BYTES });
        for target in OutboxTarget::ALL {
            let state = &mut self.targets[target as usize];
            if state.is_idle()
                && self.settled.is_empty()
                && state.resend_at.is_some_and(|resend_at| now >= resend_at)
            {
                // All rows that the ledger still has were refused.
                (state.last_row, state.has_more, state.resend_at) = (0, true, None);
            }
            if state.in_flight || !state.has_more {
                continue;
            }
            let rows = ledger.outbox(target, state.last_row, bound)?;
            let batch = OutboxBatch::new(ledger.id(), target, rows);
            match batch.rows.last() {
                None => {
                    state.has_more = false;
                    if state.resend_at.is_none() {
                        state.backoff.reset();
                    }
                }
                Some((last, _)) => {
                    (state.last_row, state.in_flight) = (*last, true);
                    batches.push(batch);
                }
            }
        }
        Ok(batches)
    }
}

impl OutboxBatch {
    /// Addresses rows. A message without an id gets one that is stable when it is published again,
    /// so that readers detect repetitions.
    fn new(ledger: &LedgerId, target: OutboxTarget, stored: Vec<OutboxRow>) -> Self {
        let (mut rows, mut live) = (Vec::new(), Vec::new());
        for OutboxRow { row, lane, mut message } in stored {
            if message.id.is_empty() {
                message.id = format!("{ledger}/{row}");
            }
            if target == OutboxTarget::Journal
                && message.form == Finished::TYPE
                && message.body.len() <= LIVE_MAX_BYTES
                && let Some(job) = message.job
            {
                let to = Address::Events(Topic::Job(lane.clone(), job));
                live.push(Outgoing { to, message: message.clone() });
            }
            rows.push((row, Outgoing { to: address(target, &lane), message }));
        }
        Self { target, rows, live }
    }
}

fn address(target: OutboxTarget, lane: &Lane) -> Address {
    match target {
        OutboxTarget::Journal => Address::Journal,
        OutboxTarget::Tasks => Address::Queue(QueueRole::Tasks.of(lane)),
        OutboxTarget::Dead => Address::Queue(QueueRole::Dead.of(lane)),
    }
}

#[cfg(test)]
mod tests {
    use gristmill_ledger::LedgerLocation;
    use gristmill_sqlite::SqliteLedger;

    use super::*;
    use crate::tests::toy_jobs;

    /// An outbox with facts in its ledger, and a clock.
    struct OutboxFixture {
        ledger: SqliteLedger,
        outbox: Outbox,
        now: Instant,
    }

    impl OutboxFixture {
        fn new(facts: usize) -> Self {
            let ledger = SqliteLedger::open(LedgerLocation::Memory).unwrap();
            let outbox = Outbox::new(Lane::default(), toy_jobs::app(), usize::MAX);
            let mut fixture = Self { ledger, outbox, now: Instant::now() };
            fixture.add(facts);
            fixture
        }

        fn add(&mut self, facts: usize) {
            let job = toy_jobs::SubmittedJob::toy();
            (0..facts).for_each(|_| self.outbox.push_fact(&job.opened));
            self.save();
        }

        fn save(&mut self) {
            let mut changes = Changes::default();
            self.outbox.stage_changes(&mut changes);
            self.ledger.commit(&changes).unwrap();
        }

        /// Sends all that is due now to a broker that refuses some rows.
        fn send(&mut self, refuses: impl Fn(i64) -> bool) -> Vec<i64> {
            let mut sent = Vec::new();
            loop {
                self.save();
                let Some(batch) = self.outbox.next_batches(&mut self.ledger, self.now).unwrap().pop() else {
                    return sent;
                };
                let mut answered =
                    OutboxAnswer { target: batch.target, stored: Vec::new(), refused: Vec::new() };
                for (row, outgoing) in batch.rows {
                    sent.push(row);
                    if refuses(row) {
                        let refused = RefusedRow { row, message: outgoing.message, why: "too large".into() };
                        answered.refused.push(refused);
                    } else {
                        answered.stored.push(row);
                    }
                }
                assert!(
                    self.outbox.apply_answer(answered, self.now).is_empty(),
                    "facts are no dead messages"
                );
            }
        }

        /// Returns the seconds until refused rows are sent again, and advances the clock by them.
        fn pause(&mut self) -> Option<u64> {
            let due = self.outbox.due()?;
            let pause = due - std::mem::replace(&mut self.now, due);
            Some(pause.as_secs())
        }
    }

    /// A refused fact is kept and sent again, with pauses that double up to a bound.
    #[test]
    fn refused_fact_is_resent_with_backoff() {
        let mut fixture = OutboxFixture::new(3);
        assert_eq!(fixture.send(|row| row == 2), [1, 2, 3], "those after it do not wait for it");
        let mut pauses = Vec::new();
        for _ in 0..11 {
            assert!(fixture.send(|_| false).is_empty(), "it is not due");
            pauses.extend(fixture.pause());
            assert_eq!(fixture.send(|row| row == 2), [2]);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        fixture.add(1);
        assert_eq!(fixture.send(|row| row == 2), [4], "what comes later does not wait for it either");
        fixture.pause();
        assert_eq!(fixture.send(|_| false), [2]);
        assert_eq!((fixture.pause(), fixture.ledger.outbox_state().unwrap().rows), (None, 0));
        fixture.add(1);
        fixture.send(|_| true);
        assert_eq!(fixture.pause(), Some(1), "the pauses begin anew");
    }

    #[test]
    fn refused_rows_do_not_block_new_ones() {
        let mut fixture = OutboxFixture::new(200);
        assert_eq!(fixture.send(|row| row <= 150), Vec::from_iter(1..=200));
        fixture.pause();
        fixture.add(1);
        assert_eq!(fixture.send(|row| row <= 150), [201], "what is new goes first");
        assert_eq!(fixture.pause(), Some(0));
        assert_eq!(fixture.send(|row| row <= 150), Vec::from_iter(1..=150));
        fixture.pause();
        assert_eq!(fixture.send(|_| false), Vec::from_iter(1..=150));
    }

    /// Rows that the broker has are deleted before any refused row is sent again.
    #[test]
    fn settled_rows_are_deleted_first() {
        let mut fixture = OutboxFixture::new(2);
        let batch = fixture.outbox.next_batches(&mut fixture.ledger, fixture.now).unwrap().remove(0);
        let (row, outgoing) = &batch.rows[1];
        let refused = RefusedRow { row: *row, message: outgoing.message.clone(), why: "too large".into() };
        let answered = OutboxAnswer { target: batch.target, stored: vec![1], refused: vec![refused] };
        fixture.outbox.apply_answer(answered, fixture.now);
        fixture.outbox.next_batches(&mut fixture.ledger, fixture.now).unwrap();
        assert_eq!(fixture.outbox.due(), None);
        fixture.now += RESEND_PAUSE_MAX;
        assert!(fixture.outbox.next_batches(&mut fixture.ledger, fixture.now).unwrap().is_empty());
        assert_eq!(fixture.send(|_| false), [2]);
    }
}
