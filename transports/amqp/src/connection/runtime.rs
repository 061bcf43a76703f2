//! Threads that belong to the transport.

use std::{future::Future, mem};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
};

/// A runtime that may be dropped on any thread, even one that runs async code, because it does not
/// wait for its own threads.
#[derive(Debug)]
pub(crate) struct DedicatedRuntime(Option<Runtime>);

impl DedicatedRuntime {
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("gristmill-amqp")
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.0.as_ref().map(Runtime::handle).expect("only dropping its owner takes it")
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.handle().spawn(task)
    }

    /// Runs the last task of its owner, then shuts down. Called when the owner is dropped.
    pub(crate) fn shut_down_after(&mut self, last: impl Future<Output = ()> + Send + 'static) {
        let runtime = Self(mem::take(&mut self.0));
        let handle = runtime.handle().clone();
        handle.spawn(async move {
            last.await;
            drop(runtime); // on one of its own threads, which is safe: it does not wait for them
        });
    }
}

impl Drop for DedicatedRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
