//! A message that is ready to be sent.

use gristmill_shared::{Address, Message, Outgoing, Topic};
use lapin::{BasicProperties, options::BasicPublishOptions};

use super::properties;
use crate::{
    MAX_MESSAGE,
    topology::{EVENTS_EXCHANGE, FACTS_EXCHANGE, JOURNAL_QUEUE, exchange_for},
};

/// A message that is ready to be sent: addressed, and within the broker's limits.
#[derive(Debug)]
pub(crate) struct PublishFrame {
    pub(crate) exchange: &'static str,
    pub(crate) key: String,
    pub(crate) message: Message,
    /// True if the message is stored, and returned if it is unroutable.
    pub(crate) durable: bool,
}

impl PublishFrame {
    /// Addresses a message and checks its size.
    ///
    /// # Errors
    /// The reason why the message can never be sent.
    pub(crate) fn new(Outgoing { to, message }: Outgoing) -> Result<Self, String> {
        if message.body.len() > MAX_MESSAGE {
            let size = message.body.len();
            return Err(format!("its body has {size} bytes, and the broker takes at most {MAX_MESSAGE}"));
        }
        let (exchange, key, durable) = match to {
            Address::Queue(queue) => (exchange_for(queue.role), queue.to_string(), true),
            Address::Journal => (FACTS_EXCHANGE, JOURNAL_QUEUE.into(), true),
            Address::Events(topic) => (EVENTS_EXCHANGE, routing_key(&topic), false),
        };
        properties::check_size(&message)?;
        Ok(Self { exchange, key, message, durable })
    }

    pub(crate) fn options(&self) -> BasicPublishOptions {
        BasicPublishOptions { mandatory: self.durable, immediate: false }
    }

    /// Returns the AMQP properties. They are built for each attempt, of which there is usually one:
    /// to store them would cost another copy.
    pub(crate) fn properties(&self) -> BasicProperties {
        properties::encode(&self.message, self.durable)
    }

    /// True if the message goes to the journal.
    pub(crate) fn is_fact(&self) -> bool {
        self.exchange == FACTS_EXCHANGE
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

    fn frame(to: Address) -> PublishFrame {
        PublishFrame::new(Outgoing { to, message: Message::default() }).unwrap()
    }

    /// They are persistent too.
    #[test]
    fn stored_messages_are_mandatory() {
        let queue = QueueRole::Results.of(&Lane::default());
        for (to, exchange, key) in [
            (Address::Queue(queue), "gristmill.results", "gristmill.default.results"),
            (Address::Journal, "gristmill.facts", "gristmill.journal"),
        ] {
            let frame = frame(to);
            assert_eq!((frame.exchange, frame.key.as_str()), (exchange, key));
            assert_eq!((frame.options().mandatory, *frame.properties().delivery_mode()), (true, Some(2)));
        }
    }

    /// They are not mandatory either.
    #[test]
    fn events_are_transient() {
        let job = JobId::generate();
        let about_job = frame(Address::Events(Topic::Job(Lane::default(), job)));
        assert_eq!(about_job.key, format!("job.default.{job}"));
        assert_eq!(
            (about_job.options().mandatory, *about_job.properties().delivery_mode()),
            (false, Some(1))
        );
        let worker = WorkerId::new("w-1").unwrap();
        assert_eq!(frame(Address::Events(Topic::Worker(Lane::default(), worker))).key, "worker.default.w-1");
    }

    /// The reason names both sizes.
    #[test]
    fn oversized_body_is_refused() {
        let message = Message { body: vec![0; MAX_MESSAGE + 1].into(), ..Message::default() };
        let why = PublishFrame::new(Outgoing { to: Address::Journal, message }).unwrap_err();
        assert!(why.contains(&MAX_MESSAGE.to_string()), "{why}");
    }
}
