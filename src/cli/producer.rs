//! `producer`: submits, resumes, cancels, and waits for jobs.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use clap::{ArgMatches, Args, Command, FromArgMatches as _, Subcommand};
use gristmill_producer::{
    CancelOutcome, CursorError, JobWatcher, MissingReport, Producer, SplitEnd, SplitReport, Submission,
    SubmitOptions, cancel,
};
use gristmill_shared::{Health, JobId, Lane, Policy, Shards, Transport};
use indicatif::HumanCount;
use tokio_util::sync::CancellationToken;

use super::{
    CommandResult, Context,
    flags::{BrokerFlags, LaneFlags, SubmitFlags, long_task_warning},
    kinds::Kinds,
    metrics::MetricsFlags,
    otlp, print, print_status,
    state_dir::StateFlags,
    wait::{self, JobOrigin},
    warn,
};
use crate::{Exit, build_id::build_id, exit::Failure};

/// Split jobs and send their tasks; wait for jobs, cancel, resume
#[derive(Debug, Args)]
struct ProducerFlags {
    #[command(flatten)]
    broker: BrokerFlags,
    #[command(flatten)]
    lane: LaneFlags,
    #[command(flatten)]
    state: StateFlags,
    #[command(flatten)]
    metrics: MetricsFlags,
}

