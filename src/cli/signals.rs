//! SIGINT and SIGTERM: the first asks a program to leave in order, the second makes it leave at once.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// How often a signal has come.
#[derive(Debug, Clone)]
pub(crate) struct Signals(watch::Receiver<u32>);

impl Signals {
    /// Listens from now on. Only inside a runtime.
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
    pub(crate) async fn first(&self) {
        self.count(1).await;
    }

    /// Waits for the second signal.
    pub(crate) async fn second(&self) {
        self.count(2).await;
    }

    async fn count(&self, wanted: u32) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|count| *count >= wanted).await.is_err() {
            // Nobody listens to signals any more; none will come.
            std::future::pending::<()>().await;
        }
    }
}
