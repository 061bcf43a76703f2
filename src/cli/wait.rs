//! Waiting for a job's end: the bar while it runs, then the answer.

use std::{future::pending, time::Duration};

use futures::future::BoxFuture;
use gristmill_producer::{News, Watch};
use gristmill_shared::{
    Health, JobId, Plan, Transport,
    wire::{BuildShare, Finished, Missing},
};
use indicatif::HumanCount;
use tokio::time::Instant;

use super::{
    Context, Outcome, print, print_json, say,
    slot_holders::held_slots,
    stall_text::{ranges_text, stall_hint},
    warn,
};
use crate::{Exit, exit::Failure};

/// When nothing is heard of a job for so long, something may be the matter; if nothing ever was,
/// its id is wrong.
const SILENCE: Duration = Duration::from_secs(10);

/// Whether the job is known to exist.
pub(crate) enum Known {
    /// This process does all of it.
    RunHere(Plan),
    /// This process sends it.
    SentHere(Plan),
    /// It was submitted here; if nothing is heard of it, no sink is running.
    Submitted(Plan),
    /// Somebody says so.
    Claimed,
}

/// Follows a job to its end. Says what may be the matter if nothing is heard of it.
pub(crate) async fn to_the_end(
    context: &Context,
    transport: &dyn Transport,
    mut watch: Watch,
    job: JobId,
    known: Known,
) -> Result<Finished, Failure> {
    let submitted = match &known {
        Known::RunHere(plan) | Known::SentHere(plan) | Known::Submitted(plan) => {
            context.bar.begin(plan);
            true
        }
        Known::Claimed => false,
    };
    let (mut heard, mut stalled) = (Heard::Nothing, None);
    let mut silence = std::pin::pin!(tokio::time::sleep(SILENCE));
    // Listened for only after a stall was told, for a moment.
    let (mut lane, mut held): (_, Option<BoxFuture<'_, Vec<String>>>) = (None, None);
    let mut listening = false; // until the journal has been read
    let mut health = transport.health();
    context.bar.trouble(trouble(&health.borrow_and_update()));
    loop {
        let news = tokio::select! {
            news = watch.next() => news?,
            Ok(()) = health.changed() => {
                context.bar.trouble(trouble(&health.borrow_and_update()));
                // Nothing could be heard meanwhile.
                listening |= watch.has_caught_up();
                silence.as_mut().reset(Instant::now() + SILENCE);
                continue;
            }
            () = &mut silence, if listening && matches!(*health.borrow(), Health::Well | Health::Interrupted(_)) => {
                if heard == Heard::Nothing && !submitted {
                    return Err(Failure::usage(format_args!(
                        "no job {job} is known on this broker (hint: check the id and the broker; if it was just \
                         submitted, no sink is running on its lane)"
                    )));
                }
                let what = stalled.take().map(|missing| stall_text(&missing));
                context.bar.suspend(|| say(what.unwrap_or_else(|| heard.what_may_be_the_matter(job, &known))));
                listening = false; // once for each silence
                held = lane.clone().map(|lane| Box::pin(held_slots(transport, lane)) as _);
                continue;
            }
            holders = finished_or_pending(&mut held) => {
                held = None;
                context.bar.suspend(|| holders.iter().for_each(say));
                continue;
            }
        };
        match news {
            News::Opened(opened) => {
                lane = Some(opened.lane.clone());
                if !submitted && heard == Heard::Nothing {
                    context.bar.begin(&opened.plan);
                }
                if heard == Heard::Nothing {
                    heard = Heard::OfTheSink; // it is told again at each resume
                }
            }
            News::Progress(progress) => {
                heard = if progress.sealed { Heard::OfTasks } else { Heard::OfTheSplit };
                context.bar.update(&progress);
                (stalled, held) = (None, None);
            }
            News::CaughtUp | News::Reopened(_) => {}
            News::Stalled(missing) if watch.has_caught_up() => {
                context.bar.suspend(|| say(stall_text(&missing)));
                stalled = None;
                held = lane.clone().map(|lane| Box::pin(held_slots(transport, lane)) as _);
            }
            // It may have gone on since; that is known when nothing is heard of it.
            News::Stalled(missing) => stalled = Some(missing),
            News::Finished(finished) => {
                context.bar.end();
                return Ok(*finished);
            }
        }
        listening |= watch.has_caught_up();
        silence.as_mut().reset(Instant::now() + SILENCE);
    }
}

/// Waits for the future, or for ever if there is none. Cancel safe.
async fn finished_or_pending<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

/// How the job ended, if it has, as far as the journal knows.
pub(crate) async fn ended(transport: &dyn Transport, job: JobId) -> Result<Option<Finished>, Failure> {
    let mut watch = Watch::open(transport, job).await?;
    loop {
        match watch.next().await? {
            News::Finished(finished) => return Ok(Some(*finished)),
            News::CaughtUp => return Ok(None),
            News::Opened(_) | News::Progress(_) | News::Reopened(_) | News::Stalled(_) => {}
        }
    }
}

/// What the sink says of a job that gets no outcomes; once for each time.
fn stall_text(missing: &Missing) -> String {
    let Missing { job, ranges, tasks, .. } = missing;
    let hint = stall_hint(*job, *tasks > 0);
    if *tasks == 0 {
        return format!("no outcome for a while, and the split is not finished ({hint})");
    }
    let ranges = ranges.iter().map(|(first, count)| (first.0, *count));
    format!("no outcome for a while; missing: {} ({hint})", ranges_text(ranges, *tasks))
}

/// What keeps the broker from its work, for the bar.
fn trouble(health: &Health) -> Option<String> {
    match health {
        Health::Well => None,
        Health::Blocked(why) => Some(format!("broker blocked: {why}")),
        Health::Interrupted(why) => Some(why.clone()),
        Health::Away(_) => Some("broker lost, connecting again".into()),
        Health::Closed => Some("broker given up".into()),
    }
}

/// What has been heard of a job, last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    OfTheSink,
    OfTheSplit,
    OfTasks,
}

