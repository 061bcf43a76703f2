//! One life of the connections: made whole, and over as a whole.

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

use crate::{
    connection::channel::OwnChannel,
    config::AmqpConfig,
    connection::termination::End,
    failure::{self, NOT_FOUND, Wish},
    connection::runtime::OwnRuntime,
    topology::EVENTS,
};

/// A thread that does nothing but talk to the broker, so that no task's work holds up a heartbeat; a second one would mostly
/// wake the first.
const THREADS: usize = 1;
/// How long the broker may take over one answer.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the publishing connection is tried, if only to learn whether the broker takes anything.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// The same, where such tries are refused again and again.
const PROBE_SELDOM: Duration = Duration::from_secs(300);
/// Where such a try goes. No one listens to it.
pub(crate) const PROBE_KEY: &str = "probe";
/// How long an attempt to connect that was given up is kept until lapin has noticed.
const GIVEN_UP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the end may take to be told to the broker.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// One life of the connections, and of all that came from them.
///
/// It has a runtime of its own: when that goes, so do lapin's tasks, threads and sockets, in whatever state they are.
#[derive(Debug)]
pub(crate) struct Generation {
    /// Deliveries carry it, so that one of an older generation is never settled in a newer.
    pub(crate) number: u64,
    /// Once it is over, everything that lives by it fails.
    pub(crate) end: End,
    /// Why the broker takes no messages, while it does not.
    pub(crate) blocked: watch::Sender<Option<String>>,
    connections: Connections,
    /// Whoever has something to tell the broker before the connections close.
    tasks: TaskTracker,
    runtime: OwnRuntime,
}

/// Two, because a broker that is low on memory stops reading from whoever publishes, and acks must still get through.
#[derive(Clone, Debug)]
struct Connections {
    publishing: Arc<Connection>,
    consuming: Arc<Connection>,
}

/// Why there is no generation.
pub(crate) enum Failure {
    /// Trying again may help.
    Unreachable(String),
    /// It will not.
    Final(TransportError),
}

impl Generation {
    /// Tries once.
    pub(crate) async fn connect(config: &AmqpConfig, number: u64, within: Duration) -> Result<Self, Failure> {
        let attempt = Attempt::start().map_err(|error| Failure::Unreachable(error.to_string()))?;
        let open = |purpose| attempt.connect(config, number, purpose);
        let opened = timeout(within, async { futures::join!(open("publish"), open("consume")) }).await;
        let Ok((publishing, consuming)) = opened else {
            return Err(Failure::Unreachable(format!("no answer within {:.1} s", within.as_secs_f64())));
        };
        let transport = config.to_string();
        let connected = |result: Result<lapin::Result<Connection>, _>| match result {
            Ok(Ok(connection)) => Ok(Arc::new(connection)),
            Ok(Err(error)) => Err(match failure::hopeless(&transport, &error) {
                Some(hopeless) => Failure::Final(config.explain(hopeless)),
                None => Failure::Unreachable(failure::reason(&error)),
            }),
            Err(panic) => Err(Failure::Unreachable(format!("lapin failed: {panic}"))),
        };
        let connections =
            Connections { publishing: connected(publishing)?, consuming: connected(consuming)? };
        let runtime = attempt.succeeded();
        let blocked = watch::Sender::new(None);
        let generation = Self {
            number,
            end: End::new(&transport),
            blocked,
            connections,
            tasks: TaskTracker::new(),
            runtime,
        };
        let Connections { publishing, consuming } = generation.connections.clone();
        generation.spawn(observe(
            Arc::clone(&publishing),
            generation.end.clone(),
            generation.blocked.clone(),
        ));
        generation.spawn(observe(consuming, generation.end.clone(), generation.blocked.clone()));
        generation.spawn(probe(publishing, generation.end.clone()));
        Ok(generation)
    }

