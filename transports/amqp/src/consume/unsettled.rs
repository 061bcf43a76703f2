//! Deliveries of a consumer whose settlement has not been sent to the broker.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gristmill_shared::{Settlement, Settler, Token};
use tokio::{sync::Notify, time::timeout};

/// Maximum time that a settlement waits for others. It is sent at once when a quarter of the
/// prefetch has been settled.
pub(crate) const SETTLE_DELAY: Duration = Duration::from_millis(5);

/// Deliveries of a consumer whose settlement has not been sent yet: at most its prefetch.
///
/// Settlements are sent in batches: one cumulative ack for all that have no unsettled delivery
/// before them, and single acks for the rest. A delivery that stays unsettled for hours delays no
/// other.
#[derive(Debug)]
pub(crate) struct UnsettledDeliveries {
    generation: u64,
    /// Number of settlements that are sent at once.
    send_count: usize,
    deliveries: Mutex<DeliveryTable>,
    /// Notified when there is something to send.
    available: Notify,
    /// Notified when there are `send_count` settlements.
    full: Notify,
}

#[derive(Default, Debug)]
struct DeliveryTable {
    /// Deliveries by tag, with the settlement that has not been sent.
    pending: BTreeMap<u64, Option<Settlement>>,
    settled: usize,
}

/// A settlement as it is sent to the broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AckCommand {
    /// Acks this delivery.
    Ack(u64),
    /// Acks this delivery and all before it.
    AckUpTo(u64),
    /// Requeues this delivery.
    Requeue(u64),
}

impl UnsettledDeliveries {
    pub(crate) fn new(generation: u64, prefetch: u16) -> Self {
        Self {
            generation,
            send_count: usize::from(prefetch / 4).max(1),
            deliveries: Mutex::default(),
            available: Notify::new(),
            full: Notify::new(),
        }
    }

    /// Adds a delivery. Called in the order of tags, and before the receipt is given away.
    pub(crate) fn add(&self, tag: u64) -> Token {
        self.lock().pending.insert(tag, None);
        Token { generation: self.generation, tag }
    }

    /// Waits until it is time to send.
    pub(crate) async fn wait_due(&self) {
        self.available.notified().await;
        let _ = timeout(SETTLE_DELAY, self.full.notified()).await; // in both cases it is time
    }

    /// Takes the commands to be sent, in this order.
    pub(crate) fn take_commands(&self) -> Vec<AckCommand> {
        let mut deliveries = self.lock();
        deliveries.settled = 0;
        let mut commands = Vec::new();
        let mut up_to = None;
        let mut gap = false;
        deliveries.pending.retain(|&tag, settlement| {
            match settlement {
                None => gap = true,
                Some(Settlement::Requeue) => commands.push(AckCommand::Requeue(tag)),
                Some(Settlement::Ack) if gap => commands.push(AckCommand::Ack(tag)),
                Some(Settlement::Ack) => up_to = Some(tag),
            }
            settlement.is_none()
        });
        commands.extend(up_to.map(AckCommand::AckUpTo)); // after the requeues that it would cover
        commands
    }

    fn lock(&self) -> MutexGuard<'_, DeliveryTable> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settler for UnsettledDeliveries {
    fn settle(&self, token: Token, settlement: Settlement) {
        if token.generation != self.generation {
            return;
        }
        let mut deliveries = self.lock();
        let Some(unsent @ None) = deliveries.pending.get_mut(&token.tag) else { return };
        *unsent = Some(settlement);
        deliveries.settled += 1;
        let settled = deliveries.settled;
        drop(deliveries);
        if settled == 1 {
            self.available.notify_one();
        }
        if settled == self.send_count {
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

    /// Returns six deliveries, of which some are settled.
    fn after(settlements: &[(u64, Settlement)]) -> UnsettledDeliveries {
        let unsettled = UnsettledDeliveries::new(1, 8);
        for tag in 1..=6 {
            let _ = unsettled.add(tag);
        }
        settle(&unsettled, settlements);
        unsettled
    }

    fn settle(unsettled: &UnsettledDeliveries, settlements: &[(u64, Settlement)]) {
        for &(tag, settlement) in settlements {
            unsettled.settle(Token { generation: 1, tag }, settlement);
        }
    }

    #[test]
    fn gapless_acks_are_cumulative() {
        let unsettled = after(&[(2, Ack), (1, Ack), (3, Ack)]);
        assert_eq!(unsettled.take_commands(), [AckCommand::AckUpTo(3)]);
        settle(&unsettled, &[(5, Ack), (4, Ack), (6, Ack)]);
        assert_eq!(unsettled.take_commands(), [AckCommand::AckUpTo(6)]);
    }

    #[test]
    fn gap_delays_no_later_ack() {
        let unsettled = after(&[(1, Ack), (3, Ack), (5, Ack)]);
        assert_eq!(
            unsettled.take_commands(),
            [AckCommand::Ack(3), AckCommand::Ack(5), AckCommand::AckUpTo(1)]
        );
        settle(&unsettled, &[(2, Ack), (4, Ack)]);
        assert_eq!(
            unsettled.take_commands(),
            [AckCommand::AckUpTo(4)],
            "the tag named must be one that is still open"
        );
        settle(&unsettled, &[(6, Ack)]);
        assert_eq!(unsettled.take_commands(), [AckCommand::AckUpTo(6)]);
    }

    /// A cumulative ack is sent last, because it would cover a requeue before it.
    #[test]
    fn requeue_precedes_covering_ack() {
        let unsettled = after(&[(1, Ack), (2, Requeue), (3, Ack), (6, Requeue)]);
        assert_eq!(
            unsettled.take_commands(),
            [AckCommand::Requeue(2), AckCommand::Requeue(6), AckCommand::AckUpTo(3)]
        );
    }

    #[test]
    fn stale_settlements_are_ignored() {
        let unsettled = after(&[(1, Ack), (1, Requeue), (9, Ack)]);
        unsettled.settle(Token { generation: 2, tag: 2 }, Ack);
        assert_eq!(unsettled.take_commands(), [AckCommand::AckUpTo(1)]);
        settle(&unsettled, &[(1, Ack)]);
        assert_eq!(unsettled.take_commands(), []);
    }

    #[test]
    fn settled_deliveries_are_forgotten() {
        let unsettled = UnsettledDeliveries::new(1, 8);
        let _slow = unsettled.add(0);
        for tag in 1..10_000 {
            unsettled.settle(unsettled.add(tag), Ack);
            assert_eq!(unsettled.take_commands(), [AckCommand::Ack(tag)]);
        }
        assert_eq!(unsettled.lock().pending.len(), 1);
    }

    /// Fewer settlements are sent after [`SETTLE_DELAY`].
    #[tokio::test(start_paused = true)]
    async fn quarter_of_prefetch_is_sent_at_once() {
        let start = tokio::time::Instant::now();
        let unsettled = after(&[(1, Ack), (2, Ack)]);
        unsettled.wait_due().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        let _ = unsettled.take_commands();
        settle(&unsettled, &[(3, Ack)]);
        unsettled.wait_due().await;
        assert_eq!(start.elapsed().as_millis(), SETTLE_DELAY.as_millis());
    }
}
