//! Threads of our own.

use std::{future::Future, mem};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
};

/// A runtime that may be dropped anywhere, also on a thread that runs async code: it does not wait for its threads.
#[derive(Debug)]
pub(crate) struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("gristmill-amqp")
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.0.as_ref().map(Runtime::handle).expect("only the drop of its owner takes it")
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.handle().spawn(task)
    }

    /// Runs what its owner has to do last, and then ends. For the owner's drop.
    pub(crate) fn end_after(&mut self, last: impl Future<Output = ()> + Send + 'static) {
        let runtime = Self(mem::take(&mut self.0));
        let handle = runtime.handle().clone();
        handle.spawn(async move {
            last.await;
            drop(runtime); // from one of its own threads, which is allowed: it does not wait for them
        });
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
