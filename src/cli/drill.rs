//! `drill`: runs a fault drill on a fleet, and prints the account.

use std::time::Duration;

use clap::{ArgMatches, Args, Command, FromArgMatches as _};
use gristmill_drill::{DrillError, DrillFault, DrillPlan, FleetConfig};
use gristmill_shared::ConnectOptions;

use super::{CommandResult, Context, flags::AccessFlags, print, print_json, print_status};
use crate::{Exit, exit::Failure, transports::example_url};

/// Run a fault drill on a fleet, and prove that nothing was lost
///
/// Kills, pauses, drains and restarts a fleet at work.
///
/// Starts a sink, workers and a producer as separate processes, on a RabbitMQ that it starts from
/// the local installation, and submits jobs. For the given time it injects the faults that follow
/// from the seed into the processes and that RabbitMQ; then it lets the jobs end and prints the
/// account. Exits 0 only if every task was counted exactly once *and* the faults really happened,
/// else 1.
#[derive(Debug, Args)]
struct DrillFlags {
    /// The time for which faults are injected
    #[arg(long, default_value_t = 60, value_name = "S", value_parser = clap::value_parser!(u64).range(10..=86_400))]
    seconds: u64,

    /// The seed of the schedule of faults [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// The number of workers
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    workers: u16,

    /// The number of tasks that each worker runs at a time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    slots: u16,

    /// Use this broker, on a separate lane, without broker faults [default: a private broker]
    #[arg(long, value_name = "URL")]
    broker: Option<String>,

    #[command(flatten)]
    access: AccessFlags,

    /// Print the schedule of faults and exit
    #[arg(long)]
    plan: bool,

    /// Print the account as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn command() -> Command {
    DrillFlags::augment_args(Command::new("drill")).after_help(format!(
        "Examples:\n  gristmill drill\n  gristmill drill --seconds 120 --seed 7\n  gristmill drill --broker {} \
         --json",
        example_url("user")
    ))
}

pub(crate) async fn main(context: &Context, matches: &ArgMatches) -> CommandResult {
    let flags = DrillFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let seed = flags.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let length = Duration::from_secs(flags.seconds);
    let plan = DrillPlan::new(seed, length, flags.workers.into(), flags.broker.is_none());
    if flags.plan {
        for planned in &plan.faults {
            print(planned)?;
        }
        return Ok(Exit::Ok);
    }
    if let Some(url) = &flags.broker {
        // Before a fleet is started that could not reach it.
        let options = ConnectOptions::new(url).credentials(flags.access.access()).name("drill");
        let reached = async { Ok(context.transports.connect(&options).await?) };
        context.or_interrupted(reached).await?.close().await;
    }
    let types = DrillFault::ALL.iter().filter(|fault| plan.count(**fault) > 0).count();
    print_status(format_args!(
        "seed {seed}: {} faults of {types} types in {} s (see them with --plan)",
        plan.faults.len(),
        flags.seconds
    ));
    let broker = flags.broker.map(|url| (url, flags.access.variables()));
    let fleet = FleetConfig { broker, workers: flags.workers, slots: flags.slots };
    let account = gristmill_drill::run(fleet, plan, context.signals.wait_first()).await?;
    if flags.json {
        print_json(&account)?;
    } else {
        print(&account)?;
    }
    Ok(if account.is_passed() { Exit::Ok } else { Exit::Incomplete })
}

impl From<DrillError> for Failure {
    fn from(error: DrillError) -> Self {
        let exit = match &error {
            DrillError::Broker(_) | DrillError::NotUp { .. } => Exit::Broker,
            DrillError::System { .. } => Exit::Usage,
            DrillError::Interrupted | DrillError::InterruptedAt { .. } => Exit::Interrupted,
        };
        Self::new(exit, gristmill_shared::error_chain(&error))
    }
}
