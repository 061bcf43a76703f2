//! Tests of the user's permissions that have no effect.

use std::{sync::Arc, time::Duration};

use gristmill_shared::{Finding, Lane, QueueRole, TransportError};
use lapin::{
    options::{BasicConsumeOptions, BasicQosOptions, QueueBindOptions},
    types::FieldTable,
};
use tokio::time::timeout;

use crate::{
    connection::{Generation, PROBE_ROUTING_KEY, REPLY_TIMEOUT},
    failure::{self, NOT_FOUND, Operation, PRECONDITION_FAILED},
    topology::{BrokerEntity, DeclareSession, EVENTS_EXCHANGE, table, text},
};

/// Suffix of a tasks queue for a shard that no lane has.
const UNUSED_SHARD_SUFFIX: &str = ".0";
/// Time limit for publishing the largest message.
const LARGE_MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Result of a test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ProbeOutcome {
    Allowed,
    /// The text names the user, the permission and the entity.
    Denied(String),
    /// The text gives the reason.
    Untested(String),
}

impl ProbeOutcome {
    /// The result for an entity that does not exist.
    pub(super) fn missing() -> Self {
        Self::Untested("missing entities were not tested".into())
    }
}

/// The broker's reply to an unroutable message.
enum ProbeReply {
    Accepted,
    /// The broker accepts no messages, for this reason.
    Blocked(String),
    Denied(String),
    TooLarge(String),
    /// The exchange does not exist.
    Missing,
    Lost(String),
}

/// Tests of permissions, each done at most once.
pub(super) struct RightsProbe {
    generation: Arc<Generation>,
    published: Vec<(&'static str, ProbeOutcome)>,
    consumed: Vec<(String, ProbeOutcome)>,
}

impl RightsProbe {
    pub(super) fn new(generation: Arc<Generation>) -> Self {
        Self { generation, published: Vec::new(), consumed: Vec::new() }
    }

    /// Checks if the broker accepts messages. It reports an alarm only to publishers: after their
    /// first message and before it answers the second, even if the exchange is missing.
    pub(super) async fn check_alarm(&self) -> Finding {
        const CHECK_NAME: &str = "alarms";
        let mut reply = self.send(EVENTS_EXCHANGE, &[], REPLY_TIMEOUT).await;
        if !matches!(reply, ProbeReply::Blocked(_)) {
            reply = self.send(EVENTS_EXCHANGE, &[], REPLY_TIMEOUT).await;
        }
        match reply {
            ProbeReply::Accepted | ProbeReply::Missing => {
                Finding::ok(CHECK_NAME, "none; the broker accepts messages")
            }
            ProbeReply::Blocked(why) => {
                Finding::problem(CHECK_NAME, format_args!("the broker accepts no messages: {why}")).hint(
                    "free memory or disk there, or raise vm_memory_high_watermark or lower disk_free_limit; \
                 `rabbitmq-diagnostics alarms` tells more",
                )
            }
            ProbeReply::Denied(why) => {
                Finding::unseen(CHECK_NAME, format_args!("only publishers see alarms, and {why}"))
            }
            ProbeReply::Lost(why) | ProbeReply::TooLarge(why) => Finding::unseen(
                CHECK_NAME,
                format_args!("only publishers see alarms, and publishing failed: {why}"),
            ),
        }
    }

    /// Tests if the user may publish to an exchange.
    pub(super) async fn try_publish(&mut self, exchange: &'static str) -> ProbeOutcome {
        if let Some((_, outcome)) = self.published.iter().find(|(known, _)| *known == exchange) {
            return outcome.clone();
        }
        let outcome = match self.send(exchange, &[], REPLY_TIMEOUT).await {
            ProbeReply::Accepted => ProbeOutcome::Allowed,
            ProbeReply::Denied(lacks) => ProbeOutcome::Denied(lacks),
            ProbeReply::Blocked(_) => {
                ProbeOutcome::Untested("publishing was not tested: the broker accepts no messages".into())
            }
            ProbeReply::Missing => ProbeOutcome::missing(),
            ProbeReply::Lost(why) | ProbeReply::TooLarge(why) => {
                ProbeOutcome::Untested(format!("publishing was not tested: {why}"))
            }
        };
        self.published.push((exchange, outcome.clone()));
        outcome
    }

    /// Tests if the user may consume a queue, with an invalid priority: the broker refuses it after
    /// it has checked the permissions and before there is a consumer.
    pub(super) async fn try_consume(
        &mut self,
        session: &mut DeclareSession,
        queue: &str,
    ) -> Result<ProbeOutcome, TransportError> {
        if let Some((_, outcome)) = self.consumed.iter().find(|(known, _)| known == queue) {
            return Ok(outcome.clone());
        }
        let channel = session.channel().await?;
        session
            .request(Operation::Unrestricted, "a prefetch", channel.basic_qos(1, BasicQosOptions::default()))
            .await?;
        let impossible = table([("x-priority", text("none"))]);
        let mut refused = false;
        let asked = async {
            let options = BasicConsumeOptions::default();
            let asked = channel.basic_consume(queue.into(), "".into(), options, impossible).await;
            asked.inspect_err(|error| refused = failure::reply_code(error) == Some(PRECONDITION_FAILED))
        };
        let outcome = match session.request(Operation::Read, queue, asked).await {
            Err(_) if refused => ProbeOutcome::Allowed,
            Err(TransportError::PermissionDenied { lacks, .. }) => ProbeOutcome::Denied(lacks),
            Err(error) => ProbeOutcome::Untested(format!("consuming was not tested: {error}")),
            // Unexpected. Closing the channel requeues any delivery.
            Ok(_) => {
                crate::connection::close_channel(&channel).await;
                ProbeOutcome::Allowed
            }
        };
        self.consumed.push((queue.to_owned(), outcome.clone()));
        Ok(outcome)
    }

