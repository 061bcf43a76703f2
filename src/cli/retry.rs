//! `sink retry`: asks the sink to send failed tasks again.

use std::{collections::BTreeSet, ops::ControlFlow, path::Path, sync::Arc, time::Duration};

use clap::Args;
use gristmill_ledger::{JobState, LedgerReader};
use gristmill_producer::{JobUpdate, JobWatcher};
use gristmill_shared::{
    Address, JobId, Outgoing, QueueRole, TaskIndex, TransportError, publish_until_stored,
    wire::{Reopen, WireMessage},
};

use super::{
    CommandResult, Context,
    flags::BrokerFlags,
    print_status,
    wait::{self, JobOrigin},
    warn,
};
use crate::{Exit, exit::Failure, ledger_store::read_ledger};

/// The time after which a status message says that no sink has taken the retry up.
const TAKE_UP_TIME: Duration = Duration::from_secs(10);

/// Send a job's failed tasks again; the job then runs again
///
/// Attempt numbers continue, and each task may fail another `--max-attempts` times. A sink must be
/// running on the job's lane; it alone writes the ledger.
#[derive(Debug, Args)]
pub(crate) struct RetryFlags {
    /// The job's id
    job: JobId,
    /// The tasks to retry [default: all that failed]
    #[arg(value_name = "INDEX")]
    indices: Vec<u64>,
    /// Run them with the sink's version of the job's code, to end a job with a repaired program
    #[arg(long)]
    adopt_version: bool,
    /// Wait for the job's end and print its answer
    #[arg(long)]
    wait: bool,
    /// With --wait: print the end as JSON
    #[arg(long, requires = "wait")]
    json: bool,
}

pub(crate) async fn main(
    context: &Context,
    ledger: &Path,
    broker: &BrokerFlags,
    retry: &RetryFlags,
) -> CommandResult {
    let RetryFlags { job, indices, adopt_version, wait, json } = retry;
    let mut reader = read_ledger(ledger)?;
    let Some(view) = reader.job(*job)? else {
        let ledger = ledger.display();
        return Err(Failure::usage(format_args!(
            "the ledger {ledger} has no job {job} (hint: see `sink jobs`)"
        )));
    };
    let summary = &view.summary;
    if summary.state != JobState::Finished {
        let hint = match summary.state {
            JobState::Running => "wait for its end",
            JobState::Finished | JobState::Stopped | JobState::Failed => "submit it again",
        };
        return Err(Failure::usage(format_args!(
            "job {job} is {}; only failed tasks of a finished job can be sent again (hint: {hint})",
            summary.state
        )));
    }
    if summary.account.failed == 0 {
        print_status("no task of this job failed");
        return Ok(Exit::Ok);
    }
    if let Some(here) = context.registry.version(&summary.kind).filter(|here| *here != view.version)
        && !adopt_version
    {
        return Err(Failure::usage(format_args!(
            "job {job} has version {} of the kind {}, and this program has version {here} (hint: --adopt-version sends \
             its failed tasks to workers of version {here}; the sink must have it too)",
            view.version, summary.kind
        )));
    }
    let indices = indices.iter().map(|index| TaskIndex::try_from(*index));
    let indices: Vec<_> = indices.collect::<Result<_, _>>().map_err(Failure::usage)?;
    check_all_failed(&mut reader, *job, &indices)?;
    let (transport, app) = context.or_interrupted(broker.connect(context, "sink")).await?;
    let what = if indices.is_empty() { "all that failed".into() } else { format!("{} tasks", indices.len()) };
    let asked = async {
        transport.open_lane(&summary.lane).await?;
        let watch = JobWatcher::open(&*transport, *job).await?.after(summary.round);
        let reopen = Reopen { job: *job, indices, adopt_version: *adopt_version };
        let message = reopen.message(format!("{job}/reopen/{app}"), app.as_str());
        let to = Address::Queue(QueueRole::Results.of(&summary.lane));
        publish_until_stored(&*transport.publisher().await?, vec![Outgoing { to, message }]).await?;
        Ok::<_, Failure>(watch)
    };
    let mut watch = context.or_interrupted(asked).await?;
    let done = if *wait {
        let known = JobOrigin::SubmittedHere(view.plan.clone());
        let finished =
            context.or_interrupted(wait::wait_until_finished(context, &*transport, watch, *job, known)).await;
        context.bar.end();
        let why = format!("list them with `sink failures {job} --lane {}`", summary.lane);
        finished.and_then(|finished| wait::conclude(&finished, *json, &why))
    } else {
        let taken_up = async {
            match tokio::time::timeout(TAKE_UP_TIME, wait_reopened(&mut watch)).await {
                Ok(begun) => Ok(begun.map(|()| true)?),
                Err(_) => Ok(false),
            }
        };
        if context.or_interrupted(taken_up).await? {
            print_status(format_args!(
                "the sink sends {what} again (hint: `producer wait {job}` waits for the end)"
            ));
        } else {
            warn(format_args!(
                "no sink has taken this up within {} s; it is kept on the broker until one runs on lane {} (hint: \
                 until then `producer wait {job}` reports the previous end)",
                TAKE_UP_TIME.as_secs(),
                summary.lane
            ));
        }
        Ok(Exit::Ok)
    };
    Arc::clone(&transport).close().await;
    done
}

/// Waits until the sink has begun the next round. That round may already be over.
async fn wait_reopened(watch: &mut JobWatcher) -> Result<(), TransportError> {
    while !matches!(watch.next().await?, JobUpdate::Reopened(_) | JobUpdate::Finished(_)) {}
    Ok(())
}

/// Refuses tasks that did not fail or are not kept: the sink would skip them and only log it.
fn check_all_failed(reader: &mut LedgerReader, job: JobId, indices: &[TaskIndex]) -> Result<(), Failure> {
    let mut some = false;
    let mut others: BTreeSet<_> = indices.iter().copied().collect();
    reader.failures(job, &mut |failure| {
        if failure.task.is_some() {
            some = true;
            others.remove(&failure.index);
        }
        if some && others.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    match others.first() {
        None if some => Ok(()),
        None => Err(Failure::usage(format_args!(
            "no failed task of job {job} is known in full, so none can be sent again (hint: see `sink failures {job}`)"
        ))),
        Some(index) => Err(Failure::usage(format_args!(
            "task {index} of job {job} has not failed, or is not known in full (hint: see `sink failures {job}`)"
        ))),
    }
}
