//! `drill`: does to a fleet what may happen to one, and prints the account.

use std::time::Duration;

use clap::{ArgMatches, Args, Command, FromArgMatches as _};

use super::{Context, Outcome, flags::AccessFlags, print, print_json, say};
use crate::{
    Exit,
    connect::connect_for,
    drill::{self, DrillError, Fault, Fleet, Plan},
    exit::Failure,
};

/// Hold a fault drill on a fleet, and prove that nothing was lost
///
/// Kills, pauses, drains and restarts a fleet at work.
///
/// Starts a sink, workers and a producer as processes of their own, on a RabbitMQ that it starts from the local
/// installation, and gives them jobs. For the given time it does to them, and to that RabbitMQ, what follows from the
/// seed; then it lets the jobs end and prints the account. Exits 0 only if every task was counted exactly once *and* the
/// faults really happened, else 1.
#[derive(Debug, Args)]
struct DrillFlags {
    /// For how long faults come
    #[arg(long, default_value_t = 60, value_name = "S", value_parser = clap::value_parser!(u64).range(10..=86_400))]
    seconds: u64,

    /// Decides which faults come when [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// How many workers
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    workers: u16,

    /// How many tasks each worker runs at a time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    slots: u16,

    /// Use this broker, on a lane of its own, and do nothing to it [default: one of its own]
    #[arg(long, value_name = "URL")]
    broker: Option<String>,

    #[command(flatten)]
    access: AccessFlags,

    /// Print which faults would come, and do nothing
    #[arg(long)]
    plan: bool,

    /// Print the account as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn command() -> Command {
    DrillFlags::augment_args(Command::new("drill")).after_help(
        "Examples:\n  gristmill drill\n  gristmill drill --seconds 120 --seed 7\n  \
         gristmill drill --broker amqp://user:password@broker:5672 --json",
    )
}

pub(crate) async fn main(context: &Context, matches: &ArgMatches) -> Outcome {
    let flags = DrillFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let seed = flags.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let length = Duration::from_secs(flags.seconds);
    let plan = Plan::new(seed, length, flags.workers.into(), flags.broker.is_none());
    if flags.plan {
        for planned in &plan.faults {
            print(planned)?;
        }
        return Ok(Exit::Ok);
    }
    if let Some(url) = &flags.broker {
        // Before a fleet is started that would wait for it in vain.
        let reached = context
            .unless_interrupted(async { Ok(connect_for(url, &flags.access.access(), "drill", None).await?) });
        reached.await?.close().await;
    }
    let types = Fault::ALL.iter().filter(|fault| plan.count(**fault) > 0).count();
    say(format_args!(
        "seed {seed}: {} faults of {types} types in {} s (see them with --plan)",
        plan.faults.len(),
        flags.seconds
    ));
    let broker = flags.broker.map(|url| (url, flags.access.variables()));
    let fleet = Fleet { broker, workers: flags.workers, slots: flags.slots };
    let account = drill::hold(fleet, plan, context.signals.first()).await?;
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
