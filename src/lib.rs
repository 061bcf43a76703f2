//! Gristmill divides one big job over a fleet and counts every task exactly once, whatever crashes.
//!
//! Write one [`Job`](prelude::Job) and give it to an [`App`]: the resulting program has every role,
//! producer, worker and sink, and `run`, which is all of them in one process.
//!
//! ```no_run
//! # use gristmill::prelude::*;
//! # #[derive(serde::Serialize, serde::Deserialize, clap::Args)]
//! # struct Primes {}
//! # impl Job for Primes {
//! #     const KIND: &'static str = "my-primes";
//! #     type Task = (); type Output = (); type Report = ();
//! #     fn split(&self) -> impl Iterator<Item = Result<(), JobError>> + Send {
//! #         std::iter::empty()
//! #     }
//! #     fn process(&self, _: (), _: &TaskContext) -> Result<(), TaskError> { Ok(()) }
//! #     fn collect(&self, _: &mut (), _: TaskIndex, _: ()) -> ControlFlow<()> {
//! #         ControlFlow::Continue(())
//! #     }
//! # }
//! fn main() -> std::process::ExitCode {
//!     gristmill::App::new().job::<Primes>().main()
//! }
//! ```
//!
//! A job's own tests need no broker: [`testing::run_local`] delivers every task several times, in
//! any order, and the report must not change.
//!
//! # Jobs from code
//!
//! [`run`] runs a whole job in the calling process, like a call of rayon. [`Client`] submits jobs
//! over a broker, for a long-running service, which may be a worker and a sink as well. Both return
//! an [`Outcome`] with the typed report.
//!
//! # Transports
//!
//! The scheme of a URL finds its transport. [`App::transport`] and [`TransportRegistry::register`]
//! add further kinds of broker to the built-in ones.

mod app;
mod build_id;
mod cli;
mod exit;
mod ledger_store;
mod library;
mod program;
mod role;
pub mod testing;
mod transports;

pub use app::App;
pub use gristmill_ledger::{Ledger, LedgerError, LedgerLocation};
pub use gristmill_producer::{
    CancelOutcome, JobUpdate, JobWatcher, OutcomeError, Producer, ProducerError, Submission, SubmitOptions,
};
pub use gristmill_shared::fold;
pub use gristmill_shared::{
    ConnectOptions, Credentials, Exit, FailFast, Finding, FleetRole, JobId, JobOpener, Kind, Lane, NoAnswer,
    NoReport, Outcome, Policy, PolicyOverrides, RegisterDriverError, Registry, Severity, Shards, Transport,
    TransportDriver, TransportError, TransportRegistry, WorkerId, erase, memory::MemoryTransport,
};
pub use gristmill_sink::{Sink, SinkConfig, SinkError, SinkReport};
pub use gristmill_worker::{Worker, WorkerError, WorkerReport};
pub use ledger_store::open_ledger;
pub use library::{Client, Error, JobHandle, RunOptions, run};
pub use role::Role;
pub use transports::{built_in_transports, connect};

/// The names that a job's code needs.
pub mod prelude {
    pub use std::ops::ControlFlow;

    pub use gristmill_process::{Command, CommandOutput, RunCommand};
    pub use gristmill_shared::{
        Account, Conclusion, Job, JobError, Keep, LocalInput, Plan, Policy, State, TaskContext, TaskError,
        TaskIndex,
    };
}