    /// Runs a task on the generation's own threads. It must end when the generation does, and must not own it.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, self.runtime.handle());
    }

    /// A new channel on the consuming connection.
    pub(crate) async fn channel(&self) -> Result<OwnChannel, TransportError> {
        let channel =
            self.ask(Wish::Free, "a new channel", self.connections.consuming.create_channel()).await?;
        Ok(self.own(channel, &self.connections.consuming))
    }

    /// A new channel on the publishing connection, which confirms.
    pub(crate) async fn publishing_channel(&self) -> Result<OwnChannel, TransportError> {
        let connection = &self.connections.publishing;
        let mut opening = pin!(async {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            lapin::Result::Ok(channel)
        });
        // While the broker blocks whoever publishes, nothing gets through to it, and it is well all the same.
        loop {
            let answer = tokio::select! {
                biased;
                answer = timeout(ANSWER_TIMEOUT, &mut opening) => answer,
                () = self.end.wait() => return Err(self.end.error()),
            };
            match answer {
                Ok(Ok(channel)) => return Ok(self.own(channel, connection)),
                Ok(Err(error)) => return Err(self.explain(Wish::Free, "a channel to publish on", &error)),
                Err(_) if connection.status().blocked() => {}
                Err(_) => return Err(self.end.disconnected("no answer to a channel to publish on")),
            }
        }
    }

    /// The heartbeat in seconds, the largest frame in bytes, and how many channels there may be, 0 for any number.
    pub(crate) fn negotiated(&self) -> (u16, u32, u16) {
        let negotiated = self.connections.consuming.configuration();
        (negotiated.heartbeat(), negotiated.frame_max(), negotiated.channel_max())
    }

    fn own(&self, channel: lapin::Channel, connection: &Connection) -> OwnChannel {
        let (leave, tasks) = (self.end.child_token(), self.tasks.clone());
        OwnChannel::new(channel, connection.status().clone(), leave, tasks, self.runtime.handle().clone())
    }

    /// Asks the broker for something and waits for its answer, within [`ANSWER_TIMEOUT`].
    pub(crate) async fn ask<T>(
        &self,
        wish: Wish,
        what: &str,
        question: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, TransportError> {
        self.end.check()?;
        let answer = tokio::select! {
            biased;
            answer = timeout(ANSWER_TIMEOUT, question) => answer,
            () = self.end.wait() => return Err(self.end.error()),
        };
        match answer {
            Ok(answer) => answer.map_err(|error| self.explain(wish, what, &error)),
            Err(_) => {
                // Whatever it is that stands there, it is no broker to work with.
                self.end.because(format!("no answer to {what} within {} s", ANSWER_TIMEOUT.as_secs()));
                Err(self.end.error())
            }
        }
    }

    fn explain(&self, wish: Wish, what: &str, error: &lapin::Error) -> TransportError {
        if let Some(denied) = failure::denied(self.end.transport(), wish, error) {
            return denied;
        }
        let reason = failure::reason(error);
        if failure::of_the_connection(error) {
            self.end.because(&*reason); // whoever asked may be the first to notice
        }
        let hint = match failure::code(error) {
            Some(NOT_FOUND) => {
                " (hint: it was never made, as `gristmill setup` does, or somebody deleted it)"
            }
            _ => "",
        };
        self.end.check().err().unwrap_or_else(|| self.end.disconnected(&format!("{what}: {reason}{hint}")))
    }

    /// One more connection, which does not belong to the generation but shares its runtime.
    pub(crate) async fn connect_again(
        &self,
        config: &AmqpConfig,
        purpose: &str,
    ) -> lapin::Result<Connection> {
        match self.runtime.spawn(connecting(config, self.number, purpose)).await {
            Ok(connected) => connected,
            Err(panic) => Err(io::Error::other(format!("lapin failed: {panic}")).into()),
        }
    }

    /// Ends the generation: what was settled is handed on, then the connections close.
    pub(crate) async fn close(&self) {
        self.end.because("it was closed at this end");
        say_goodbye(&self.tasks, &self.connections).await;
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.end.because("it was dropped at this end");
        let (tasks, connections) = (self.tasks.clone(), self.connections.clone());
        self.runtime.end_after(async move { say_goodbye(&tasks, &connections).await });
    }
}

/// Connections that are being made, and the runtime on which they live, with all of lapin's own tasks.
///
/// If it is given up, the runtime stays until lapin has noticed: its threads do not bear to lose their tasks.
struct Attempt {
    runtime: Option<OwnRuntime>,
    tasks: TaskTracker,
    given_up: CancellationToken,
}

