//! A wave: letters that are sent together and answered together.
//!
//! The broker returns a letter that has no queue, and *then* confirms it. lapin hangs a returned letter on whichever
//! confirm comes next, which may be another's. But every return hangs on some confirm at the latest when its own has
//! come; so once all confirms of a channel are in, so are all returns, and they say by themselves whose they are.
//! That is why a channel has one wave under way at a time.

use std::collections::HashSet;

use futures::future::join_all;
use gristmill_shared::Published;
use lapin::{Channel, Confirmation, message::BasicReturnMessage};

use crate::{
    failure::{self, ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED},
    letter::Letter,
};

/// Sends the letters on a channel that confirms and has nothing else under way, and answers for each in turn.
pub(crate) async fn send(channel: &Channel, letters: &[Letter]) -> Vec<Published> {
    // Polled together, so that they share a write; in turn, so that they keep their order.
    let sent = join_all(letters.iter().map(|letter| {
        let (exchange, key) = (letter.exchange.into(), letter.key.as_str().into());
        channel.basic_publish(exchange, key, letter.options, &letter.body, letter.properties.clone())
    }))
    .await;
    let confirmed = join_all(sent.into_iter().map(async |sent| sent?.await)).await;
    answers(letters, &confirmed)
}

type Confirmed = lapin::Result<Confirmation>;

fn answers(letters: &[Letter], confirmed: &[Confirmed]) -> Vec<Published> {
    let returned: HashSet<_> = confirmed.iter().filter_map(returned).map(returned_address).collect();
    let broken = confirmed.iter().any(Result::is_err);
    let answer = |(letter, confirmed): (&Letter, &Confirmed)| match confirmed {
        _ if returned.contains(&address(letter)) => Published::Unroutable,
        Ok(Confirmation::Ack(None)) => Published::Stored,
        // Its own return may have been waiting when the channel broke.
        Ok(Confirmation::Ack(Some(_))) if broken => Published::Unknown,
        Ok(Confirmation::Ack(Some(_))) => Published::Stored,
        Ok(Confirmation::Nack(_)) => Published::Rejected,
        Ok(Confirmation::NotRequested) => Published::Unknown, // the publisher makes sure that it is
        Err(error) => unsent(letter, error),
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
    (letter.exchange, &letter.key, &letter.id)
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
        Some(ACCESS_REFUSED) if names_exchange => Published::Refused(why),
        Some(PRECONDITION_FAILED) if size_limit(&why).is_some_and(|limit| letter.body.len() > limit) => {
            Published::Refused(why)
        }
        _ => Published::Unknown,
    }
}

/// Out of RabbitMQ's `… message size 20 is larger than configured max size 10`.
fn size_limit(why: &str) -> Option<usize> {
    why.split_once("message size ")?.1.split_once("max size ")?.1.trim().parse().ok()
}
