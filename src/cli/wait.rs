//! Waiting for a job's end: shows the progress bar, then prints the answer.

use std::{future::pending, time::Duration};

use futures::future::BoxFuture;
use gristmill_producer::{JobUpdate, JobWatcher};
use gristmill_shared::{
    Health, JobId, Plan, Transport,
    wire::{BuildShare, Finished, Missing},
};
use indicatif::HumanCount;
use tokio::time::Instant;

use super::{
    CommandResult, Context, print, print_json, print_status,
    slot_holders::describe_slot_holders,
    stall_text::{ranges_text, stall_hint},
    warn,
};
use crate::{Exit, exit::Failure};

/// Time without events of a job after which a message explains the likely reason. If there was
/// never an event, the job's id is wrong.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// The source of the knowledge that the job exists.
pub(crate) enum JobOrigin {
    /// This process splits, runs and folds the job.
    InProcess(Plan),
    /// This process sends the job.
    SentHere(Plan),
    /// The job was submitted on this machine; without events, no sink is running.
    SubmittedHere(Plan),
    /// The user gave the id.
    Unconfirmed,
}

/// Waits for a job's end and returns it. Prints the likely reason if there are no events.
pub(crate) async fn wait_until_finished(
    context: &Context,
    transport: &dyn Transport,
    mut watch: JobWatcher,
    job: JobId,
    origin: JobOrigin,
) -> Result<Finished, Failure> {
    let submitted = match &origin {
        JobOrigin::InProcess(plan) | JobOrigin::SentHere(plan) | JobOrigin::SubmittedHere(plan) => {
            context.bar.begin(plan);
            true
        }
        JobOrigin::Unconfirmed => false,
    };
    let (mut last_seen, mut stalled) = (LastSeen::Nothing, None);
    let mut silence = std::pin::pin!(tokio::time::sleep(SILENCE_LIMIT));
    // Collected for a moment after each message about a stall.
    let (mut lane, mut held): (_, Option<BoxFuture<'_, Vec<String>>>) = (None, None);
    let mut silence_armed = false; // true once the journal has been read
    let mut health = transport.health();
    context.bar.set_trouble(health_note(&health.borrow_and_update()));
    loop {
        let update = tokio::select! {
            update = watch.next() => update?,
            Ok(()) = health.changed() => {
                context.bar.set_trouble(health_note(&health.borrow_and_update()));
                // No events could arrive during the outage.
                silence_armed |= watch.has_caught_up();
                silence.as_mut().reset(Instant::now() + SILENCE_LIMIT);
                continue;
            }
            () = &mut silence, if silence_armed && matches!(*health.borrow(), Health::Ready | Health::Degraded(_)) => {
                if last_seen == LastSeen::Nothing && !submitted {
                    return Err(Failure::usage(format_args!(
                        "no job {job} is known on this broker (hint: check the id and the broker; if it was just \
                         submitted, no sink is running on its lane)"
                    )));
                }
                let what = stalled.take().map(|missing| missing_text(&missing));
                context.bar.suspend(|| print_status(what.unwrap_or_else(|| last_seen.silence_text(job, &origin))));
                silence_armed = false; // once for each silent period
                held = lane.clone().map(|lane| Box::pin(describe_slot_holders(transport, lane)) as _);
                continue;
            }
            holders = await_or_pending(&mut held) => {
                held = None;
                context.bar.suspend(|| holders.iter().for_each(print_status));
                continue;
            }
        };
        match update {
            JobUpdate::Opened(opened) => {
                lane = Some(opened.lane.clone());
                if !submitted && last_seen == LastSeen::Nothing {
                    context.bar.begin(&opened.plan);
                }
                if last_seen == LastSeen::Nothing {
                    last_seen = LastSeen::Opened; // each resume repeats this event
                }
            }
            JobUpdate::Progress(progress) => {
                last_seen = if progress.sealed { LastSeen::Outcomes } else { LastSeen::Splitting };
                context.bar.update(&progress);
                (stalled, held) = (None, None);
            }
            JobUpdate::CaughtUp | JobUpdate::Reopened(_) => {}
            JobUpdate::Stalled(missing) if watch.has_caught_up() => {
                context.bar.suspend(|| print_status(missing_text(&missing)));
                stalled = None;
                held = lane.clone().map(|lane| Box::pin(describe_slot_holders(transport, lane)) as _);
            }
            // An old stall: the job may have progressed since. Reported only if no events follow.
            JobUpdate::Stalled(missing) => stalled = Some(missing),
            JobUpdate::Finished(finished) => {
                context.bar.end();
                return Ok(*finished);
            }
        }
        silence_armed |= watch.has_caught_up();
        silence.as_mut().reset(Instant::now() + SILENCE_LIMIT);
    }
}

/// Waits for the future, or forever if there is none. Cancel safe.
async fn await_or_pending<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

/// Returns the end of a job that the journal knows to have ended, else None.
pub(crate) async fn finished_job(transport: &dyn Transport, job: JobId) -> Result<Option<Finished>, Failure> {
    let mut watch = JobWatcher::open(transport, job).await?;
    loop {
        match watch.next().await? {
            JobUpdate::Finished(finished) => return Ok(Some(*finished)),
            JobUpdate::CaughtUp => return Ok(None),
            JobUpdate::Opened(_)
            | JobUpdate::Progress(_)
            | JobUpdate::Reopened(_)
            | JobUpdate::Stalled(_) => {}
        }
    }
}

/// Returns the text about a stall that the sink has reported.
fn missing_text(missing: &Missing) -> String {
    let Missing { job, ranges, tasks, .. } = missing;
    let hint = stall_hint(*job, *tasks > 0);
    if *tasks == 0 {
        return format!("no outcome for a while, and the split is not finished ({hint})");
    }
    let ranges = ranges.iter().map(|(first, count)| (first.0, *count));
    format!("no outcome for a while; missing: {} ({hint})", ranges_text(ranges, *tasks))
}

/// Returns the note of the progress bar about a broker that does not work.
fn health_note(health: &Health) -> Option<String> {
    match health {
        Health::Ready => None,
        Health::Blocked(why) => Some(format!("broker blocked: {why}")),
        Health::Degraded(why) => Some(why.clone()),
        Health::Reconnecting(_) => Some("broker lost, connecting again".into()),
        Health::Closed => Some("broker lost, reconnection given up".into()),
    }
}

/// The last kind of event of a job.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastSeen {
    Nothing,
    Opened,
    Splitting,
    Outcomes,
}