#[derive(Debug, Subcommand)]
enum ProducerAction {
    /// Submit a job: prints its id, or with --wait its answer
    ///
    /// The first Ctrl-C or SIGTERM leaves the job as it is and prints how to resume it; the second
    /// stops at once.
    Submit(SubmitArgs),
    /// Wait for a job's end and print its answer
    Wait {
        /// The job's id
        job: JobId,
        /// Print the end as JSON
        #[arg(long)]
        json: bool,
    },
    /// Cancel a job: workers drop its queued tasks and stop the running ones
    Cancel {
        /// The job's id
        job: JobId,
        /// The reason, for the record
        #[arg(long, default_value = "by hand")]
        reason: String,
    },
    /// Resume a job whose producer was interrupted
    ///
    /// Run this on the machine where the job was submitted. Only one producer can send a job at a
    /// time; another one is refused.
    Resume {
        /// The job's id
        job: JobId,
        /// Also send again the tasks that were sent and have no outcome, as reported by the sink.
        /// Use this if the broker lost messages; a task that was not lost runs twice and counts
        /// once
        #[arg(long)]
        missing: bool,
        /// Wait for the job's end and print its answer
        #[arg(long)]
        wait: bool,
        /// With --wait: print the end as JSON
        #[arg(long, requires = "wait")]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct SubmitArgs {
    #[command(flatten)]
    submit_flags: SubmitFlags,
    /// Spread the tasks over this number of tasks queues of the lane, 1 to 64, in turn; workers
    /// make them (worker --shards)
    #[arg(long, global = true, env = "GRISTMILL_SHARDS", value_name = "N", default_value_t = Shards::ONE)]
    shards: Shards,
    /// Wait for the job's end and print its answer
    #[arg(long, global = true)]
    wait: bool,
    /// With --wait: print the end as JSON
    #[arg(long, global = true, requires = "wait")]
    json: bool,
}

/// The options of sending a job that has been opened.
struct SendOptions {
    /// Sends again the tasks without an outcome.
    missing: bool,
    /// Waits for the job's end.
    wait: bool,
    /// Prints the end as JSON.
    json: bool,
}

/// The time after which a status message explains a wait.
const SLOW_BROKER_TIME: Duration = Duration::from_secs(5);

const PRODUCER_EXAMPLES: &str = "\
Examples:
  producer submit crack --hash f8e966d1e207d02c44511a58dccff2f5429e9a3b --max-length 4 --wait
  job=$(producer submit primes --limit 100000000)
  producer wait $job
  producer resume $job --missing --wait
  producer cancel $job --reason 'wrong limit'";

pub(crate) fn command(kinds: &Kinds) -> Command {
    let command = ProducerAction::augment_subcommands(ProducerFlags::augment_args(Command::new("producer")));
    command
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(PRODUCER_EXAMPLES)
        .mut_subcommand("submit", |submit| {
            kinds.add_to(otlp::add_global_flag(submit)).after_help(PRODUCER_EXAMPLES)
        })
        .mut_subcommand("resume", otlp::add_global_flag)
}

pub(crate) async fn main(context: &Context, matches: &ArgMatches) -> CommandResult {
    let flags = ProducerFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let action = ProducerAction::from_arg_matches(matches).map_err(Failure::usage)?;
    match action {
        ProducerAction::Submit(submit) => {
            let matches = matches.subcommand_matches("submit").ok_or_else(|| Failure::usage("no kind"))?;
            let job = context.kinds.parse_job(matches)?;
            job.plan().map_err(Failure::usage)?; // before connecting
            let options = submit.submit_flags.options(&flags.lane.lane, Policy::default());
            let policy = options.effective_policy(&*job).map_err(Failure::usage)?;
            let mut metrics = flags.metrics.open(context, "producer").await?;
            let id = JobId::generate();
            let opened = context
                .or_interrupted(async {
                    let (transport, producer) = flags.connect_producer(context).await?;
                    metrics.watch_transport(&*transport);
                    let max_hold = transport.capabilities().max_hold;
                    long_task_warning(&policy, max_hold).into_iter().for_each(warn);
                    let options = SubmitOptions { job: Some(id), shards: submit.shards, ..options };
                    let submission = open_or_explain(&*transport, producer.open(job, options)).await?;
                    Ok((transport, producer, submission))
                })
                .await;
            let (transport, producer, submission) =
                opened.map_err(|failure| flags.name_open_job(id, failure))?;
            let options = SendOptions { missing: false, wait: submit.wait, json: submit.json };
            let sending = flags.send(context, &*transport, submission, options);
            // This costs no time: tasks are sent after the journal has been read.
            let (sent, ()) = futures::join!(sending, flags.note_unserved_lane(context, &producer));
            sent
        }
        ProducerAction::Resume { job, missing, wait, json } => {
            let cursor = flags.state.cursors()?.load(job)?;
            let mut metrics = flags.metrics.open(context, "producer").await?;
            let (transport, submission) = context
                .or_interrupted(async {
                    let (transport, producer) = flags.connect_producer(context).await?;
                    metrics.watch_transport(&*transport);
                    transport.open_lane(&cursor.lane).await?;
                    if let Some(finished) = wait::finished_job(&*transport, job).await? {
                        return Ok((transport, Err(finished)));
                    }
                    let submission =
                        open_or_explain(&*transport, producer.resume(&context.registry, cursor)).await?;
                    Ok((transport, Ok(submission)))
                })
                .await?;
            let submission = match submission {
                Ok(submission) => submission,
                Err(finished) => {
                    print_status(format_args!("job {job} has ended: there is nothing to send"));
                    transport.close().await;
                    return if wait {
                        wait::conclude(&finished, json, &flags.failures_hint(job))
                    } else {
                        Ok(Exit::Ok)
                    };
                }
            };
            flags.send(context, &*transport, submission, SendOptions { missing, wait, json }).await
        }
        ProducerAction::Wait { job, json } => flags.wait(context, job, json).await,
        ProducerAction::Cancel { job, reason } => {
            context.or_interrupted(flags.cancel(context, job, &reason)).await
        }
    }
}

/// Opens a job. If the broker takes longer than [`SLOW_BROKER_TIME`], prints the likely reason.
async fn open_or_explain<T>(
    transport: &dyn Transport,
    open: impl Future<Output = Result<T, gristmill_producer::ProducerError>>,
) -> Result<T, Failure> {
    let mut open = pin!(open);
    tokio::select! {
        opened = &mut open => return Ok(opened?),
        () = tokio::time::sleep(SLOW_BROKER_TIME) => {}
    }
    let why = match transport.health().borrow().clone() {
        Health::Blocked(why) => {
            format!(": it is {why} (hint: free memory or disk there; the job then continues)")
        }
        Health::Reconnecting(why) => {
            format!(": the connection is lost: {why} (hint: is the broker up? this program reconnects)")
        }
        Health::Ready | Health::Degraded(_) | Health::Closed => {
            " (hint: it may hold too many results of this lane; start a sink)".into()
        }
    };
    print_status(format_args!("the broker has not taken the job yet{why}"));
    Ok(open.await?)
}

impl ProducerFlags {
    async fn connect_producer(&self, context: &Context) -> Result<(Arc<dyn Transport>, Producer), Failure> {
        let cursors = self.state.cursors()?;
        let (transport, app) = self.broker.connect(context, "producer").await?;
        let producer = Producer::new(Arc::clone(&transport), app.as_str())
            .build(build_id())
            .cursors(cursors, context.version);
        Ok((transport, producer))
    }

