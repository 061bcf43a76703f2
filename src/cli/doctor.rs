//! `doctor`: examines the broker, and prints findings with hints.

use std::fmt;

use clap::{ArgMatches, Args, Command, FromArgMatches as _, ValueEnum};
use gristmill_shared::{Finding, FleetRole, Severity};
use serde::Serialize;

use super::{
    CommandResult, Context,
    flags::{BrokerFlags, LaneFlags, process_id},
    print, print_json,
};
use crate::{Exit, exit::Failure, transports::example_url};

/// Examine the broker: version, rights, queues, limits, workers
///
/// Checks the version, alarms, rights, queues and their arguments, limits, and the lane's members.
///
/// Prints a line for each check: `ok`, `warning`, `problem`, or `unseen` if it cannot be checked
/// from here. Changes nothing and takes no messages. Exits 1 if there is a problem.
#[derive(Debug, Args)]
struct DoctorFlags {
    #[command(flatten)]
    broker: BrokerFlags,
    #[command(flatten)]
    lane: LaneFlags,

    /// The role whose rights this user must have [default: any role]
    #[arg(long, value_name = "ROLE")]
    role: Option<RoleFlag>,

    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleFlag {
    Operator,
    Producer,
    Worker,
    Sink,
}

/// The JSON document that `--json` prints.
#[derive(Serialize)]
struct DoctorReport<'a> {
    problems: usize,
    findings: Vec<FindingLine<'a>>,
}

/// A finding, as a line of text or of JSON.
#[derive(Serialize)]
struct FindingLine<'a> {
    check: &'a str,
    verdict: String,
    found: &'a str,
    hint: Option<&'a str>,
}

pub(crate) fn command() -> Command {
    DoctorFlags::augment_args(Command::new("doctor")).after_help(format!(
        "Examples:\n  gristmill doctor\n  gristmill doctor --broker {} --role worker\n  gristmill doctor --lane \
         night --json",
        example_url("worker")
    ))
}

pub(crate) async fn main(context: &Context, matches: &ArgMatches) -> CommandResult {
    let flags = DoctorFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let part = flags.role.map(FleetRole::from);
    let options = flags.broker.options(&process_id("doctor"));
    let examined = async { Ok(context.transports.diagnose(&options, &flags.lane.lane, part).await?) };
    let findings = context.or_interrupted(examined).await?;
    let problems = findings.iter().filter(|finding| finding.verdict == Severity::Problem).count();
    let lines = findings.iter().map(FindingLine::from);
    if flags.json {
        print_json(&DoctorReport { problems, findings: lines.collect() })?;
    } else {
        for line in lines {
            print(line)?;
        }
    }
    Ok(if problems == 0 { Exit::Ok } else { Exit::Incomplete })
}

impl From<RoleFlag> for FleetRole {
    fn from(role: RoleFlag) -> Self {
        match role {
            RoleFlag::Operator => Self::Operator,
            RoleFlag::Producer => Self::Producer,
            RoleFlag::Worker => Self::Worker,
            RoleFlag::Sink => Self::Sink,
        }
    }
}

impl<'a> From<&'a Finding> for FindingLine<'a> {
    fn from(finding: &'a Finding) -> Self {
        Self {
            check: &finding.check,
            verdict: finding.verdict.to_string(),
            found: &finding.found,
            hint: finding.hint.as_deref(),
        }
    }
}

impl fmt::Display for FindingLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:<17} {}", self.verdict, self.check, self.found)?;
        match self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}
