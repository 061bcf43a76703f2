//! Waiting for a job's end: the bar while it runs, then the answer.

use std::time::Duration;

use gristmill_producer::{News, Watch};
use gristmill_shared::{JobId, Plan, wire::Finished};
use indicatif::HumanCount;

use super::{Context, Outcome, print, print_json, say};
use crate::{Exit, exit::Failure};

/// How long a job may be unknown to the journal before its id counts as wrong.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);

/// Whether the job is known to exist.
pub(crate) enum Known {
    /// It was submitted here; if nothing is heard of it, no sink is running.
    Submitted(Plan),
    /// Somebody says so.
    Claimed,
}

/// Follows a job to its end.
pub(crate) async fn to_the_end(
    context: &Context,
    mut watch: Watch,
    job: JobId,
    known: Known,
) -> Result<Finished, Failure> {
    let mut heard = false;
    let submitted = match known {
        Known::Submitted(plan) => {
            context.bar.begin(&plan);
            true
        }
        Known::Claimed => false,
    };
    let mut silence = std::pin::pin!(tokio::time::sleep(UNKNOWN_FOR));
    let mut silent = false; // until the journal has been read
    loop {
        let news = tokio::select! {
            news = watch.next() => news?,
            () = &mut silence, if silent => {
                silent = false;
                if heard {
                    continue;
                }
                if !submitted {
                    return Err(Failure::usage(format_args!(
                        "no job {job} is known on this broker (hint: check the id and the broker; if it was just \
                         submitted, no sink is running on its lane)"
                    )));
                }
                context.bar.suspend(|| say(
                    "no sink has taken up the job yet; its tasks and results wait on the broker \
                     (hint: start one with `sink`)"
                ));
                continue;
            }
        };
        match news {
            News::Opened(opened) => {
                if !submitted && !heard {
                    context.bar.begin(&opened.plan);
                }
                heard = true;
            }
            News::Progress(progress) => {
                heard = true;
                context.bar.update(&progress);
            }
            News::CaughtUp => {
                silent = true;
                silence.as_mut().reset(tokio::time::Instant::now() + UNKNOWN_FOR);
            }
            News::Finished(finished) => {
                context.bar.end();
                return Ok(*finished);
            }
        }
    }
}

/// Prints what a job came to: the answer on stdout, everything else on stderr. `why` says how to see why tasks failed.
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
        say(format_args!("warning: {} tasks failed (hint: {why})", count(account.failed)));
    }
    if json {
        print_json(finished)?;
    } else if finished.conclusion.answered {
        print(&finished.conclusion.text)?;
    } else {
        say(&finished.conclusion.text);
    }
    Ok(if finished.conclusion.answered && account.failed == 0 { Exit::Ok } else { Exit::Incomplete })
}
