//! `run`: the whole pipeline in this process.

use std::{
    future::pending,
    sync::{Arc, OnceLock},
};

use clap::{ArgMatches, Args, Command, FromArgMatches as _};
use gristmill_ledger::LedgerLocation;
use gristmill_producer::{JobWatcher, Producer, cancel};
use gristmill_shared::{ConnectOptions, Transport, memory::MemoryTransport};
use gristmill_sink::{Sink, SinkConfig};
use gristmill_worker::Worker;
use tokio_util::sync::CancellationToken;

use super::{
    CommandResult, Context,
    flags::{AccessFlags, LaneFlags, SlotFlags, SubmitFlags, long_task_warning, process_id},
    isolated,
    kinds::Kinds,
    metrics::{LANE_NOT_CLAIMED, MetricsFlags},
    otlp, print_status,
    state_dir::StateFlags,
    wait::{self, JobOrigin},
    warn,
};
use crate::{
    Exit,
    build_id::build_id,
    exit::Failure,
    ledger_store::open_ledger,
    library::{Pipeline, PipelineShutdown, run_policy},
};

/// Run a whole job in this process: producer, workers and sink
///
/// Needs no other process. With --broker the job runs over that broker, so that workers elsewhere
/// can join; this process is then the lane's sink, so choose a --lane that no other sink serves.
#[derive(Debug, Args)]
struct RunFlags {
    /// Print the end as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Run over this broker, so that other workers can join [default: none, all in memory]
    #[arg(long, global = true, value_name = "URL")]
    broker: Option<String>,
    #[command(flatten)]
    access: AccessFlags,
    #[command(flatten)]
    lane: LaneFlags,
    #[command(flatten)]
    state: StateFlags,
    #[command(flatten)]
    slots: SlotFlags,
    #[command(flatten)]
    submit_flags: SubmitFlags,
    #[command(flatten)]
    metrics: MetricsFlags,
    /// Run the batches of each slot in a child process of its own, as `worker --isolate` does
    #[arg(long, global = true)]
    isolate: bool,
}

pub(crate) fn command(kinds: &Kinds) -> Command {
    kinds.add_to(otlp::add_global_flag(RunFlags::augment_args(Command::new("run")))).after_help(
        "Examples:\n  gristmill run crack --hash f8e966d1e207d02c44511a58dccff2f5429e9a3b --max-length 4\n  \
         gristmill run primes --limit 100000000 --slots 4",
    )
}

pub(crate) async fn main(context: &Context, matches: &ArgMatches) -> CommandResult {
    let flags = RunFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let job = context.kinds.parse_job(matches)?;
    job.plan().map_err(Failure::usage)?; // before anything is started
    let options = flags.submit_flags.options(&flags.lane.lane, run_policy());
    let policy = options.effective_policy(&*job).map_err(Failure::usage)?;
    let mut metrics = flags.metrics.open(context, "run").await?;
    metrics.set_not_ready(Some(LANE_NOT_CLAIMED));
    let app = process_id("run");
    let lane = flags.lane.lane.clone();
    let (transport, ledger): (Arc<dyn Transport>, _) = match &flags.broker {
        None => (MemoryTransport::new(), LedgerLocation::Memory),
        Some(url) => {
            let options = ConnectOptions::new(url).credentials(flags.access.access()).name(app.as_str());
            let transport = context.transports.connect(&options).await?;
            let max_hold = transport.capabilities().max_hold;
            long_task_warning(&policy, max_hold).into_iter().for_each(warn);
            (transport, LedgerLocation::File(flags.state.ledger(&lane)?))
        }
    };
    metrics.watch_transport(&*transport);
    let config = SinkConfig::new(context.registry.clone(), lane.clone(), app.clone());
    let sink = Sink::open(config, open_ledger(ledger)?)?;
    // Before a job is opened: a failed claim would leave it on a lane of another ledger.
    let claim = async { Ok(sink.claim(Arc::clone(&transport)).await?) };
    let sink = context.or_interrupted(claim).await?;
    metrics.set_not_ready(None);
    let worker = Worker::new(context.registry.clone(), app.clone())
        .build(build_id())
        .lane(lane.clone())
        .slots(flags.slots.slots())
        .stop_grace(flags.slots.stop_grace);
    let worker = if flags.isolate { worker.isolate(isolated::command(context, matches)?) } else { worker };

    let shutdown = match flags.broker {
        None => PipelineShutdown::Immediate,
        Some(_) => PipelineShutdown::Graceful, // else other workers would run the held batches again
    };
    let opened = OnceLock::new();
    let submitting = async {
        let producer = Producer::new(Arc::clone(&transport), app.as_str()).build(build_id());
        let mut submission = producer.open(job, options).await?;
        let (id, plan) = (submission.id(), submission.plan().clone());
        let _ = opened.set(id); // set only once: there is one job
        if flags.broker.is_some() {
            print_status(format_args!("job {id}"));
        }
        let watch = JobWatcher::open(&*transport, id).await?;
        let known =
            if flags.broker.is_some() { JobOrigin::SentHere(plan) } else { JobOrigin::InProcess(plan) };
        let finished_token = CancellationToken::new();
        let sending = async {
            submission.send_until(pending()).await?;
            Ok::<_, Failure>(submission.send_refused_until(finished_token.cancelled()).await?)
        };
        let following = async {
            let finished = wait::wait_until_finished(context, &*transport, watch, id, known).await?;
            finished_token.cancel();
            Ok(finished)
        };
        let ((), finished) = futures::try_join!(sending, following)?;
        Ok::<_, Failure>(finished)
    };
    let pipeline = Pipeline { transport: Arc::clone(&transport), sink, worker };
    let all = pipeline.serve(shutdown, submitting);
    let done = tokio::select! {
        finished = all => finished,
        () = context.signals.wait_first() => {
            context.bar.end();
            // Cancels the job: otherwise its tasks would stay on the broker.
            if let (Some(_), Some(job)) = (&flags.broker, opened.get()) {
                cancel(&*transport, &lane, *job, Some(lane.clone()), "interrupted", app.as_str()).await?;
            }
            Err(Failure::new(Exit::Interrupted, "interrupted; the job is given up"))
        }
    };
    context.bar.end();
    transport.close().await;
    let finished = done?;
    let why = match flags.broker {
        None => "the first are logged above, and with -vv all of them".into(),
        Some(_) => format!("list them with `sink failures {} --lane {lane}`", finished.job),
    };
    wait::conclude(&finished, flags.json, &why)
}
