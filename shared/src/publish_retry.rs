//! Publishing with retries, for messages that must not get lost and may wait.

use std::time::Duration;

use crate::{Address, Backoff, Outgoing, Published, Publisher};

/// The first pause after a full queue rejected a message.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(5);
/// The longest pause between two attempts.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Publishes until the broker has confirmed every message. Messages that a full queue rejects are
/// published again with growing backoff, without a limit. If the future is dropped, messages may be
/// stored or not.
///
/// # Errors
/// [`PublishError`]; some of the messages may be stored then. [`PublishError::Invalid`] is returned
/// last, when all other messages are stored.
pub async fn publish_until_stored(
    publisher: &dyn Publisher,
    batch: Vec<Outgoing>,
) -> Result<(), PublishError> {
    match publish_until_answered(publisher, batch).await?.into_iter().next() {
        None => Ok(()),
        Some((Outgoing { to, .. }, why)) => Err(PublishError::Invalid { to, why }),
    }
}

/// Publishes like [`publish_until_stored`], but returns the messages that can never be stored, with
/// the reason; all other messages are stored.
///
/// # Errors
/// [`PublishError`], but never [`PublishError::Invalid`]; some of the messages may be stored then.
pub async fn publish_until_answered(
    publisher: &dyn Publisher,
    batch: Vec<Outgoing>,
) -> Result<Vec<(Outgoing, String)>, PublishError> {
    let mut backoff = Backoff::jittered(RETRY_PAUSE_MIN, RETRY_PAUSE_MAX);
    let mut left = batch;
    let mut refused = Vec::new();
    loop {
        let answers = publisher.publish(left.clone()).await;
        if answers.len() != left.len() {
            return Err(PublishError::Lost); // some messages have no answer
        }
        let mut full = Vec::new();
        for (outgoing, answer) in left.into_iter().zip(answers) {
            match answer {
                Published::Confirmed => {}
                Published::Nacked => full.push(outgoing),
                Published::Invalid(why) => refused.push((outgoing, why)),
                Published::Unknown => return Err(PublishError::Lost),
                Published::Unroutable => return Err(PublishError::Unroutable(outgoing.to)),
                Published::Forbidden(why) => return Err(PublishError::Forbidden { to: outgoing.to, why }),
            }
        }
        if full.is_empty() {
            return Ok(refused);
        }
        left = full;
        tokio::time::sleep(backoff.next_pause()).await;
    }
}

/// The error for a message that could not be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The connection was lost before the broker answered; messages may be stored or not.
    #[error("lost the connection to the broker before it confirmed all messages")]
    Lost,
    /// The queue does not exist.
    #[error(
        "{0} does not exist on the broker (hint: it was deleted; restart this process, or run `gristmill setup`, to declare it again)"
    )]
    Unroutable(Address),
    /// The message can never be stored.
    #[error("the broker does not accept a message for {to}: {why}")]
    Invalid {
        /// The destination.
        to: Address,
        /// The reason.
        why: String,
    },
    /// The user may not publish there.
    #[error(
        "the broker does not let us publish to {to}: {why} (hint: each role has rights of its own; use the user of this role, or give this one the right)"
    )]
    Forbidden {
        /// The destination.
        to: Address,
        /// The broker's message.
        why: String,
    },
}
