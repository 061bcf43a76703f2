//! One ledger serves a lane: two would each see half of the results.

use std::{sync::Arc, time::Duration};

use gristmill_shared::{
    Address, JournalEntry, JournalReader, Lane, LedgerId, Message, Outgoing, Publisher, StoreError,
    Transport, publish_until_stored,
    wire::{Fact, Form, Serving},
};
use tokio::time::sleep;

use crate::SinkError;

/// How often a sink that serves repeats its claim. The journal forgets after days, earlier if much is told in it, and
/// a claim that is forgotten keeps nobody away.
const REPEATED_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// A claim on a lane, as the journal has it.
#[derive(Debug)]
pub(crate) struct Claim {
    lane: Lane,
    /// The claim itself. It keeps its id when it is repeated; each start of a sink makes one of its own.
    message: Message,
    /// The id of the claim that stood before.
    before: Option<String>,
    /// Has read everything before our claim.
    journal: Box<dyn JournalReader>,
    publisher: Arc<dyn Publisher>,
}

impl Claim {
    /// Claims the lane: reads who claimed it last, and writes that it is us now; also if it was us, since we see only
    /// what follows on a claim.
    ///
    /// # Errors
    /// [`SinkError::OtherLedger`] if it is served with another ledger, unless we `adopt` it.
    pub(crate) async fn stake(
        transport: &dyn Transport,
        publisher: Arc<dyn Publisher>,
        serving: Serving,
        (adopt, app): (bool, &str),
    ) -> Result<Self, SinkError> {
        let mut journal = transport.journal().await?;
        let mut last = None;
        while let JournalEntry::Fact(message) = journal.next().await? {
            if let Some(claim) = claim_in(&message, &serving.lane) {
                last = Some((message.id, claim));
            }
        }
        let before = last.as_ref().map(|(id, _)| id.clone());
        if let Some((_, Serving { lane, ledger, place })) = last
            && ledger != serving.ledger
        {
            if !adopt {
                return Err(SinkError::OtherLedger { lane, ledger, place });
            }
            tracing::warn!(%lane, place, "took the lane over");
        }
        let message = serving.message(LedgerId::generate().to_string(), app);
        write(&*publisher, &message).await?;
        Ok(Self { lane: serving.lane, message, before, journal, publisher })
    }

    /// Waits until somebody else claims the lane, and says so; or until the journal cannot be read or written any
    /// more. Repeats the claim meanwhile.
    pub(crate) async fn until_lost(self) -> SinkError {
        let Self { lane, message, before, mut journal, publisher } = self;
        let repeat = async {
            loop {
                sleep(REPEATED_EVERY).await;
                if let Err(error) = write(&*publisher, &message).await {
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
                let Some(Serving { lane, place, .. }) = claim_in(&fact, &lane) else { continue };
                if fact.id == message.id {
                    ours_seen = true;
                } else if ours_seen && before.as_ref() != Some(&fact.id) {
                    // One that was claimed at the same time, but before us, sees our claim and leaves; and so does
                    // the one before us, even if it has just repeated its own.
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

/// The claim on `lane` that the fact is, if it is one.
fn claim_in(fact: &Message, lane: &Lane) -> Option<Serving> {
    match Fact::decode(fact) {
        Ok(Fact::Serving(serving)) if serving.lane == *lane => Some(serving),
        _ => None,
    }
}

async fn write(publisher: &dyn Publisher, claim: &Message) -> Result<(), StoreError> {
    publish_until_stored(publisher, vec![Outgoing { to: Address::Journal, message: claim.clone() }]).await
}

#[cfg(test)]
mod tests {
    use gristmill_shared::memory::MemoryTransport;
    use tokio::time::{Instant, timeout};

    use super::*;

    async fn stake(transport: &MemoryTransport, ledger: &LedgerId) -> Claim {
        transport.open_lane(&Lane::default()).await.unwrap();
        let serving = Serving { lane: Lane::default(), ledger: ledger.clone(), place: ledger.to_string() };
        let publisher = transport.publisher().await.unwrap();
        Claim::stake(transport, publisher, serving, (true, "test")).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_is_repeated_before_the_journal_forgets_it() {
        let (transport, ledger) = (MemoryTransport::new(), LedgerId::generate());
        let claim = stake(&transport, &ledger).await;
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
            ids = timeout(REPEATED_EVERY * 4, read) => ids.expect("it was not repeated"),
            error = claim.until_lost() => panic!("{error}"),
        };
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(began.elapsed().as_secs(), 3 * REPEATED_EVERY.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_claim_has_the_lane_whatever_the_one_before_repeats() {
        let (transport, [ours, theirs]) = (MemoryTransport::new(), [(); 2].map(|()| LedgerId::generate()));
        let first = stake(&transport, &ours).await;
        let (repeating, repeated) = (Arc::clone(&first.publisher), first.message.clone());
        let second = stake(&transport, &theirs).await;
        write(&*repeating, &repeated).await.unwrap();
        let error = timeout(REPEATED_EVERY / 2, first.until_lost()).await.unwrap();
        assert!(
            matches!(&error, SinkError::TakenOver { place, .. } if *place == theirs.to_string()),
            "{error}"
        );
        timeout(REPEATED_EVERY / 2, second.until_lost()).await.unwrap_err();
    }
}
