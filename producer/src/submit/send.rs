//! Publishing of split batches with confirms, within the window, and the record of how far it got.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    iter,
    pin::pin,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use gristmill_shared::{
    Address, JobId, Outgoing, PublishError, Published, Publisher, SplitDigest, StopSignal, TaskIndex,
    fail_point::{FailPoint, reached},
    metrics::{PRODUCER_BATCHES, PRODUCER_TASKS, PRODUCER_UNCONFIRMED, PRODUCER_UNCONFIRMED_BYTES},
};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    ProducerError,
    cursor_file::CursorFile,
    splitter::{BATCHES_AHEAD, PackedBatch, SplitEvent, SplitPosition},
    window::Window,
};

/// The interval at which the cursor is saved while batches are sent.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// The time that an interrupted producer waits for outstanding confirms. A batch that is not
/// confirmed by then is sent again when the job is resumed.
const INTERRUPT_GRACE: Duration = Duration::from_secs(5);

/// The end of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitEnd {
    /// All tasks are stored on the broker and the job is sealed.
    Sealed,
    /// The job ended before its split did.
    Stopped,
    /// The producer was interrupted. The job can be resumed from its cursor.
    Interrupted,
}

/// The result of sending a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitReport {
    /// The end of the split.
    pub end: SplitEnd,
    /// The number of tasks that are stored on the broker.
    pub sent: u64,
}

/// The result of [`send_all`].
#[derive(Debug)]
pub(crate) enum SendOutcome {
    /// Everything was sent: this number of tasks with this digest.
    All(u64, SplitDigest),
    /// The job was stopped after this number of tasks.
    Stopped(u64),
    /// The producer was interrupted after this number of tasks.
    Interrupted(u64),
}

/// The destination of batches, and the signals that end the sending.
#[derive(Debug)]
pub(crate) struct SendContext<'a, L> {
    pub(crate) job: JobId,
    /// The queues that take batches in turn; at least one.
    pub(crate) to: &'a [Address],
    pub(crate) publisher: &'a dyn Publisher,
    /// The signal that the job's tasks are not needed any more.
    pub(crate) stop: &'a StopSignal,
    /// The signal after which nothing more is sent.
    pub(crate) interrupt: L,
}

/// A record of what is stored on the broker.
#[derive(Debug)]
pub(crate) enum SendProgress<'a> {
    /// The end of the stored prefix, in a cursor that is saved about once a second.
    Cursor(ConfirmedPrefix, &'a mut CursorFile),
    /// The number of tasks.
    Count(u64),
}

impl<'a> SendProgress<'a> {
    pub(crate) fn in_cursor(cursor: &'a mut CursorFile) -> Self {
        Self::Cursor(ConfirmedPrefix::new(cursor.position()), cursor)
    }

    fn add(&mut self, packed: &PackedBatch) {
        match self {
            Self::Cursor(confirmed, _) => confirmed.add(packed),
            Self::Count(tasks) => *tasks += u64::from(packed.count),
        }
    }

    fn tasks(&self) -> u64 {
        match self {
            Self::Cursor(confirmed, _) => confirmed.position.index.0,
            Self::Count(tasks) => *tasks,
        }
    }

    async fn save(&mut self) -> Result<(), ProducerError> {
        match self {
            Self::Cursor(confirmed, cursor) => cursor.advance(confirmed.position).await,
            Self::Count(_) => Ok(()),
        }
    }
}

