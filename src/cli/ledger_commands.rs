//! The commands that read a ledger: `sink jobs`, `show`, `failures`, `outputs`, `export`, `verify`,
//! `dead`, `prune`.

use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use clap::Subcommand;
use gristmill_ledger::{FailureRow, JobState, JobSummary, JobView, LedgerReader, PruneRule};
use gristmill_shared::{
    Account, JobId,
    wire::{BuildShare, now_ms},
};
use indicatif::HumanCount;

use super::{
    CommandResult, output_rows, print, print_json, print_status,
    stall_text::{ranges_text, stall_hint},
    stdout::StdoutLines,
    wait::builds_text,
    warn,
};
use crate::{Exit, exit::Failure, ledger_store::read_ledger};

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerSubcommand {
    /// List all jobs, the newest first
    ///
    /// A STOPPED job ended early, because it had its answer or was cancelled.
    Jobs {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the progress or the end of one job
    Show {
        /// The job's id
        job: JobId,
        /// Print JSON, with parameters and report
        #[arg(long)]
        json: bool,
    },
    /// List a job's failed tasks: index, attempts, losses, worker, reason
    Failures {
        /// The job's id
        job: JobId,
        /// Print JSON, one task a line, with the task itself
        #[arg(long)]
        json: bool,
    },
    /// Print a job's outputs, one a line, for jobs that keep them
    ///
    /// Jobs keep outputs if their kind does, or with `submit --keep`. A line has the index, a tab,
    /// and the output as JSON. With --csv the first line has the columns' names. An output that is
    /// an object has a column for each of its fields, `output.NAME`; an array one for each element,
    /// `output.0`; any other value has the column `output`. Tasks likewise. The columns are those
    /// that any row needs, up to 1,000 each, in the order of their first use; if there are more,
    /// each value is one column, `output` or `task`, as JSON. Strings are printed as they are, null
    /// as nothing, and nested values as JSON.
    Outputs {
        /// The job's id
        job: JobId,
        /// Print in the order of the split, not of arrival
        #[arg(long)]
        ordered: bool,
        /// Print the tasks as well, between index and output; for jobs submitted with --keep tasks
        #[arg(long)]
        with_tasks: bool,
        /// Print JSON, one output a line
        #[arg(long)]
        json: bool,
        /// Print CSV (RFC 4180)
        #[arg(long, conflicts_with = "json")]
        csv: bool,
    },
    /// Print everything about a job as JSON, one object a line
    ///
    /// First {"job":…}, as `sink show --json` prints it; then {"failure":…} for each failed task,
    /// as `sink failures --json` prints it, by index; then {"output":{"index":0,"output":…}} for
    /// each output, by index, of kinds that keep them; finally
    /// {"end":{"failures":1,"outputs":9}}: without this line the export is incomplete. The outputs
    /// are those of the moment of the first line; of a running job, failures may come or go until
    /// their lines are printed.
    Export {
        /// The job's id
        job: JobId,
    },
    /// Prove from the ledger that every task has exactly one outcome
    ///
    /// Counts from the stored set of tasks, not from counters. Exits 1 and lists the gaps if a task
    /// has no outcome.
    Verify {
        /// The job's id
        job: JobId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the messages that are not Gristmill's, the newest first
    Dead {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget jobs that have ended
    #[command(group(clap::ArgGroup::new("rule").required(true).multiple(true)))]
    Prune {
        /// Forget jobs that ended longer ago than this, such as 30d
        #[arg(long, group = "rule", value_name = "AGE", value_parser = humantime::parse_duration)]
        older_than: Option<Duration>,
        /// Keep only this number of jobs, those that ended last
        #[arg(long, group = "rule", value_name = "JOBS")]
        keep: Option<usize>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs a command on the ledger file. Blocking: the process has no other work.
pub(crate) fn main(ledger: &Path, command: &LedgerSubcommand) -> CommandResult {
    let ledger_name = ledger;
    let ledger = &mut read_ledger(ledger)?;
    match command {
        LedgerSubcommand::Jobs { json } => list_jobs(ledger, *json),
        LedgerSubcommand::Show { job, json } => match ledger.job(*job)? {
            Some(view) => show_job(&view, *json),
            None => Err(Failure::usage(format_args!(
                "the ledger {} has no job {job} (hint: see `sink jobs`)",
                ledger_name.display()
            ))),
        },
        LedgerSubcommand::Failures { job, json } => list_failures(ledger, *job, *json),
        LedgerSubcommand::Outputs { job, ordered, with_tasks, json, csv } => {
            let format = match (json, csv) {
                (true, _) => output_rows::OutputFormat::Json,
                (_, true) => output_rows::OutputFormat::Csv,
                _ => output_rows::OutputFormat::Text,
            };
            let selection =
                output_rows::OutputSelection { job: *job, ordered: *ordered, with_tasks: *with_tasks };
            output_rows::print_outputs(ledger, selection, format)
        }
        LedgerSubcommand::Export { job } => export_job(ledger, *job),
        LedgerSubcommand::Verify { job, json } => verify_job(ledger, *job, *json),
        LedgerSubcommand::Dead { json } => list_dead(ledger, *json),
        LedgerSubcommand::Prune { older_than, keep, json } => {
            let report = ledger.prune(PruneRule { older_than: *older_than, keep: *keep })?;
            if *json {
                print_json(&report)?;
            } else {
                print_status(format_args!("{} jobs forgotten, {} left", report.pruned, report.left));
            }
            Ok(Exit::Ok)
        }
    }
}

fn list_jobs(ledger: &mut LedgerReader, json: bool) -> CommandResult {
    let jobs = ledger.jobs()?;
    if json {
        print_json(&jobs)?;
        return Ok(Exit::Ok);
    }
    if jobs.is_empty() {
        print_status("no jobs");
    } else {
        print(format_args!(
            "{:36}  {:10}  {:8}  {:>21}  {:>6}  {:19}",
            "JOB", "KIND", "STATE", "DONE/TOTAL", "FAILED", "SUBMITTED (UTC)"
        ))?;
    }
    for JobSummary { job, kind, state, account, submitted_ms, .. } in jobs {
        let done = format!("{}/{}", account.done, total_text(&account));
        let submitted = format_utc(submitted_ms);
        print(format_args!(
            "{job}  {:10}  {state:8}  {done:>21}  {:>6}  {}",
            kind.as_str(),
            account.failed,
            submitted
        ))?;
    }
    let parked = ledger.parked()?;
    for job in &parked.jobs {
        warn(format_args!(
            "{} messages wait for job {}, which this ledger does not know",
            job.messages, job.job
        ));
    }
    if parked.dropped > 0 {
        warn(format_args!("{} messages for jobs this ledger does not know were dropped", parked.dropped));
    }
    Ok(Exit::Ok)
}

/// Formats a time to the second.
fn format_utc(ms: u64) -> String {
    let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms));
    time.to_string().replace('T', " ").trim_end_matches('Z').into()
}

fn total_text(account: &Account) -> String {
    account.total.map_or_else(|| "?".into(), |total| total.to_string())
}

fn show_job(view: &JobView, json: bool) -> CommandResult {
    if json {
        print_json(view)?;
        return Ok(Exit::Ok);
    }
    let JobSummary { job, kind, lane, state, round, account, sealed, busy_us, stalled_ms, .. } =
        &view.summary;
    let JobSummary { submitted_ms, finished_ms, .. } = &view.summary;
    let count = |number| HumanCount(number).to_string();
    let total = account.total.map_or_else(|| "an unknown number".into(), count);
    let outcomes = account.done + account.failed;
    let share = match account.total {
        Some(total) if total > 0 => format!(" ({:.2} %)", 100.0 * outcomes as f64 / total as f64),
        _ => String::new(),
    };
    print(format_args!("job        {job}"))?;
    print(format_args!("kind       {kind} {}", view.spec))?;
    print(format_args!("lane       {lane}, round {round}"))?;
    let split = if *sealed { "" } else { ", split not finished" };
    print(format_args!("state      {state}{split}"))?;
    print(format_args!("submitted  {} UTC", format_utc(*submitted_ms)))?;
    if let Some(finished_ms) = finished_ms {
        let took = Duration::from_millis(finished_ms.saturating_sub(*submitted_ms));
        print(format_args!(
            "ended      {} UTC, {} later",
            format_utc(*finished_ms),
            humantime::format_duration(took)
        ))?;
    }
    if let Some(why) = &account.stopped {
        print(format_args!("stopped    {why}"))?;
    }
    print_code(view)?;
    print(format_args!("tasks      {} of {total} have an outcome{share}", count(outcomes)))?;
    print(format_args!(
        "outcomes   {} done, {} failed, {} skipped; {} duplicates and {} late ones ignored",
        count(account.done),
        count(account.failed),
        count(account.skipped),
        count(account.duplicates),
        count(account.late)
    ))?;
    print(format_args!("slot time  {:.3} s", *busy_us as f64 / 1e6))?;
    if let Some(since_ms) = stalled_ms {
        print_stall(view, *since_ms)?;
    }
    if let Some(conclusion) = &view.conclusion {
        let what = if conclusion.answered { "answer   " } else { "no answer" };
        print(format_args!("{what}  {}", conclusion.text))?;
    }
    if stalled_ms.is_some() {
        print_status(format_args!("({})", stall_hint(*job, *sealed)));
    }
    if view.dead_messages > 0 {
        warn(format_args!(
            "this lane had {} dead messages, of any job (hint: see `sink dead`)",
            count(view.dead_messages)
        ));
    }
    Ok(Exit::Ok)
}

/// Prints the job's code: its version, the build that submitted it, and the builds that worked on
/// it.
fn print_code(view: &JobView) -> CommandResult {
    let build = view.build.as_ref().map_or("an unnamed build", |build| build.as_str());
    if view.version > 0 || view.build.is_some() {
        print(format_args!("code       version {}, submitted by {build}", view.version))?;
    }
    let builds = &view.builds;
    if builds.len() > 1 || builds.iter().any(|share| share.refused > 0 || share.build != view.build) {
        for share in builds {
            print(format_args!("worked on  {share}"))?;
        }
    }
    if view.refused.tasks > 0 {
        let ranges = view.refused.ranges.iter().map(|range| (range.start, range.end - range.start));
        print(format_args!("refused    {}", ranges_text(ranges, view.refused.tasks)))?;
        if view.summary.state == JobState::Running {
            let job = view.summary.job;
            print_status(format_args!(
                "(outcomes of those tasks were refused; a producer that waits sends them again, else \
                 `producer resume {job} --missing` does)"
            ));
        }
    }
    Ok(Exit::Ok)
}

/// Prints the duration of a job's stall, and its missing tasks.
fn print_stall(view: &JobView, since_ms: u64) -> CommandResult {
    let silence = Duration::from_secs(now_ms().saturating_sub(since_ms) / 1_000);
    let silence = humantime::format_duration(silence);
    let Some(missing) = view.missing.as_ref().filter(|missing| missing.tasks > 0) else {
        print(format_args!("stalled    no outcome for {silence}, and the split is not finished"))?;
        return Ok(Exit::Ok);
    };
    let ranges = missing.ranges.iter().map(|range| (range.start, range.end - range.start));
    print(format_args!(
        "stalled    no outcome for {silence}; missing: {}",
        ranges_text(ranges, missing.tasks)
    ))?;
    Ok(Exit::Ok)
}

fn list_failures(ledger: &mut LedgerReader, job: JobId, json: bool) -> CommandResult {
    let mut any = false;
    let mut out = StdoutLines::new();
    ledger.failures(job, &mut |failure| {
        any = true;
        if json {
            return out.write_json(&failure);
        }
        let FailureRow { index, reason, attempts, losses, worker, .. } = &failure;
        let worker = worker.as_ref().map_or("-", |worker| worker.as_str());
        out.write_line(format_args!("{index}\tattempts: {attempts}\tlosses: {losses}\t{worker}\t{reason}"))
    })?;
    out.finish()?;
    if !any {
        print_status("no task of this job failed");
    }
    Ok(Exit::Ok)
}

fn export_job(ledger: &mut LedgerReader, job: JobId) -> CommandResult {
    let mut out = StdoutLines::new();
    ledger.export(job, &mut |row| out.write_json(&row))?;
    out.finish()?;
    Ok(Exit::Ok)
}

fn verify_job(ledger: &mut LedgerReader, job: JobId, json: bool) -> CommandResult {
    let verification = ledger.verify(job)?;
    if json {
        print_json(&verification)?;
    } else {
        print(&verification)?;
        for problem in &verification.problems {
            print(format_args!("problem: {problem}"))?;
        }
        for gap in &verification.gaps {
            print(format_args!("gap: {} to {}", gap.start, gap.end - 1))?;
        }
        let listed: u64 = verification.gaps.iter().map(|gap| gap.end - gap.start).sum();
        if listed < verification.missing {
            print(format_args!("gap: and {} tasks more", verification.missing - listed))?;
        }
        let is_expected = |share: &BuildShare| share.refused == 0 && share.build == verification.build;
        if verification.builds.len() > 1 || !verification.builds.iter().all(is_expected) {
            builds_text(&verification.builds).into_iter().for_each(warn);
        }
        if verification.ok {
            print_status("every task has exactly one outcome");
        } else if verification.problems.is_empty() {
            print_status("the job has not finished");
        }
    }
    Ok(if verification.ok { Exit::Ok } else { Exit::Incomplete })
}

fn list_dead(ledger: &mut LedgerReader, json: bool) -> CommandResult {
    let dead = ledger.dead()?;
    if json {
        print_json(&dead)?;
        return Ok(Exit::Ok);
    }
    for message in &dead.messages {
        let origin = message.origin.as_deref().unwrap_or("?");
        print(format_args!("{origin}\t{} bytes\t{}", message.bytes, message.reason))?;
    }
    if dead.messages.is_empty() {
        print_status("no dead messages");
    }
    if dead.dropped > 0 {
        print_status(format_args!("{} older ones are no longer kept", dead.dropped));
    }
    Ok(Exit::Ok)
}
