//! `producer`: submits jobs, and looks after them.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use clap::{ArgMatches, Args, Command, FromArgMatches as _, Subcommand};
use gristmill_producer::{
    Cancelling, CursorError, MissingReport, Producer, SplitEnd, SplitReport, Submission, SubmitOptions,
    Watch, cancel,
};
use gristmill_shared::{Health, JobId, Lane, Shards, Transport};
use indicatif::HumanCount;
use tokio_util::sync::CancellationToken;

use super::{
    Context, Outcome,
    flags::{BrokerFlags, LaneFlags, SubmitFlags},
    kinds::Kinds,
    metrics::MetricsFlags,
    otlp, print, say,
    state_dir::StateFlags,
    wait::{self, Known},
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
enum Action {
    /// Submit a job: prints its id, or with --wait its answer
    ///
    /// Ctrl-C or SIGTERM leaves the job as it is and says how to go on; once more to stop at once.
    Submit(Submit),
    /// Wait for a job's end and print its answer
    Wait {
        /// The job's id
        job: JobId,
        /// Print the end as JSON
        #[arg(long)]
        json: bool,
    },
    /// End a job: workers drop what is queued and stop what runs
    Cancel {
        /// The job's id
        job: JobId,
        /// Why, for the record
        #[arg(long, default_value = "by hand")]
        reason: String,
    },
    /// Go on with a job whose producer was interrupted
    ///
    /// On the machine where it was submitted. One producer sends a job at a time; another one is refused.
    Resume {
        /// The job's id
        job: JobId,
        /// Send those tasks again, too, that were sent and have no outcome: the sink is asked which. For when the broker lost
        /// them; what is not lost is run twice and counts once
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
struct Submit {
    #[command(flatten)]
    how: SubmitFlags,
    /// Spread the tasks over so many tasks queues of the lane, 1 to 64, in turn; workers make them (worker --shards)
    #[arg(long, global = true, env = "GRISTMILL_SHARDS", value_name = "N", default_value_t = Shards::ONE)]
    shards: Shards,
    /// Wait for the job's end and print its answer
    #[arg(long, global = true)]
    wait: bool,
    /// With --wait: print the end as JSON
    #[arg(long, global = true, requires = "wait")]
    json: bool,
}

/// What follows when a job has been opened.
struct After {
    /// Tasks without an outcome are sent again.
    missing: bool,
    /// Its end is waited for.
    wait: bool,
    /// And printed as JSON.
    json: bool,
}

/// After this long somebody who waits is told what for.
const SLOW: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  producer submit crack --hash f8e966d1e207d02c44511a58dccff2f5429e9a3b --max-length 4 --wait
  job=$(producer submit primes --limit 100000000)
  producer wait $job
  producer resume $job --missing --wait
  producer cancel $job --reason 'wrong limit'";

pub(crate) fn command(kinds: &Kinds) -> Command {
    let command = Action::augment_subcommands(ProducerFlags::augment_args(Command::new("producer")));
    command
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(EXAMPLES)
        .mut_subcommand("submit", |submit| kinds.add_to(otlp::add_to(submit)).after_help(EXAMPLES))
        .mut_subcommand("resume", otlp::add_to)
}

pub(crate) async fn main(context: &Context, matches: &ArgMatches) -> Outcome {
    let flags = ProducerFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let action = Action::from_arg_matches(matches).map_err(Failure::usage)?;
    match action {
        Action::Submit(submit) => {
            let matches = matches.subcommand_matches("submit").ok_or_else(|| Failure::usage("no kind"))?;
            let job = context.kinds.job(matches)?;
            job.plan().map_err(Failure::usage)?; // before a broker is asked for
            submit.how.warning().into_iter().for_each(warn);
            let mut watched = flags.metrics.open(context, "producer").await?;
            let id = JobId::generate();
            let opened = context
                .unless_interrupted(async {
                    let (transport, producer) = flags.producer(context).await?;
                    watched.follow(&*transport);
                    let options = submit.how.options(&flags.lane.lane);
                    let options = SubmitOptions { job: Some(id), shards: submit.shards, ..options };
                    let submission = not_too_long(&*transport, producer.open(job, options)).await?;
                    Ok((transport, producer, submission))
                })
                .await;
            let (transport, producer, submission) =
                opened.map_err(|failure| flags.perhaps_open(id, failure))?;
            let after = After { missing: false, wait: submit.wait, json: submit.json };
            let sending = flags.send(context, &*transport, submission, after);
            // It takes no longer for that, since tasks are sent when the journal has been read.
            let (sent, ()) = futures::join!(sending, flags.say_if_not_served(context, &producer));
            sent
        }
        Action::Resume { job, missing, wait, json } => {
            let cursor = flags.state.cursors()?.load(job)?;
            let mut watched = flags.metrics.open(context, "producer").await?;
            let (transport, submission) = context
                .unless_interrupted(async {
                    let (transport, producer) = flags.producer(context).await?;
                    watched.follow(&*transport);
                    transport.open_lane(&cursor.lane).await?;
                    if let Some(finished) = wait::ended(&*transport, job).await? {
                        return Ok((transport, Err(finished)));
                    }
                    let submission =
                        not_too_long(&*transport, producer.resume(&context.registry, cursor)).await?;
                    Ok((transport, Ok(submission)))
                })
                .await?;
            let submission = match submission {
                Ok(submission) => submission,
                Err(finished) => {
                    say(format_args!("job {job} has ended: there is nothing to send"));
                    transport.close().await;
                    return if wait {
                        wait::conclude(&finished, json, &flags.why_failed(job))
                    } else {
                        Ok(Exit::Ok)
                    };
                }
            };
            flags.send(context, &*transport, submission, After { missing, wait, json }).await
        }
        Action::Wait { job, json } => flags.wait(context, job, json).await,
        Action::Cancel { job, reason } => context.unless_interrupted(flags.cancel(job, &reason)).await,
    }
}

/// Says what may be the matter if the broker takes its time.
async fn not_too_long<T>(
    transport: &dyn Transport,
    open: impl Future<Output = Result<T, gristmill_producer::ProducerError>>,
) -> Result<T, Failure> {
    let mut open = pin!(open);
    tokio::select! {
        opened = &mut open => return Ok(opened?),
        () = tokio::time::sleep(SLOW) => {}
    }
    let why = match transport.health().borrow().clone() {
        Health::Blocked(why) => {
            format!(": it is {why} (hint: free memory or disk there; the job goes on by itself then)")
        }
        Health::Away(why) => {
            format!(": the connection is lost: {why} (hint: it is made again; is the broker up?)")
        }
        Health::Well | Health::Interrupted(_) | Health::Closed => {
            " (hint: its results queue may be full; start a sink)".into()
        }
    };
    say(format_args!("the broker has not taken the job yet{why}"));
    Ok(open.await?)
}

impl ProducerFlags {
    async fn producer(&self, context: &Context) -> Result<(Arc<dyn Transport>, Producer), Failure> {
        let cursors = self.state.cursors()?;
        let (transport, app) = self.broker.connect("producer").await?;
        let producer = Producer::new(Arc::clone(&transport), app.as_str())
            .build(build_id())
            .cursors(cursors, context.version);
        Ok((transport, producer))
    }

    /// Says so if no sink is known on the lane: the tasks of a lane that nobody serves wait, and its name may be a slip of
    /// the pen.
    async fn say_if_not_served(&self, context: &Context, producer: &Producer) {
        let lane = &self.lane.lane;
        let served = tokio::select! {
            served = producer.is_served(lane) => served,
            () = context.signals.first() => return,
        };
        // That the journal cannot be read is told by whoever sends.
        if let Ok(false) = served {
            context.bar.suspend(|| {
                say(format_args!(
                    "no sink has served the lane {lane} yet (hint: is that its name? tasks and results wait on the broker \
                     until a sink and workers come)"
                ));
            });
        }
    }

    /// How the lane is named in a command that somebody may copy.
    fn lane_words(&self, lane: &Lane) -> String {
        if *lane == Lane::default() { String::new() } else { format!(" --lane {lane}") }
    }

    /// What may be said after a failure that left the job as it was.
    fn how_to_go_on(&self, job: JobId) -> String {
        let lane = self.lane_words(&self.lane.lane);
        format!(
            "go on with `producer resume {job}`, wait for its end with `producer wait {job}{lane}`, or end it with \
             `producer cancel {job}{lane}`"
        )
    }

    /// Names the job to whoever gave up while it was opened: from when it has a cursor, the broker may have it.
    fn perhaps_open(&self, job: JobId, failure: Failure) -> Failure {
        let is_kept = || self.state.cursors().is_ok_and(|cursors| cursors.load(job).is_ok());
        if failure.exit == Exit::Interrupted && is_kept() {
            failure.and(format_args!("; job {job} may be open (hint: {})", self.how_to_go_on(job)))
        } else {
            failure
        }
    }

    fn why_failed(&self, job: JobId) -> String {
        format!("list them with `sink failures {job}{}`", self.lane_words(&self.lane.lane))
    }

    async fn wait(&self, context: &Context, job: JobId, json: bool) -> Outcome {
        let known = match self.state.cursors()?.load(job) {
            Ok(cursor) => Known::Submitted(cursor.plan),
            Err(CursorError::None { .. }) => Known::Claimed,
            Err(error) => return Err(error.into()),
        };
        let waiting = async {
            let (transport, _) = self.broker.connect("producer").await?;
            transport.open_lane(&self.lane.lane).await?;
            let watch = Watch::open(&*transport, job).await?;
            wait::to_the_end(context, &*transport, watch, job, known).await
        };
        tokio::select! {
            finished = waiting => wait::conclude(&finished?, json, &self.why_failed(job)),
            () = context.signals.first() => {
                context.bar.end();
                say(format_args!("interrupted; job {job} goes on (hint: wait again with `producer wait {job}`)"));
                Ok(Exit::Interrupted)
            }
        }
    }

    async fn cancel(&self, job: JobId, reason: &str) -> Outcome {
        let known = self.state.cursors()?.load(job).ok().map(|cursor| cursor.lane);
        let (transport, app) = self.broker.connect("producer").await?;
        let told = cancel(&*transport, &self.lane.lane, job, known, reason, app.as_str()).await?;
        transport.close().await;
        match told {
            Cancelling::Told => say(format_args!("job {job} is cancelled")),
            Cancelling::SinkTold => say(format_args!(
                "job {job} is cancelled; workers stop once the sink has recorded it, since this user may not tell them"
            )),
            Cancelling::HadEnded => say(format_args!("job {job} had ended before")),
            Cancelling::Unknown => {
                return Err(Failure::usage(format_args!(
                    "no job {job} is known on this broker (hint: check the id; if no sink has taken it up yet, cancel \
                     it where it was submitted)"
                )));
            }
        }
        Ok(Exit::Ok)
    }

    /// Sends a job that has been opened, and waits for its end if asked to. When a signal comes, what is on its way is
    /// waited for, and the cursor saved.
    async fn send(
        &self,
        context: &Context,
        transport: &dyn Transport,
        mut submission: Submission,
        After { missing, wait, json }: After,
    ) -> Outcome {
        let (job, plan) = (submission.id(), submission.plan().clone());
        if wait {
            say(format_args!("job {job}"));
        } else {
            print(job)?;
            context.bar.begin(&plan);
        }
        let mut told = false;
        let over = CancellationToken::new();
        let sending = async {
            if missing {
                let mut resend = pin!(submission.send_missing());
                let resent = loop {
                    tokio::select! {
                        resent = &mut resend => break resent?,
                        () = context.signals.first() => return Ok(None),
                        () = tokio::time::sleep(SLOW), if !told => {
                            told = true;
                            let why = "no sink has answered yet which tasks are missing (hint: is one running on the job's \
                                       lane? there may be results before the question)";
                            context.bar.suspend(|| say(why));
                        }
                    }
                };
                context.bar.suspend(|| say_missing(job, resent));
            }
            let report = submission.send_until(context.signals.first()).await?;
            if wait && report.end == SplitEnd::Sealed {
                let leave = async {
                    tokio::select! {
                        () = context.signals.first() => {}
                        () = over.cancelled() => {}
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
                let watch = Watch::open(transport, job).await?;
                let finished = wait::to_the_end(context, transport, watch, job, Known::SentHere(plan)).await;
                over.cancel();
                finished
            };
            tokio::select! {
                finished = follow => finished.map(Some),
                () = context.signals.first() => Ok(None),
            }
        };
        let done = futures::try_join!(sending, following);
        context.bar.end();
        transport.close().await;
        let done = done.map_err(|failure| match failure.exit {
            Exit::Broker => failure
                .and(format_args!("\njob {job} is not ended by this (hint: {})", self.how_to_go_on(job))),
            _ => failure, // it says what became of the job
        });
        let done = done?;
        let interrupted = |report: Option<SplitReport>| {
            let how_far = match report {
                None => "may lack tasks still".into(),
                Some(SplitReport { end: SplitEnd::Interrupted, sent }) => {
                    format!(
                        "has {} tasks sent, and gets the others only when it is resumed",
                        HumanCount(sent)
                    )
                }
                Some(SplitReport { sent, .. }) => format!("has all of its {} tasks sent", HumanCount(sent)),
            };
            say(format_args!("interrupted; job {job} {how_far} (hint: {})", self.how_to_go_on(job)));
            Ok(Exit::Interrupted)
        };
        match done {
            (report @ (None | Some(SplitReport { end: SplitEnd::Interrupted, .. })), _) => {
                interrupted(report)
            }
            (report @ Some(_), None) if wait => interrupted(report),
            (Some(_), Some(finished)) => wait::conclude(&finished, json, &self.why_failed(job)),
            (Some(SplitReport { end, sent }), None) => {
                let how =
                    if end == SplitEnd::Sealed { "all sent" } else { "the job ended before its split did" };
                say(format_args!("{how}: {} tasks", HumanCount(sent)));
                Ok(Exit::Ok)
            }
        }
    }
}

fn say_missing(job: JobId, MissingReport { sent, left }: MissingReport) {
    let sent = match sent {
        0 => "no task that was sent is missing".into(),
        sent => format!("{} missing tasks sent again", HumanCount(sent)),
    };
    if left == 0 {
        say(sent);
    } else {
        let left = HumanCount(left);
        say(format_args!(
            "{sent}, {left} are left (hint: repeat `producer resume {job} --missing` when these are done)"
        ));
    }
}