    /// Prints a note if no sink is known on the lane: tasks of an unserved lane wait, and its name
    /// may be misspelt.
    async fn note_unserved_lane(&self, context: &Context, producer: &Producer) {
        let lane = &self.lane.lane;
        let served = tokio::select! {
            served = producer.is_served(lane) => served,
            () = context.signals.wait_first() => return,
        };
        // The sender reports an unreadable journal.
        if let Ok(false) = served {
            context.bar.suspend(|| {
                print_status(format_args!(
                    "no sink has served the lane {lane} yet (hint: is that its name? tasks and results wait on the broker \
                     until a sink and workers come)"
                ));
            });
        }
    }

    /// Returns the `--lane` flag of a suggested command, empty for the default lane.
    fn lane_flag(&self, lane: &Lane) -> String {
        if *lane == Lane::default() { String::new() } else { format!(" --lane {lane}") }
    }

    /// Returns a hint about how to resume, wait for or cancel the job.
    fn resume_hint(&self, job: JobId) -> String {
        let lane = self.lane_flag(&self.lane.lane);
        format!(
            "resume it with `producer resume {job}`, wait for its end with `producer wait {job}{lane}`, or end it with \
             `producer cancel {job}{lane}`"
        )
    }

    /// Adds the job's id to the failure of an interrupted opening, if a cursor exists: the broker
    /// may have the job.
    fn name_open_job(&self, job: JobId, failure: Failure) -> Failure {
        let is_kept = || self.state.cursors().is_ok_and(|cursors| cursors.load(job).is_ok());
        if failure.exit == Exit::Interrupted && is_kept() {
            failure.append(format_args!("; job {job} may be open (hint: {})", self.resume_hint(job)))
        } else {
            failure
        }
    }

    fn failures_hint(&self, job: JobId) -> String {
        format!("list them with `sink failures {job}{}`", self.lane_flag(&self.lane.lane))
    }

    async fn wait(&self, context: &Context, job: JobId, json: bool) -> CommandResult {
        let known = match self.state.cursors()?.load(job) {
            Ok(cursor) => JobOrigin::SubmittedHere(cursor.plan),
            Err(CursorError::NotFound { .. }) => JobOrigin::Unconfirmed,
            Err(error) => return Err(error.into()),
        };
        let waiting = async {
            let (transport, _) = self.broker.connect(context, "producer").await?;
            transport.open_lane(&self.lane.lane).await?;
            let watch = JobWatcher::open(&*transport, job).await?;
            wait::wait_until_finished(context, &*transport, watch, job, known).await
        };
        tokio::select! {
            finished = waiting => wait::conclude(&finished?, json, &self.failures_hint(job)),
            () = context.signals.wait_first() => {
                context.bar.end();
                print_status(format_args!("interrupted; job {job} continues (hint: wait again with `producer wait {job}`)"));
                Ok(Exit::Interrupted)
            }
        }
    }

    async fn cancel(&self, context: &Context, job: JobId, reason: &str) -> CommandResult {
        let known = self.state.cursors()?.load(job).ok().map(|cursor| cursor.lane);
        let (transport, app) = self.broker.connect(context, "producer").await?;
        let cancelled = cancel(&*transport, &self.lane.lane, job, known, reason, app.as_str()).await?;
        transport.close().await;
        match cancelled {
            CancelOutcome::Broadcast => print_status(format_args!("job {job} is cancelled")),
            CancelOutcome::SentToSink => print_status(format_args!(
                "job {job} is cancelled; workers stop once the sink has recorded it, since this user may not broadcast to workers"
            )),
            CancelOutcome::AlreadyEnded => print_status(format_args!("job {job} had ended before")),
            CancelOutcome::UnknownJob => {
                return Err(Failure::usage(format_args!(
                    "no job {job} is known on this broker (hint: check the id; if no sink has taken it up yet, cancel \
                     it where it was submitted)"
                )));
            }
        }
        Ok(Exit::Ok)
    }

