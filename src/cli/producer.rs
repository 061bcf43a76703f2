//! `producer`: submits jobs, and looks after them.

use std::sync::Arc;

use clap::{ArgMatches, Args, Command, FromArgMatches as _, Subcommand};
use gristmill_producer::{Cancelling, CursorError, Producer, SplitEnd, Submission, Watch, cancel};
use gristmill_shared::{JobId, Transport};

use super::{
    Context, Outcome,
    flags::{BrokerFlags, LaneFlags, SubmitFlags},
    follow::{self, Known},
    kinds::Kinds,
    print, say,
    state::StateFlags,
};
use crate::{Exit, exit::Failure};

/// Split jobs and send their tasks; wait for jobs, cancel and resume them
#[derive(Debug, Args)]
struct ProducerFlags {
    #[command(flatten)]
    broker: BrokerFlags,
    #[command(flatten)]
    lane: LaneFlags,
    #[command(flatten)]
    state: StateFlags,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Submit a job: prints its id, or with --wait its answer
    ///
    /// Ctrl-C leaves the job as it is and says how to go on.
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
    Resume {
        /// The job's id
        job: JobId,
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
    /// Wait for the job's end and print its answer
    #[arg(long, global = true)]
    wait: bool,
    /// With --wait: print the end as JSON
    #[arg(long, global = true)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  producer submit crack --hash f8e966d1e207d02c44511a58dccff2f5429e9a3b --max-length 4 --wait
  job=$(producer submit primes --limit 100000000)
  producer wait $job
  producer cancel $job --reason 'wrong limit'";

pub(crate) fn command(kinds: &Kinds) -> Command {
    let command = Action::augment_subcommands(ProducerFlags::augment_args(Command::new("producer")));
    command
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(EXAMPLES)
        .mut_subcommand("submit", |submit| kinds.add_to(submit).after_help(EXAMPLES))
}

pub(crate) async fn main(context: &Context, matches: &ArgMatches) -> Outcome {
    let flags = ProducerFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let action = Action::from_arg_matches(matches).map_err(Failure::usage)?;
    match action {
        Action::Submit(submit) => {
            let matches = matches.subcommand_matches("submit").ok_or_else(|| Failure::usage("no kind"))?;
            let job = context.kinds.job(matches)?;
            job.plan().map_err(Failure::usage)?; // before a broker is asked for
            let (transport, producer) = flags.producer().await?;
            let submission = producer.open(job, submit.how.options(&flags.lane.lane)).await?;
            send(context, &*transport, submission, submit.wait, submit.json).await
        }
        Action::Resume { job, wait, json } => {
            let cursor = flags.state.cursors()?.load(job)?;
            let (transport, producer) = flags.producer().await?;
            let submission = producer.resume(&context.registry, cursor).await?;
            send(context, &*transport, submission, wait, json).await
        }
        Action::Wait { job, json } => {
            let known = match flags.state.cursors()?.load(job) {
                Ok(cursor) => Known::Submitted(cursor.plan),
                Err(CursorError::None { .. }) => Known::Claimed,
                Err(error) => return Err(error.into()),
            };
            let (transport, _) = flags.broker.connect("producer").await?;
            transport.open_lane(&flags.lane.lane).await?;
            let watch = Watch::open(&*transport, job).await?;
            tokio::select! {
                finished = follow::to_the_end(context, watch, job, known) => follow::conclude(&finished?, json),
                () = context.signals.first() => {
                    context.bar.end();
                    say(format_args!("interrupted; job {job} goes on (hint: wait again with `producer wait {job}`)"));
                    Ok(Exit::Interrupted)
                }
            }
        }
        Action::Cancel { job, reason } => {
            let (transport, app) = flags.broker.connect("producer").await?;
            match cancel(&*transport, &flags.lane.lane, job, &reason, app.as_str()).await? {
                Cancelling::Told => say(format_args!("job {job} is cancelled")),
                Cancelling::HadEnded => say(format_args!("job {job} had ended before")),
            }
            transport.close().await;
            Ok(Exit::Ok)
        }
    }
}

impl ProducerFlags {
    async fn producer(&self) -> Result<(Arc<dyn Transport>, Producer), Failure> {
        let cursors = self.state.cursors()?;
        let (transport, app) = self.broker.connect("producer").await?;
        let producer =
            Producer::new(Arc::clone(&transport), app.as_str()).cursors(cursors, env!("CARGO_PKG_VERSION"));
        Ok((transport, producer))
    }
}

/// Sends a job that has been opened, and waits for its end if asked to.
async fn send(
    context: &Context,
    transport: &dyn Transport,
    submission: Submission,
    wait: bool,
    json: bool,
) -> Outcome {
    let (job, plan) = (submission.id(), submission.plan().clone());
    if wait {
        say(format_args!("job {job}"));
    } else {
        print(job);
    }
    let work = async {
        if !wait {
            context.bar.begin(&plan);
            let sent = submission.send().await;
            context.bar.end();
            let sent = sent?;
            let how = match sent.end {
                SplitEnd::Sealed => "all sent",
                SplitEnd::Stopped => "the job ended before its split did",
            };
            say(format_args!("{how}: {} tasks", indicatif::HumanCount(sent.sent)));
            return Ok(Exit::Ok);
        }
        let watch = Watch::open(transport, job).await?;
        let sending = async { submission.send().await.map_err(Failure::from) };
        let following = follow::to_the_end(context, watch, job, Known::Submitted(plan));
        let (_, finished) = futures::try_join!(sending, following)?;
        follow::conclude(&finished, json)
    };
    let done = tokio::select! {
        done = work => done,
        () = context.signals.first() => {
            say(format_args!(
                "interrupted; job {job} is as it was (hint: go on with `producer resume {job}`, or end it with \
                 `producer cancel {job}`)"
            ));
            Ok(Exit::Interrupted)
        }
    };
    context.bar.end();
    transport.close().await;
    done
}
