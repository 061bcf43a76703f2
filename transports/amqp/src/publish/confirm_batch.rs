//! A wave: letters that are sent together and answered together.
//!
//! The broker returns a letter that has no queue, and *then* confirms it. lapin hangs a returned letter on whichever
//! confirm comes next, which may be another's. But every return hangs on some confirm at the latest when its own has
//! come; so once all confirms of a channel are in, so are all returns, and they say by themselves whose they are.
//! That is why a channel has one wave under way at a time.

use std::{collections::HashSet, pin::pin, time::Duration};

use futures::{
    FutureExt,
    future::{join_all, ready},
};
use gristmill_shared::{
    Published,
    fail_point::{FailPoint, reached},
};
use lapin::{Channel, Confirmation, message::BasicReturnMessage};
use tokio::time::{Instant, sleep_until};

use crate::{
    failure::{self, ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, Wish},
    publish::frame::Letter,
};

/// For how long a wave may get no answer at all on connections that stand, the first time; then for twice as long, and
/// so on. A broker that has just come back may lose track of what a queue has not confirmed yet, and never answer.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);
/// The longest such time.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(300);

/// What became of a wave.
pub(crate) struct Sent {
    /// Of each letter in turn.
    pub(crate) answers: Vec<Published>,
    /// The broker ended the channel, or the connection, over one of them.
    pub(crate) disliked: bool,
    /// The broker stopped answering. The channel is of no use any more: late answers would be taken for another's.
    pub(crate) silent: bool,
}

/// Sends the letters on a channel that confirms and has nothing else under way. While `blocked` says that the broker
/// takes nothing, silence is no silence.
pub(crate) async fn send(
    channel: &Channel,
    letters: &[&Letter],
    silence: Duration,
    blocked: impl Fn() -> bool,
) -> Sent {
    // Polled together, so that they share a write; in turn, so that they keep their order.
    let sent = join_all(letters.iter().map(|letter| {
        let (exchange, key) = (letter.exchange.into(), letter.key.as_str().into());
        channel.basic_publish(exchange, key, letter.options(), &letter.message.body, letter.properties())
    }))
    .await;
    if letters.iter().any(|letter| letter.durable) {
        reached(FailPoint::Sent);
    }
    let confirms = sent.into_iter().map(|sent| match sent {
        Ok(confirm) => confirm.left_future(),
        Err(error) => ready(Err(error)).right_future(),
    });
    let confirmed = all_answers(confirms.collect(), silence, blocked).await;
    let silent = confirmed.iter().any(Option::is_none);
    let disliked =
        confirmed.iter().flatten().any(|answer| answer.as_ref().is_err_and(failure::over_what_was_sent));
    Sent { answers: answers(letters, &confirmed), disliked, silent }
}

/// Waits for all answers, or until there was none for so long while it was not `blocked`; then some are missing.
///
/// They are awaited in turn, as they come as a rule: one listener and one timer for all, where each with its own would cost
/// more than its letter.
async fn all_answers<T>(
    mut pending: Vec<impl Future<Output = T> + Unpin>,
    silence: Duration,
    blocked: impl Fn() -> bool,
) -> Vec<Option<T>> {
    let mut answers: Vec<Option<T>> = pending.iter().map(|_| None).collect();
    let mut last = Instant::now();
    let mut too_long = pin!(sleep_until(last + silence));
    for place in 0..pending.len() {
        while answers[place].is_none() {
            tokio::select! {
                biased;
                answer = &mut pending[place] => {
                    answers[place] = Some(answer);
                    last = Instant::now();
                }
                () = &mut too_long => {
                    let others = pending.iter_mut().zip(&mut answers).filter(|(_, answer)| answer.is_none());
                    for (pending, answer) in others {
                        *answer = pending.now_or_never();
                        if answer.is_some() {
                            last = Instant::now();
                        }
                    }
                    if blocked() {
                        last = Instant::now();
                    } else if last.elapsed() >= silence {
                        return answers;
                    }
                    too_long.as_mut().reset(last + silence);
                }
            }
        }
    }
    answers
}

type Confirmed = lapin::Result<Confirmation>;

