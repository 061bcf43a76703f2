//! `setup`: declares lanes, for other users who may not.

use clap::{ArgMatches, Args, Command, FromArgMatches as _};
use gristmill_shared::{Lane, Shards};

use super::{CommandResult, Context, flags::BrokerFlags, print_status};
use crate::{Exit, exit::Failure, transports::example_url};

/// Declare the queues of lanes on the broker, and check existing ones
///
/// Run this as a user with configure permission. The other programs declare missing entities too,
/// if their user may. Where each role has a user of its own, only the operator may, so run this
/// once. Running it again is safe: it declares and binds what is missing.
#[derive(Debug, Args)]
struct SetupFlags {
    #[command(flatten)]
    broker: BrokerFlags,

    /// The lane; may be given several times
    #[arg(long, env = "GRISTMILL_LANE", default_value = "default", value_name = "LANE")]
    lane: Vec<Lane>,

    /// Make this number of tasks queues on each lane, 1 to 64, where there are fewer; workers that
    /// start afterwards use all
    #[arg(long, env = "GRISTMILL_SHARDS", value_name = "N", default_value_t = Shards::ONE)]
    shards: Shards,
}

pub(crate) fn command() -> Command {
    SetupFlags::augment_args(Command::new("setup")).after_help(format!(
        "Examples:\n  gristmill setup --broker {} --lane default --lane night",
        example_url("gristmill-operator")
    ))
}

pub(crate) async fn main(context: &Context, matches: &ArgMatches) -> CommandResult {
    let flags = SetupFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let transport = context.or_interrupted(flags.broker.connect_to_declare(context)).await?;
    let made = context.or_interrupted(async {
        for lane in &flags.lane {
            transport.open_lane(lane).await?;
            let shards = transport.open_shards(lane, flags.shards).await?;
            print_status(format_args!("the lane {lane} is ready on {transport}, tasks queues: {shards}"));
        }
        Ok(())
    });
    let made = made.await;
    transport.close().await;
    made.map(|()| Exit::Ok)
}
