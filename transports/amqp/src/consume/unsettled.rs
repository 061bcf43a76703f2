//! Which deliveries of a consumer are not settled with the broker yet.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gristmill_shared::{Settlement, Settler, Token};
use tokio::{sync::Notify, time::timeout};

/// How long a settlement may wait for others to be sent with. It does not wait once a quarter of the prefetch has
/// been settled.
pub(crate) const SETTLE_DELAY: Duration = Duration::from_millis(5);

/// Which deliveries of a consumer are not settled with the broker yet: never more than its prefetch.
///
/// Everything settled is sent together: one cumulative ack for all that has nothing unsettled before it, and one each
/// for the rest. So a delivery that stays unsettled for hours holds up no other.
#[derive(Debug)]
pub(crate) struct Unsettled {
    generation: u64,
    /// So many settlements are sent at once.
    enough: usize,
    deliveries: Mutex<Deliveries>,
    /// There is something to send.
    some: Notify,
    /// There is enough to send.
    full: Notify,
}

#[derive(Default, Debug)]
struct Deliveries {
    /// By tag; what has been settled, and not been sent.
    fates: BTreeMap<u64, Option<Settlement>>,
    settled: usize,
}

/// One word to the broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Word {
    /// This one is dealt with.
    Ack(u64),
    /// This one and all before it are.
    AckUpTo(u64),
    /// This one goes back.
    Requeue(u64),
}

impl Unsettled {
    pub(crate) fn new(generation: u64, prefetch: u16) -> Self {
        Self {
            generation,
            enough: usize::from(prefetch / 4).max(1),
            deliveries: Mutex::default(),
            some: Notify::new(),
            full: Notify::new(),
        }
    }

    /// A delivery has come. In the order of their tags, and before its receipt is given away.
    pub(crate) fn add(&self, tag: u64) -> Token {
        self.lock().fates.insert(tag, None);
        Token { generation: self.generation, tag }
    }

    /// Waits until it is time to send.
    pub(crate) async fn due(&self) {
        self.some.notified().await;
        let _ = timeout(SETTLE_DELAY, self.full.notified()).await; // either way it is time
    }

    /// What there is to send, in this order.
    pub(crate) fn take(&self) -> Vec<Word> {
        let mut deliveries = self.lock();
        deliveries.settled = 0;
        let mut words = Vec::new();
        let mut up_to = None;
        let mut gap = false;
        deliveries.fates.retain(|&tag, fate| {
            match fate {
                None => gap = true,
                Some(Settlement::Requeue) => words.push(Word::Requeue(tag)),
                Some(Settlement::Ack) if gap => words.push(Word::Ack(tag)),
                Some(Settlement::Ack) => up_to = Some(tag),
            }
            fate.is_none()
        });
        words.extend(up_to.map(Word::AckUpTo)); // last, when what is requeued before it is out of its way
        words
    }

    fn lock(&self) -> MutexGuard<'_, Deliveries> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settler for Unsettled {
    fn settle(&self, token: Token, how: Settlement) {
        if token.generation != self.generation {
            return;
        }
        let mut deliveries = self.lock();
        let Some(fate @ None) = deliveries.fates.get_mut(&token.tag) else { return };
        *fate = Some(how);
        deliveries.settled += 1;
        let settled = deliveries.settled;
        drop(deliveries);
        if settled == 1 {
            self.some.notify_one();
        }
        if settled == self.enough {
            self.full.notify_one();
        }
    }

    /// A delivery lasts as long as its connection.
    fn extend(&self, _: Token) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use Settlement::{Ack, Requeue};

    /// Six deliveries, of which some are settled.
    fn after(settlements: &[(u64, Settlement)]) -> Unsettled {
        let unsettled = Unsettled::new(1, 8);
        for tag in 1..=6 {
            let _ = unsettled.add(tag);
        }
        settle(&unsettled, settlements);
        unsettled
    }

    fn settle(unsettled: &Unsettled, settlements: &[(u64, Settlement)]) {
        for &(tag, how) in settlements {
            unsettled.settle(Token { generation: 1, tag }, how);
        }
    }

    #[test]
    fn what_is_settled_without_a_gap_is_acked_in_one_word() {
        let unsettled = after(&[(2, Ack), (1, Ack), (3, Ack)]);
        assert_eq!(unsettled.take(), [Word::AckUpTo(3)]);
        settle(&unsettled, &[(5, Ack), (4, Ack), (6, Ack)]);
        assert_eq!(unsettled.take(), [Word::AckUpTo(6)]);
    }

    #[test]
    fn what_is_settled_behind_a_gap_does_not_wait_for_it() {
        let unsettled = after(&[(1, Ack), (3, Ack), (5, Ack)]);
        assert_eq!(unsettled.take(), [Word::Ack(3), Word::Ack(5), Word::AckUpTo(1)]);
        settle(&unsettled, &[(2, Ack), (4, Ack)]);
        assert_eq!(unsettled.take(), [Word::AckUpTo(4)], "the tag named must be one that is still open");
        settle(&unsettled, &[(6, Ack)]);
        assert_eq!(unsettled.take(), [Word::AckUpTo(6)]);
    }

    #[test]
    fn a_requeue_goes_out_before_the_ack_that_would_cover_it() {
        let unsettled = after(&[(1, Ack), (2, Requeue), (3, Ack), (6, Requeue)]);
        assert_eq!(unsettled.take(), [Word::Requeue(2), Word::Requeue(6), Word::AckUpTo(3)]);
    }

    #[test]
    fn stale_and_repeated_settlements_do_nothing() {
        let unsettled = after(&[(1, Ack), (1, Requeue), (9, Ack)]);
        unsettled.settle(Token { generation: 2, tag: 2 }, Ack);
        assert_eq!(unsettled.take(), [Word::AckUpTo(1)]);
        settle(&unsettled, &[(1, Ack)]);
        assert_eq!(unsettled.take(), []);
    }

    #[test]
    fn memory_is_bounded_by_what_is_unsettled() {
        let unsettled = Unsettled::new(1, 8);
        let _slow = unsettled.add(0);
        for tag in 1..10_000 {
            unsettled.settle(unsettled.add(tag), Ack);
            assert_eq!(unsettled.take(), [Word::Ack(tag)]);
        }
        assert_eq!(unsettled.lock().fates.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quarter_of_the_prefetch_is_sent_at_once_and_less_after_a_moment() {
        let start = tokio::time::Instant::now();
        let unsettled = after(&[(1, Ack), (2, Ack)]);
        unsettled.due().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        let _ = unsettled.take();
        settle(&unsettled, &[(3, Ack)]);
        unsettled.due().await;
        assert_eq!(start.elapsed().as_millis(), SETTLE_DELAY.as_millis());
    }
}
