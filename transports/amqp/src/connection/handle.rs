//! The connection that survives a loss: the current generation, or the next one.

use std::{
    ops::Deref,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use gristmill_shared::Health;
use tokio::{sync::watch, time::timeout};
use tokio_util::task::TaskTracker;

use super::{
    current::CurrentConnection, degraded::Degradations, generation::Generation, runtime::DedicatedRuntime,
    supervisor::Supervisor, termination::Termination,
};
use crate::config::AmqpConfig;

/// Threads of the supervisor, which outlives each generation.
const SUPERVISOR_THREADS: usize = 1;
/// Time limit for the last generation to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The owner of the connections, shared by all users of a transport. The connections close when the
/// last owner is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionHandle {
    connection: CurrentConnection,
    tasks: TaskTracker,
    runtime: DedicatedRuntime,
}

impl ConnectionHandle {
    pub(crate) fn start(config: AmqpConfig, first: Generation) -> std::io::Result<Self> {
        let health = watch::Sender::new(Health::Ready);
        let runtime = DedicatedRuntime::start(SUPERVISOR_THREADS)?;
        let end = Termination::new(&config.to_string());
        let (current, generations) = watch::channel(Some(Arc::new(first)));
        let connection = CurrentConnection {
            config: Arc::new(config),
            end,
            generations,
            health,
            lanes: Arc::default(),
            may_declare: Arc::new(AtomicBool::new(true)),
            journal_outage_logged: Arc::default(),
            degradations: Degradations::default(),
        };
        let handle = Self { connection: connection.clone(), tasks: TaskTracker::new(), runtime };
        handle.spawn(Supervisor::new(connection, current).run());
        Ok(handle)
    }

    /// Runs a task beside the generations. It must end when the handle does, and must not own it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, self.runtime.handle());
    }

    /// Terminates for good: sends the pending acks, then closes the connections.
    pub(crate) async fn close(&self) {
        self.end.terminate("it was closed at this end");
        wait_for_tasks(&self.tasks).await;
    }
}

async fn wait_for_tasks(tasks: &TaskTracker) {
    tasks.close();
    if timeout(CLOSE_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::debug!("the connections did not close in time");
    }
}

impl Deref for ConnectionHandle {
    type Target = CurrentConnection;

    fn deref(&self) -> &CurrentConnection {
        &self.connection
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        self.end.terminate("it was dropped at this end");
        let tasks = self.tasks.clone();
        self.runtime.shut_down_after(async move { wait_for_tasks(&tasks).await });
    }
}
