//! What is to be published: it is written with what it follows from, and goes out when that is committed.

use gristmill_shared::{Lane, Message, WorkerId, meter::SINK_OUTBOX_ROWS, wire::Form};
use rusqlite::Transaction;

use crate::{
    SinkError,
    ledger::{
        Ledger,
        outbox::{self, OutboxBatch, Target},
    },
    pace::Urgency,
};

/// Messages of the sink, on their way through the ledger to the broker.
#[derive(Debug)]
pub(crate) struct Outbox {
    lane: Lane,
    app: WorkerId,
    /// Since the last commit.
    staged: Vec<(Target, Message)>,
    urgency: Urgency,
    /// Rows that the broker has.
    stored: Vec<i64>,
    /// How many rows the ledger has, for whoever watches.
    rows: u64,
    targets: [TargetState; Target::ALL.len()],
}

/// Where one target stands.
#[derive(Debug, Clone, Copy)]
struct TargetState {
    /// The last row that was handed out.
    last: i64,
    /// There may be rows after that.
    waiting: bool,
    /// Rows are with the publisher; there are never more than one batch.
    in_flight: bool,
}

impl Outbox {
    /// What an earlier sink left in the ledger goes out first.
    pub(crate) fn new(lane: Lane, app: WorkerId) -> Self {
        let target = TargetState { last: 0, waiting: true, in_flight: false };
        let (staged, stored, targets) = (Vec::new(), Vec::new(), [target; Target::ALL.len()]);
        Self { lane, app, staged, urgency: Urgency::AtLeisure, stored, rows: 0, targets }
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
        !self.staged.is_empty() || !self.stored.is_empty()
    }

    /// How soon somebody wants it saved.
    pub(crate) fn urgency(&self) -> Option<Urgency> {
        self.has_changed().then_some(self.urgency)
    }

    /// These rows are with the broker; the next ones may follow.
    pub(crate) fn stored(&mut self, target: Target, rows: Vec<i64>) {
        self.stored.extend(rows);
        self.targets[target as usize].in_flight = false;
    }

    /// Counts what an earlier sink left.
    pub(crate) fn count(&mut self, ledger: &Ledger) -> Result<(), SinkError> {
        self.rows = ledger.read("the outbox is read", outbox::count)?;
        SINK_OUTBOX_ROWS.set([], self.rows as f64);
        Ok(())
    }

    /// Writes what changed.
    pub(crate) fn save(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        self.rows = (self.rows + self.staged.len() as u64).saturating_sub(self.stored.len() as u64);
        SINK_OUTBOX_ROWS.set([], self.rows as f64);
        for row in self.stored.drain(..) {
            outbox::remove(transaction, row)?;
        }
        for (target, message) in self.staged.drain(..) {
            outbox::insert(transaction, target, &self.lane, &message)?;
            self.targets[target as usize].waiting = true;
        }
        self.urgency = Urgency::AtLeisure;
        Ok(())
    }

    /// What can go out now: at most one batch for each target.
    pub(crate) fn next(&mut self, ledger: &Ledger) -> Result<Vec<OutboxBatch>, SinkError> {
        let mut batches = Vec::new();
        for target in Target::ALL {
            let state = &mut self.targets[target as usize];
            if state.in_flight || !state.waiting {
                continue;
            }
            let batch = ledger.read("the outbox is read", |connection| {
                outbox::next(connection, ledger.id(), target, state.last)
            })?;
            match batch.rows.last() {
                None => state.waiting = false,
                Some((last, _)) => {
                    (state.last, state.in_flight) = (*last, true);
                    batches.push(batch);
                }
            }
        }
        Ok(batches)
    }
}
