//! Cancellation of a job.

use gristmill_shared::{
    Address, JobId, JournalEntry, Lane, Outgoing, PublishError, QueueRole, Round, Transport,
    publish_until_stored,
    wire::{Cancelled, Fact, Stopped, WireMessage},
};

use crate::ProducerError;

/// The outcome of a cancellation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelOutcome {
    /// The workers are notified, and the sink records it.
    Broadcast,
    /// The sink records it and then notifies the workers, since this user may not.
    SentToSink,
    /// The job had ended before.
    AlreadyEnded,
    /// The job is unknown here, so nothing was sent.
    UnknownJob,
}

/// Cancels a job: notifies the sink, which records it, and the journal, which workers and the
/// producer follow.
///
/// The job's lane is looked up in the journal. `known` is the lane of a job that no sink has seen
/// yet, if the caller knows it. The lane `here` is opened first, so that a journal exists.
///
/// # Errors
/// If the connection is lost or the broker rejects the messages.
pub async fn cancel(
    transport: &dyn Transport,
    here: &Lane,
    job: JobId,
    known: Option<Lane>,
    reason: &str,
    app: &str,
) -> Result<CancelOutcome, ProducerError> {
    transport.open_lane(here).await?;
    let (mut lane, mut round, mut ended) = (known, Round(0), None);
    let mut journal = transport.journal().await?;
    while let JournalEntry::Fact(message) = journal.next().await? {
        match Fact::decode(&message) {
            Ok(Fact::Opened(opened)) if opened.job == job => lane = Some(opened.lane),
            Ok(Fact::Reopened(reopened)) if reopened.job == job => round = round.max(reopened.round),
            Ok(Fact::Finished(finished)) if finished.job == job => ended = ended.max(Some(finished.round)),
            _ => {}
        }
    }
    if ended.is_some_and(|ended| ended >= round) {
        return Ok(CancelOutcome::AlreadyEnded);
    }
    let Some(lane) = lane else { return Ok(CancelOutcome::UnknownJob) };
    transport.open_lane(&lane).await?;
    let publisher = transport.publisher().await?;
    let cancelled = Cancelled { job, reason: reason.into() };
    let stopped = Stopped { job, round, reason: format!("cancelled: {reason}") };
    // The sink first: if it came last and this process crashed before, workers would skip tasks
    // that the sink waits for.
    let message = cancelled.message(format!("{job}/cancelled@{round}/{app}"), app);
    let to = Address::Queue(QueueRole::Results.of(&lane));
    publish_until_stored(&*publisher, vec![Outgoing { to, message }]).await?;
    // The sink writes the same to the journal. A user who may write there only makes it sooner.
    let message = stopped.message(format!("{job}/stopped@{round}/{app}"), app);
    match publish_until_stored(&*publisher, vec![Outgoing { to: Address::Journal, message }]).await {
        Ok(()) => Ok(CancelOutcome::Broadcast),
        Err(PublishError::Forbidden { .. }) => Ok(CancelOutcome::SentToSink),
        Err(error) => Err(error.into()),
    }
}
