//! Ending a job from outside.

use gristmill_shared::{
    Address, JobId, JournalEntry, Lane, Outgoing, QueueRole, Round, Transport, publish_until_stored,
    wire::{Cancelled, Fact, Form, Stopped},
};

use crate::ProducerError;

/// What became of the wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelling {
    /// Workers stop it now, and the sink will record it.
    Told,
    /// It had ended before.
    HadEnded,
}

/// Ends a job: tells the journal, which workers and producer follow, and the sink, which records it.
///
/// The job's lane is looked up in the journal; `lane` is used if no sink has seen the job yet.
///
/// # Errors
/// If the broker goes or does not take the messages.
pub async fn cancel(
    transport: &dyn Transport,
    lane: &Lane,
    job: JobId,
    reason: &str,
    app: &str,
) -> Result<Cancelling, ProducerError> {
    transport.open_lane(lane).await?;
    let (mut lane, mut round, mut ended) = (lane.clone(), Round(0), None);
    let mut journal = transport.journal().await?;
    while let JournalEntry::Fact(message) = journal.next().await? {
        match Fact::decode(&message) {
            Ok(Fact::Opened(opened)) if opened.job == job => lane = opened.lane,
            Ok(Fact::Reopened(reopened)) if reopened.job == job => round = round.max(reopened.round),
            Ok(Fact::Finished(finished)) if finished.job == job => ended = ended.max(Some(finished.round)),
            _ => {}
        }
    }
    if ended.is_some_and(|ended| ended >= round) {
        return Ok(Cancelling::HadEnded);
    }
    let stopped = Stopped { job, round, reason: format!("cancelled: {reason}") };
    let cancelled = Cancelled { job, reason: reason.into() };
    let messages = vec![
        Outgoing {
            to: Address::Journal,
            message: stopped.message(format!("{job}/stopped@{round}/{app}"), app),
        },
        Outgoing {
            to: Address::Queue(QueueRole::Results.of(&lane)),
            message: cancelled.message(format!("{job}/cancelled@{round}/{app}"), app),
        },
    ];
    publish_until_stored(&*transport.publisher().await?, messages).await?;
    Ok(Cancelling::Told)
}
