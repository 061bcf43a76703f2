//! Tries what we may do, without doing it.

use std::{sync::Arc, time::Duration};

use gristmill_shared::{Lane, QueueRole, TransportError};
use lapin::{
    options::{BasicConsumeOptions, BasicQosOptions, QueueBindOptions},
    types::FieldTable,
};
use tokio::time::timeout;

use super::finding::Finding;
use crate::{
    failure::{self, NOT_FOUND, PRECONDITION_FAILED, Wish},
    connection::generation::{ANSWER_TIMEOUT, Generation, PROBE_KEY},
    topology::{EVENTS, Thing, table, text},
    topology::declare_connection::Visit,
};

/// What follows the name of a tasks queue in that of a shard that no lane has.
const NO_SHARD: &str = ".0";
/// How long the largest message may take to the broker.
const LARGE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a try showed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Tried {
    May,
    /// Who lacks which right on what.
    MayNot(String),
    /// And why not.
    Untried(String),
}

impl Tried {
    /// Of what is not there.
    pub(super) fn missing() -> Self {
        Self::Untried("what is missing was not tried".into())
    }
}

/// What became of a message to nobody.
enum Sent {
    Taken,
    /// The broker takes nothing, and why.
    Blocked(String),
    MayNot(String),
    TooLarge(String),
    /// There is no such exchange.
    Missing,
    Lost(String),
}

/// Tries, each at most once.
pub(super) struct Trial {
    generation: Arc<Generation>,
    published: Vec<(&'static str, Tried)>,
    consumed: Vec<(String, Tried)>,
}

impl Trial {
    pub(super) fn new(generation: Arc<Generation>) -> Self {
        Self { generation, published: Vec::new(), consumed: Vec::new() }
    }

    /// A broker that takes no messages says so to those who send some: after the first, and before it answers the
    /// second, be it only that the exchange is missing.
    pub(super) async fn alarm(&self) -> Finding {
        const CHECK: &str = "alarms";
        let mut sent = self.send(EVENTS, &[], ANSWER_TIMEOUT).await;
        if !matches!(sent, Sent::Blocked(_)) {
            sent = self.send(EVENTS, &[], ANSWER_TIMEOUT).await;
        }
        match sent {
            Sent::Taken | Sent::Missing => Finding::ok(CHECK, "none; the broker takes messages"),
            Sent::Blocked(why) => {
                Finding::problem(CHECK, format_args!("the broker takes no messages: {why}")).hint(
                    "free memory or disk there, or raise vm_memory_high_watermark or lower disk_free_limit; \
                 `rabbitmq-diagnostics alarms` tells more",
                )
            }
            Sent::MayNot(why) => {
                Finding::unseen(CHECK, format_args!("only who publishes is told, and {why}"))
            }
            Sent::Lost(why) | Sent::TooLarge(why) => {
                Finding::unseen(CHECK, format_args!("only who publishes is told, and that failed: {why}"))
            }
        }
    }

    /// Whether we may publish there.
    pub(super) async fn publish(&mut self, exchange: &'static str) -> Tried {
        if let Some((_, tried)) = self.published.iter().find(|(known, _)| *known == exchange) {
            return tried.clone();
        }
        let tried = match self.send(exchange, &[], ANSWER_TIMEOUT).await {
            Sent::Taken => Tried::May,
            Sent::MayNot(lacks) => Tried::MayNot(lacks),
            Sent::Blocked(_) => {
                Tried::Untried("publishing was not tried: the broker takes no messages".into())
            }
            Sent::Missing => Tried::missing(),
            Sent::Lost(why) | Sent::TooLarge(why) => {
                Tried::Untried(format!("publishing was not tried: {why}"))
            }
        };
        self.published.push((exchange, tried.clone()));
        tried
    }

    /// Whether we may consume that queue: asked with a priority that is none, which the broker refuses after it has
    /// looked at the rights and before there is a consumer.
    pub(super) async fn consume(&mut self, visit: &mut Visit, queue: &str) -> Result<Tried, TransportError> {
        if let Some((_, tried)) = self.consumed.iter().find(|(known, _)| known == queue) {
            return Ok(tried.clone());
        }
        let channel = visit.channel().await?;
        visit.ask(Wish::Free, "a prefetch", channel.basic_qos(1, BasicQosOptions::default())).await?;
        let impossible = table([("x-priority", text("none"))]);
        let mut refused = false;
        let asked = async {
            let options = BasicConsumeOptions::default();
            let asked = channel.basic_consume(queue.into(), "".into(), options, impossible).await;
            asked.inspect_err(|error| refused = failure::code(error) == Some(PRECONDITION_FAILED))
        };
        let tried = match visit.ask(Wish::Read, queue, asked).await {
            Err(_) if refused => Tried::May,
            Err(TransportError::Forbidden { lacks, .. }) => Tried::MayNot(lacks),
            Err(error) => Tried::Untried(format!("consuming was not tried: {error}")),
            // Not to be expected. What it may have been given goes back.
            Ok(_) => {
                crate::connection::channel::close(&channel).await;
                Tried::May
            }
        };
        self.consumed.push((queue.to_owned(), tried.clone()));
        Ok(tried)
    }

