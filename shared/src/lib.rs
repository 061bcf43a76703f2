//! The contract of Gristmill: the job trait, the messages, and the transport traits.
//!
//! This crate names no broker client, no database and no command line. The roles (`producer`,
//! `worker`, `sink`) and the transports depend on this crate and not on one another.

mod backoff;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod credentials;
mod erased;
mod error;
mod exit_code;
pub mod fail_point;
mod finding;
mod finite;
mod fleet_role;
pub mod fold;
mod ids;
mod job;
mod job_tracker;
mod lane;
mod local_input;
mod log_limiter;
pub mod memory;
mod message;
pub mod metrics;
mod outcome;
mod policy;
mod prepared_state;
mod publish_retry;
mod refusals;
mod registry;
mod shards;
mod split_digest;
mod task;
mod task_runtime;
pub mod testing;
mod trace;
mod transport;
mod transport_driver;
mod transport_registry;
pub mod wire;

pub use backoff::Backoff;
pub use credentials::Credentials;
pub use erased::{
    AnyFold, AnyJob, AnySplit, BatchLimit, BatchRun, Chunk, CollectError, Collected, DoneTasks, PreparedHook,
    RunningIndex, SplitStep, TaskFailure, TaskStartHook, erase, erase_shared, panic_text,
};
pub use error::error_chain;
pub use exit_code::Exit;
pub use finding::{Finding, Severity};
pub use fleet_role::FleetRole;
pub use ids::{BuildId, InvalidName, JobId, Kind, Lane, LedgerId, Round, TaskIndex, WorkerId};
pub use job::{Account, Conclusion, Job, JobError, Keep, Plan};
pub use job_tracker::{FACTS_MAX_WAITING, JobTracker, TRACKER_MAX_JOBS};
pub use lane::{
    Queue, QueueRole, QueueSpec, RESULTS_MAX_BYTES, RetryDelay, TASKS_MAX_BYTES, TASKS_MAX_MESSAGES,
};
pub use local_input::{LOCAL_INPUT_MAX_BYTES, LocalInput};
pub use log_limiter::{LogLimiter, LogRule};
pub use message::{Headers, Message};
pub use outcome::{NoAnswer, NoReport, Outcome};
pub use policy::{
    DEFAULT_MAX_ATTEMPTS, FailFast, ParseFailFastError, Policy, PolicyOverrides, RETRY_DELAY_MAX,
    RETRY_DELAYS_MAX,
};
pub use prepared_state::State;
pub use publish_retry::{PublishError, publish_until_answered, publish_until_stored};
pub use refusals::{REFUSED_MAX_RANGES, RefusedRanges, RefusedTasks};
pub use registry::{JobOpener, OpenError, RegisterError, Registry};
pub use shards::{InvalidShards, SHARDS_MAX, ShardIndex, Shards};
pub use split_digest::SplitDigest;
pub use task::{FailureKind, StopSignal, TaskContext, TaskError};
pub use trace::{InvalidTrace, TraceParent};
pub use transport::{
    Address, Capabilities, Consumer, Delivery, Durability, EventFilter, EventReader, Health, HoldLimit,
    JournalEntry, JournalReader, Outgoing, Published, Publisher, Receipt, Redelivery, Settlement, Settler,
    Token, Topic, Transport, TransportError,
};
pub use transport_driver::{ConnectOptions, TransportDriver};
pub use transport_registry::{RegisterDriverError, TransportRegistry};
