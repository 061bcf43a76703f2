//! `setup`: declares lanes, for users who may not.

use clap::{ArgMatches, Args, Command, FromArgMatches as _};
use gristmill_shared::{Lane, Shards};

use super::{Context, Outcome, flags::BrokerFlags, say};
use crate::{Exit, exit::Failure};

/// Make what lanes need on the broker, and compare what is there
///
/// For a user who may configure. The other programs make what is missing too, if their user may.
/// With a user for each role, as deploy/rabbitmq-permissions makes them, only the operator may, and
/// so it is done once, by this. May be run again at any time, and then makes and binds what is
/// missing.
#[derive(Debug, Args)]
struct SetupFlags {
    #[command(flatten)]
    broker: BrokerFlags,

    /// The lane; may be given several times
    #[arg(long, env = "GRISTMILL_LANE", default_value = "default", value_name = "LANE")]
    lane: Vec<Lane>,

    /// Make so many tasks queues on each lane, 1 to 64, where there are fewer; workers that start afterwards take from all
    #[arg(long, env = "GRISTMILL_SHARDS", value_name = "N", default_value_t = Shards::ONE)]
    shards: Shards,
}

pub(crate) fn command() -> Command {
    SetupFlags::augment_args(Command::new("setup"))
        .after_help("Examples:\n  gristmill setup --broker amqp://gristmill-operator:password@broker:5672 --lane default --lane night")
}

pub(crate) async fn main(context: &Context, matches: &ArgMatches) -> Outcome {
    let flags = SetupFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let transport = context.unless_interrupted(flags.broker.connect_to_declare()).await?;
    let made = context.unless_interrupted(async {
        for lane in &flags.lane {
            transport.open_lane(lane).await?;
            let shards = transport.open_shards(lane, flags.shards).await?;
            say(format_args!("the lane {lane} is ready on {transport}, tasks queues: {shards}"));
        }
        Ok(())
    });
    let made = made.await;
    transport.close().await;
    made.map(|()| Exit::Ok)
}
