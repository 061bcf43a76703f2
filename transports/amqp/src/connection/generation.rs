//! One lifetime of the pair of connections, which starts and ends as a whole.

use std::{future::Future, io, pin::pin, sync::Arc, time::Duration};

use futures::StreamExt;
use gristmill_shared::TransportError;
use lapin::{
    Connection, ConnectionProperties, Event,
    options::ConfirmSelectOptions,
    runtime::default_runtime,
    tcp::{AMQPUriTcpExt as _, TLSConfig},
    uri::{AMQPScheme, AMQPUri},
};
use tokio::{
    sync::watch,
    task::JoinError,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    channel::{OwnedChannel, REPLY_TIMEOUT},
    runtime::DedicatedRuntime,
    termination::Termination,
};
use crate::{
    config::AmqpConfig,
    failure::{self, NOT_FOUND, Operation},
    topology::EVENTS_EXCHANGE,
};

/// Threads that only talk to the broker, so that no task's work delays a heartbeat; a second one
/// would mostly wake the first.
const IO_THREADS: usize = 1;
/// Interval between messages on the publishing connection that show if the broker accepts any.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// The same interval at most, after repeated refusals.
const PROBE_INTERVAL_MAX: Duration = Duration::from_secs(300);
/// Routing key of these messages. No queue is bound to it.
pub(crate) const PROBE_ROUTING_KEY: &str = "probe";
/// Time that an abandoned attempt to connect is kept until lapin notices.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for the broker to answer the close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// One lifetime of the connections, and of everything that came from them.
///
/// Its own runtime serves it; dropping that ends lapin's tasks, threads and sockets in any state.
#[derive(Debug)]
pub(crate) struct Generation {
    /// Number of the generation. Deliveries carry it, so that one of an older generation is never
    /// settled in a newer one.
    pub(crate) number: u64,
    /// Termination of the generation, after which everything that belongs to it fails.
    pub(crate) end: Termination,
    /// Reason why the broker accepts no messages; `None` while it does.
    pub(crate) blocked: watch::Sender<Option<String>>,
    connections: ConnectionPair,
    /// Tasks that finish their writes to the broker before the connections close.
    tasks: TaskTracker,
    runtime: DedicatedRuntime,
}

/// A pair, because a broker that is low on memory stops reading from publishers, and acks must
/// still get through.
#[derive(Clone, Debug)]
struct ConnectionPair {
    publishing: Arc<Connection>,
    consuming: Arc<Connection>,
}

/// Reason why a generation could not be built.
pub(crate) enum ConnectError {
    /// A failure that a later attempt may not have.
    Unreachable(String),
    /// A failure that lasts.
    Fatal(TransportError),
}

impl Generation {
    /// Attempts once to open both connections.
    pub(crate) async fn connect(
        config: &AmqpConfig,
        number: u64,
        within: Duration,
    ) -> Result<Self, ConnectError> {
        let attempt =
            ConnectAttempt::start().map_err(|error| ConnectError::Unreachable(error.to_string()))?;
        let open = |purpose| attempt.connect(config, number, purpose);
        let opened = timeout(within, async { futures::join!(open("publish"), open("consume")) }).await;
        let Ok((publishing, consuming)) = opened else {
            return Err(ConnectError::Unreachable(format!("no answer within {:.1} s", within.as_secs_f64())));
        };
        let transport = config.to_string();
        let connected = |result: Result<lapin::Result<Connection>, _>| match result {
            Ok(Ok(connection)) => Ok(Arc::new(connection)),
            Ok(Err(error)) => Err(match failure::as_fatal(&transport, &error) {
                Some(fatal) => ConnectError::Fatal(config.add_login_hint(fatal)),
                None => ConnectError::Unreachable(failure::reason(&error)),
            }),
            Err(panic) => Err(ConnectError::Unreachable(format!("lapin failed: {panic}"))),
        };
        let connections =
            ConnectionPair { publishing: connected(publishing)?, consuming: connected(consuming)? };
        let runtime = attempt.into_runtime();
        let blocked = watch::Sender::new(None);
        let generation = Self {
            number,
            end: Termination::new(&transport),
            blocked,
            connections,
            tasks: TaskTracker::new(),
            runtime,
        };
        let ConnectionPair { publishing, consuming } = generation.connections.clone();
        generation.spawn(watch_events(
            Arc::clone(&publishing),
            generation.end.clone(),
            generation.blocked.clone(),
        ));
        generation.spawn(watch_events(consuming, generation.end.clone(), generation.blocked.clone()));
        generation.spawn(probe_blocking(publishing, generation.end.clone()));
        Ok(generation)
    }

