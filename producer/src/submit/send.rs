//! Publishes what the split gives, confirmed, within the window, and notes how far it got.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    iter,
    pin::pin,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use gristmill_shared::{
    Address, Outgoing, Published, Publisher, SplitDigest, StopSignal, StoreError, TaskIndex,
    fail_point::{FailPoint, reached},
    meter::{PRODUCER_BATCHES, PRODUCER_TASKS, PRODUCER_UNCONFIRMED, PRODUCER_UNCONFIRMED_BYTES},
};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    ProducerError,
    cursor_file::KeptCursor,
    splitter::{BATCHES_AHEAD, Packed, Place, Split},
    window::Window,
};

/// How often the cursor is saved while batches are sent.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How long a producer that leaves waits for the broker to confirm what is on its way. What is not confirmed by then is
/// sent again by whoever resumes.
const LEAVE_GRACE: Duration = Duration::from_secs(5);

/// How a split ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitEnd {
    /// Every task is stored on the broker and the job is sealed.
    Sealed,
    /// The job ended before its split did.
    Stopped,
    /// The producer was told to leave. The job goes on where its cursor is.
    Interrupted,
}

/// What a split came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitReport {
    /// How it ended.
    pub end: SplitEnd,
    /// How many tasks are stored on the broker.
    pub sent: u64,
}

/// What has been sent when [`send_all`] ends.
#[derive(Debug)]
pub(crate) enum Sent {
    /// Everything: this many tasks with this digest.
    All(u64, SplitDigest),
    /// The job was stopped after so many tasks.
    Stopped(u64),
    /// We were told to leave after so many tasks.
    Interrupted(u64),
}

/// Where to send, and until when.
#[derive(Debug)]
pub(crate) struct Sending<'a, L> {
    /// The queues that take batches, in turn; one at least.
    pub(crate) to: &'a [Address],
    pub(crate) publisher: &'a dyn Publisher,
    /// Nobody needs the job's tasks any more.
    pub(crate) stop: &'a StopSignal,
    /// When this resolves, nothing more is sent.
    pub(crate) leave: L,
}

/// What is noted of what is stored.
#[derive(Debug)]
pub(crate) enum Note<'a> {
    /// The place up to which everything is, in a cursor that is saved about once a second.
    Place(Confirmed, &'a mut KeptCursor),
    /// How many tasks.
    Count(u64),
}

impl<'a> Note<'a> {
    pub(crate) fn place(cursor: &'a mut KeptCursor) -> Self {
        Self::Place(Confirmed::new(cursor.place()), cursor)
    }

    fn add(&mut self, packed: &Packed) {
        match self {
            Self::Place(confirmed, _) => confirmed.add(packed),
            Self::Count(tasks) => *tasks += u64::from(packed.count),
        }
    }

    fn tasks(&self) -> u64 {
        match self {
            Self::Place(confirmed, _) => confirmed.place.index.0,
            Self::Count(tasks) => *tasks,
        }
    }

    async fn save(&mut self) -> Result<(), ProducerError> {
        match self {
            Self::Place(confirmed, cursor) => cursor.advance(confirmed.place).await,
            Self::Count(_) => Ok(()),
        }
    }
}