    /// Tests if the user may declare, with a queue that has an invalid argument.
    pub(super) async fn try_declare(
        &self,
        session: &mut DeclareSession,
        lane: &Lane,
    ) -> Result<ProbeOutcome, TransportError> {
        let BrokerEntity::Queue { name, exchange, mut arguments } =
            BrokerEntity::queue(&QueueRole::Tasks.of(lane))
        else {
            return Ok(ProbeOutcome::Untested(String::new()));
        };
        arguments.insert("x-max-length".into(), text("none"));
        match (BrokerEntity::Queue { name, exchange, arguments }).declare(session).await {
            Err(TransportError::PermissionDenied { lacks, .. }) => Ok(ProbeOutcome::Denied(lacks)),
            Err(TransportError::Mismatch { .. } | TransportError::Invalid(_)) | Ok(()) => {
                Ok(ProbeOutcome::Allowed)
            }
            Err(error) => Ok(ProbeOutcome::Untested(format!("declaring was not tested: {error}"))),
        }
    }

    /// Tests if the user may bind queues of the lane to an exchange, with a queue that does not
    /// exist, which the broker reports after it has checked the permissions.
    pub(super) async fn try_bind(
        &self,
        session: &mut DeclareSession,
        lane: &Lane,
        exchange: &str,
    ) -> Result<ProbeOutcome, TransportError> {
        let channel = session.channel().await?;
        let queue = format!("{}{UNUSED_SHARD_SUFFIX}", QueueRole::Tasks.of(lane));
        let mut refused = false;
        let asked = async {
            let (queue, key, options) = (queue.as_str(), PROBE_ROUTING_KEY, QueueBindOptions::default());
            let asked =
                channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default());
            asked.await.inspect_err(|error| refused = failure::reply_code(error) == Some(NOT_FOUND))
        };
        Ok(match session.request(Operation::Bind, exchange, asked).await {
            Ok(()) => ProbeOutcome::Allowed,
            Err(_) if refused => ProbeOutcome::Allowed,
            Err(TransportError::PermissionDenied { lacks, .. }) => ProbeOutcome::Denied(lacks),
            Err(error) => ProbeOutcome::Untested(format!("binding was not tested: {error}")),
        })
    }

    /// Checks if a message of `wanted` bytes is accepted; with a limit below `needed` nothing
    /// works.
    pub(super) async fn check_message_size(&self, wanted: usize, needed: usize) -> Finding {
        const CHECK_NAME: &str = "max_message_size";
        // The events exchange is excluded, because other users may read all events.
        let open = self
            .published
            .iter()
            .find(|(exchange, outcome)| *exchange != EVENTS_EXCHANGE && *outcome == ProbeOutcome::Allowed);
        let Some((exchange, _)) = open else {
            return Finding::unseen(
                CHECK_NAME,
                "no exchange was found that accepts messages from this user now",
            );
        };
        match self.send(exchange, &vec![0; wanted], LARGE_MESSAGE_TIMEOUT).await {
            ProbeReply::Accepted => {
                Finding::ok(CHECK_NAME, format_args!("a message of {wanted} bytes is accepted"))
            }
            ProbeReply::TooLarge(why) => {
                let limit = failure::size_limit(&why).unwrap_or_default();
                let found = format!("messages of more than {limit} bytes are refused");
                let finding = if limit < needed {
                    Finding::problem(CHECK_NAME, found)
                } else {
                    Finding::warning(CHECK_NAME, found)
                };
                finding.hint(format!("set max_message_size on the broker to {} or more", 16 << 20))
            }
            ProbeReply::Blocked(why) | ProbeReply::Denied(why) | ProbeReply::Lost(why) => {
                Finding::unseen(CHECK_NAME, format_args!("a message of {wanted} bytes had no answer: {why}"))
            }
            ProbeReply::Missing => {
                Finding::unseen(CHECK_NAME, format_args!("{exchange} was deleted meanwhile"))
            }
        }
    }

    /// Sends an unroutable message, on a channel of its own, since a refusal closes it.
    async fn send(&self, exchange: &str, body: &[u8], within: Duration) -> ProbeReply {
        let mut blocked = self.generation.blocked.subscribe();
        let blocking = async {
            let why = blocked.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
            match why {
                Some(why) => why,
                None => std::future::pending().await, // the generation goes, and sending says so
            }
        };
        let sending = async {
            let channel = match self.generation.open_publishing_channel().await {
                Ok(channel) => channel,
                Err(error) => return ProbeReply::Lost(error.to_string()),
            };
            let reply = async {
                let (exchange, key) = (exchange.into(), PROBE_ROUTING_KEY.into());
                let options = Default::default();
                channel.basic_publish(exchange, key, options, body, Default::default()).await?.await
            };
            match reply.await {
                Ok(_) => ProbeReply::Accepted,
                Err(error) => {
                    let why = failure::reason(&error);
                    match failure::missing_permission(Operation::Publish, &why) {
                        Some(lacks) => ProbeReply::Denied(lacks),
                        None if failure::size_limit(&why).is_some() => ProbeReply::TooLarge(why),
                        None if failure::reply_code(&error) == Some(NOT_FOUND) => ProbeReply::Missing,
                        None => ProbeReply::Lost(why),
                    }
                }
            }
        };
        tokio::select! {
            biased;
            why = blocking => ProbeReply::Blocked(why),
            reply = timeout(within, sending) => {
                reply.unwrap_or_else(|_| ProbeReply::Lost(format!("no answer within {} s", within.as_secs())))
            }
        }
    }
}
