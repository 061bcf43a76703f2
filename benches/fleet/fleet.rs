//! Our own fleet: a sink and workers on a lane, and the jobs they are given.

use std::{num::NonZeroU16, path::PathBuf, time::Instant};

use gristmill_shared::{JobId, Lane, QueueRole, wire::Finished};
use lapin::options::QueueDeleteOptions;
use tokio::process::Command;

use crate::{Outcome, bare, bench_env::Site, process::Process};

/// The programs as everybody has them.
const PRODUCER: &str = env!("CARGO_BIN_EXE_producer");
const WORKER: &str = env!("CARGO_BIN_EXE_worker");
const SINK: &str = env!("CARGO_BIN_EXE_sink");
/// How many slots a worker has.
pub(crate) const SLOTS: NonZeroU16 = NonZeroU16::new(2).expect("2 is not 0");

/// A sink and workers that are up.
#[derive(Debug)]
pub(crate) struct Fleet<'a> {
    pub(crate) site: &'a Site,
    pub(crate) lane: Lane,
    pub(crate) sink: Process,
    pub(crate) workers: Vec<Process>,
    /// Whether they are this program, which knows more kinds.
    own: bool,
}

/// What a job came to.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) job: JobId,
    pub(crate) finished: Finished,
    /// From the start of its producer to its answer.
    pub(crate) seconds: f64,
    /// The producer's processor time.
    pub(crate) producer_seconds: f64,
}

/// Processor time that everybody has used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    pub(crate) worker: f64,
    pub(crate) sink: f64,
    pub(crate) broker: f64,
}

impl Spent {
    /// What was used in between.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            worker: self.worker - before.worker,
            sink: self.sink - before.sink,
            broker: self.broker - before.broker,
        }
    }
}

impl<'a> Fleet<'a> {
    /// A sink and one worker, as everybody has them.
    pub(crate) async fn start(site: &'a Site) -> Outcome<Self> {
        let lane = site.new_lane()?;
        let sink = Self::sink(site.program(SINK, &lane)).await?;
        let worker = Self::worker(site.program(WORKER, &lane)).await?;
        Ok(Self { site, lane, sink, workers: vec![worker], own: false })
    }

    /// A sink and workers that know this program's kinds as well; each worker keeps its diary in one of these files.
    pub(crate) async fn start_own(site: &'a Site, diaries: &[PathBuf]) -> Outcome<Self> {
        let lane = site.new_lane()?;
        let mut command = site.own_program(&lane);
        command.arg("sink");
        let sink = Self::sink(command).await?;
        let mut workers = Vec::new();
        for diary in diaries {
            let mut command = site.own_program(&lane);
            command.arg("worker").env(crate::DIARY_VARIABLE, diary);
            workers.push(Self::worker(command).await?);
        }
        Ok(Self { site, lane, sink, workers, own: true })
    }

    async fn sink(command: Command) -> Outcome<Process> {
        let mut sink = Process::start("sink", command)?;
        sink.says("serving").await?;
        Ok(sink)
    }

    async fn worker(mut command: Command) -> Outcome<Process> {
        command.args(["--slots", &SLOTS.to_string()]);
        let mut worker = Process::start("worker", command)?;
        worker.says("taking tasks").await?;
        Ok(worker)
    }

    /// Starts a producer that submits a job and waits for it; `words` are the kind and its flags. The work of a `spin`
    /// is measured by that producer, unless it is this program's.
    pub(crate) fn submit(&self, words: &[&str]) -> Outcome<Process> {
        let given = self.own || words.contains(&"--spec");
        let mut command = if given {
            let mut command = self.site.own_program(&self.lane);
            command.arg("producer");
            command
        } else {
            self.site.program(PRODUCER, &self.lane)
        };
        command.arg("submit").args(words).args(["--wait", "--json"]);
        Process::start("producer", command)
    }

    /// Runs a job to its end. Fails unless its ledger adds up.
    pub(crate) async fn run(&self, words: &[&str]) -> Outcome<Done> {
        let start = Instant::now();
        let producer = self.submit(words)?;
        self.see_through(start, producer).await
    }

    /// Waits for a job's end. Fails unless its ledger adds up.
    pub(crate) async fn see_through(&self, start: Instant, mut producer: Process) -> Outcome<Done> {
        let finished: Finished = producer.json().await?;
        let seconds = start.elapsed().as_secs_f64();
        let ended = producer.end_well().await?;
        let job = finished.job;
        self.verify(job).await?;
        Ok(Done { job, finished, seconds, producer_seconds: ended.seconds })
    }

    async fn verify(&self, job: JobId) -> Outcome<()> {
        let mut command = self.site.program(SINK, &self.lane);
        command.args(["verify", &job.to_string()]);
        Process::start("sink verify", command)?.end_well().await.map(drop)
    }

    /// Where the sink's ledger is.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.site.dir().join(format!("{}.ledger", self.lane))
    }

    /// Processor time so far.
    pub(crate) fn spent(&self) -> Outcome<Spent> {
        let workers = self.workers.iter().map(Process::seconds);
        Ok(Spent {
            worker: workers.sum::<Outcome<f64>>()?,
            sink: self.sink.seconds()?,
            broker: self.site.broker_seconds()?,
        })
    }

    /// Lets everybody leave, and takes the lane's queues away, so that they cost the broker nothing from now on.
    pub(crate) async fn end(self) -> Outcome<()> {
        for process in self.workers.into_iter().chain([self.sink]) {
            process.stop().await?;
        }
        let connection = bare::connect(self.site.url()).await?;
        let channel = connection.create_channel().await?;
        for role in QueueRole::ALL {
            let queue = role.of(&self.lane).to_string();
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        }
        Ok(connection.close(200, "done".into()).await?)
    }
}

impl Done {
    /// Fails unless a `spin` of so many tasks gave the sum that it must.
    pub(crate) fn must_be_spin_of(&self, tasks: u64) -> Outcome<()> {
        let expected = spin_answer(tasks);
        let (account, text) = (&self.finished.account, &self.finished.conclusion.text);
        if *text == expected && account.done == tasks && account.failed == 0 {
            return Ok(());
        }
        Err(format!("wrong answer: {text:?} with {account:?}, expected {expected:?}").into())
    }
}

/// What a `spin` of so many tasks answers.
pub(crate) fn spin_answer(tasks: u64) -> String {
    let sum = u128::from(tasks) * u128::from(tasks.saturating_sub(1)) / 2;
    format!("{tasks} tasks, sum {sum}")
}