    /// Sends a job that has been opened, and waits for its end if requested. At a signal, waits for
    /// messages in flight and saves the cursor.
    async fn send(
        &self,
        context: &Context,
        transport: &dyn Transport,
        mut submission: Submission,
        SendOptions { missing, wait, json }: SendOptions,
    ) -> CommandResult {
        let (job, plan) = (submission.id(), submission.plan().clone());
        if wait {
            print_status(format_args!("job {job}"));
        } else {
            print(job)?;
            context.bar.begin(&plan);
        }
        let mut explained = false;
        let finished_token = CancellationToken::new();
        let sending = async {
            if missing {
                let mut resend = pin!(submission.send_missing());
                let resent = loop {
                    tokio::select! {
                        resent = &mut resend => break resent?,
                        () = context.signals.wait_first() => return Ok(None),
                        () = tokio::time::sleep(SLOW_BROKER_TIME), if !explained => {
                            explained = true;
                            let why = "no sink has answered yet which tasks are missing (hint: is one running on the job's \
                                       lane? results may be queued before the request)";
                            context.bar.suspend(|| print_status(why));
                        }
                    }
                };
                context.bar.suspend(|| print_resent(job, resent));
            }
            let report = submission.send_until(context.signals.wait_first()).await?;
            if wait && report.end == SplitEnd::Sealed {
                let leave = async {
                    tokio::select! {
                        () = context.signals.wait_first() => {}
                        () = finished_token.cancelled() => {}
                    }
                };
                submission.send_refused_until(leave).await?;
            }
            Ok::<_, Failure>(Some(report))
        };
        let following = async {
            if !wait {
                return Ok(None);
            }
            let follow = async {
                let watch = JobWatcher::open(transport, job).await?;
                let finished =
                    wait::wait_until_finished(context, transport, watch, job, JobOrigin::SentHere(plan))
                        .await;
                finished_token.cancel();
                finished
            };
            tokio::select! {
                finished = follow => finished.map(Some),
                () = context.signals.wait_first() => Ok(None),
            }
        };
        let done = futures::try_join!(sending, following);
        context.bar.end();
        transport.close().await;
        let done = done.map_err(|failure| match failure.exit {
            Exit::Broker => failure
                .append(format_args!("\nthis does not end job {job} (hint: {})", self.resume_hint(job))),
            _ => failure, // the message explains the state of the job
        });
        let done = done?;
        let interrupted = |report: Option<SplitReport>| {
            let how_far = match report {
                None => "may still lack tasks".into(),
                Some(SplitReport { end: SplitEnd::Interrupted, sent }) => {
                    format!(
                        "has {} tasks sent, and the others are sent only when it is resumed",
                        HumanCount(sent)
                    )
                }
                Some(SplitReport { sent, .. }) => format!("has all of its {} tasks sent", HumanCount(sent)),
            };
            print_status(format_args!("interrupted; job {job} {how_far} (hint: {})", self.resume_hint(job)));
            Ok(Exit::Interrupted)
        };
        match done {
            (report @ (None | Some(SplitReport { end: SplitEnd::Interrupted, .. })), _) => {
                interrupted(report)
            }
            (report @ Some(_), None) if wait => interrupted(report),
            (Some(_), Some(finished)) => wait::conclude(&finished, json, &self.failures_hint(job)),
            (Some(SplitReport { end, sent }), None) => {
                let how =
                    if end == SplitEnd::Sealed { "all sent" } else { "the job ended before its split did" };
                print_status(format_args!("{how}: {} tasks", HumanCount(sent)));
                Ok(Exit::Ok)
            }
        }
    }
}

fn print_resent(job: JobId, MissingReport { sent, left }: MissingReport) {
    let sent = match sent {
        0 => "no task that was sent is missing".into(),
        sent => format!("{} missing tasks sent again", HumanCount(sent)),
    };
    if left == 0 {
        print_status(sent);
    } else {
        let left = HumanCount(left);
        print_status(format_args!(
            "{sent}, {left} are left (hint: repeat `producer resume {job} --missing` when these are done)"
        ));
    }
}
