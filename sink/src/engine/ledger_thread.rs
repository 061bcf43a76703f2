//! The ledger's thread: receives commands over a bounded channel, acknowledges messages, and emits
//! outbox batches and events.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Instant,
};

use flume::{Receiver, RecvTimeoutError, Sender};
use gristmill_ledger::OutboxTarget;
use gristmill_shared::{Delivery, Topic, panic_text, wire::Event};
use tokio::sync::oneshot;

use super::{CommitResult, LedgerEngine, commit_schedule::CommitSchedule};
use crate::{
    SinkError, SinkReport,
    outbox::{OutboxAnswer, OutboxBatch},
};

/// Result messages that the sink holds unacknowledged. A commit comes every 20 to 50 ms under load,
/// or when half of them are here, so 256 sustain ten thousand messages a second. A worker's message
/// has at most 256 KiB and one output of at most 1 MiB: 320 MiB in all, usually far less. Only
/// foreign messages can be larger, up to the transport's limit.
pub(crate) const RESULTS_PREFETCH: u16 = 256;
/// Dead messages that the sink holds unacknowledged: 17 MiB of batches, or 16 times the largest
/// message that the transport takes.
pub(crate) const DEAD_PREFETCH: u16 = 16;
/// Unacknowledged messages that make a commit due at once, so that the broker never exhausts the
/// prefetch.
const UNACKED_MAX: usize = RESULTS_PREFETCH as usize / 2;
/// Commands that may wait for the ledger thread.
const COMMANDS_MAX: usize = 8;
/// Groups of events that may wait for publication. Further ones are dropped.
const EVENT_GROUPS_MAX: usize = 4;

/// A request to the ledger thread.
#[derive(Debug)]
pub(crate) enum LedgerCommand {
    /// Fold result messages.
    Results(Vec<Delivery>),
    /// Process dead messages.
    Dead(Vec<Delivery>),
    /// Apply the broker's answer to rows of the outbox.
    OutboxAnswered(OutboxAnswer),
    /// Note whether the broker works at the moment.
    BrokerHealth { works: bool },
    /// Commit what was received, and end.
    Shutdown,
}

/// The caller's side of the ledger thread's channels.
#[derive(Debug)]
pub(crate) struct LedgerHandle {
    pub(crate) commands: Sender<LedgerCommand>,
    pub(crate) outbox: Receiver<OutboxBatch>,
    pub(crate) events: Receiver<Vec<(Topic, Event)>>,
    /// The report of the thread when it ends, or its error.
    pub(crate) end: oneshot::Receiver<Result<SinkReport, SinkError>>,
}

/// Starts the engine on its own thread, since it runs user code. The thread ends on
/// [`LedgerCommand::Shutdown`], when all senders are dropped, or on an error.
pub(crate) fn spawn(engine: LedgerEngine) -> Result<LedgerHandle, SinkError> {
    let (commands, received) = flume::bounded(COMMANDS_MAX);
    // At most one batch of each target is in flight, so this channel is never full.
    let (outbox_in, outbox) = flume::bounded(OutboxTarget::ALL.len());
    let (events_in, events) = flume::bounded(EVENT_GROUPS_MAX);
    let (end_in, end) = oneshot::channel();
    let work = move || {
        let outputs = EngineOutputs { outbox: outbox_in, events: events_in };
        let ended = catch_unwind(AssertUnwindSafe(|| run(engine, &received, &outputs)));
        let ended = ended.unwrap_or_else(|panic| Err(SinkError::ThreadDied(panic_text(&*panic))));
        let _ = end_in.send(ended); // the receiver may be gone
    };
    thread::Builder::new().name("ledger".into()).spawn(work).map_err(SinkError::ThreadStart)?;
    Ok(LedgerHandle { commands, outbox, events, end })
}

struct EngineOutputs {
    outbox: Sender<OutboxBatch>,
    events: Sender<Vec<(Topic, Event)>>,
}

