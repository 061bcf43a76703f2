//! The clerk's thread: messages come in over a bounded channel, acknowledgements and what is to be published go out.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Instant,
};

use flume::{Receiver, RecvTimeoutError, Sender};
use gristmill_shared::{Delivery, Topic, panic_text, wire::Event};
use tokio::sync::oneshot;

use super::{Clerk, Committed, commit_schedule::Pace};
use crate::{
    SinkError, SinkReport,
    ledger::outbox_rows::{Answered, OutboxBatch, Target},
};

/// How many result messages the sink holds without having acknowledged them. A commit comes every 20 to 50 ms under load,
/// or when half of them are here, so that 256 keep ten thousand messages a second coming. A worker's message has at most
/// 256 KiB and one output of at most 1 MiB: 320 MiB in all, far less as a rule. Only messages that are none of ours can
/// be larger, up to what the transport takes.
pub(crate) const RESULTS_PREFETCH: u16 = 256;
/// How many dead messages the sink holds without having acknowledged them: 17 MiB of batches, or 16 times the largest
/// message that the transport takes.
pub(crate) const DEAD_PREFETCH: u16 = 16;
/// A commit is due at once when this many messages wait for it, so that the broker never runs out of what it may send.
const HELD_MAX: usize = RESULTS_PREFETCH as usize / 2;
/// How many errands may wait for the clerk.
const ERRANDS_MAX: usize = 8;
/// How many lots of progress may wait to be told. Further ones are not told.
const NEWS_MAX: usize = 4;

/// What the clerk is asked to do.
#[derive(Debug)]
pub(crate) enum Errand {
    /// Take in results.
    Take(Vec<Delivery>),
    /// Take in dead messages.
    TakeDead(Vec<Delivery>),
    /// Know what the broker says to rows of the outbox.
    Answered(Answered),
    /// Know whether the broker works just now.
    Broker { works: bool },
    /// Commit what was taken in, and go home.
    Leave,
}

/// The ends of a clerk's channels that the others hold.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) errands: Sender<Errand>,
    pub(crate) outbox: Receiver<OutboxBatch>,
    pub(crate) news: Receiver<Vec<(Topic, Event)>>,
    /// What the clerk says when it goes, or why it fell.
    pub(crate) end: oneshot::Receiver<Result<SinkReport, SinkError>>,
}

/// Sets a clerk to work on a thread of its own, since user code runs there. It goes when it is asked to, when nobody
/// can ask it anything any more, or when it fails.
pub(crate) fn start(clerk: Clerk) -> Result<Desk, SinkError> {
    let (errands, asked) = flume::bounded(ERRANDS_MAX);
    // Of each target at most one batch is on its way, so this channel is never full.
    let (outbox_in, outbox) = flume::bounded(Target::ALL.len());
    let (news_in, news) = flume::bounded(NEWS_MAX);
    let (end_in, end) = oneshot::channel();
    let work = move || {
        let outlets = Outlets { outbox: outbox_in, news: news_in };
        let ended = catch_unwind(AssertUnwindSafe(|| serve(clerk, &asked, &outlets)));
        let ended = ended.unwrap_or_else(|panic| Err(SinkError::Died(panic_text(&*panic))));
        let _ = end_in.send(ended); // nobody may be there to hear it
    };
    thread::Builder::new().name("ledger".into()).spawn(work).map_err(SinkError::Thread)?;
    Ok(Desk { errands, outbox, news, end })
}

struct Outlets {
    outbox: Sender<OutboxBatch>,
    news: Sender<Vec<(Topic, Event)>>,
}

