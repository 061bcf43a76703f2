//! The transport over RabbitMQ: each call goes to the current generation.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use gristmill_shared::{
    Capabilities, Consumer, Durability, EventFilter, EventReader, Health, HoldLimit, JournalReader, Lane,
    Publisher, Queue, Redelivery, Shards, Transport, TransportError,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    MAX_MESSAGE,
    config::AmqpConfig,
    connection::{ConnectError, ConnectionHandle, Generation, ReconnectBackoff},
    consume::{AmqpConsumer, AmqpJournal, events::AmqpEvents},
    publish::AmqpPublisher,
};

/// Delay before a first connection that takes longer is logged, once.
const CONNECT_LOG_DELAY: Duration = Duration::from_secs(1);
/// The shortest timeout of an attempt, even if less of the total time is left.
const ATTEMPT_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Number of attempts to declare a lane before the broker's error is returned: about 8 s.
const OPEN_ATTEMPTS_MAX: u32 = 15;
/// Time after which RabbitMQ takes a delivery back, unless configured otherwise: 30 minutes.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A pair of connections to RabbitMQ: one publishes, one consumes.
///
/// Its futures need a tokio runtime with a timer; the connections run on threads of their own.
/// Dropping it closes nothing while anything that came from it is left, and then closes in the
/// background; [`Transport::close`] closes at once.
///
/// Lost connections are restored, and all users of the transport continue: publishes without an
/// answer are resent, consumers receive again, and readers continue from their last position. These
/// calls only take longer. [`TransportError::Disconnected`] and
/// [`Published::Unknown`](gristmill_shared::Published::Unknown) mean that the transport was closed,
/// gave up ([`AmqpConfig::give_up_after_loss`]), or found queues with other settings after a
/// reconnect.
pub struct AmqpTransport {
    handle: Arc<ConnectionHandle>,
    publisher: Arc<AmqpPublisher>,
}

impl AmqpTransport {
    /// Connects, and retries until the configured time is over while the broker does not answer.
    ///
    /// # Errors
    /// [`TransportError::Unreachable`] after that time, [`TransportError::AuthenticationFailed`] at
    /// once if the broker does not know the user or the virtual host.
    pub async fn connect(config: AmqpConfig) -> Result<Arc<Self>, TransportError> {
        let first = connect_first_generation(&config).await?;
        let transport = config.to_string();
        let handle = ConnectionHandle::start(config, first).map_err(|error| TransportError::Unreachable {
            transport,
            tries: 1,
            spent: Duration::ZERO,
            reason: format!("cannot start a thread: {error}"),
        })?;
        let handle = Arc::new(handle);
        let publisher = Arc::new(AmqpPublisher::start(Arc::clone(&handle)));
        Ok(Arc::new(Self { handle, publisher }))
    }

    /// Declares entities of a lane, and retries with backoff while the error is temporary, at most
    /// [`OPEN_ATTEMPTS_MAX`] times on a working connection.
    async fn retry_with_backoff<T, F: Future<Output = Result<T, TransportError>> + Send>(
        &self,
        lane: &Lane,
        declare: impl Fn(Arc<Generation>) -> F + Send,
    ) -> Result<T, TransportError> {
        let mut backoff = ReconnectBackoff::new();
        let mut tries = 1;
        loop {
            let generation = self.handle.generation().await?;
            match declare(Arc::clone(&generation)).await {
                Err(error)
                    if error.is_retryable()
                        && (tries < OPEN_ATTEMPTS_MAX || generation.end.is_terminated()) =>
                {
                    tracing::debug!(%lane, tries, "cannot open the lane yet: {error}");
                }
                done => return done,
            }
            tries += 1;
            sleep(backoff.next_delay()).await;
        }
    }
}

pub(crate) async fn connect_first_generation(config: &AmqpConfig) -> Result<Generation, TransportError> {
    let start = Instant::now();
    let mut backoff = ReconnectBackoff::new();
    let (mut tries, mut logged) = (0, false);
    loop {
        tries += 1;
        let left = config.give_up_after.saturating_sub(start.elapsed());
        let within = config.attempt_timeout().min(left.max(ATTEMPT_TIMEOUT_MIN));
        let reason = match Generation::connect(config, 1, within).await {
            Ok(generation) => return Ok(generation),
            Err(ConnectError::Fatal(error)) => return Err(error),
            Err(ConnectError::Unreachable(reason)) => reason,
        };
        let pause = backoff.next_delay();
        if start.elapsed() + pause >= config.give_up_after {
            let (transport, spent) = (config.to_string(), start.elapsed());
            return Err(TransportError::Unreachable { transport, tries, spent, reason });
        }
        if !logged && start.elapsed() >= CONNECT_LOG_DELAY {
            let left = config.give_up_after.saturating_sub(start.elapsed()).as_secs_f64().ceil();
            tracing::warn!("cannot reach {config} yet: {reason}; trying for {left} s more");
            logged = true;
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
            max_hold: Some(HoldLimit { time: CONSUMER_TIMEOUT, setting: "consumer_timeout" }),
            max_message: MAX_MESSAGE,
        }
    }

    async fn open_lane(&self, lane: &Lane) -> Result<(), TransportError> {
        let declared = self.retry_with_backoff(lane, |generation| async move {
            self.handle.open_lane(&generation, lane).await
        });
        declared.await?;
        self.handle.remember_lane(lane, Shards::ONE);
        Ok(())
    }

    async fn open_shards(&self, lane: &Lane, at_least: Shards) -> Result<Shards, TransportError> {
        let declared = self.retry_with_backoff(lane, |generation| async move {
            self.handle.open_shards(&generation, lane, at_least).await
        });
        let there = declared.await?;
        self.handle.remember_lane(lane, there);
        Ok(there)
    }

    async fn publisher(&self) -> Result<Arc<dyn Publisher>, TransportError> {
        self.handle.end.check()?;
        Ok(Arc::clone(&self.publisher) as _)
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Box<dyn Consumer>, TransportError> {
        if let Some((_, target)) = queue.role.spec().delay {
            let target = target.of(&queue.lane);
            return Err(TransportError::Invalid(format!(
                "{queue} takes no consumers: its messages are delayed (hint: consume {target})"
            )));
        }
        Ok(Box::new(AmqpConsumer::start(Arc::clone(&self.handle), queue, prefetch).await?))
    }

    async fn journal(&self) -> Result<Box<dyn JournalReader>, TransportError> {
        Ok(Box::new(AmqpJournal::open(Arc::clone(&self.handle)).await?))
    }

    async fn events(&self, filter: EventFilter) -> Result<Box<dyn EventReader>, TransportError> {
        Ok(Box::new(AmqpEvents::subscribe(Arc::clone(&self.handle), filter).await?))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.handle.health().subscribe()
    }

    async fn close(&self) {
        self.handle.close().await;
    }
}

impl fmt::Display for AmqpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.config.fmt(f)
    }
}

impl fmt::Debug for AmqpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpTransport").field("config", &self.handle.config).finish_non_exhaustive()
    }
}
