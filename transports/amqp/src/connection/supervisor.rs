//! The supervisor of the generations: when one is lost, it builds the next.

use std::{sync::Arc, time::Duration};

use gristmill_shared::{Health, LogLimiter, LogRule, TransportError};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    current::CurrentConnection,
    generation::{ConnectError, Generation},
    reconnect_backoff::ReconnectBackoff,
};

/// Delay before failed attempts to reconnect are logged as a warning, and the interval after that.
const RECONNECT_LOG_DELAY: Duration = Duration::from_secs(10);
const RECONNECT_LOG_INTERVAL: Duration = Duration::from_secs(60);

pub(crate) struct Supervisor {
    connection: CurrentConnection,
    current: watch::Sender<Option<Arc<Generation>>>,
    /// Number of generations started so far.
    generation_count: u64,
    backoff: ReconnectBackoff,
}

/// Reason why an attempt did not produce a generation.
enum ReconnectError {
    /// The broker does not answer, or answers with an error that may pass.
    Transient(String),
    /// The broker refuses access, which an operator may correct.
    AccessDenied(String),
    /// The broker's entities do not match, which waiting does not change.
    Fatal(TransportError),
}

impl Supervisor {
    pub(crate) fn new(
        connection: CurrentConnection,
        current: watch::Sender<Option<Arc<Generation>>>,
    ) -> Self {
        Self { connection, current, generation_count: 1, backoff: ReconnectBackoff::new() }
    }

    /// Runs until the final termination, which it causes itself if there can be no further
    /// generation.
    pub(crate) async fn run(mut self) {
        let end = self.connection.end.clone();
        tokio::select! {
            biased;
            () = end.wait() => {}
            why = self.replace_lost_generations() => {
                tracing::error!("{}: {why}; giving up", self.connection.config);
                end.terminate(why);
            }
        }
        self.connection.health().send_replace(Health::Closed);
        let last = self.current.send_replace(None);
        if let Some(last) = last {
            last.close().await;
        }
    }

    /// Replaces each lost generation. Returns the reason why there can be no further one.
    async fn replace_lost_generations(&mut self) -> String {
        loop {
            let Some(generation) = self.current.borrow().clone() else {
                return "there is no connection".into();
            };
            let since = Instant::now();
            self.report_health(&generation).await;
            self.backoff.reset_after(since.elapsed());
            tracing::warn!(
                "lost the connection to {}: {}; connecting again",
                self.connection.config,
                generation.end.reason()
            );
            self.connection.health().send_replace(Health::Reconnecting(generation.end.reason().into()));
            self.current.send_replace(None);
            // A connection that still works is closed properly: acks get through, and the broker
            // requeues the rest.
            tokio::spawn(async move { generation.close().await });
            match self.reconnect().await {
                Ok(generation) => {
                    self.current.send_replace(Some(generation));
                }
                Err(why) => return why,
            }
        }
    }

    /// Publishes the health of a generation until it is terminated.
    async fn report_health(&self, generation: &Generation) {
        let mut blocked = generation.blocked.subscribe();
        let mut degradations = self.connection.degradations.subscribe();
        loop {
            degradations.mark_unchanged();
            let interrupted = self.connection.degradations.reason_in(generation.number);
            let health = match (blocked.borrow_and_update().clone(), interrupted) {
                (Some(why), _) => Health::Blocked(why),
                (None, Some(why)) => Health::Degraded(why),
                (None, None) => Health::Ready,
            };
            self.connection.health().send_if_modified(|old| {
                let is_news = *old != health;
                *old = health;
                is_news
            });
            tokio::select! {
                biased;
                () = generation.end.wait() => return,
                changed = blocked.changed() => if changed.is_err() { return generation.end.wait().await },
                changed = degradations.changed() => if changed.is_err() { return generation.end.wait().await },
            }
        }
    }

    async fn reconnect(&mut self) -> Result<Arc<Generation>, String> {
        let start = Instant::now();
        let mut log_limiter = LogLimiter::new(LogRule::Interval(RECONNECT_LOG_INTERVAL), 1);
        let mut tries: u32 = 0;
        let mut refused = false;
        let mut reason = String::from("not tried");
        loop {
            let pause = self.backoff.next_delay();
            let left =
                self.connection.config.give_up_after_loss.map(|limit| limit.saturating_sub(start.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                let seconds = start.elapsed().as_secs_f64();
                return Err(format!("not back after {tries} tries in {seconds:.1} s: {reason}"));
            }
            sleep(left.map_or(pause, |left| pause.min(left))).await;
            tries += 1;
            reason = match self.try_connect().await {
                Ok(generation) => {
                    let seconds = start.elapsed().as_secs_f64();
                    let transport = &self.connection.config;
                    tracing::info!("connected to {transport} again after {seconds:.1} s, tries: {tries}");
                    return Ok(generation);
                }
                Err(ReconnectError::Fatal(error)) => return Err(error.to_string()),
                Err(ReconnectError::AccessDenied(reason)) => {
                    if !refused {
                        tracing::warn!("{reason}; retrying until it is corrected");
                    }
                    refused = true;
                    reason
                }
                Err(ReconnectError::Transient(reason)) => reason,
            };
            let transport = &self.connection.config;
            if start.elapsed() >= RECONNECT_LOG_DELAY && log_limiter.should_log(()) {
                let seconds = start.elapsed().as_secs();
                tracing::warn!(
                    "cannot connect to {transport} again yet, {tries} tries in {seconds} s: {reason}; still trying"
                );
            } else {
                tracing::debug!(tries, "cannot connect to {transport} again yet: {reason}");
            }
        }
    }

    /// Attempts once, and declares the opened lanes. A generation without them would be of no use.
    async fn try_connect(&mut self) -> Result<Arc<Generation>, ReconnectError> {
        let CurrentConnection { config, .. } = &self.connection;
        self.generation_count += 1;
        let connected = Generation::connect(config, self.generation_count, config.attempt_timeout()).await;
        let generation = connected.map_err(|failure| match failure {
            ConnectError::Unreachable(reason) => ReconnectError::Transient(reason),
            ConnectError::Fatal(error) => ReconnectError::AccessDenied(error.to_string()),
        })?;
        let declared = tokio::select! {
            biased;
            () = generation.end.wait() => Err(generation.end.error()),
            declared = self.connection.redeclare_lanes(&generation) => declared,
        };
        match declared {
            Ok(()) => Ok(Arc::new(generation)),
            Err(
                error @ (TransportError::AuthenticationFailed { .. }
                | TransportError::PermissionDenied { .. }),
            ) => Err(ReconnectError::AccessDenied(error.to_string())),
            Err(error) if error.is_retryable() => Err(ReconnectError::Transient(error.to_string())),
            Err(error) => Err(ReconnectError::Fatal(error)),
        }
    }
}
