//! Gristmill divides one big job over a fleet and counts every task exactly once, whatever dies.
//!
//! Write one [`Job`](prelude::Job), give it to an [`App`], and the program that comes out has every role: producer,
//! worker, sink, and `run`, which is all of them in one process.
//!
//! ```no_run
//! # use gristmill::prelude::*;
//! # #[derive(serde::Serialize, serde::Deserialize, clap::Args)]
//! # struct Primes {}
//! # impl Job for Primes {
//! #     const KIND: &'static str = "my-primes";
//! #     type Task = (); type Output = (); type Report = ();
//! #     fn split(&self) -> impl Iterator<Item = Result<(), JobError>> + Send { std::iter::empty() }
//! #     fn process(&self, _: (), _: &TaskContext) -> Result<(), TaskError> { Ok(()) }
//! #     fn collect(&self, _: &mut (), _: TaskIndex, _: ()) -> ControlFlow<()> { ControlFlow::Continue(()) }
//! # }
//! fn main() -> std::process::ExitCode {
//!     gristmill::App::new().job::<Primes>().main()
//! }
//! ```
//!
//! A job's own tests need no broker: [`testing::run_local`] delivers every task several times, in any order, and the
//! report must not change.
//!
//! # Jobs from a process that stays
//!
//! A service that submits many jobs connects once and keeps one producer: lanes, and the reader of the journal, are opened for the
//! first job and shared by all that follow, so that a small job is on its way to a worker after one round to the broker.
//!
//! ```
//! use std::sync::Arc;
//! use gristmill::prelude::*;
//! use gristmill_producer::{Producer, SubmitOptions};
//! use gristmill_shared::{Transport, erase, memory::MemoryTransport};
//! # use gristmill_shared::{Lane, Registry, WorkerId};
//! # use gristmill_sink::{LedgerPlace, Sink, SinkConfig};
//! # use gristmill_worker::Worker;
//! # #[derive(serde::Serialize, serde::Deserialize)] struct Square(u64);
//! # impl Job for Square {
//! #     const KIND: &'static str = "square";
//! #     type Task = u64; type Output = u64; type Report = u64;
//! #     fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send { std::iter::once(Ok(self.0)) }
//! #     fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> { Ok(task * task) }
//! #     fn collect(&self, report: &mut u64, _: TaskIndex, output: u64) -> ControlFlow<()> {
//! #         *report = output;
//! #         ControlFlow::Continue(())
//! #     }
//! # }
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport: Arc<dyn Transport> = MemoryTransport::new(); // or that of gristmill::connect
//! # let mut registry = Registry::default();
//! # registry.register::<Square>()?;
//! # let (app, lane): (WorkerId, _) = ("service".parse()?, Lane::default());
//! # let worker = Worker::new(registry.clone(), app.clone());
//! # tokio::spawn(worker.run_until(Arc::clone(&transport), std::future::pending()));
//! # let ledger = LedgerPlace::Memory;
//! # let sink = Sink::open(SinkConfig { registry, lane, ledger, adopt: false, app, stall_after: None })?;
//! # tokio::spawn(sink.run_until(Arc::clone(&transport), std::future::pending()));
//! let producer = Producer::new(transport, "service");
//! for number in 1..=3 {
//!     let (job, mut watch) = producer.open_watched(erase(Square(number)), SubmitOptions::default()).await?;
//!     let send = async { job.send().await.map_err(Box::<dyn std::error::Error>::from) };
//!     let end = async { Ok(watch.finished().await?) };
//!     let (_, finished) = futures::try_join!(send, end)?;
//!     assert_eq!(finished.conclusion.text, (number * number).to_string());
//! }
//! # Ok(()) }
//! ```

mod app;
mod cli;
mod connect;
mod drill;
mod exit;
mod observe;
#[cfg(feature = "otlp")]
mod otlp;
pub mod testing;

pub use app::{App, Role};
pub use connect::connect;
pub use exit::Exit;

/// What a job is written with.
pub mod prelude {
    pub use std::ops::ControlFlow;

    pub use gristmill_process::{Command, CommandOutput, RunCommand};
    pub use gristmill_shared::{
        Account, Conclusion, Job, JobError, Keep, Plan, TaskContext, TaskError, TaskIndex,
    };
}