    /// Runs a task on the generation's own threads. It must end when the generation does, and must
    /// not own it.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, self.runtime.handle());
    }

    /// Opens a channel on the consuming connection.
    pub(crate) async fn open_channel(&self) -> Result<OwnedChannel, TransportError> {
        let channel = self
            .request(Operation::Unrestricted, "a new channel", self.connections.consuming.create_channel())
            .await?;
        Ok(self.wrap_channel(channel, &self.connections.consuming))
    }

    /// Opens a channel with publisher confirms on the publishing connection.
    pub(crate) async fn open_publishing_channel(&self) -> Result<OwnedChannel, TransportError> {
        let connection = &self.connections.publishing;
        let mut opening = pin!(async {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            lapin::Result::Ok(channel)
        });
        // While the broker blocks publishers, it does not answer on this connection, but the
        // connection is healthy.
        loop {
            let reply = tokio::select! {
                biased;
                reply = timeout(REPLY_TIMEOUT, &mut opening) => reply,
                () = self.end.wait() => return Err(self.end.error()),
            };
            match reply {
                Ok(Ok(channel)) => return Ok(self.wrap_channel(channel, connection)),
                Ok(Err(error)) => {
                    return Err(self.to_transport_error(
                        Operation::Unrestricted,
                        "a channel to publish on",
                        &error,
                    ));
                }
                Err(_) if connection.status().blocked() => {}
                Err(_) => return Err(self.end.disconnect_error("no answer to a channel to publish on")),
            }
        }
    }

    /// Returns the heartbeat in seconds, the largest frame in bytes, and the maximum number of
    /// channels, 0 for any number.
    pub(crate) fn negotiated_limits(&self) -> (u16, u32, u16) {
        let negotiated = self.connections.consuming.configuration();
        (negotiated.heartbeat(), negotiated.frame_max(), negotiated.channel_max())
    }

    fn wrap_channel(&self, channel: lapin::Channel, connection: &Connection) -> OwnedChannel {
        let (shutdown, tasks) = (self.end.child_token(), self.tasks.clone());
        OwnedChannel::new(
            channel,
            connection.status().clone(),
            shutdown,
            tasks,
            self.runtime.handle().clone(),
        )
    }

    /// Sends a request to the broker and waits for its reply, at most [`REPLY_TIMEOUT`].
    pub(crate) async fn request<T>(
        &self,
        operation: Operation,
        what: &str,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, TransportError> {
        self.end.check()?;
        let reply = tokio::select! {
            biased;
            reply = timeout(REPLY_TIMEOUT, call) => reply,
            () = self.end.wait() => return Err(self.end.error()),
        };
        match reply {
            Ok(reply) => reply.map_err(|error| self.to_transport_error(operation, what, &error)),
            Err(_) => {
                // A peer that does not reply in time cannot be used.
                self.end.terminate(format!("no answer to {what} within {} s", REPLY_TIMEOUT.as_secs()));
                Err(self.end.error())
            }
        }
    }

    fn to_transport_error(&self, operation: Operation, what: &str, error: &lapin::Error) -> TransportError {
        if let Some(denied) = failure::as_access_error(self.end.transport(), operation, error) {
            return denied;
        }
        let reason = failure::reason(error);
        if failure::is_connection_error(error) {
            self.end.terminate(&*reason); // the caller may be the first to notice
        }
        let hint = match failure::reply_code(error) {
            Some(NOT_FOUND) => " (hint: it was never created, as `gristmill setup` does, or was deleted)",
            _ => "",
        };
        self.end
            .check()
            .err()
            .unwrap_or_else(|| self.end.disconnect_error(&format!("{what}: {reason}{hint}")))
    }

    /// Opens another connection, which does not belong to the generation but shares its runtime.
    pub(crate) async fn open_extra_connection(
        &self,
        config: &AmqpConfig,
        purpose: &str,
    ) -> lapin::Result<Connection> {
        match self.runtime.spawn(open_connection(config, self.number, purpose)).await {
            Ok(connected) => connected,
            Err(panic) => Err(io::Error::other(format!("lapin failed: {panic}")).into()),
        }
    }

    /// Terminates the generation: sends the pending acks, then closes the connections.
    pub(crate) async fn close(&self) {
        self.end.terminate("it was closed at this end");
        close_gracefully(&self.tasks, &self.connections).await;
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.end.terminate("it was dropped at this end");
        let (tasks, connections) = (self.tasks.clone(), self.connections.clone());
        self.runtime.shut_down_after(async move { close_gracefully(&tasks, &connections).await });
    }
}

/// Connections that are being opened, and their runtime, with all of lapin's own tasks.
///
/// The runtime of an abandoned attempt stays until lapin has noticed, because lapin's threads panic
/// if their tasks vanish.
struct ConnectAttempt {
    runtime: Option<DedicatedRuntime>,
    tasks: TaskTracker,
    abandoned: CancellationToken,
}

impl ConnectAttempt {
    fn start() -> std::io::Result<Self> {
        let runtime = Some(DedicatedRuntime::start(IO_THREADS)?);
        Ok(Self { runtime, tasks: TaskTracker::new(), abandoned: CancellationToken::new() })
    }

