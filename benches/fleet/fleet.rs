//! Gristmill's own fleet: a sink and workers on a lane, and their jobs.

use std::{num::NonZeroU16, path::PathBuf, time::Instant};

use gristmill_shared::{JobId, Lane, QueueRole, wire::Finished};
use lapin::options::QueueDeleteOptions;
use tokio::process::Command;

use crate::{BenchResult, bare, bench_env::BenchEnv, process::BenchProcess};

/// The released programs.
const PRODUCER_PROGRAM: &str = env!("CARGO_BIN_EXE_producer");
const WORKER_PROGRAM: &str = env!("CARGO_BIN_EXE_worker");
const SINK_PROGRAM: &str = env!("CARGO_BIN_EXE_sink");
/// The number of a worker's slots.
pub(crate) const SLOT_COUNT: NonZeroU16 = NonZeroU16::new(2).expect("2 is not 0");

/// A running sink and its workers.
#[derive(Debug)]
pub(crate) struct BenchFleet<'a> {
    pub(crate) env: &'a BenchEnv,
    pub(crate) lane: Lane,
    pub(crate) sink: BenchProcess,
    pub(crate) workers: Vec<BenchProcess>,
    /// True if they are this program, which knows more kinds.
    own: bool,
}

/// A job that has ended.
#[derive(Debug)]
pub(crate) struct FinishedJob {
    pub(crate) job: JobId,
    pub(crate) finished: Finished,
    /// The time from the start of its producer to its answer.
    pub(crate) seconds: f64,
    /// The producer's processor time.
    pub(crate) producer_seconds: f64,
}

/// The processor time of each role so far, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RoleSeconds {
    pub(crate) worker: f64,
    pub(crate) sink: f64,
    pub(crate) broker: f64,
}

impl RoleSeconds {
    /// Returns the processor time since `before`.
    pub(crate) fn minus(self, before: Self) -> Self {
        Self {
            worker: self.worker - before.worker,
            sink: self.sink - before.sink,
            broker: self.broker - before.broker,
        }
    }
}

impl<'a> BenchFleet<'a> {
    /// Starts the released sink and one released worker.
    pub(crate) async fn start(env: &'a BenchEnv) -> BenchResult<Self> {
        let lane = env.new_lane()?;
        let sink = Self::sink(env.program(SINK_PROGRAM, &lane)).await?;
        let worker = Self::worker(env.program(WORKER_PROGRAM, &lane)).await?;
        Ok(Self { env, lane, sink, workers: vec![worker], own: false })
    }

    /// Starts a sink and workers that know this program's kinds too. Each worker logs to one of
    /// these files.
    pub(crate) async fn start_own(env: &'a BenchEnv, task_logs: &[PathBuf]) -> BenchResult<Self> {
        let lane = env.new_lane()?;
        let mut command = env.own_program(&lane);
        command.arg("sink");
        let sink = Self::sink(command).await?;
        let mut workers = Vec::new();
        for task_log in task_logs {
            let mut command = env.own_program(&lane);
            command.arg("worker").env(crate::TASK_LOG_VARIABLE, task_log);
            workers.push(Self::worker(command).await?);
        }
        Ok(Self { env, lane, sink, workers, own: true })
    }

    async fn sink(command: Command) -> BenchResult<BenchProcess> {
        let mut sink = BenchProcess::start("sink", command)?;
        sink.wait_for_stderr("serving").await?;
        Ok(sink)
    }

    async fn worker(mut command: Command) -> BenchResult<BenchProcess> {
        command.args(["--slots", &SLOT_COUNT.to_string()]);
        let mut worker = BenchProcess::start("worker", command)?;
        worker.wait_for_stderr("taking tasks").await?;
        Ok(worker)
    }

    /// Starts a producer that submits a job and waits for it. `words` are the kind and its flags.
    /// The producer measures the work of a `spin`, unless it is this program.
    pub(crate) fn submit(&self, words: &[&str]) -> BenchResult<BenchProcess> {
        let given = self.own || words.contains(&"--spec");
        let mut command = if given {
            let mut command = self.env.own_program(&self.lane);
            command.arg("producer");
            command
        } else {
            self.env.program(PRODUCER_PROGRAM, &self.lane)
        };
        command.arg("submit").args(words).args(["--wait", "--json"]);
        BenchProcess::start("producer", command)
    }

    /// Runs a job to its end. Fails unless its ledger is verified.
    pub(crate) async fn run(&self, words: &[&str]) -> BenchResult<FinishedJob> {
        let start = Instant::now();
        let producer = self.submit(words)?;
        self.wait_for_job(start, producer).await
    }

    /// Waits for a job's end. Fails unless its ledger is verified.
    pub(crate) async fn wait_for_job(
        &self,
        start: Instant,
        mut producer: BenchProcess,
    ) -> BenchResult<FinishedJob> {
        let finished: Finished = producer.read_json().await?;
        let seconds = start.elapsed().as_secs_f64();
        let ended = producer.wait_success().await?;
        let job = finished.job;
        self.verify(job).await?;
        Ok(FinishedJob { job, finished, seconds, producer_seconds: ended.seconds })
    }

    async fn verify(&self, job: JobId) -> BenchResult<()> {
        let mut command = self.env.program(SINK_PROGRAM, &self.lane);
        command.args(["verify", &job.to_string()]);
        BenchProcess::start("sink verify", command)?.wait_success().await.map(drop)
    }

    /// Returns the path of the sink's ledger.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.env.dir().join(format!("{}.ledger", self.lane))
    }

    /// Returns the processor time of all roles so far.
    pub(crate) fn role_seconds(&self) -> BenchResult<RoleSeconds> {
        let workers = self.workers.iter().map(BenchProcess::seconds);
        Ok(RoleSeconds {
            worker: workers.sum::<BenchResult<f64>>()?,
            sink: self.sink.seconds()?,
            broker: self.env.broker_seconds()?,
        })
    }

    /// Stops all roles and deletes the lane's queues, so that they cost the broker nothing from
    /// then on.
    pub(crate) async fn shut_down(self) -> BenchResult<()> {
        for process in self.workers.into_iter().chain([self.sink]) {
            process.stop().await?;
        }
        let connection = bare::connect(self.env.url()).await?;
        let channel = connection.create_channel().await?;
        for role in QueueRole::ALL {
            let queue = role.of(&self.lane).to_string();
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        }
        Ok(connection.close(200, "done".into()).await?)
    }
}

impl FinishedJob {
    /// Fails unless this was a `spin` of `tasks` tasks with the right sum.
    pub(crate) fn check_spin(&self, tasks: u64) -> BenchResult<()> {
        let expected = expected_spin_answer(tasks);
        let (account, text) = (&self.finished.account, &self.finished.conclusion.text);
        if *text == expected && account.done == tasks && account.failed == 0 {
            return Ok(());
        }
        Err(format!("wrong answer: {text:?} with {account:?}, expected {expected:?}").into())
    }
}

/// Returns the answer of a `spin` of `tasks` tasks.
pub(crate) fn expected_spin_answer(tasks: u64) -> String {
    let sum = u128::from(tasks) * u128::from(tasks.saturating_sub(1)) / 2;
    format!("{tasks} tasks, sum {sum}")
}
