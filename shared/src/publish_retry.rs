//! Publishing until it is stored: for messages that must not get lost and may wait.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

use crate::{Address, Outgoing, Published, Publisher};

/// The first pause after a full queue refused a message.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Publishes until the broker has stored every message; a full queue is tried again with growing pauses, for as long
/// as it stays full. Drop the future to give up; messages may then be stored or not.
///
/// # Errors
/// [`StoreError`]; then some of the messages may be stored. [`StoreError::Refused`] comes last, when all the others are.
pub async fn publish_until_stored(publisher: &dyn Publisher, batch: Vec<Outgoing>) -> Result<(), StoreError> {
    match publish_until_answered(publisher, batch).await?.into_iter().next() {
        None => Ok(()),
        Some((Outgoing { to, .. }, why)) => Err(StoreError::Refused { to, why }),
    }
}

/// [`publish_until_stored`], and gives back the messages that can never be stored, with the reason; all the others are.
///
/// # Errors
/// [`StoreError`], but never [`StoreError::Refused`]; then some of the messages may be stored.
pub async fn publish_until_answered(
    publisher: &dyn Publisher,
    batch: Vec<Outgoing>,
) -> Result<Vec<(Outgoing, String)>, StoreError> {
    let mut pauses = ExponentialBuilder::default()
        .with_min_delay(PAUSE_MIN)
        .with_max_delay(PAUSE_MAX)
        .with_jitter()
        .without_max_times()
        .build();
    let mut left = batch;
    let mut refused = Vec::new();
    loop {
        let answers = publisher.publish(left.clone()).await;
        if answers.len() != left.len() {
            return Err(StoreError::Lost); // of some of them nobody knows
        }
        let mut full = Vec::new();
        for (outgoing, answer) in left.into_iter().zip(answers) {
            match answer {
                Published::Stored => {}
                Published::Rejected => full.push(outgoing),
                Published::Refused(why) => refused.push((outgoing, why)),
                Published::Unknown => return Err(StoreError::Lost),
                Published::Unroutable => return Err(StoreError::Unroutable(outgoing.to)),
                Published::Denied(why) => return Err(StoreError::Denied { to: outgoing.to, why }),
            }
        }
        if full.is_empty() {
            return Ok(refused);
        }
        left = full;
        tokio::time::sleep(pauses.next().unwrap_or(PAUSE_MAX)).await;
    }
}

/// Why a message could not be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The connection went before the broker answered; stored or not, nobody knows.
    #[error("the connection to the broker was lost while it had messages to confirm")]
    Lost,
    /// The queue is not there.
    #[error(
        "{0} does not exist on the broker (hint: somebody deleted it; start this process again, or run `gristmill setup`, to make it anew)"
    )]
    Unroutable(Address),
    /// It can never be stored.
    #[error("the broker would not take a message for {to}: {why}")]
    Refused {
        /// Where to.
        to: Address,
        /// Why not.
        why: String,
    },
    /// We may not publish there.
    #[error(
        "the broker does not let us publish to {to}: {why} (hint: each role has rights of its own; use the user of this role, or give this one the right)"
    )]
    Denied {
        /// Where to.
        to: Address,
        /// What the broker said.
        why: String,
    },
}
