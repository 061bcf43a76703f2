//! A batch of messages that are sent together and confirmed together.
//!
//! The broker returns an unroutable message and *then* confirms it. lapin attaches a returned
//! message to the next confirm, which may belong to another message. But each return is attached to
//! a confirm no later than its own; so once all confirms of a channel are in, all returns are too,
//! and each return names its message. That is why a channel has one batch in flight at a time.

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

use super::frame::PublishFrame;
use crate::failure::{self, ACCESS_REFUSED, NOT_FOUND, Operation, PRECONDITION_FAILED};

/// Time without any confirm, while the connection is up, after which a batch is resent; doubled
/// each time. A broker that has just recovered may forget what a queue has not confirmed yet, and
/// never answer.
pub(crate) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest such time.
pub(crate) const CONFIRM_TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// Confirms of one batch.
pub(crate) struct BatchConfirms {
    /// One result for each message, in order.
    pub(crate) results: Vec<Published>,
    /// True if the broker closed the channel or the connection because of one of the messages.
    pub(crate) caused_close: bool,
    /// True if the broker stopped answering. The channel cannot be used any more, because late
    /// confirms would be matched to other messages.
    pub(crate) timed_out: bool,
}

/// Sends the messages on a channel that is in confirm mode and has nothing else in flight. The
/// timeout does not count while `blocked` returns true.
pub(crate) async fn send(
    channel: &Channel,
    frames: &[&PublishFrame],
    confirm_timeout: Duration,
    blocked: impl Fn() -> bool,
) -> BatchConfirms {
    // Polled together, to share a write; created in order, to keep the order.
    let sent = join_all(frames.iter().map(|frame| {
        let (exchange, key) = (frame.exchange.into(), frame.key.as_str().into());
        channel.basic_publish(exchange, key, frame.options(), &frame.message.body, frame.properties())
    }))
    .await;
    if frames.iter().any(|frame| frame.durable) {
        reached(FailPoint::Sent);
    }
    let confirms = sent.into_iter().map(|sent| match sent {
        Ok(confirm) => confirm.left_future(),
        Err(error) => ready(Err(error)).right_future(),
    });
    let confirmed = await_confirms(confirms.collect(), confirm_timeout, blocked).await;
    let timed_out = confirmed.iter().any(Option::is_none);
    let caused_close =
        confirmed.iter().flatten().any(|result| result.as_ref().is_err_and(failure::is_caused_by_message));
    BatchConfirms { results: classify_confirms(frames, &confirmed), caused_close, timed_out }
}

/// Waits for all confirms, or until none came for `confirm_timeout` while not `blocked`; then some
/// are `None`.
///
/// They are awaited in order, which is usually the order of arrival, with one timer for all: a
/// timer for each would cost more than the message.
async fn await_confirms<T>(
    mut pending: Vec<impl Future<Output = T> + Unpin>,
    confirm_timeout: Duration,
    blocked: impl Fn() -> bool,
) -> Vec<Option<T>> {
    let mut results: Vec<Option<T>> = pending.iter().map(|_| None).collect();
    let mut last = Instant::now();
    let mut deadline = pin!(sleep_until(last + confirm_timeout));
    for place in 0..pending.len() {
        while results[place].is_none() {
            tokio::select! {
                biased;
                result = &mut pending[place] => {
                    results[place] = Some(result);
                    last = Instant::now();
                }
                () = &mut deadline => {
                    let others = pending.iter_mut().zip(&mut results).filter(|(_, result)| result.is_none());
                    for (pending, result) in others {
                        *result = pending.now_or_never();
                        if result.is_some() {
                            last = Instant::now();
                        }
                    }
                    if blocked() {
                        last = Instant::now();
                    } else if last.elapsed() >= confirm_timeout {
                        return results;
                    }
                    deadline.as_mut().reset(last + confirm_timeout);
                }
            }
        }
    }
    results
}

type ConfirmResult = lapin::Result<Confirmation>;

