//! SIGINT and SIGTERM: the first shuts a program down gracefully, the second immediately.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// The number of signals that have arrived.
#[derive(Debug, Clone)]
pub(crate) struct Signals(watch::Receiver<u32>);

impl Signals {
    /// Starts to listen for signals. Must be called inside a runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (sender, receiver) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let came = tokio::select! {
                    came = interrupt.recv() => came,
                    came = terminate.recv() => came,
                };
                if came.is_none() {
                    return;
                }
                sender.send_modify(|count| *count += 1);
            }
        });
        Ok(Self(receiver))
    }

    /// Waits for the first signal.
    pub(crate) async fn wait_first(&self) {
        self.wait_count(1).await;
    }

    /// Waits for the second signal.
    pub(crate) async fn wait_second(&self) {
        self.wait_count(2).await;
    }

    async fn wait_count(&self, wanted: u32) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|count| *count >= wanted).await.is_err() {
            // The listener has ended; no more signals will arrive.
            std::future::pending::<()>().await;
        }
    }
}