impl Attempt {
    fn start() -> std::io::Result<Self> {
        let runtime = Some(OwnRuntime::start(THREADS)?);
        Ok(Self { runtime, tasks: TaskTracker::new(), given_up: CancellationToken::new() })
    }

    async fn connect(
        &self,
        config: &AmqpConfig,
        number: u64,
        purpose: &str,
    ) -> Result<lapin::Result<Connection>, JoinError> {
        let given_up = self.given_up.clone();
        let connecting = connecting(config, number, purpose);
        let connecting = self.tasks.track_future(async move {
            let connected = connecting.await;
            if let (true, Ok(connection)) = (given_up.is_cancelled(), &connected) {
                let _ = connection.close(200, "too late".into()).await; // it fails if it is gone, which is the aim
            }
            connected
        });
        self.runtime.as_ref().expect("only its end takes it").spawn(connecting).await
    }

    fn succeeded(mut self) -> OwnRuntime {
        self.runtime.take().expect("only its end takes it")
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(mut runtime) = self.runtime.take() else { return };
        self.given_up.cancel();
        self.tasks.close();
        let tasks = self.tasks.clone();
        runtime.end_after(async move { drop(timeout(GIVEN_UP_TIMEOUT, tasks.wait()).await) });
    }
}

fn connecting(
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

async fn say_goodbye(tasks: &TaskTracker, Connections { publishing, consuming }: &Connections) {
    tasks.close();
    let goodbye = async {
        tasks.wait().await;
        // They fail if the connection is gone already, which is the aim.
        let _ = futures::join!(publishing.close(200, "closed".into()), consuming.close(200, "closed".into()));
    };
    if timeout(CLOSE_TIMEOUT, goodbye).await.is_err() {
        tracing::debug!("the broker did not answer the goodbye");
    }
}

/// Reports what the broker says about a connection, and ends the generation when the connection goes.
async fn observe(connection: Arc<Connection>, end: End, blocked: watch::Sender<Option<String>>) {
    let mut events = pin!(connection.events_listener());
    // An event is sent only to those who listen already.
    if !connection.status().connected() {
        end.because("the broker hung up");
    }
    loop {
        let event = tokio::select! {
            () = end.wait() => return,
            event = events.next() => event,
        };
        match event {
            Some(Event::ConnectionBlocked(why)) => {
                tracing::warn!(
                    "broker blocked: {why}; nothing is lost, publishing to {} goes on when it recovers",
                    end.transport()
                );
                blocked.send_replace(Some(why.to_string()));
            }
            Some(Event::ConnectionUnblocked) => {
                tracing::info!("{} takes messages again", end.transport());
                blocked.send_replace(None);
            }
            // A channel's error comes here too, and ends only that channel.
            Some(Event::Error(error)) if !connection.status().connected() => {
                end.because(failure::reason(&error));
            }
            Some(_) => {}
            None => end.because("the connection is closed"),
        }
    }
}

/// Publishes something that nobody hears, now and then: a broker that takes no messages says so only to those who try.
async fn probe(connection: Arc<Connection>, end: End) {
    let mut channel = None;
    let mut pause = PROBE_EVERY;
    let trying = async {
        loop {
            sleep(pause).await;
            if connection.status().blocked() {
                continue;
            }
            if let Some(old) = channel.take_if(|channel: &mut lapin::Channel| !channel.status().connected()) {
                drop(old); // there is no such exchange yet, or it is not ours to publish to
                pause = (pause * 2).min(PROBE_SELDOM);
            }
            let own = match channel.take() {
                Some(own) => own,
                None => match connection.create_channel().await {
                    Ok(own) => own,
                    Err(_) => continue, // whoever has something to say learns why
                },
            };
            let own = channel.insert(own);
            let (exchange, key) = (EVENTS.into(), PROBE_KEY.into());
            let _ = own.basic_publish(exchange, key, Default::default(), &[], Default::default()).await;
        }
    };
    tokio::select! {
        () = end.wait() => {}
        () = trying => {}
    }
}