fn classify_confirms(frames: &[&PublishFrame], confirmed: &[Option<ConfirmResult>]) -> Vec<Published> {
    let returned: HashSet<_> = confirmed.iter().flatten().filter_map(returned).map(returned_key).collect();
    let broken = confirmed.iter().any(|confirmed| !matches!(confirmed, Some(Ok(_))));
    let result = |(frame, confirmed): (&&PublishFrame, &Option<ConfirmResult>)| match confirmed {
        _ if returned.contains(&frame_key(frame)) => Published::Unroutable,
        Some(Ok(Confirmation::Ack(None))) => Published::Confirmed,
        // Its own return may have been pending when the channel broke.
        Some(Ok(Confirmation::Ack(Some(_)))) if broken => Published::Unknown,
        Some(Ok(Confirmation::Ack(Some(_)))) => Published::Confirmed,
        Some(Ok(Confirmation::Nack(_))) => Published::Nacked,
        Some(Ok(Confirmation::NotRequested)) | None => Published::Unknown, // the publisher always requests it
        Some(Err(error)) => result_after_close(frame, error),
    };
    frames.iter().zip(confirmed).map(result).collect()
}

fn returned(confirmed: &ConfirmResult) -> Option<&BasicReturnMessage> {
    match confirmed {
        Ok(Confirmation::Ack(returned) | Confirmation::Nack(returned)) => returned.as_ref(),
        Ok(Confirmation::NotRequested) | Err(_) => None,
    }
}

fn frame_key(frame: &PublishFrame) -> (&str, &str, &str) {
    (frame.exchange, &frame.key, &frame.message.id)
}

fn returned_key(message: &BasicReturnMessage) -> (&str, &str, &str) {
    let id = message.properties.message_id().as_ref().map_or("", |id| id.as_str());
    (message.exchange.as_str(), message.routing_key.as_str(), id)
}

