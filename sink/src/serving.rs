//! One ledger serves a lane: two would each see half of the results.

use gristmill_shared::{
    Address, JournalEntry, JournalReader, LedgerId, Outgoing, Publisher, Transport, publish_until_stored,
    wire::{Fact, Form, Serving},
};

use crate::SinkError;

/// A claim on a lane, as the journal has it.
#[derive(Debug)]
pub(crate) struct Claim {
    serving: Serving,
    journal: Box<dyn JournalReader>,
}

impl Claim {
    /// Claims the lane: reads who claimed it last, and writes that it is us now.
    ///
    /// # Errors
    /// [`SinkError::OtherLedger`] if it is served with another ledger, unless we `adopt` it.
    pub(crate) async fn stake(
        transport: &dyn Transport,
        publisher: &dyn Publisher,
        serving: Serving,
        (adopt, app): (bool, &str),
    ) -> Result<Self, SinkError> {
        let mut claim = Self { serving, journal: transport.journal().await? };
        let mut last = None;
        while let JournalEntry::Fact(message) = claim.journal.next().await? {
            if let Some(serving) = claim.of_this_lane(&message) {
                last = Some(serving);
            }
        }
        match last {
            Some(last) if last.ledger == claim.serving.ledger => return Ok(claim),
            Some(Serving { lane, ledger, place }) if !adopt => {
                return Err(SinkError::OtherLedger { lane, ledger, place });
            }
            Some(last) => tracing::warn!(lane = %last.lane, place = last.place, "took the lane over"),
            None => {}
        }
        let id = LedgerId::generate().to_string(); // every claim is a fact of its own
        let message = claim.serving.message(id, app);
        publish_until_stored(publisher, vec![Outgoing { to: Address::Journal, message }]).await?;
        Ok(claim)
    }

    /// Waits until somebody else claims the lane, and says so; or until the journal cannot be read any more.
    pub(crate) async fn until_lost(mut self) -> SinkError {
        let mut ours_seen = false;
        loop {
            let message = match self.journal.next().await {
                Ok(JournalEntry::Fact(message)) => message,
                Ok(JournalEntry::CaughtUp) => continue,
                Err(error) => return error.into(),
            };
            match self.of_this_lane(&message) {
                Some(serving) if serving.ledger == self.serving.ledger => ours_seen = true,
                // One that was claimed at the same time, but before us, sees our claim and leaves.
                Some(Serving { lane, place, .. }) if ours_seen => {
                    return SinkError::TakenOver { lane, place };
                }
                Some(_) | None => {}
            }
        }
    }

    fn of_this_lane(&self, message: &gristmill_shared::Message) -> Option<Serving> {
        match Fact::decode(message) {
            Ok(Fact::Serving(serving)) if serving.lane == self.serving.lane => Some(serving),
            _ => None,
        }
    }
}
