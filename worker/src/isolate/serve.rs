//! The program inside a child: reads batches, processes their tasks on one thread, and answers.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufReader},
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use gristmill_shared::{
    AnyJob, BatchRun, JobId, Kind, OpenError, Policy, Registry, Round, StopSignal, TaskContext, TaskIndex,
    error_chain, wire::Batch,
};
use serde_json::value::RawValue;

use crate::executor::drop_job;

use super::{
    answers::AnswerWriter,
    protocol::{Answer, ChildRequest, OPEN_JOBS_MAX, PROTOCOL_VERSION, read_line},
};

/// Requests that may be queued for the thread: the worker sends one batch at a time, preceded by
/// its job, and a `forget` for each job that has ended. So a `stop` is read at any time.
const QUEUED_REQUESTS_MAX: usize = OPEN_JOBS_MAX + 2;

/// Runs the batches that the worker sends, until the end of `requests`. Then the running task ends,
/// and no other one begins.
///
/// # Errors
/// If a request is malformed, or the worker does not read the answers.
pub fn serve_isolated(registry: Registry, requests: File, answers: File) -> io::Result<()> {
    let answers = AnswerWriter::start(answers)?;
    let halt = StopSignal::new();
    let (current, slot) = (Arc::new(Mutex::new(None)), Arc::new(AtomicU32::new(0)));
    let (sender, queued) = flume::bounded::<ChildRequest<Box<RawValue>>>(QUEUED_REQUESTS_MAX);
    let reading = {
        let (answers, halt) = (Arc::clone(&answers), halt.clone());
        let (current, slot) = (Arc::clone(&current), Arc::clone(&slot));
        let read = move || {
            let result = read_requests(requests, &answers, &slot, &current, &sender);
            halt.stop();
            result
        };
        thread::Builder::new().name("requests".into()).spawn(read)?
    };
    let child = ChildSlot { registry, answers, halt, number: slot, current, jobs: VecDeque::new() };
    let working = thread::Builder::new().name("slot".into()).spawn(move || child.serve_requests(&queued))?;
    let worked = working.join().map_err(|_| io::Error::other("the slot's thread panicked"))?;
    worked?;
    reading.join().map_err(|_| io::Error::other("the reading thread panicked"))?
}

/// The job of the last batch that was read, with its stop signal.
type CurrentJob = Mutex<Option<(JobId, Round, StopSignal)>>;

fn read_requests(
    requests: File,
    answers: &AnswerWriter,
    slot: &AtomicU32,
    current: &CurrentJob,
    queue: &flume::Sender<ChildRequest<Box<RawValue>>>,
) -> io::Result<()> {
    let mut requests = BufReader::new(requests);
    let mut line = Vec::new();
    while read_line(&mut requests, &mut line)? {
        let request: ChildRequest<Box<RawValue>> = serde_json::from_slice(&line)?;
        match &request {
            ChildRequest::Hello { slot: number, .. } => {
                slot.store(*number, Ordering::Relaxed); // no batch comes before the answer
                answers.write_answer(&Answer::Ready { protocol: PROTOCOL_VERSION })?;
            }
            ChildRequest::Stop { job, round } => {
                let current = current.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((running, of_round, stop)) = &*current
                    && (running, of_round) == (job, round)
                {
                    stop.stop();
                }
            }
            ChildRequest::Run { job, round, .. } => {
                let signal = StopSignal::new();
                *current.lock().unwrap_or_else(PoisonError::into_inner) = Some((*job, *round, signal));
                forward(queue, request)?;
            }
            ChildRequest::Job { .. } | ChildRequest::Forget { .. } => forward(queue, request)?,
        }
    }
    Ok(())
}

fn forward(
    queue: &flume::Sender<ChildRequest<Box<RawValue>>>,
    request: ChildRequest<Box<RawValue>>,
) -> io::Result<()> {
    queue.send(request).map_err(|_| io::Error::other("the slot's thread has ended"))
}

/// The slot of a child: the thread that runs user code.
struct ChildSlot {
    registry: Registry,
    answers: Arc<AnswerWriter>,
    halt: StopSignal,
    /// The number of the worker's slot.
    number: Arc<AtomicU32>,
    current: Arc<CurrentJob>,
    jobs: VecDeque<ServedJob>,
}

/// A job that the child has open.
struct ServedJob {
    id: JobId,
    round: Round,
    kind: Kind,
    version: u32,
    spec: Box<RawValue>,
    policy: Policy,
    job: Result<Arc<dyn AnyJob>, OpenError>,
}

impl ServedJob {
    /// Drops the job with its state, which is user code.
    fn close(self) {
        if let Ok(job) = self.job {
            drop_job(job);
        }
    }
}