/// Sends until the split ends, the job is stopped, or we are told to leave; then it waits, for a moment, for what is on
/// its way.
pub(crate) async fn send_all(
    splits: flume::Receiver<Split>,
    Sending { to, publisher, stop, leave }: Sending<'_, impl Future<Output = ()>>,
    mut note: Note<'_>,
) -> Result<Sent, ProducerError> {
    let start = TaskIndex(note.tasks());
    let mut next_to = to.iter().cycle();
    let mut leave = pin!(leave);
    let mut leaving: Option<Instant> = None;
    let mut window = Window::new();
    let mut lots = FuturesUnordered::new();
    let (mut in_flight, mut bytes_in_flight) = (0, 0);
    let mut ready = VecDeque::new(); // split, and not sent; BATCHES_AHEAD at most
    let mut refused = VecDeque::new();
    let mut pause_ends = Instant::now();
    let mut end = None;
    // Not from now on: the first tick would be waited for, and timers round up to a millisecond.
    let mut saves = tokio::time::interval_at(Instant::now() + SAVE_EVERY, SAVE_EVERY);
    saves.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut lot = Vec::new();
        let may_send = leaving.is_none() && Instant::now() >= pause_ends;
        let room = loop {
            let queue: &mut VecDeque<Packed> = if refused.is_empty() { &mut ready } else { &mut refused };
            let room = queue
                .front()
                .is_some_and(|packed| window.has_room(in_flight, bytes_in_flight, packed.message.body.len()));
            let next = if room && may_send { queue.pop_front() } else { None };
            match next {
                Some(packed) => {
                    in_flight += 1;
                    bytes_in_flight += packed.message.body.len();
                    // What one shard refused goes to the next one.
                    lot.push((packed, next_to.next().expect("a lane has a shard").clone()));
                }
                None => break room,
            }
        };
        if !lot.is_empty() {
            lots.push(send(lot, publisher));
        }
        PRODUCER_UNCONFIRMED.set([], in_flight as f64);
        PRODUCER_UNCONFIRMED_BYTES.set([], bytes_in_flight as f64);
        if leaving.is_some_and(|until| in_flight == 0 || Instant::now() >= until) {
            note.save().await?;
            return Ok(Sent::Interrupted(note.tasks()));
        }
        let all_sent = in_flight == 0 && ready.is_empty() && refused.is_empty();
        if let Some(Split::End(total, digest)) = end
            && all_sent
        {
            return Ok(Sent::All(total, digest));
        }
        let splits_on = ready.is_empty() && end.is_none() && leaving.is_none();
        let pause_or_grace_ends = leaving.unwrap_or(pause_ends);
        tokio::select! {
            biased;
            () = stop.stopped() => return Ok(Sent::Stopped(note.tasks())),
            () = &mut leave, if leaving.is_none() => leaving = Some(Instant::now() + LEAVE_GRACE),
            Some(lot) = lots.next() => {
                let refused_before = refused.len();
                for (packed, to, answer) in lot {
                    in_flight -= 1;
                    bytes_in_flight -= packed.message.body.len();
                    match answer {
                        Some(Published::Stored) => {
                            PRODUCER_BATCHES.add(["stored"], 1);
                            PRODUCER_TASKS.add([], packed.count.into());
                            window.stored();
                            note.add(&packed);
                        }
                        Some(Published::Rejected) => {
                            PRODUCER_BATCHES.add(["refused"], 1);
                            refused.push_back(packed);
                        }
                        Some(Published::Unroutable) => return Err(StoreError::Unroutable(to).into()),
                        Some(Published::Refused(why)) => return Err(StoreError::Refused { to, why }.into()),
                        Some(Published::Denied(why)) => return Err(StoreError::Denied { to, why }.into()),
                        Some(Published::Unknown) | None => return Err(StoreError::Lost.into()),
                    }
                }
                if refused.len() > refused_before {
                    pause_ends = Instant::now() + window.refused(); // once for those that were refused together
                }
            }
            () = tokio::time::sleep_until(pause_or_grace_ends), if room || leaving.is_some() => {}
            split = splits.recv_async(), if splits_on => {
                let split = split.map_err(|flume::RecvError::Disconnected| ProducerError::Died)?;
                for split in iter::once(split).chain(splits.try_iter()).take(BATCHES_AHEAD) {
                    match split {
                        Split::Batch(packed) => ready.push_back(*packed),
                        Split::Failed(error) => return Err(ProducerError::Split(error)),
                        Split::Changed => return Err(ProducerError::split_changed(start)),
                        last @ Split::End(..) => end = Some(last),
                    }
                }
            }
            _ = saves.tick() => {
                reached(FailPoint::ProducerConfirmed);
                note.save().await?;
            }
        }
    }
}

/// Sends batches together; the answer to each.
async fn send(
    lot: Vec<(Packed, Address)>,
    publisher: &dyn Publisher,
) -> Vec<(Packed, Address, Option<Published>)> {
    let outgoing =
        |(packed, to): &(Packed, Address)| Outgoing { to: to.clone(), message: packed.message.clone() };
    let mut answers = publisher.publish(lot.iter().map(outgoing).collect()).await.into_iter();
    lot.into_iter().map(|(packed, to)| (packed, to, answers.next())).collect()
}

/// How far everything is stored, when answers come in any order.
#[derive(Debug)]
pub(crate) struct Confirmed {
    place: Place,
    beyond: BTreeMap<TaskIndex, Place>,
}

impl Confirmed {
    fn new(place: Place) -> Self {
        Self { place, beyond: BTreeMap::new() }
    }

    fn add(&mut self, packed: &Packed) {
        let end = Place { index: packed.first.plus(packed.count.into()), digest: packed.digest };
        self.beyond.insert(packed.first, end);
        while let Some(end) = self.beyond.remove(&self.place.index) {
            self.place = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::Message;

    use super::*;

    #[test]
    fn the_place_moves_only_over_what_is_stored_without_a_gap() {
        let batch = |first, count| Packed {
            first: TaskIndex(first),
            count,
            digest: SplitDigest::default(),
            message: Message::default(),
            _span: tracing::Span::none(),
        };
        let mut confirmed = Confirmed::new(Place::default());
        confirmed.add(&batch(10, 5));
        assert_eq!(confirmed.place.index.0, 0);
        confirmed.add(&batch(0, 10));
        assert_eq!(confirmed.place.index.0, 15);
        assert!(confirmed.beyond.is_empty());
    }
}