fn run(
    mut engine: LedgerEngine,
    commands: &Receiver<LedgerCommand>,
    outputs: &EngineOutputs,
) -> Result<SinkReport, SinkError> {
    let mut schedule = CommitSchedule::new(Instant::now());
    engine.watch_running()?;
    // Before any message: the outbox rows of an earlier sink.
    engine = commit(engine, &mut schedule, outputs)?;
    loop {
        let command = match next_deadline(&engine, &schedule, commands.is_empty()) {
            Some(due) => commands.recv_deadline(due),
            None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match command {
            Ok(LedgerCommand::Results(deliveries)) => {
                for delivery in deliveries {
                    engine.accept_result(delivery)?;
                    if engine.unacked() >= UNACKED_MAX {
                        engine = commit(engine, &mut schedule, outputs)?;
                    }
                }
            }
            Ok(LedgerCommand::Dead(deliveries)) => {
                deliveries.into_iter().try_for_each(|delivery| engine.accept_dead(delivery))?;
            }
            Ok(LedgerCommand::OutboxAnswered(answered)) => {
                engine.apply_answer(answered)?;
                send_outbox(engine.next_outbox()?, outputs); // rows committed meanwhile
            }
            Ok(LedgerCommand::BrokerHealth { works }) => engine.set_broker_works(works),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(LedgerCommand::Shutdown) | Err(RecvTimeoutError::Disconnected) => {
                return Ok(commit(engine, &mut schedule, outputs)?.report());
            }
        }
        if engine.stalls_due().is_some_and(|due| Instant::now() >= due) {
            engine.find_stalls()?;
        }
        if engine.outbox_due().is_some_and(|due| Instant::now() >= due) {
            send_outbox(engine.next_outbox()?, outputs);
        }
        if let Some(urgency) = engine.urgency() {
            let now = Instant::now();
            schedule.note_pending(urgency, engine.running_since().unwrap_or(now), now);
            if now >= schedule.due(urgency, commands.is_empty()) {
                engine = commit(engine, &mut schedule, outputs)?;
            }
        }
        send_events(&mut engine, outputs);
    }
}

/// Returns the time at which the engine has work even without a command.
fn next_deadline(engine: &LedgerEngine, schedule: &CommitSchedule, idle: bool) -> Option<Instant> {
    let commit = engine.urgency().map(|urgency| schedule.due(urgency, idle));
    let due = [commit, engine.events_due(), engine.stalls_due(), engine.outbox_due()];
    due.into_iter().flatten().min()
}

fn commit(
    engine: LedgerEngine,
    schedule: &mut CommitSchedule,
    outputs: &EngineOutputs,
) -> Result<LedgerEngine, SinkError> {
    let began = Instant::now();
    let (mut engine, CommitResult { receipts, outbox }) = engine.commit()?;
    schedule.record_commit(began, Instant::now());
    send_outbox(outbox, outputs); // first, since callers wait for it
    receipts.into_iter().for_each(gristmill_shared::Receipt::ack);
    send_events(&mut engine, outputs);
    Ok(engine)
}

fn send_outbox(outbox: Vec<OutboxBatch>, outputs: &EngineOutputs) {
    for batch in outbox {
        let _ = outputs.outbox.try_send(batch); // without a publisher, the next start sends it
    }
}

fn send_events(engine: &mut LedgerEngine, outputs: &EngineOutputs) {
    if engine.events_due().is_some_and(|due| Instant::now() >= due) {
        let _ = outputs.events.try_send(engine.take_events()); // events are best effort
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gristmill_shared::Lane;

    use super::*;
    use crate::tests::toy_jobs::{
        SubmittedJob, all_refused, app, delivery, garbage, open_ledger, read_ledger, registry,
    };

    /// Refused facts are sent again, and refused dead messages are recorded, without any other
    /// command.
    #[test]
    fn refused_rows_are_resent_when_idle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let handle =
            spawn(LedgerEngine::new(open_ledger(&path), registry(), Lane::default(), app())).unwrap();
        let messages = [SubmittedJob::toy().opened(), garbage()];
        handle.commands.send(LedgerCommand::Results(messages.map(delivery).into())).unwrap();
        let handed_out = || handle.outbox.recv_timeout(Duration::from_secs(20)).expect("nothing goes out");
        let first = [handed_out(), handed_out()];
        assert_eq!([first[0].target, first[1].target], [OutboxTarget::Journal, OutboxTarget::Dead]);
        for batch in &first {
            handle.commands.send(LedgerCommand::OutboxAnswered(all_refused(batch))).unwrap();
        }
        let again = handed_out();
        assert_eq!((again.target, again.rows[0].0), (OutboxTarget::Journal, first[0].rows[0].0));
        assert_eq!(read_ledger(&path).dead().unwrap().messages.len(), 1);
    }
}
