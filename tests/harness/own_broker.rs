//! A broker of a test's own, which may be killed, paused or starved.

use std::sync::{Arc, Mutex};

use gristmill::testing::{LocalBroker, LocalBrokerError};

/// A [`LocalBroker`] in async code; its methods block, so each call has a thread of its own.
#[derive(Clone)]
pub(crate) struct OwnBroker(Arc<Mutex<LocalBroker>>);

impl OwnBroker {
    pub(crate) async fn start() -> Self {
        Self::start_with(LocalBroker::start).await
    }

    pub(crate) async fn start_with(
        start: impl FnOnce() -> Result<LocalBroker, LocalBrokerError> + Send + 'static,
    ) -> Self {
        let broker = tokio::task::spawn_blocking(|| start().unwrap()).await.unwrap();
        Self(Arc::new(Mutex::new(broker)))
    }

    /// Calls `act` with the broker, on a thread of its own.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut LocalBroker) -> T + Send + 'static,
    ) -> T {
        let broker = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || act(&mut broker.lock().unwrap())).await.unwrap()
    }

    /// Returns the output of `rabbitmqctl`.
    pub(crate) async fn ctl(&self, words: &str) -> String {
        let words: Vec<String> = words.split(' ').map(Into::into).collect();
        self.with(move |broker| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            broker.ctl(&words).unwrap()
        })
        .await
    }

    /// Writes the broker's directory of queues and streams to its disk, which the broker does by
    /// itself half a second after they were declared. A broker that is killed before may forget
    /// them (docs/reliability.md).
    pub(crate) async fn sync_directory(&self) {
        for system in ["quorum_queues", "coordination"] {
            let books = format!("#{{names := #{{directory_rev := Books}}}} = ra_system:fetch({system})");
            let sync = format!("{books}, ok = dets:sync(Books).");
            self.with(move |broker| broker.ctl(&["eval", &sync]).unwrap()).await;
        }
    }

    pub(crate) fn url(&self) -> String {
        self.0.lock().unwrap().url()
    }
}
