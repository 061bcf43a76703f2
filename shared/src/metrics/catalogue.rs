//! The catalogue of all metrics. `docs/metrics.md` explains their use.

use super::{Counter, Gauge, Histogram, MetricSpec};

/// Buckets for durations from a tenth of a millisecond to minutes, in seconds.
const DURATION_BUCKETS_SECONDS: &[f64] =
    &[0.000_1, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0];
/// Buckets for a single task, in seconds. Some tasks take less than a microsecond.
const TASK_BUCKETS_SECONDS: &[f64] =
    &[0.000_001, 0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0];
/// Buckets for the number of tasks in a batch.
const BATCH_BUCKETS_TASKS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 10_000.0];
/// Buckets for a transaction on a local disk, in seconds.
const COMMIT_BUCKETS_SECONDS: &[f64] =
    &[0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

const fn label_count(labels: &[&str]) -> usize {
    labels.len()
}

/// Defines the metrics and their list. The doc comment of a metric is its help text; several lines
/// are joined.
macro_rules! catalogue {
    ($($(#[doc = $help:literal])+ $NAME:ident: $Type:ident = $name:literal, $labels:expr $(, $bounds:expr)?;)+) => {
        $(
            $(#[doc = $help])+
            pub static $NAME: $Type<{ label_count(&$labels) }> = $Type::new($name, $labels $(, $bounds)?);
        )+

        /// All metrics of Gristmill.
        pub static METRIC_CATALOGUE: &[MetricSpec] = &[$($NAME.metric_spec(concat!($($help),+).trim_ascii_start())),+];
    };
}

catalogue! {
    // Metrics of every role.

    /// 1, with the version of the program and its role
    BUILD_INFO: Gauge = "gristmill_build_info", ["version", "role"];
    /// When the process started, in seconds since 1970
    START_TIME: Gauge = "gristmill_start_time_seconds", [];
    /// 1 for the present state of the connection to the broker (connecting, well, blocked,
    /// interrupted, away or closed), else 0
    BROKER_STATE: Gauge = "gristmill_broker_state", ["state"];
    /// Reconnects after a lost connection to the broker
    BROKER_RECONNECTS: Counter = "gristmill_broker_reconnects_total", [];
    /// Time for which the broker was connected but took no messages, in whole seconds
    BROKER_BLOCKED: Counter = "gristmill_broker_blocked_seconds_total", [];
    /// Time for which the connection to the broker was lost, in whole seconds
    BROKER_AWAY: Counter = "gristmill_broker_away_seconds_total", [];

    // Metrics of a worker.

    /// Number of tasks that the worker runs at a time
    WORKER_SLOTS: Gauge = "gristmill_worker_slots", [];
    /// Number of slots that have a batch
    WORKER_SLOTS_BUSY: Gauge = "gristmill_worker_slots_busy", [];
    /// Threads left behind in tasks that run on after their time limit or their job's stop
    WORKER_THREADS_STUCK: Gauge = "gristmill_worker_threads_stuck", [];
    /// Batches of each queue that the worker holds and has not acknowledged
    WORKER_DELIVERIES_HELD: Gauge = "gristmill_worker_deliveries_held", ["queue"];
    /// Batches that were delivered before and not acknowledged
    WORKER_REDELIVERIES: Counter = "gristmill_worker_redeliveries_total", ["queue"];
    /// Tasks by the outcome of this attempt: done, failed for good, retried later, lost (its worker
    /// died, and it is tried again), or skipped because its job has ended
    WORKER_TASKS: Counter = "gristmill_worker_tasks_total", ["kind", "outcome"];
    /// Number of tasks in each batch that was run; the count is the number of batches
    WORKER_BATCH_TASKS: Histogram = "gristmill_worker_batch_tasks", ["kind"], BATCH_BUCKETS_TASKS;
    /// Time that a batch ran on its slot
    WORKER_BATCH_SECONDS: Histogram = "gristmill_worker_batch_seconds", ["kind"], DURATION_BUCKETS_SECONDS;
    /// Average time of the tasks of a batch: one value for each batch, not for each task
    WORKER_TASK_SECONDS: Histogram = "gristmill_worker_task_seconds", ["kind"], TASK_BUCKETS_SECONDS;
    /// Batches, and rests of batches, that were requeued unstarted at no cost
    WORKER_HANDED_BACK: Counter = "gristmill_worker_handed_back_total", [];
    /// Messages that follow from batches (results, tasks to be tried again, …) and that the broker
    /// has confirmed, by queue
    WORKER_STORED: Counter = "gristmill_worker_messages_stored_total", ["queue"];
    /// Publish requests with outcomes that wait for the broker to confirm them
    WORKER_HANDOFFS_UNCONFIRMED: Gauge = "gristmill_worker_handoffs_unconfirmed", [];

    // Metrics of a sink.

    /// Messages taken in, by queue: results or dead
    SINK_MESSAGES: Counter = "gristmill_sink_messages_total", ["queue"];
    /// Tasks that got an outcome in the ledger, each once: done or failed. A failure that an output
    /// overrides later stays counted
    SINK_OUTCOMES: Counter = "gristmill_sink_outcomes_total", ["kind", "outcome"];
    /// Outcomes that do not count, and why: duplicate, or late (after the end of the job)
    SINK_IGNORED: Counter = "gristmill_sink_ignored_total", ["why"];
    /// Time to write to the ledger; the count is the number of commits
    SINK_COMMIT_SECONDS: Histogram = "gristmill_sink_commit_seconds", [], COMMIT_BUCKETS_SECONDS;
    /// Messages about jobs that the ledger does not know, kept until it does
    SINK_PARKED: Counter = "gristmill_sink_parked_total", [];
    /// Parked messages that were dropped because there were too many
    SINK_PARKED_DROPPED: Counter = "gristmill_sink_parked_dropped_total", [];
    /// Dead messages recorded in the ledger, malformed or foreign
    SINK_DEAD: Counter = "gristmill_sink_dead_recorded_total", [];
    /// Messages in the ledger's outbox that the broker has not confirmed
    SINK_OUTBOX_ROWS: Gauge = "gristmill_sink_outbox_rows", [];
    /// Jobs of the lane that run
    SINK_JOBS_RUNNING: Gauge = "gristmill_sink_jobs_running", [];
    /// Running jobs of the lane that have had no outcome for too long
    SINK_JOBS_STALLED: Gauge = "gristmill_sink_jobs_stalled", [];
    /// Detected stalls of jobs
    SINK_STALLS: Counter = "gristmill_sink_stalls_total", [];
    /// Jobs that ended, by how: finished, stopped or failed
    SINK_JOBS_ENDED: Counter = "gristmill_sink_jobs_ended_total", ["kind", "state"];

    // Metrics of a producer while it publishes.

    /// Tasks that the broker has stored
    PRODUCER_TASKS: Counter = "gristmill_producer_tasks_sent_total", [];
    /// Batches by the answer of the broker: stored, or refused because the queue is full (they are
    /// sent again)
    PRODUCER_BATCHES: Counter = "gristmill_producer_batches_total", ["answer"];
    /// Batches that wait for the answer of the broker
    PRODUCER_UNCONFIRMED: Gauge = "gristmill_producer_batches_unconfirmed", [];
    /// Bytes of these batches
    PRODUCER_UNCONFIRMED_BYTES: Gauge = "gristmill_producer_unconfirmed_bytes", [];
}