fn serve(mut clerk: Clerk, asked: &Receiver<Errand>, outlets: &Outlets) -> Result<SinkReport, SinkError> {
    let mut pace = Pace::new(Instant::now());
    clerk.watch_running()?;
    // Before anything comes in: what an earlier sink left in the outbox.
    clerk = commit(clerk, &mut pace, outlets)?;
    loop {
        let errand = match due(&clerk, &pace, asked.is_empty()) {
            Some(due) => asked.recv_deadline(due),
            None => asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match errand {
            Ok(Errand::Take(deliveries)) => {
                for delivery in deliveries {
                    clerk.take(delivery)?;
                    if clerk.held() >= HELD_MAX {
                        clerk = commit(clerk, &mut pace, outlets)?;
                    }
                }
            }
            Ok(Errand::TakeDead(deliveries)) => {
                deliveries.into_iter().try_for_each(|delivery| clerk.take_dead(delivery))?;
            }
            Ok(Errand::Answered(answered)) => {
                clerk.answered(answered)?;
                hand_out(clerk.outbox()?, outlets); // what was committed meanwhile need not wait for the next commit
            }
            Ok(Errand::Broker { works }) => clerk.broker_works(works),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Errand::Leave) | Err(RecvTimeoutError::Disconnected) => {
                return Ok(commit(clerk, &mut pace, outlets)?.report());
            }
        }
        if clerk.stalls_due().is_some_and(|due| Instant::now() >= due) {
            clerk.find_stalls()?;
        }
        if clerk.outbox_due().is_some_and(|due| Instant::now() >= due) {
            hand_out(clerk.outbox()?, outlets);
        }
        if let Some(urgency) = clerk.urgency() {
            let now = Instant::now();
            pace.waits(urgency, clerk.running_since().unwrap_or(now), now);
            if now >= pace.due(urgency, asked.is_empty()) {
                clerk = commit(clerk, &mut pace, outlets)?;
            }
        }
        tell(&mut clerk, outlets);
    }
}

/// When the clerk has something to do even if nobody asks.
fn due(clerk: &Clerk, pace: &Pace, idle: bool) -> Option<Instant> {
    let commit = clerk.urgency().map(|urgency| pace.due(urgency, idle));
    let due = [commit, clerk.news_due(), clerk.stalls_due(), clerk.outbox_due()];
    due.into_iter().flatten().min()
}

fn commit(clerk: Clerk, pace: &mut Pace, outlets: &Outlets) -> Result<Clerk, SinkError> {
    let began = Instant::now();
    let (mut clerk, Committed { receipts, outbox }) = clerk.commit()?;
    pace.committed(began, Instant::now());
    hand_out(outbox, outlets); // first, since somebody waits for it
    receipts.into_iter().for_each(gristmill_shared::Receipt::ack);
    tell(&mut clerk, outlets);
    Ok(clerk)
}

fn hand_out(outbox: Vec<OutboxBatch>, outlets: &Outlets) {
    for batch in outbox {
        let _ = outlets.outbox.try_send(batch); // if nobody publishes any more, it goes out next time
    }
}

fn tell(clerk: &mut Clerk, outlets: &Outlets) {
    if clerk.news_due().is_some_and(|due| Instant::now() >= due) {
        let _ = outlets.news.try_send(clerk.take_news()); // nobody waits for an event
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gristmill_shared::Lane;

    use super::*;
    use crate::{
        LedgerPlace, LedgerReader,
        ledger::Ledger,
        tests::toy_jobs::{Submitted, all_refused, app, delivery, garbage, registry},
    };

    #[test]
    fn what_the_broker_refuses_goes_out_again_or_is_recorded_though_nothing_else_happens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let ledger = Ledger::open(LedgerPlace::File(path.clone())).unwrap();
        let desk = start(Clerk::new(ledger, registry(), Lane::default(), app())).unwrap();
        let messages = [Submitted::toy().opened(), garbage()];
        desk.errands.send(Errand::Take(messages.map(delivery).into())).unwrap();
        let handed_out = || desk.outbox.recv_timeout(Duration::from_secs(20)).expect("nothing goes out");
        let first = [handed_out(), handed_out()];
        assert_eq!([first[0].target, first[1].target], [Target::Journal, Target::Dead]);
        for batch in &first {
            desk.errands.send(Errand::Answered(all_refused(batch))).unwrap();
        }
        let again = handed_out();
        assert_eq!((again.target, again.rows[0].0), (Target::Journal, first[0].rows[0].0));
        assert_eq!(LedgerReader::open(&path).unwrap().dead().unwrap().messages.len(), 1);
    }
}