fn answers(letters: &[&Letter], confirmed: &[Option<Confirmed>]) -> Vec<Published> {
    let returned: HashSet<_> =
        confirmed.iter().flatten().filter_map(returned).map(returned_address).collect();
    let broken = confirmed.iter().any(|confirmed| !matches!(confirmed, Some(Ok(_))));
    let answer = |(letter, confirmed): (&&Letter, &Option<Confirmed>)| match confirmed {
        _ if returned.contains(&address(letter)) => Published::Unroutable,
        Some(Ok(Confirmation::Ack(None))) => Published::Stored,
        // Its own return may have been waiting when the channel broke.
        Some(Ok(Confirmation::Ack(Some(_)))) if broken => Published::Unknown,
        Some(Ok(Confirmation::Ack(Some(_)))) => Published::Stored,
        Some(Ok(Confirmation::Nack(_))) => Published::Rejected,
        Some(Ok(Confirmation::NotRequested)) | None => Published::Unknown, // the publisher makes sure that it is requested
        Some(Err(error)) => unsent(letter, error),
    };
    letters.iter().zip(confirmed).map(answer).collect()
}

fn returned(confirmed: &Confirmed) -> Option<&BasicReturnMessage> {
    match confirmed {
        Ok(Confirmation::Ack(returned) | Confirmation::Nack(returned)) => returned.as_ref(),
        Ok(Confirmation::NotRequested) | Err(_) => None,
    }
}

fn address(letter: &Letter) -> (&str, &str, &str) {
    (letter.exchange, &letter.key, &letter.message.id)
}

fn returned_address(message: &BasicReturnMessage) -> (&str, &str, &str) {
    let id = message.properties.message_id().as_ref().map_or("", |id| id.as_str());
    (message.exchange.as_str(), message.routing_key.as_str(), id)
}