    async fn connect(
        &self,
        config: &AmqpConfig,
        number: u64,
        purpose: &str,
    ) -> Result<lapin::Result<Connection>, JoinError> {
        let abandoned = self.abandoned.clone();
        let connecting = open_connection(config, number, purpose);
        let connecting = self.tasks.track_future(async move {
            let connected = connecting.await;
            if let (true, Ok(connection)) = (abandoned.is_cancelled(), &connected) {
                let _ = connection.close(200, "too late".into()).await; // it fails if it is gone already
            }
            connected
        });
        self.runtime
            .as_ref()
            .expect("only consuming or dropping the attempt takes it")
            .spawn(connecting)
            .await
    }

    fn into_runtime(mut self) -> DedicatedRuntime {
        self.runtime.take().expect("only consuming or dropping the attempt takes it")
    }
}

impl Drop for ConnectAttempt {
    fn drop(&mut self) {
        let Some(mut runtime) = self.runtime.take() else { return };
        self.abandoned.cancel();
        self.tasks.close();
        let tasks = self.tasks.clone();
        runtime.shut_down_after(async move { drop(timeout(ABANDONED_TIMEOUT, tasks.wait()).await) });
    }
}

fn open_connection(
    config: &AmqpConfig,
    number: u64,
    purpose: &str,
) -> impl Future<Output = lapin::Result<Connection>> + Send + 'static {
    let name = format!("{}/{number}/{purpose}", config.name);
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let (uri, tls) = (config.uri().clone(), config.tls().cloned());
    async move {
        let Some(tls) = tls else { return Connection::connect_uri(uri, properties).await };
        let connector = tls.connector().map_err(io::Error::other)?;
        let connect = async move |uri: AMQPUri, runtime| {
            let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri };
            let stream = plain.connect_with_config_async(TLSConfig::default(), &runtime).await?;
            Ok(stream.into_rustls(&connector, &plain.authority.host).await?)
        };
        Connection::connector(uri, default_runtime()?, connect, properties).await
    }
}

async fn close_gracefully(tasks: &TaskTracker, ConnectionPair { publishing, consuming }: &ConnectionPair) {
    tasks.close();
    let closing = async {
        tasks.wait().await;
        // They fail if the connection is gone already, which is fine.
        let _ = futures::join!(publishing.close(200, "closed".into()), consuming.close(200, "closed".into()));
    };
    if timeout(CLOSE_TIMEOUT, closing).await.is_err() {
        tracing::debug!("the broker did not confirm the close in time");
    }
}

/// Reports what the broker sends about a connection, and terminates the generation when the
/// connection is lost.
async fn watch_events(connection: Arc<Connection>, end: Termination, blocked: watch::Sender<Option<String>>) {
    let mut events = pin!(connection.events_listener());
    // lapin sends an event only to existing listeners.
    if !connection.status().connected() {
        end.terminate("the broker closed the connection");
    }
    loop {
        let event = tokio::select! {
            () = end.wait() => return,
            event = events.next() => event,
        };
        match event {
            Some(Event::ConnectionBlocked(why)) => {
                tracing::warn!(
                    "broker blocked: {why}; nothing is lost, publishing to {} continues when it recovers",
                    end.transport()
                );
                blocked.send_replace(Some(why.to_string()));
            }
            Some(Event::ConnectionUnblocked) => {
                tracing::info!("{} accepts messages again", end.transport());
                blocked.send_replace(None);
            }
            // A channel's error arrives here too, and ends only that channel.
            Some(Event::Error(error)) if !connection.status().connected() => {
                end.terminate(failure::reason(&error));
            }
            Some(_) => {}
            None => end.terminate("the connection is closed"),
        }
    }
}

/// Publishes an unroutable message now and then, because the broker reports that it accepts no
/// messages only to publishers.
async fn probe_blocking(connection: Arc<Connection>, end: Termination) {
    let mut channel = None;
    let mut pause = PROBE_INTERVAL;
    let trying = async {
        loop {
            sleep(pause).await;
            if connection.status().blocked() {
                continue;
            }
            if let Some(old) = channel.take_if(|channel: &mut lapin::Channel| !channel.status().connected()) {
                drop(old); // the exchange is missing, or publishing to it is forbidden
                pause = (pause * 2).min(PROBE_INTERVAL_MAX);
            }
            let own = match channel.take() {
                Some(own) => own,
                None => match connection.create_channel().await {
                    Ok(own) => own,
                    Err(_) => continue, // real publishers see the error
                },
            };
            let own = channel.insert(own);
            let (exchange, key) = (EVENTS_EXCHANGE.into(), PROBE_ROUTING_KEY.into());
            let _ = own.basic_publish(exchange, key, Default::default(), &[], Default::default()).await;
        }
    };
    tokio::select! {
        () = end.wait() => {}
        () = trying => {}
    }
}