/// Returns the result of a message whose channel broke before its confirm came.
///
/// The broker closes a channel because of one message, and its reason shows which messages it can
/// never have accepted.
fn result_after_close(frame: &PublishFrame, error: &lapin::Error) -> Published {
    let why = failure::reason(error);
    let names_exchange = why.contains(&format!("exchange '{}'", frame.exchange));
    match failure::reply_code(error) {
        Some(NOT_FOUND) if names_exchange => Published::Unroutable,
        Some(ACCESS_REFUSED) if names_exchange => {
            Published::Forbidden(failure::missing_permission(Operation::Publish, &why).unwrap_or(why))
        }
        Some(PRECONDITION_FAILED)
            if failure::size_limit(&why).is_some_and(|limit| frame.message.body.len() > limit) =>
        {
            Published::Invalid(why)
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

    fn frame(id: &str) -> PublishFrame {
        let to = Address::Queue(QueueRole::Tasks.of(&Lane::default()));
        let message = Message { id: id.into(), body: vec![0; 100].into(), ..Message::default() };
        PublishFrame::new(Outgoing { to, message }).unwrap()
    }

    fn frames(ids: &str) -> Vec<PublishFrame> {
        ids.split(' ').map(frame).collect()
    }

    fn returned(id: &str) -> BasicReturnMessage {
        let frame = frame(id);
        let mut delivery = Delivery::mock(0, frame.exchange.into(), frame.key.into(), false, Vec::new());
        delivery.properties = BasicProperties::default().with_message_id(id.into());
        BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
    }

    fn ack() -> ConfirmResult {
        Ok(Confirmation::Ack(None))
    }

    fn ack_with(id: &str) -> ConfirmResult {
        Ok(Confirmation::Ack(Some(returned(id))))
    }

    fn classify(
        frames: &[PublishFrame],
        confirmed: impl IntoIterator<Item = ConfirmResult>,
    ) -> Vec<Published> {
        let frames: Vec<_> = frames.iter().collect();
        super::classify_confirms(&frames, &confirmed.into_iter().map(Some).collect::<Vec<_>>())
    }

    fn refusal(kind: AMQPSoftError, text: &str) -> ConfirmResult {
        let error = AMQPError::new(AMQPErrorKind::Soft(kind), text.into());
        Err(ErrorKind::ProtocolError(error).into())
    }

    /// Awaits confirms that arrive after the given seconds.
    async fn after(seconds: &[u64], blocked: impl Fn() -> bool) -> (Vec<Option<u64>>, u64) {
        let start = Instant::now();
        let one = |&second: &u64| {
            let result = sleep_until(start + Duration::from_secs(second)).map(move |()| second);
            result.boxed()
        };
        let results = await_confirms(seconds.iter().map(one).collect(), CONFIRM_TIMEOUT, blocked).await;
        (results, start.elapsed().as_secs())
    }

    /// The wait goes on as long as some confirm arrives within the timeout.
    #[tokio::test(start_paused = true)]
    async fn confirms_come_in_any_order() {
        assert_eq!(after(&[], || false).await, (vec![], 0));
        assert_eq!(after(&[1, 0, 3], || false).await, (vec![Some(1), Some(0), Some(3)], 3));
        let (results, took) = after(&[28, 9, 18, 27], || false).await;
        assert_eq!((results.iter().all(Option::is_some), took), (true, 28), "{results:?}");
    }

    /// Without any confirm, the wait ends unless the broker blocks.
    #[tokio::test(start_paused = true)]
    async fn blocked_broker_does_not_time_out() {
        assert_eq!(after(&[2, 60, 1], || false).await.0, [Some(2), None, Some(1)]);
        let (results, took) = after(&[60, 4, 60], || false).await;
        assert_eq!(results, [None, Some(4), None]);
        assert!((14..=20).contains(&took), "{took} s");
        assert_eq!(after(&[60], || true).await, (vec![Some(60)], 60));
    }

    /// The confirm that carries a return may belong to another message.
    #[test]
    fn return_is_matched_by_message_id() {
        use Published::{Confirmed, Nacked, Unroutable};
        let confirmed = [ack_with("c"), ack(), ack(), Ok(Confirmation::Nack(Some(returned("e")))), ack()];
        assert_eq!(
            classify(&frames("a b c d e"), confirmed),
            [Confirmed, Confirmed, Unroutable, Nacked, Unroutable]
        );
    }

    #[test]
    fn lost_channel_leaves_unknown() {
        use Published::{Confirmed, Nacked, Unknown};
        let gone = || Err(ErrorKind::MissingHeartbeatError.into());
        let confirmed = [ack(), gone(), Ok(Confirmation::Nack(None)), gone()];
        assert_eq!(classify(&frames("a b c d"), confirmed), [Confirmed, Unknown, Nacked, Unknown]);
    }

    /// A missing confirm is unknown, and so is an ack that carries another message's return.
    #[test]
    fn timeout_makes_acks_doubtful() {
        use Published::{Confirmed, Unknown};
        let confirmed = [Some(ack()), None, Some(ack_with("x"))];
        let frames = frames("a b c");
        let frames: Vec<_> = frames.iter().collect();
        assert_eq!(super::classify_confirms(&frames, &confirmed), [Confirmed, Unknown, Unknown]);
    }

    /// An ack that carries another message's return may have one of its own pending.
    #[test]
    fn lost_channel_makes_acks_doubtful() {
        use Published::{Unknown, Unroutable};
        let confirmed = [Err(ErrorKind::MissingHeartbeatError.into()), ack_with("a")];
        assert_eq!(classify(&frames("a b"), confirmed), [Unroutable, Unknown]);
    }

    #[test]
    fn close_reason_decides_result() {
        let result = |kind, text: &str| classify(&frames("a"), [refusal(kind, text)]).remove(0);
        let missing = "NOT_FOUND - no exchange 'gristmill.work' in vhost '/'";
        assert_eq!(result(AMQPSoftError::NOTFOUND, missing), Published::Unroutable);
        let other = "NOT_FOUND - no exchange 'gristmill.dead' in vhost '/'";
        assert_eq!(result(AMQPSoftError::NOTFOUND, other), Published::Unknown);
        let forbidden =
            "ACCESS_REFUSED - access to exchange 'gristmill.work' in vhost '/' refused for user 'me'";
        let lacks = "the user me lacks the write right on the exchange gristmill.work";
        assert_eq!(result(AMQPSoftError::ACCESSREFUSED, forbidden), Published::Forbidden(lacks.into()));
        let large = |limit| {
            format!("PRECONDITION_FAILED - message size 100 is larger than configured max size {limit}")
        };
        let refused = Published::Invalid(large(99));
        assert_eq!(result(AMQPSoftError::PRECONDITIONFAILED, &large(99)), refused);
        assert_eq!(result(AMQPSoftError::PRECONDITIONFAILED, &large(100)), Published::Unknown);
    }
}