impl LastSeen {
    fn silence_text(self, job: JobId, origin: &JobOrigin) -> String {
        let seconds = SILENCE_LIMIT.as_secs();
        let sent_here = matches!(origin, JobOrigin::SentHere(_));
        match self {
            _ if matches!(origin, JobOrigin::InProcess(_)) => {
                format!(
                    "no outcome for {seconds} s (hint: tasks are long, or have failed and wait for a retry)"
                )
            }
            Self::Nothing => "no sink has taken up the job yet; its tasks and results wait on the broker \
                              (hint: start one with `sink`)"
                .into(),
            Self::Opened if !sent_here => format!(
                "no outcome has come for {seconds} s (hint: `sink show {job}` shows the progress of the job. Are a worker and the \
                 sink running? Is its producer? If its split is not finished, `producer resume {job}` where it was submitted)"
            ),
            Self::Opened => {
                "no outcome has come yet (hint: is a worker running on the job's lane, or busy with an \
                                earlier job? is the sink? `gristmill doctor` shows who is there)"
                    .into()
            }
            Self::Splitting if !sent_here => format!(
                "no outcome for {seconds} s, and the split is not finished (hint: are a worker and the sink running? is \
                 the job's producer? if not, `producer resume {job}` where it was submitted)"
            ),
            Self::Splitting | Self::Outcomes => format!(
                "no outcome for {seconds} s (hint: long tasks, an earlier job on its lane, tasks that wait for a retry, \
                 no worker, or no sink; `gristmill doctor` shows who is there)"
            ),
        }
    }
}

/// Prints the end of a job: the answer on stdout, everything else on stderr. `why` is the hint
/// about the reasons of failed tasks.
pub(crate) fn conclude(finished: &Finished, json: bool, why: &str) -> CommandResult {
    let account = &finished.account;
    let count = |number| HumanCount(number).to_string();
    let mut summary = format!("{} of ", count(account.done));
    summary += &account.total.map_or_else(|| "an unknown number of".into(), count);
    summary += " tasks done";
    for (number, what) in [
        (account.failed, "failed"),
        (account.skipped, "skipped"),
        (account.duplicates, "duplicates ignored"),
        (account.late, "late"),
    ] {
        if number > 0 {
            summary += &format!(", {} {what}", count(number));
        }
    }
    if let Some(why) = &account.stopped {
        summary += &format!("; stopped early: {why}");
    }
    print_status(summary);
    if account.failed > 0 {
        let tasks = if account.failed == 1 { "task" } else { "tasks" };
        warn(format_args!("{} {tasks} failed (hint: {why})", count(account.failed)));
    }
    if let Some(text) = builds_text(&finished.builds) {
        warn(text);
    }
    if json {
        if let Some(bytes) = finished.report_bytes {
            let job = finished.job;
            print_status(format_args!(
                "the report takes {} bytes, too many to travel (hint: `sink show {job} --json` prints it)",
                count(bytes)
            ));
        }
        print_json(finished)?;
    } else if finished.conclusion.answered {
        print(&finished.conclusion.text)?;
    } else {
        print_status(&finished.conclusion.text);
    }
    Ok(if finished.conclusion.answered && account.failed == 0 { Exit::Ok } else { Exit::Incomplete })
}

/// Returns a warning that names the builds that worked on a job, or None if `builds` is empty.
/// `builds` come from a [`Finished`], which has them only if another build than the submitter's
/// took part.
pub(super) fn builds_text(builds: &[BuildShare]) -> Option<String> {
    let what = match builds.len() {
        0 => return None,
        1 => "another build than the submitter's worked on the job".into(),
        several => format!("{several} builds worked on the job"),
    };
    let shares: Vec<_> = builds.iter().map(ToString::to_string).collect();
    Some(format!(
        "{what}: {} (hint: if `process` or a type was changed between them without a new Job::VERSION, the answer may be \
         wrong)",
        shares.join("; ")
    ))
}
