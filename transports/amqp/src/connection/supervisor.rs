//! Sees to it that there is a generation: when one is lost, it builds the next.

use std::{sync::Arc, time::Duration};

use gristmill_shared::{Health, TransportError};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    connection::generation::{Failure, Generation},
    connection::handle::Line,
    connection::backoff::{Pauses, STEADY},
};

/// For how long it is tried in vain to connect again before that is told, and how often it is told then.
const TELL_AFTER: Duration = Duration::from_secs(10);
const TELL_EVERY: Duration = Duration::from_secs(60);

pub(crate) struct Supervisor {
    line: Line,
    current: watch::Sender<Option<Arc<Generation>>>,
    /// How many generations were begun.
    begun: u64,
    pauses: Pauses,
}

/// Why an attempt did not end in a generation.
enum Trouble {
    /// Nobody answers, or not well.
    Passing(String),
    /// The broker does not let us. Somebody may mend that.
    Refused(String),
    /// What is there is not what we need, and to wait does not help.
    Lasting(TransportError),
}

impl Supervisor {
    pub(crate) fn new(line: Line, current: watch::Sender<Option<Arc<Generation>>>) -> Self {
        Self { line, current, begun: 1, pauses: Pauses::new() }
    }

    /// Runs until the end for good, which it brings about itself if there can be no further generation.
    pub(crate) async fn run(mut self) {
        let end = self.line.end.clone();
        tokio::select! {
            biased;
            () = end.wait() => {}
            why = self.replace_what_is_lost() => {
                tracing::error!("{}: {why}; it is given up", self.line.config);
                end.because(why);
            }
        }
        self.line.health().send_replace(Health::Closed);
        let last = self.current.send_replace(None);
        if let Some(last) = last {
            last.close().await;
        }
    }

    /// Why there can be no further generation.
    async fn replace_what_is_lost(&mut self) -> String {
        loop {
            let Some(generation) = self.current.borrow().clone() else {
                return "there is no connection".into();
            };
            let since = Instant::now();
            self.watch_over(&generation).await;
            if since.elapsed() >= STEADY {
                self.pauses = Pauses::new();
            }
            tracing::warn!(
                "lost the connection to {}: {}; connecting again",
                self.line.config,
                generation.end.reason()
            );
            self.line.health().send_replace(Health::Away(generation.end.reason().into()));
            self.current.send_replace(None);
            // What of it still works says goodbye: acks get through, and the broker gives the rest to others.
            tokio::spawn(async move { generation.close().await });
            match self.next().await {
                Ok(generation) => {
                    self.current.send_replace(Some(generation));
                }
                Err(why) => return why,
            }
        }
    }

    /// Says how the generation is, until it is over.
    async fn watch_over(&self, generation: &Generation) {
        let mut blocked = generation.blocked.subscribe();
        let mut interruptions = self.line.interruptions.subscribe();
        loop {
            interruptions.mark_unchanged();
            let interrupted = self.line.interruptions.of(generation.number);
            let health = match (blocked.borrow_and_update().clone(), interrupted) {
                (Some(why), _) => Health::Blocked(why),
                (None, Some(why)) => Health::Interrupted(why),
                (None, None) => Health::Well,
            };
            self.line.health().send_if_modified(|old| {
                let is_news = *old != health;
                *old = health;
                is_news
            });
            tokio::select! {
                biased;
                () = generation.end.wait() => return,
                changed = blocked.changed() => if changed.is_err() { return generation.end.wait().await },
                changed = interruptions.changed() => if changed.is_err() { return generation.end.wait().await },
            }
        }
    }

    async fn next(&mut self) -> Result<Arc<Generation>, String> {
        let start = Instant::now();
        let mut tell = start + TELL_AFTER;
        let mut tries: u32 = 0;
        let mut refused = false;
        let mut reason = String::from("not tried");
        loop {
            let pause = self.pauses.next();
            let left = self.line.config.give_up_after_loss.map(|limit| limit.saturating_sub(start.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                let seconds = start.elapsed().as_secs_f64();
                return Err(format!("not back after {tries} tries in {seconds:.1} s: {reason}"));
            }
            sleep(left.map_or(pause, |left| pause.min(left))).await;
            tries += 1;
            reason = match self.attempt().await {
                Ok(generation) => {
                    let seconds = start.elapsed().as_secs_f64();
                    let transport = &self.line.config;
                    tracing::info!("connected to {transport} again after {seconds:.1} s, tries: {tries}");
                    return Ok(generation);
                }
                Err(Trouble::Lasting(error)) => return Err(error.to_string()),
                Err(Trouble::Refused(reason)) => {
                    if !refused {
                        tracing::warn!("{reason}; trying again until somebody mends it");
                    }
                    refused = true;
                    reason
                }
                Err(Trouble::Passing(reason)) => reason,
            };
            let transport = &self.line.config;
            if Instant::now() < tell {
                tracing::debug!(tries, "cannot connect to {transport} again yet: {reason}");
            } else {
                let seconds = start.elapsed().as_secs();
                tracing::warn!(
                    "cannot connect to {transport} again yet, {tries} tries in {seconds} s: {reason}; trying on"
                );
                tell = Instant::now() + TELL_EVERY;
            }
        }
    }

    /// Tries once. A generation in which the lanes that were opened are missing would be of no use.
    async fn attempt(&mut self) -> Result<Arc<Generation>, Trouble> {
        let Line { config, .. } = &self.line;
        self.begun += 1;
        let connected = Generation::connect(config, self.begun, config.attempt_timeout()).await;
        let generation = connected.map_err(|failure| match failure {
            Failure::Unreachable(reason) => Trouble::Passing(reason),
            Failure::Final(error) => Trouble::Refused(error.to_string()),
        })?;
        let declared = tokio::select! {
            biased;
            () = generation.end.wait() => Err(generation.end.error()),
            declared = self.line.declare(&generation) => declared,
        };
        match declared {
            Ok(()) => Ok(Arc::new(generation)),
            Err(error @ (TransportError::Denied { .. } | TransportError::Forbidden { .. })) => {
                Err(Trouble::Refused(error.to_string()))
            }
            Err(error) if error.is_retryable() => Err(Trouble::Passing(error.to_string())),
            Err(error) => Err(Trouble::Lasting(error)),
        }
    }
}
