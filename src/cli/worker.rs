//! `worker`: joins the fleet.

use std::{sync::Arc, time::Duration};

use clap::{ArgMatches, Args, Command, FromArgMatches as _};
use gristmill_shared::Shards;
use gristmill_worker::Worker;

use super::{
    Context, Outcome,
    flags::{BrokerFlags, LaneFlags, SlotFlags},
    isolated,
    metrics::MetricsFlags,
    otlp, say,
};
use crate::{Exit, build_id::build_id, exit::Failure};

/// Join the fleet: take batches of a lane and run their tasks
///
/// SIGTERM or Ctrl-C: takes nothing more, lets the running tasks end, hands back the rest and exits
/// 0. A second one stops at once; what was not settled runs again elsewhere.
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
    /// Made where there are fewer, for a broker whose cores one queue does not fill. A worker takes
    /// from all that are there when it starts.
    #[arg(long, env = "GRISTMILL_SHARDS", value_name = "N", default_value_t = Shards::ONE)]
    shards: Shards,
    #[command(flatten)]
    metrics: MetricsFlags,
    /// How long running tasks may take to end after the first SIGTERM or Ctrl-C, 30s or 5m for
    /// instance
    #[arg(long, env = "GRISTMILL_GRACE", value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "30s")]
    grace: Duration,
    /// Run the batches of each slot in a child process of its own
    ///
    /// A task that hangs, crashes or overflows its stack costs that child and one attempt, and no
    /// thread and no other task.
    #[arg(long)]
    isolate: bool,
}

pub(crate) fn command() -> Command {
    otlp::add_to(WorkerFlags::augment_args(Command::new("worker"))).after_help(
        "Examples:\n  worker --slots 8 --grace 2m\n  worker --broker amqp://user:password@broker:5672 --lane night",
    )
}

pub(crate) async fn main(context: &Context, matches: &ArgMatches) -> Outcome {
    let flags = WorkerFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let mut watched = flags.metrics.open(context, "worker").await?;
    let (transport, id) = context.unless_interrupted(flags.broker.connect("worker")).await?;
    watched.follow(&*transport);
    let worker = Worker::new(context.registry.clone(), id)
        .build(build_id())
        .lane(flags.lane.lane.clone())
        .shards(flags.shards)
        .slots(flags.slots.slots())
        .stop_grace(flags.slots.stop_grace)
        .grace(flags.grace);
    let worker = if flags.isolate { worker.isolate(isolated::command(matches)?) } else { worker };
    let leave = async {
        context.signals.first().await;
        say("leaving: taking nothing more, waiting for the running tasks (once more to stop at once)");
    };
    let report = worker.run_until(Arc::clone(&transport), leave).await;
    transport.close().await;
    say(format_args!("stopped: {}", report?));
    Ok(Exit::Ok)
}