    /// Whether we may declare: asked for a queue with an argument that is none.
    pub(super) async fn declare(&self, visit: &mut Visit, lane: &Lane) -> Result<Tried, TransportError> {
        let Thing::Queue { name, exchange, mut arguments } = Thing::queue(&QueueRole::Tasks.of(lane)) else {
            return Ok(Tried::Untried(String::new()));
        };
        arguments.insert("x-max-length".into(), text("none"));
        match (Thing::Queue { name, exchange, arguments }).declare(visit).await {
            Err(TransportError::Forbidden { lacks, .. }) => Ok(Tried::MayNot(lacks)),
            Err(TransportError::Mismatch { .. } | TransportError::Invalid(_)) | Ok(()) => Ok(Tried::May),
            Err(error) => Ok(Tried::Untried(format!("declaring was not tried: {error}"))),
        }
    }

    /// Whether we may bind queues of ours to that exchange: asked for one that is not there, which the broker says after it
    /// has looked at the rights.
    pub(super) async fn bind(
        &self,
        visit: &mut Visit,
        lane: &Lane,
        exchange: &str,
    ) -> Result<Tried, TransportError> {
        let channel = visit.channel().await?;
        let queue = format!("{}{NO_SHARD}", QueueRole::Tasks.of(lane));
        let mut refused = false;
        let asked = async {
            let (queue, key, options) = (queue.as_str(), PROBE_KEY, QueueBindOptions::default());
            let asked =
                channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default());
            asked.await.inspect_err(|error| refused = failure::code(error) == Some(NOT_FOUND))
        };
        Ok(match visit.ask(Wish::Bind, exchange, asked).await {
            Ok(()) => Tried::May,
            Err(_) if refused => Tried::May,
            Err(TransportError::Forbidden { lacks, .. }) => Tried::MayNot(lacks),
            Err(error) => Tried::Untried(format!("binding was not tried: {error}")),
        })
    }

    /// Whether a message of `wanted` bytes is taken; with fewer than `needed` nothing works.
    pub(super) async fn size(&self, wanted: usize, needed: usize) -> Finding {
        const CHECK: &str = "max_message_size";
        // Not by way of events, where somebody may listen to everything.
        let open =
            self.published.iter().find(|(exchange, tried)| *exchange != EVENTS && *tried == Tried::May);
        let Some((exchange, _)) = open else {
            return Finding::unseen(CHECK, "no exchange was found that takes messages from this user now");
        };
        match self.send(exchange, &vec![0; wanted], LARGE_TIMEOUT).await {
            Sent::Taken => Finding::ok(CHECK, format_args!("a message of {wanted} bytes is taken")),
            Sent::TooLarge(why) => {
                let limit = failure::size_limit(&why).unwrap_or_default();
                let found = format!("messages of more than {limit} bytes are refused");
                let finding = if limit < needed {
                    Finding::problem(CHECK, found)
                } else {
                    Finding::warning(CHECK, found)
                };
                finding.hint(format!("set max_message_size on the broker to {} or more", 16 << 20))
            }
            Sent::Blocked(why) | Sent::MayNot(why) | Sent::Lost(why) => {
                Finding::unseen(CHECK, format_args!("a message of {wanted} bytes had no answer: {why}"))
            }
            Sent::Missing => Finding::unseen(CHECK, format_args!("{exchange} went away meanwhile")),
        }
    }

    /// Sends a message to nobody, on a channel of its own, since a refusal closes it.
    async fn send(&self, exchange: &str, body: &[u8], within: Duration) -> Sent {
        let mut blocked = self.generation.blocked.subscribe();
        let blocking = async {
            let why = blocked.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
            match why {
                Some(why) => why,
                None => std::future::pending().await, // the generation goes, and sending says so
            }
        };
        let sending = async {
            let channel = match self.generation.publishing_channel().await {
                Ok(channel) => channel,
                Err(error) => return Sent::Lost(error.to_string()),
            };
            let sent = async {
                let (exchange, key) = (exchange.into(), PROBE_KEY.into());
                let options = Default::default();
                channel.basic_publish(exchange, key, options, body, Default::default()).await?.await
            };
            match sent.await {
                Ok(_) => Sent::Taken,
                Err(error) => {
                    let why = failure::reason(&error);
                    match failure::lacks(Wish::Publish, &why) {
                        Some(lacks) => Sent::MayNot(lacks),
                        None if failure::size_limit(&why).is_some() => Sent::TooLarge(why),
                        None if failure::code(&error) == Some(NOT_FOUND) => Sent::Missing,
                        None => Sent::Lost(why),
                    }
                }
            }
        };
        tokio::select! {
            biased;
            why = blocking => Sent::Blocked(why),
            sent = timeout(within, sending) => {
                sent.unwrap_or_else(|_| Sent::Lost(format!("no answer within {} s", within.as_secs())))
            }
        }
    }
}
