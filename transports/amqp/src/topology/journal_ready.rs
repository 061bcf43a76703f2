//! Waiting for the journal, which may be unavailable while all else works.
//!
//! RabbitMQ keeps its list of streams apart from the streams, and may lose one of them: the stream
//! then exists by name only. Publishers to it get no confirm, or the message back; readers lose
//! their connection. Therefore users of the journal check it first, each time, on a connection of
//! their own, and all other work continues.

use std::{sync::atomic::Ordering, time::Duration};

use gristmill_shared::{Lane, TransportError};
use tokio::time::{Instant, sleep};

use super::{
    declare_connection::DeclareSession,
    entities::{self, JOURNAL_QUEUE},
};
use crate::connection::{CurrentConnection, Generation, ReconnectBackoff};

/// Time without the journal before a warning with a hint is logged.
const JOURNAL_LOG_DELAY: Duration = Duration::from_secs(30);
/// RabbitMQ's error for a queue that is declared and runs on no node.
const HOME_NODE_ERROR: &str = "NOT_FOUND - home node";

impl CurrentConnection {
    /// Declares the missing entities of a lane and the journal, and checks that the journal can be
    /// read.
    pub(crate) async fn open_lane(&self, generation: &Generation, lane: &Lane) -> Result<(), TransportError> {
        let mut session = DeclareSession::open(generation, &self.config, &self.may_declare).await?;
        let opened = match entities::open_lane(&mut session, lane).await {
            Ok(()) => entities::open_journal(&mut session).await,
            refused => refused,
        };
        session.close().await;
        opened.map_err(|error| add_repair_hint(error, self.config.vhost()))
    }

    /// Declares the journal if it is missing, and checks that it can be read.
    pub(crate) async fn open_journal(&self, generation: &Generation) -> Result<(), TransportError> {
        let mut session = DeclareSession::open(generation, &self.config, &self.may_declare).await?;
        let opened = entities::open_journal(&mut session).await;
        session.close().await;
        opened.map_err(|error| add_repair_hint(error, self.config.vhost()))
    }

    /// Waits until the journal can be read.
    ///
    /// # Errors
    /// The generation is terminated, the broker has a different journal, or it denies access.
    pub(crate) async fn wait_for_journal(&self, generation: &Generation) -> Result<(), TransportError> {
        let start = Instant::now();
        let mut backoff = ReconnectBackoff::new();
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
            if start.elapsed() >= JOURNAL_LOG_DELAY
                && !self.journal_outage_logged.swap(true, Ordering::Relaxed)
            {
                let seconds = start.elapsed().as_secs();
                tracing::warn!("no journal for {seconds} s, all else continues: {error}");
            }
            tokio::select! {
                biased;
                () = generation.end.wait() => {}
                () = sleep(backoff.next_delay()) => {}
            }
        }
        if self.journal_outage_logged.swap(false, Ordering::Relaxed) {
            tracing::info!("{} has its journal again", self.config);
        }
        Ok(())
    }
}

fn add_repair_hint(error: TransportError, vhost: &str) -> TransportError {
    match error {
        TransportError::Disconnected { transport, reason } => {
            let reason = match repair_hint(&reason, vhost) {
                Some(hint) => format!("{reason} (hint: {hint})"),
                None => reason,
            };
            TransportError::Disconnected { transport, reason }
        }
        error => error,
    }
}

/// Returns the operator's remedy for a journal that the broker knows and does not have. The broker
/// then restores it from disk, so nothing is lost. A client cannot do this: it may neither declare
/// nor delete such a queue.
pub(crate) fn repair_hint(reason: &str, vhost: &str) -> Option<String> {
    if !(reason.contains(HOME_NODE_ERROR) && reason.contains(JOURNAL_QUEUE)) {
        return None;
    }
    // The command is for a shell.
    let plain = vhost.chars().all(|char| char.is_alphanumeric() || "/-_.".contains(char));
    let vhost = if plain { vhost } else { "VHOST" };
    let command = format!(
        "[Q] = mnesia:dirty_read(rabbit_durable_queue, rabbit_misc:r(<<\"{vhost}\">>, queue, <<\"{JOURNAL_QUEUE}\">>)), \
         rabbit_stream_coordinator:new_stream(Q, node())."
    );
    Some(format!("if all its nodes are up, `rabbitmqctl eval '{command}'`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(reason: &str, vhost: &str) -> String {
        let error = TransportError::Disconnected { transport: "amqp://here".into(), reason: reason.into() };
        add_repair_hint(error, vhost).to_string()
    }

    #[test]
    fn absent_journal_gets_repair_hint() {
        let reason = "the queue gristmill.journal: NOT_FOUND - home node 'rabbit@here' of durable queue \
                      'gristmill.journal' in vhost '/' is down or inaccessible";
        let explained = explain(reason, "/");
        assert!(explained.contains(r#"rabbitmqctl eval '[Q] = "#), "{explained}");
        assert!(
            explained.contains(r#"rabbit_misc:r(<<"/">>, queue, <<"gristmill.journal">>)"#),
            "{explained}"
        );
        assert!(explain(reason, "a'b").contains(r#"<<"VHOST">>"#), "it would end the quotes");
        assert!(!explain("a reader of gristmill.journal: INTERNAL_ERROR", "/").contains("hint"));
    }
}
