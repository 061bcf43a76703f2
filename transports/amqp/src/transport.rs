//! The transport: what is asked of whichever generation there is.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use gristmill_shared::{
    Capabilities, Consumer, Durability, EventFilter, EventReader, Health, JournalReader, Lane, Publisher,
    Queue, Redelivery, Shards, Transport, TransportError,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    MAX_MESSAGE,
    config::AmqpConfig,
    consume::consumer::AmqpConsumer,
    consume::events::AmqpEvents,
    connection::generation::{Failure, Generation},
    consume::journal::AmqpJournal,
    connection::handle::Link,
    connection::backoff::Pauses,
    publish::publisher::AmqpPublisher,
};

/// A first connection that takes longer is told of, once.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// An attempt gets at least this long, however little is left.
const MIN_ATTEMPT: Duration = Duration::from_secs(1);
/// How often a lane is declared before the broker's trouble with it counts as ours: for about 8 s.
const OPEN_TRIES: u32 = 15;
/// RabbitMQ takes a delivery back after 30 minutes, unless configured otherwise.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A pair of connections to a RabbitMQ: one publishes, one consumes.
///
/// Its futures need a tokio runtime with a timer; the connections themselves run on threads of their own. Dropping it
/// closes nothing as long as something that came from it is left, and then closes in the background;
/// [`Transport::close`] closes at once.
///
/// Connections that are lost come back by themselves, and what came from the transport goes on with them: publishes
/// that have no answer are sent again, consumers take messages again, readers go on where they were. It only takes
/// longer. [`TransportError::Disconnected`] and [`Published::Unknown`](gristmill_shared::Published::Unknown) mean that
/// the transport was closed, gave up ([`AmqpConfig::give_up_after_loss`]), or came back to queues with other settings.
pub struct AmqpTransport {
    link: Arc<Link>,
    publisher: Arc<AmqpPublisher>,
}

impl AmqpTransport {
    /// Connects, and keeps trying for as long as the configuration says while nobody answers.
    ///
    /// # Errors
    /// [`TransportError::Unreachable`] after that time, [`TransportError::Denied`] at once if the broker does not know
    /// us or the virtual host.
    pub async fn connect(config: AmqpConfig) -> Result<Arc<Self>, TransportError> {
        let first = first_generation(&config).await?;
        let transport = config.to_string();
        let link = Link::start(config, first).map_err(|error| TransportError::Unreachable {
            transport,
            tries: 1,
            spent: Duration::ZERO,
            reason: format!("cannot start a thread: {error}"),
        })?;
        let link = Arc::new(link);
        let publisher = Arc::new(AmqpPublisher::start(Arc::clone(&link)));
        Ok(Arc::new(Self { link, publisher }))
    }

    /// Declares something of a lane, until the broker's trouble with it counts as ours.
    async fn again_and_again<T, F: Future<Output = Result<T, TransportError>> + Send>(
        &self,
        lane: &Lane,
        declare: impl Fn(Arc<Generation>) -> F + Send,
    ) -> Result<T, TransportError> {
        let mut pauses = Pauses::new();
        let mut tries = 1;
        loop {
            let generation = self.link.generation().await?;
            match declare(Arc::clone(&generation)).await {
                Err(error) if error.is_retryable() && (tries < OPEN_TRIES || generation.end.is_over()) => {
                    tracing::debug!(%lane, tries, "cannot open the lane yet: {error}");
                }
                done => return done,
            }
            tries += 1;
            sleep(pauses.next()).await;
        }
    }
}

pub(crate) async fn first_generation(config: &AmqpConfig) -> Result<Generation, TransportError> {
    let start = Instant::now();
    let mut pauses = Pauses::new();
    let (mut tries, mut told) = (0, false);
    loop {
        tries += 1;
        let left = config.give_up_after.saturating_sub(start.elapsed());
        let within = config.attempt_timeout().min(left.max(MIN_ATTEMPT));
        let reason = match Generation::connect(config, 1, within).await {
            Ok(generation) => return Ok(generation),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Unreachable(reason)) => reason,
        };
        let pause = pauses.next();
        if start.elapsed() + pause >= config.give_up_after {
            let (transport, spent) = (config.to_string(), start.elapsed());
            return Err(TransportError::Unreachable { transport, tries, spent, reason });
        }
        if !told && start.elapsed() >= SILENT_FOR {
            let left = config.give_up_after.saturating_sub(start.elapsed()).as_secs_f64().ceil();
            tracing::warn!("cannot reach {config} yet: {reason}; trying for {left} s more");
            told = true;
        }
        sleep(pause).await;
    }
}

#[async_trait]
impl Transport for AmqpTransport {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: Durability::PowerLoss,
            redelivery: Redelivery::OnDisconnect,
            shared: true,
            max_hold: Some(CONSUMER_TIMEOUT),
            max_message: MAX_MESSAGE,
        }
    }

    async fn open_lane(&self, lane: &Lane) -> Result<(), TransportError> {
        let declared = self
            .again_and_again(lane, |generation| async move { self.link.open_lane(&generation, lane).await });
        declared.await?;
        self.link.keep(lane, Shards::ONE);
        Ok(())
    }

    async fn open_shards(&self, lane: &Lane, at_least: Shards) -> Result<Shards, TransportError> {
        let declared = self.again_and_again(lane, |generation| async move {
            self.link.open_shards(&generation, lane, at_least).await
        });
        let there = declared.await?;
        self.link.keep(lane, there);
        Ok(there)
    }

    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        self.link.end.check()?;
        Ok(Arc::clone(&self.publisher) as _)
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        if let Some((_, target)) = queue.role.spec().ripens {
            let target = target.of(&queue.lane);
            return Err(TransportError::Invalid(format!(
                "{queue} has no consumers: its messages ripen (hint: consume {target})"
            )));
        }
        Ok(Box::new(AmqpConsumer::start(Arc::clone(&self.link), queue, prefetch).await?))
    }

    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError> {
        Ok(Box::new(AmqpJournal::open(Arc::clone(&self.link)).await?))
    }

    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError> {
        Ok(Box::new(AmqpEvents::listen(Arc::clone(&self.link), filter).await?))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.link.health().subscribe()
    }

    async fn close(&self) {
        self.link.close().await;
    }
}

impl fmt::Display for AmqpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.link.config.fmt(f)
    }
}

impl fmt::Debug for AmqpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpTransport").field("config", &self.link.config).finish_non_exhaustive()
    }
}
