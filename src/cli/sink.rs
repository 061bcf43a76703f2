//! `sink`: serves a lane, or reads its ledger.

use std::{path::PathBuf, pin::pin, sync::Arc, time::Duration};

use clap::{ArgMatches, Args, Command, FromArgMatches as _, Subcommand as _};
use gristmill_ledger::LedgerLocation;
use gristmill_sink::{Sink, SinkConfig, SinkError, SinkReport};

use super::{
    CommandResult, Context,
    flags::{BrokerFlags, LaneFlags},
    ledger_commands::{self, LedgerSubcommand},
    metrics::{LANE_NOT_CLAIMED, MetricsFlags},
    otlp, print_status,
    retry::{self, RetryFlags},
    state_dir::StateFlags,
};
use crate::{Exit, exit::Failure, ledger_store::open_ledger};

/// Fold the results of a lane, each task once; or read the ledger
///
/// A sink serves all jobs of its lane. The subcommands read the ledger, even while a sink runs.
///
/// SIGTERM or Ctrl-C: stops consuming, commits and acknowledges what it has, and exits 0.
#[derive(Debug, Args)]
struct SinkFlags {
    #[command(flatten)]
    broker: BrokerFlags,
    #[command(flatten)]
    lane: LaneFlags,
    #[command(flatten)]
    state: StateFlags,
    #[command(flatten)]
    metrics: MetricsFlags,

    /// The ledger [default: LANE.ledger in the state directory]
    #[arg(long, global = true, env = "GRISTMILL_LEDGER", value_name = "FILE")]
    ledger: Option<PathBuf>,

    /// Take the lane over from a sink with another ledger
    #[arg(long)]
    adopt: bool,

    /// The time without an outcome after which a job is reported as stalled, such as 5m [default:
    /// 1m or longer]
    ///
    /// By default 1m, or 10 times the duration of a task or the longest pause so far, if that is
    /// longer.
    #[arg(long, env = "GRISTMILL_STALL_AFTER", value_name = "DURATION", value_parser = humantime::parse_duration)]
    stall_after: Option<Duration>,
}

pub(crate) fn command() -> Command {
    let retry = RetryFlags::augment_args(Command::new("retry"));
    let command = LedgerSubcommand::augment_subcommands(SinkFlags::augment_args(Command::new("sink")))
        .subcommand(retry);
    otlp::add_local_flag(command).args_conflicts_with_subcommands(false).after_help(
        "Examples:\n  sink --ledger /var/lib/gristmill/default.ledger\n  sink jobs\n  sink show JOB --json\n  \
         sink verify JOB\n  sink retry JOB --wait",
    )
}

pub(crate) async fn main(context: &Context, matches: &ArgMatches) -> CommandResult {
    let flags = SinkFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let lane = flags.lane.lane.clone();
    let ledger = match &flags.ledger {
        Some(path) => path.clone(),
        None => flags.state.ledger(&lane)?,
    };
    if let Some(matches) = matches.subcommand_matches("retry") {
        let retry = RetryFlags::from_arg_matches(matches).map_err(Failure::usage)?;
        return retry::main(context, &ledger, &flags.broker, &retry).await;
    }
    if matches.subcommand().is_some() {
        return ledger_commands::main(
            &ledger,
            &LedgerSubcommand::from_arg_matches(matches).map_err(Failure::usage)?,
        );
    }
    let mut metrics = flags.metrics.open(context, "sink").await?;
    metrics.set_not_ready(Some(LANE_NOT_CLAIMED));
    // The broker first: a sink that cannot serve leaves no new ledger behind.
    let (transport, app) = context.or_interrupted(flags.broker.connect(context, "sink")).await?;
    metrics.watch_transport(&*transport);
    let mut config = SinkConfig::new(context.registry.clone(), lane, app);
    (config.adopt, config.stall_after) = (flags.adopt, flags.stall_after);
    let leave = async {
        context.signals.wait_first().await;
        print_status("leaving: committing what is here (once more to stop at once)");
    };
    let serving = async {
        let mut leave = pin!(leave);
        let sink = Sink::open(config, open_ledger(LedgerLocation::File(ledger))?)?;
        let claimed = tokio::select! {
            () = &mut leave => return Ok(SinkReport::default()),
            claimed = sink.claim(Arc::clone(&transport)) => claimed?,
        };
        metrics.set_not_ready(None);
        claimed.run_until(leave).await
    };
    let served: Result<_, SinkError> = serving.await;
    transport.close().await;
    print_status(format_args!("stopped: {}", served?));
    Ok(Exit::Ok)
}
