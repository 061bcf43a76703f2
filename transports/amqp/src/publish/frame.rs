//! A message that is ready to be sent.

use gristmill_shared::{Address, Message, Outgoing, Topic};
use lapin::{BasicProperties, options::BasicPublishOptions};

use crate::{
    MAX_MESSAGE, publish::properties,
    topology::{EVENTS, FACTS, JOURNAL, exchange_of},
};

/// A message that is ready to be sent: addressed, and within the broker's bounds.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) exchange: &'static str,
    pub(crate) key: String,
    pub(crate) message: Message,
    /// It is stored, and returned if it has no queue.
    pub(crate) durable: bool,
}

impl Letter {
    /// # Errors
    /// Why the message can never be sent.
    pub(crate) fn new(Outgoing { to, message }: Outgoing) -> Result<Self, String> {
        if message.body.len() > MAX_MESSAGE {
            let size = message.body.len();
            return Err(format!("its body has {size} bytes, and the broker takes at most {MAX_MESSAGE}"));
        }
        let (exchange, key, durable) = match to {
            Address::Queue(queue) => (exchange_of(queue.role), queue.to_string(), true),
            Address::Journal => (FACTS, JOURNAL.into(), true),
            Address::Events(topic) => (EVENTS, routing_key(&topic), false),
        };
        properties::fits(&message)?;
        Ok(Self { exchange, key, message, durable })
    }

    pub(crate) fn options(&self) -> BasicPublishOptions {
        BasicPublishOptions { mandatory: self.durable, immediate: false }
    }

    /// Made anew for each time that it is sent, which is once as a rule: to keep them would cost a copy of them each time.
    pub(crate) fn properties(&self) -> BasicProperties {
        properties::outgoing(&self.message, self.durable)
    }

    /// Whether it goes to the journal.
    pub(crate) fn is_fact(&self) -> bool {
        self.exchange == FACTS
    }
}

fn routing_key(topic: &Topic) -> String {
    match topic {
        Topic::Job(lane, job) => format!("job.{lane}.{job}"),
        Topic::Worker(lane, worker) => format!("worker.{lane}.{worker}"),
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{JobId, Lane, QueueRole, WorkerId};

    use super::*;

    fn letter(to: Address) -> Letter {
        Letter::new(Outgoing { to, message: Message::default() }).unwrap()
    }

    #[test]
    fn what_must_not_get_lost_is_persistent_and_mandatory() {
        let queue = QueueRole::Results.of(&Lane::default());
        for (to, exchange, key) in [
            (Address::Queue(queue), "gristmill.results", "gristmill.default.results"),
            (Address::Journal, "gristmill.facts", "gristmill.journal"),
        ] {
            let letter = letter(to);
            assert_eq!((letter.exchange, letter.key.as_str()), (exchange, key));
            assert_eq!((letter.options().mandatory, *letter.properties().delivery_mode()), (true, Some(2)));
        }
    }

    #[test]
    fn events_are_neither() {
        let job = JobId::generate();
        let about_job = letter(Address::Events(Topic::Job(Lane::default(), job)));
        assert_eq!(about_job.key, format!("job.default.{job}"));
        assert_eq!(
            (about_job.options().mandatory, *about_job.properties().delivery_mode()),
            (false, Some(1))
        );
        let worker = WorkerId::new("w-1").unwrap();
        assert_eq!(letter(Address::Events(Topic::Worker(Lane::default(), worker))).key, "worker.default.w-1");
    }

    #[test]
    fn a_body_over_the_limit_is_refused_with_both_sizes() {
        let message = Message { body: vec![0; MAX_MESSAGE + 1].into(), ..Message::default() };
        let why = Letter::new(Outgoing { to: Address::Journal, message }).unwrap_err();
        assert!(why.contains(&MAX_MESSAGE.to_string()), "{why}");
    }
}