/// Consecutive tasks of one request.
struct RequestedTasks {
    first: TaskIndex,
    count: u32,
    failures: u32,
    json: Box<RawValue>,
}

impl ChildSlot {
    fn serve_requests(mut self, queued: &flume::Receiver<ChildRequest<Box<RawValue>>>) -> io::Result<()> {
        while let Ok(request) = queued.recv() {
            match request {
                ChildRequest::Job { id, round, kind, version, spec, timeout_ms } => {
                    let job = self.registry.open(&kind, version, &spec);
                    let policy = Policy { task_timeout_ms: timeout_ms, ..Policy::default() };
                    self.jobs.push_back(ServedJob { id, round, kind, version, spec, policy, job });
                    if self.jobs.len() > OPEN_JOBS_MAX {
                        self.jobs.pop_front().into_iter().for_each(ServedJob::close);
                    }
                }
                ChildRequest::Forget { job, round } => {
                    let is_ended = |open: &ServedJob| (open.id, open.round) == (job, round);
                    let (ended, open): (VecDeque<_>, VecDeque<_>) =
                        mem::take(&mut self.jobs).into_iter().partition(is_ended);
                    self.jobs = open;
                    ended.into_iter().for_each(ServedJob::close);
                }
                ChildRequest::Run { job, round, first, count, failures, tasks } => {
                    self.run(job, round, &RequestedTasks { first, count, failures, json: tasks })?;
                }
                ChildRequest::Hello { .. } | ChildRequest::Stop { .. } => {}
            }
        }
        Ok(())
    }

    fn run(&self, id: JobId, round: Round, tasks: &RequestedTasks) -> io::Result<()> {
        let open = self.jobs.iter().rfind(|open| (open.id, open.round) == (id, round));
        let refused = match open.map(|open| (open, &open.job)) {
            None => "its worker did not name the job".into(),
            Some((_, Err(error))) => error_chain(error),
            Some((open, Ok(job))) => match self.process(open, &**job, tasks) {
                Ok(result) => {
                    result?;
                    return self.answers.write_answer(&Answer::End);
                }
                Err(malformed) => malformed,
            },
        };
        self.answers.write_answer(&Answer::Refused { reason: refused })?;
        self.answers.write_answer(&Answer::End)
    }

    /// Processes tasks. The inner result is that of writing answers; the outer error is the reason
    /// why no task ran.
    fn process(
        &self,
        open: &ServedJob,
        job: &dyn AnyJob,
        tasks: &RequestedTasks,
    ) -> Result<io::Result<()>, String> {
        let batch = Batch {
            job: open.id,
            kind: open.kind.clone(),
            spec: &open.spec,
            policy: open.policy.clone(),
            round: open.round,
            stage: 0,
            spent: 0,
            version: open.version,
            build: None,
            first: tasks.first,
            count: tasks.count,
            tasks: &tasks.json,
        };
        let stop = self.stop_signal(open.id, open.round);
        let cx = TaskContext::new(open.id, tasks.first, tasks.failures, stop)
            .with_slot(self.number.load(Ordering::Relaxed));
        let mut written = Ok(());
        let is_prepared = |took: Duration| {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            let answer = Answer::Prepared { micros };
            // From then on the worker measures the first task's time, if that has a limit.
            let at_once = open.policy.task_timeout_ms.is_some();
            let answered =
                if at_once { self.answers.write_answer(&answer) } else { self.answers.push_answer(&answer) };
            if answered.is_err() {
                self.halt.stop(); // the worker is gone; the end of the batch meets the same error
            }
        };
        let mut push_chunk = |chunk| {
            if written.is_ok() {
                written = self.answers.push(chunk);
            }
            if written.is_err() {
                self.halt.stop(); // the worker is gone
            }
        };
        let run = BatchRun::new(cx, &open.policy, self.halt.clone(), &mut push_chunk);
        let run = run.on_prepared(&is_prepared);
        let mut run = run.with_emit_interval(Duration::ZERO);
        job.process_batch(&batch, &mut run).map_err(|malformed| malformed.reason)?;
        let unprepared = run.unprepared_reason().map(ToOwned::to_owned);
        drop(run);
        Ok(match unprepared {
            Some(reason) => self.answers.push_answer(&Answer::Unprepared { reason }),
            None => written,
        })
    }

    fn stop_signal(&self, job: JobId, round: Round) -> StopSignal {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some((id, of_round, stop)) if (*id, *of_round) == (job, round) => stop.clone(),
            _ => StopSignal::new(), // the reader sets it before it forwards the batch
        }
    }
}
