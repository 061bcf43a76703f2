//! Exclusive ownership of a lane: with two ledgers, each would receive half of the results.

use std::{sync::Arc, time::Duration};

use gristmill_shared::{
    Address, JournalEntry, JournalReader, Lane, LedgerId, Message, Outgoing, PublishError, Publisher,
    Transport, publish_until_stored,
    wire::{Fact, Serving, WireMessage},
};
use tokio::time::sleep;

use crate::SinkError;

/// Time between two publications of the claim while the sink serves. The journal drops facts after
/// days, earlier under load, and a claim that was dropped no longer protects the lane.
const CLAIM_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// A claim on a lane, published in the journal.
#[derive(Debug)]
pub(crate) struct LaneLock {
    lane: Lane,
    /// The claim itself. Repetitions keep its id; each start of a sink has a new one.
    message: Message,
    /// The id of the claim that this one replaced.
    before: Option<String>,
    /// The journal, read up to this claim.
    journal: Box<dyn JournalReader>,
    publisher: Arc<dyn Publisher>,
}

impl LaneLock {
    /// Claims the lane: reads the last claim from the journal and publishes a new one, even if the
    /// last claim is of the same ledger, since only claims that follow one's own are noticed.
    ///
    /// # Errors
    /// [`SinkError::LaneClaimed`] if another ledger serves the lane, unless `adopt` is set.
    pub(crate) async fn acquire(
        transport: &dyn Transport,
        publisher: Arc<dyn Publisher>,
        serving: Serving,
        (adopt, app): (bool, &str),
    ) -> Result<Self, SinkError> {
        let mut journal = transport.journal().await?;
        let mut last = None;
        while let JournalEntry::Fact(message) = journal.next().await? {
            if let Some(claim) = decode_claim(&message, &serving.lane) {
                last = Some((message.id, claim));
            }
        }
        let before = last.as_ref().map(|(id, _)| id.clone());
        if let Some((_, Serving { lane, ledger, place })) = last
            && ledger != serving.ledger
        {
            if !adopt {
                return Err(SinkError::LaneClaimed { lane, ledger, place });
            }
            tracing::warn!(%lane, place, "took the lane over");
        }
        let message = serving.message(LedgerId::generate().to_string(), app);
        publish_claim(&*publisher, &message).await?;
        Ok(Self { lane: serving.lane, message, before, journal, publisher })
    }

    /// Repeats the claim until another sink claims the lane, or until the journal cannot be read or
    /// written. Returns that error.
    pub(crate) async fn wait_lost(self) -> SinkError {
        let Self { lane, message, before, mut journal, publisher } = self;
        let repeat = async {
            loop {
                sleep(CLAIM_INTERVAL).await;
                if let Err(error) = publish_claim(&*publisher, &message).await {
                    return error.into();
                }
            }
        };
        let watch = async {
            let mut ours_seen = false;
            loop {
                let fact = match journal.next().await {
                    Ok(JournalEntry::Fact(fact)) => fact,
                    Ok(JournalEntry::CaughtUp) => continue,
                    Err(error) => return error.into(),
                };
                let Some(Serving { lane, place, .. }) = decode_claim(&fact, &lane) else { continue };
                if fact.id == message.id {
                    ours_seen = true;
                } else if ours_seen && before.as_ref() != Some(&fact.id) {
                    // A sink that claimed at the same time but earlier sees this claim and leaves;
                    // so does the previous owner, even if it has just repeated its own claim.
                    return SinkError::TakenOver { lane, place };
                }
            }
        };
        tokio::select! {
            error = watch => error,
            error = repeat => error,
        }
    }
}

/// Returns the claim on `lane` that the fact holds, if any.
fn decode_claim(fact: &Message, lane: &Lane) -> Option<Serving> {
    match Fact::decode(fact) {
        Ok(Fact::Serving(serving)) if serving.lane == *lane => Some(serving),
        _ => None,
    }
}

async fn publish_claim(publisher: &dyn Publisher, claim: &Message) -> Result<(), PublishError> {
    publish_until_stored(publisher, vec![Outgoing { to: Address::Journal, message: claim.clone() }]).await
}

#[cfg(test)]
mod tests {
    use gristmill_shared::memory::MemoryTransport;
    use tokio::time::{Instant, timeout};

    use super::*;

    async fn acquire(transport: &MemoryTransport, ledger: &LedgerId) -> LaneLock {
        transport.open_lane(&Lane::default()).await.unwrap();
        let serving = Serving { lane: Lane::default(), ledger: ledger.clone(), place: ledger.to_string() };
        let publisher = transport.publisher().await.unwrap();
        LaneLock::acquire(transport, publisher, serving, (true, "test")).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn claim_is_repeated_daily() {
        let (transport, ledger) = (MemoryTransport::new(), LedgerId::generate());
        let claim = acquire(&transport, &ledger).await;
        let (mut journal, began) = (transport.journal().await.unwrap(), Instant::now());
        let read = async {
            let mut ids = Vec::new();
            while ids.len() < 4 {
                if let JournalEntry::Fact(fact) = journal.next().await.unwrap() {
                    ids.push(fact.id);
                }
            }
            ids
        };
        let ids = tokio::select! {
            ids = timeout(CLAIM_INTERVAL * 4, read) => ids.expect("it was not repeated"),
            error = claim.wait_lost() => panic!("{error}"),
        };
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(began.elapsed().as_secs(), 3 * CLAIM_INTERVAL.as_secs());
    }

    /// The last claim owns the lane, even if the previous owner repeats its own.
    #[tokio::test(start_paused = true)]
    async fn last_claim_wins() {
        let (transport, [ours, theirs]) = (MemoryTransport::new(), [(); 2].map(|()| LedgerId::generate()));
        let first = acquire(&transport, &ours).await;
        let (repeating, repeated) = (Arc::clone(&first.publisher), first.message.clone());
        let second = acquire(&transport, &theirs).await;
        publish_claim(&*repeating, &repeated).await.unwrap();
        let error = timeout(CLAIM_INTERVAL / 2, first.wait_lost()).await.unwrap();
        assert!(
            matches!(&error, SinkError::TakenOver { place, .. } if *place == theirs.to_string()),
            "{error}"
        );
        timeout(CLAIM_INTERVAL / 2, second.wait_lost()).await.unwrap_err();
    }
}
