//! `worker`: joins the fleet.

use std::{sync::Arc, time::Duration};

use clap::{ArgMatches, Args, Command, FromArgMatches as _};
use gristmill_shared::Shards;
use gristmill_worker::Worker;

use super::{
    CommandResult, Context,
    flags::{BrokerFlags, LaneFlags, SlotFlags},
    isolated,
    metrics::MetricsFlags,
    otlp, print_status,
};
use crate::{Exit, build_id::build_id, exit::Failure, transports::example_url};

/// Join the fleet: take batches of a lane and run their tasks
///
/// SIGTERM or Ctrl-C: stops consuming, lets running tasks end, requeues the rest and exits 0. A
/// second signal stops at once; unsettled tasks run again elsewhere.
#[derive(Debug, Args)]
struct WorkerFlags {
    #[command(flatten)]
    broker: BrokerFlags,
    #[command(flatten)]
    lane: LaneFlags,
    #[command(flatten)]
    slots: SlotFlags,
    /// Make N tasks queues on the lane, 1 to 64
    ///
    /// Made where there are fewer, for a broker whose cores one queue does not use fully. A worker
    /// consumes from all queues that exist when it starts.
    #[arg(long, env = "GRISTMILL_SHARDS", value_name = "N", default_value_t = Shards::ONE)]
    shards: Shards,
    #[command(flatten)]
    metrics: MetricsFlags,
    /// The time that running tasks may take to end after the first SIGTERM or Ctrl-C, such as 30s
    /// or 5m
    #[arg(long, env = "GRISTMILL_GRACE", value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "30s")]
    grace: Duration,
    /// Run the batches of each slot in a child process of its own
    ///
    /// A task that hangs, crashes or overflows its stack costs its child and one attempt, but no
    /// thread and no other task.
    #[arg(long)]
    isolate: bool,
}

pub(crate) fn command() -> Command {
    otlp::add_global_flag(WorkerFlags::augment_args(Command::new("worker"))).after_help(format!(
        "Examples:\n  worker --slots 8 --grace 2m\n  worker --broker {} --lane night",
        example_url("user")
    ))
}

pub(crate) async fn main(context: &Context, matches: &ArgMatches) -> CommandResult {
    let flags = WorkerFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let mut metrics = flags.metrics.open(context, "worker").await?;
    let (transport, id) = context.or_interrupted(flags.broker.connect(context, "worker")).await?;
    metrics.watch_transport(&*transport);
    let worker = Worker::new(context.registry.clone(), id)
        .build(build_id())
        .lane(flags.lane.lane.clone())
        .shards(flags.shards)
        .slots(flags.slots.slots())
        .stop_grace(flags.slots.stop_grace)
        .grace(flags.grace);
    let worker = if flags.isolate { worker.isolate(isolated::command(context, matches)?) } else { worker };
    let leave = async {
        context.signals.wait_first().await;
        print_status(
            "leaving: taking nothing more, waiting for the running tasks (once more to stop at once)",
        );
    };
    let report = worker.run_until(Arc::clone(&transport), leave).await;
    transport.close().await;
    print_status(format_args!("stopped: {}", report?));
    Ok(Exit::Ok)
}