/// Sends until the split ends, the job is stopped, or the producer is interrupted. An interrupted
/// producer waits at most [`INTERRUPT_GRACE`] for outstanding confirms.
pub(crate) async fn send_all(
    events: flume::Receiver<SplitEvent>,
    SendContext { job, to, publisher, stop, interrupt }: SendContext<'_, impl Future<Output = ()>>,
    mut progress: SendProgress<'_>,
) -> Result<SendOutcome, ProducerError> {
    let start = TaskIndex(progress.tasks());
    let mut next_to = to.iter().cycle();
    let mut interrupt = pin!(interrupt);
    let mut grace_ends: Option<Instant> = None;
    let mut window = Window::new();
    let mut groups = FuturesUnordered::new();
    let (mut in_flight, mut bytes_in_flight) = (0, 0);
    let mut ready = VecDeque::new(); // split but not sent; at most BATCHES_AHEAD
    let mut refused = VecDeque::new();
    let mut pause_ends = Instant::now();
    let mut end = None;
    // The first tick is an interval away: an immediate one would cost a millisecond, to which
    // timers round up.
    let mut saves = tokio::time::interval_at(Instant::now() + SAVE_INTERVAL, SAVE_INTERVAL);
    saves.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut group = Vec::new();
        let may_send = grace_ends.is_none() && Instant::now() >= pause_ends;
        let room = loop {
            let queue: &mut VecDeque<PackedBatch> =
                if refused.is_empty() { &mut ready } else { &mut refused };
            let room = queue
                .front()
                .is_some_and(|packed| window.has_room(in_flight, bytes_in_flight, packed.message.body.len()));
            let next = if room && may_send { queue.pop_front() } else { None };
            match next {
                Some(packed) => {
                    in_flight += 1;
                    bytes_in_flight += packed.message.body.len();
                    // A batch that one shard rejected goes to the next shard.
                    group.push((packed, next_to.next().expect("a lane has a shard").clone()));
                }
                None => break room,
            }
        };
        if !group.is_empty() {
            groups.push(publish_group(group, publisher));
        }
        PRODUCER_UNCONFIRMED.set([], in_flight as f64);
        PRODUCER_UNCONFIRMED_BYTES.set([], bytes_in_flight as f64);
        if grace_ends.is_some_and(|until| in_flight == 0 || Instant::now() >= until) {
            progress.save().await?;
            return Ok(SendOutcome::Interrupted(progress.tasks()));
        }
        let all_sent = in_flight == 0 && ready.is_empty() && refused.is_empty();
        if let Some(SplitEvent::End(total, digest)) = end
            && all_sent
        {
            return Ok(SendOutcome::All(total, digest));
        }
        let wants_split = ready.is_empty() && end.is_none() && grace_ends.is_none();
        let pause_or_grace_ends = grace_ends.unwrap_or(pause_ends);
        tokio::select! {
            biased;
            () = stop.stopped() => return Ok(SendOutcome::Stopped(progress.tasks())),
            () = &mut interrupt, if grace_ends.is_none() => grace_ends = Some(Instant::now() + INTERRUPT_GRACE),
            Some(group) = groups.next() => {
                let refused_before = refused.len();
                for (packed, to, answer) in group {
                    in_flight -= 1;
                    bytes_in_flight -= packed.message.body.len();
                    match answer {
                        Some(Published::Confirmed) => {
                            PRODUCER_BATCHES.add(["stored"], 1);
                            PRODUCER_TASKS.add([], packed.count.into());
                            window.grow();
                            progress.add(&packed);
                        }
                        Some(Published::Nacked) => {
                            PRODUCER_BATCHES.add(["refused"], 1);
                            refused.push_back(packed);
                        }
                        Some(Published::Unroutable) => return Err(PublishError::Unroutable(to).into()),
                        Some(Published::Invalid(why)) => return Err(PublishError::Invalid { to, why }.into()),
                        Some(Published::Forbidden(why)) => return Err(PublishError::Forbidden { to, why }.into()),
                        Some(Published::Unknown) | None => return Err(PublishError::Lost.into()),
                    }
                }
                if refused.len() > refused_before {
                    pause_ends = Instant::now() + window.shrink(); // once for all that were rejected together
                }
            }
            () = tokio::time::sleep_until(pause_or_grace_ends), if room || grace_ends.is_some() => {}
            split = events.recv_async(), if wants_split => {
                let split = split.map_err(|flume::RecvError::Disconnected| ProducerError::ThreadDied)?;
                for split in iter::once(split).chain(events.try_iter()).take(BATCHES_AHEAD) {
                    match split {
                        SplitEvent::Batch(packed) => ready.push_back(*packed),
                        SplitEvent::Failed(error) => return Err(ProducerError::Split(error)),
                        SplitEvent::Unavailable(error) => {
                            return Err(ProducerError::InputUnavailable { job, error });
                        }
                        SplitEvent::Changed => return Err(ProducerError::split_changed(start)),
                        last @ SplitEvent::End(..) => end = Some(last),
                    }
                }
            }
            _ = saves.tick() => {
                reached(FailPoint::ProducerConfirmed);
                progress.save().await?;
            }
        }
    }
}

/// Publishes batches together and returns the answer to each.
async fn publish_group(
    group: Vec<(PackedBatch, Address)>,
    publisher: &dyn Publisher,
) -> Vec<(PackedBatch, Address, Option<Published>)> {
    let outgoing =
        |(packed, to): &(PackedBatch, Address)| Outgoing { to: to.clone(), message: packed.message.clone() };
    let mut answers = publisher.publish(group.iter().map(outgoing).collect()).await.into_iter();
    group.into_iter().map(|(packed, to)| (packed, to, answers.next())).collect()
}

/// The end of the prefix that is stored without a gap, while confirms arrive in any order.
#[derive(Debug)]
pub(crate) struct ConfirmedPrefix {
    position: SplitPosition,
    beyond: BTreeMap<TaskIndex, SplitPosition>,
}

impl ConfirmedPrefix {
    fn new(position: SplitPosition) -> Self {
        Self { position, beyond: BTreeMap::new() }
    }

    fn add(&mut self, packed: &PackedBatch) {
        let end = SplitPosition { index: packed.first.plus(packed.count.into()), digest: packed.digest };
        self.beyond.insert(packed.first, end);
        while let Some(end) = self.beyond.remove(&self.position.index) {
            self.position = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::Message;

    use super::*;

    #[test]
    fn prefix_stops_at_gap() {
        let batch = |first, count| PackedBatch {
            first: TaskIndex(first),
            count,
            digest: SplitDigest::default(),
            message: Message::default(),
            _span: tracing::Span::none(),
        };
        let mut confirmed = ConfirmedPrefix::new(SplitPosition::default());
        confirmed.add(&batch(10, 5));
        assert_eq!(confirmed.position.index.0, 0);
        confirmed.add(&batch(0, 10));
        assert_eq!(confirmed.position.index.0, 15);
        assert!(confirmed.beyond.is_empty());
    }
}