impl Heard {
    fn what_may_be_the_matter(self, job: JobId, known: &Known) -> String {
        let seconds = SILENCE.as_secs();
        let sent_here = matches!(known, Known::SentHere(_));
        match self {
            _ if matches!(known, Known::RunHere(_)) => {
                format!(
                    "no outcome for {seconds} s (hint: tasks are long, or have failed and wait to be tried again)"
                )
            }
            Self::Nothing => "no sink has taken up the job yet; its tasks and results wait on the broker \
                              (hint: start one with `sink`)"
                .into(),
            Self::OfTheSink if !sent_here => format!(
                "no outcome has come for {seconds} s (hint: `sink show {job}` says how far the job is. Are a worker and the \
                 sink running? Is its producer? If its split is not finished, `producer resume {job}` where it was submitted)"
            ),
            Self::OfTheSink => {
                "no outcome has come yet (hint: is a worker running on the job's lane, or busy with an \
                                earlier job? is the sink? `gristmill doctor` says who is there)"
                    .into()
            }
            Self::OfTheSplit if !sent_here => format!(
                "no outcome for {seconds} s, and the split is not finished (hint: are a worker and the sink running? is \
                 the job's producer? if not, `producer resume {job}` where it was submitted)"
            ),
            Self::OfTheSplit | Self::OfTasks => format!(
                "no outcome for {seconds} s (hint: long tasks, an earlier job on its lane, tasks that wait to be tried again, \
                 no worker, or no sink; `gristmill doctor` says who is there)"
            ),
        }
    }
}

/// Prints what a job came to: the answer on stdout, everything else on stderr. `why` says how to
/// see why tasks failed.
pub(crate) fn conclude(finished: &Finished, json: bool, why: &str) -> Outcome {
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
    say(summary);
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
            say(format_args!(
                "the report takes {} bytes, too many to travel (hint: `sink show {job} --json` prints it)",
                count(bytes)
            ));
        }
        print_json(finished)?;
    } else if finished.conclusion.answered {
        print(&finished.conclusion.text)?;
    } else {
        say(&finished.conclusion.text);
    }
    Ok(if finished.conclusion.answered && account.failed == 0 { Exit::Ok } else { Exit::Incomplete })
}

/// Names the builds that worked on a job; none if there is nothing to say. `builds` are those of a
/// [`Finished`], which has them only if it was not the submitter's build alone.
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
