//! Waits for the journal, which may be away while all else works.
//!
//! RabbitMQ keeps its list of streams apart from its streams, and may lose one of them: then a stream is there by name,
//! but nobody has it. Whoever publishes to it gets no answer, or the letter back; whoever reads it loses the connection.
//! So those who need the journal look first, each time, on a connection of their own, and all others go on.

use std::{sync::atomic::Ordering, time::Duration};

use gristmill_shared::{Lane, TransportError};
use tokio::time::{Instant, sleep};

use crate::{
    connection::generation::Generation,
    connection::handle::Line,
    connection::backoff::Pauses,
    topology::{self, JOURNAL},
    topology::declare_connection::Visit,
};

/// For how long the journal is waited for before somebody is told what to do about it.
const PATIENCE: Duration = Duration::from_secs(30);
/// What RabbitMQ says of a queue that is in its books and runs nowhere.
const KNOWN_BUT_ABSENT: &str = "NOT_FOUND - home node";

impl Line {
    /// Declares what is missing of a lane and of the journal, and sees whether that can be read.
    pub(crate) async fn open_lane(&self, generation: &Generation, lane: &Lane) -> Result<(), TransportError> {
        let mut visit = Visit::begin(generation, &self.config, &self.declares).await?;
        let opened = match topology::open_lane(&mut visit, lane).await {
            Ok(()) => topology::open_journal(&mut visit).await,
            refused => refused,
        };
        visit.end().await;
        opened.map_err(|error| with_remedy(error, self.config.vhost()))
    }

    /// Declares the journal if it is missing, and sees whether it can be read.
    pub(crate) async fn open_journal(&self, generation: &Generation) -> Result<(), TransportError> {
        let mut visit = Visit::begin(generation, &self.config, &self.declares).await?;
        let opened = topology::open_journal(&mut visit).await;
        visit.end().await;
        opened.map_err(|error| with_remedy(error, self.config.vhost()))
    }

    /// Waits until the journal can be read.
    ///
    /// # Errors
    /// If the generation is over, or the broker has another journal or does not let us.
    pub(crate) async fn journal_ready(&self, generation: &Generation) -> Result<(), TransportError> {
        let start = Instant::now();
        let mut pauses = Pauses::new();
        loop {
            let opened = tokio::select! {
                biased;
                () = generation.end.wait() => Err(generation.end.error()),
                opened = self.open_journal(generation) => opened,
            };
            generation.end.check()?;
            let error = match opened {
                Ok(()) => break,
                Err(error) if error.is_retryable() => error,
                Err(error) => return Err(error),
            };
            tracing::debug!("no journal yet: {error}");
            if start.elapsed() >= PATIENCE && !self.journal_missed.swap(true, Ordering::Relaxed) {
                let seconds = start.elapsed().as_secs();
                tracing::warn!("no journal for {seconds} s, all else goes on: {error}");
            }
            tokio::select! {
                biased;
                () = generation.end.wait() => {}
                () = sleep(pauses.next()) => {}
            }
        }
        if self.journal_missed.swap(false, Ordering::Relaxed) {
            tracing::info!("{} has its journal again", self.config);
        }
        Ok(())
    }
}

fn with_remedy(error: TransportError, vhost: &str) -> TransportError {
    match error {
        TransportError::Disconnected { transport, reason } => {
            let reason = match remedy(&reason, vhost) {
                Some(remedy) => format!("{reason} (hint: {remedy})"),
                None => reason,
            };
            TransportError::Disconnected { transport, reason }
        }
        error => error,
    }
}

/// What an operator can do where the broker knows the journal and does not have it. It then takes up what is on its
/// disk, so nothing is lost. A client cannot do it: it may neither declare nor delete such a queue.
pub(crate) fn remedy(reason: &str, vhost: &str) -> Option<String> {
    if !(reason.contains(KNOWN_BUT_ABSENT) && reason.contains(JOURNAL)) {
        return None;
    }
    // It is for a shell.
    let plain = vhost.chars().all(|char| char.is_alphanumeric() || "/-_.".contains(char));
    let vhost = if plain { vhost } else { "VHOST" };
    let command = format!(
        "[Q] = mnesia:dirty_read(rabbit_durable_queue, rabbit_misc:r(<<\"{vhost}\">>, queue, <<\"{JOURNAL}\">>)), \
         rabbit_stream_coordinator:new_stream(Q, node())."
    );
    Some(format!("if all its nodes are up, `rabbitmqctl eval '{command}'`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(reason: &str, vhost: &str) -> String {
        let error = TransportError::Disconnected { transport: "amqp://here".into(), reason: reason.into() };
        with_remedy(error, vhost).to_string()
    }

    #[test]
    fn a_journal_that_is_known_but_absent_comes_with_its_remedy() {
        let reason = "the queue gristmill.journal: NOT_FOUND - home node 'rabbit@here' of durable queue \
                      'gristmill.journal' in vhost '/' is down or inaccessible";
        let told_of = told(reason, "/");
        assert!(told_of.contains(r#"rabbitmqctl eval '[Q] = "#), "{told_of}");
        assert!(told_of.contains(r#"rabbit_misc:r(<<"/">>, queue, <<"gristmill.journal">>)"#), "{told_of}");
        assert!(told(reason, "a'b").contains(r#"<<"VHOST">>"#), "it would end the quotes");
        assert!(!told("a reader of gristmill.journal: INTERNAL_ERROR", "/").contains("hint"));
    }
}
