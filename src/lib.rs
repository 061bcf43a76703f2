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

mod app;
mod cli;
mod connect;
mod drill;
mod exit;
mod observe;
pub mod testing;

pub use app::{App, Role};
pub use connect::connect;
pub use exit::Exit;

/// What a job is written with.
pub mod prelude {
    pub use std::ops::ControlFlow;

    pub use gristmill_shared::{
        Account, Conclusion, Job, JobError, Keep, Plan, TaskContext, TaskError, TaskIndex,
    };
}