/// What became of a letter when the channel broke before its confirm came.
///
/// The broker closes a channel over one letter, and what it says tells which kind of letter can never have been taken.
fn unsent(letter: &Letter, error: &lapin::Error) -> Published {
    let why = failure::reason(error);
    let names_exchange = why.contains(&format!("exchange '{}'", letter.exchange));
    match failure::code(error) {
        Some(NOT_FOUND) if names_exchange => Published::Unroutable,
        Some(ACCESS_REFUSED) if names_exchange => {
            Published::Denied(failure::lacks(Wish::Publish, &why).unwrap_or(why))
        }
        Some(PRECONDITION_FAILED)
            if failure::size_limit(&why).is_some_and(|limit| letter.message.body.len() > limit) =>
        {
            Published::Refused(why)
        }
        _ => Published::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{Address, Lane, Message, Outgoing, QueueRole};
    use lapin::{
        BasicProperties, ErrorKind,
        message::Delivery,
        protocol::{AMQPError, AMQPErrorKind, AMQPSoftError},
    };

    use super::*;

    fn letter(id: &str) -> Letter {
        let to = Address::Queue(QueueRole::Tasks.of(&Lane::default()));
        let message = Message { id: id.into(), body: vec![0; 100].into(), ..Message::default() };
        Letter::new(Outgoing { to, message }).unwrap()
    }

    fn letters(ids: &str) -> Vec<Letter> {
        ids.split(' ').map(letter).collect()
    }

    fn returned(id: &str) -> BasicReturnMessage {
        let letter = letter(id);
        let mut delivery = Delivery::mock(0, letter.exchange.into(), letter.key.into(), false, Vec::new());
        delivery.properties = BasicProperties::default().with_message_id(id.into());
        BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
    }

    fn ack() -> Confirmed {
        Ok(Confirmation::Ack(None))
    }

    fn ack_with(id: &str) -> Confirmed {
        Ok(Confirmation::Ack(Some(returned(id))))
    }

    fn answers(letters: &[Letter], confirmed: impl IntoIterator<Item = Confirmed>) -> Vec<Published> {
        let letters: Vec<_> = letters.iter().collect();
        super::answers(&letters, &confirmed.into_iter().map(Some).collect::<Vec<_>>())
    }

    fn refusal(kind: AMQPSoftError, text: &str) -> Confirmed {
        let error = AMQPError::new(AMQPErrorKind::Soft(kind), text.into());
        Err(ErrorKind::ProtocolError(error).into())
    }

    /// Answers that come after so many seconds each.
    async fn after(seconds: &[u64], blocked: impl Fn() -> bool) -> (Vec<Option<u64>>, u64) {
        let start = Instant::now();
        let one = |&second: &u64| {
            let answer = sleep_until(start + Duration::from_secs(second)).map(move |()| second);
            answer.boxed()
        };
        let answers = all_answers(seconds.iter().map(one).collect(), SILENCE, blocked).await;
        (answers, start.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn answers_may_come_in_any_order_as_long_as_some_come() {
        assert_eq!(after(&[], || false).await, (vec![], 0));
        assert_eq!(after(&[1, 0, 3], || false).await, (vec![Some(1), Some(0), Some(3)], 3));
        let (answers, took) = after(&[28, 9, 18, 27], || false).await;
        assert_eq!((answers.iter().all(Option::is_some), took), (true, 28), "{answers:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_waiting_unless_the_broker_blocks() {
        assert_eq!(after(&[2, 60, 1], || false).await.0, [Some(2), None, Some(1)]);
        let (answers, took) = after(&[60, 4, 60], || false).await;
        assert_eq!(answers, [None, Some(4), None]);
        assert!((14..=20).contains(&took), "{took} s");
        assert_eq!(after(&[60], || true).await, (vec![Some(60)], 60));
    }

    #[test]
    fn a_returned_letter_is_told_by_its_name_and_not_by_the_confirm_it_hangs_on() {
        use Published::{Rejected, Stored, Unroutable};
        let confirmed = [ack_with("c"), ack(), ack(), Ok(Confirmation::Nack(Some(returned("e")))), ack()];
        assert_eq!(
            answers(&letters("a b c d e"), confirmed),
            [Stored, Stored, Unroutable, Rejected, Unroutable]
        );
    }

    #[test]
    fn a_channel_that_is_gone_leaves_its_letters_unknown() {
        use Published::{Rejected, Stored, Unknown};
        let gone = || Err(ErrorKind::MissingHeartbeatError.into());
        let confirmed = [ack(), gone(), Ok(Confirmation::Nack(None)), gone()];
        assert_eq!(answers(&letters("a b c d"), confirmed), [Stored, Unknown, Rejected, Unknown]);
    }

    #[test]
    fn what_was_not_answered_in_time_is_unknown_and_makes_others_doubtful() {
        use Published::{Stored, Unknown};
        let confirmed = [Some(ack()), None, Some(ack_with("x"))];
        let letters = letters("a b c");
        let letters: Vec<_> = letters.iter().collect();
        assert_eq!(super::answers(&letters, &confirmed), [Stored, Unknown, Unknown]);
    }

    #[test]
    fn what_carries_anothers_return_when_the_channel_breaks_may_have_been_returned_itself() {
        use Published::{Unknown, Unroutable};
        let confirmed = [Err(ErrorKind::MissingHeartbeatError.into()), ack_with("a")];
        assert_eq!(answers(&letters("a b"), confirmed), [Unroutable, Unknown]);
    }

    #[test]
    fn a_channel_that_was_closed_over_a_letter_tells_what_was_wrong() {
        let answer = |kind, text: &str| answers(&letters("a"), [refusal(kind, text)]).remove(0);
        let missing = "NOT_FOUND - no exchange 'gristmill.work' in vhost '/'";
        assert_eq!(answer(AMQPSoftError::NOTFOUND, missing), Published::Unroutable);
        let other = "NOT_FOUND - no exchange 'gristmill.dead' in vhost '/'";
        assert_eq!(answer(AMQPSoftError::NOTFOUND, other), Published::Unknown);
        let forbidden =
            "ACCESS_REFUSED - access to exchange 'gristmill.work' in vhost '/' refused for user 'me'";
        let lacks = "the user me lacks the write right on the exchange gristmill.work";
        assert_eq!(answer(AMQPSoftError::ACCESSREFUSED, forbidden), Published::Denied(lacks.into()));
        let large = |limit| {
            format!("PRECONDITION_FAILED - message size 100 is larger than configured max size {limit}")
        };
        let refused = Published::Refused(large(99));
        assert_eq!(answer(AMQPSoftError::PRECONDITIONFAILED, &large(99)), refused);
        assert_eq!(answer(AMQPSoftError::PRECONDITIONFAILED, &large(100)), Published::Unknown);
    }
}
