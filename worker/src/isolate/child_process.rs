//! The child process that runs the batches of one slot, as the worker sees it.

use std::{collections::VecDeque, io, ops::Range, time::Duration};

use gristmill_process::{ChildGroup, Command, exit_reason};
use gristmill_shared::{JobId, Round, StopSignal, wire::Batch};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::unix::pipe::{Receiver, Sender},
    time::timeout,
};

use super::{
    protocol::{Answer, ChildRequest, OPEN_JOBS_MAX, PROTOCOL_VERSION, take_line, write_line},
    stderr::StderrRelay,
};

/// Time that a child may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Time that a child may take to read a request. It reads at any time, so a child that does not is
/// frozen.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that a child may take to exit after it has closed its answers.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// A child process. Dropping it ends its process group.
#[derive(Debug)]
pub(super) struct ChildProcess {
    group: ChildGroup,
    requests: Option<Sender>,
    answers: BufReader<Receiver>,
    line: Vec<u8>,
    stderr: StderrRelay,
    /// The jobs that the child has open.
    jobs: VecDeque<SentJob>,
}

/// A job that was sent to the child.
#[derive(Debug)]
struct SentJob {
    id: JobId,
    round: Round,
    spec: Box<RawValue>,
    /// Given when the round has ended.
    stop: StopSignal,
}

impl ChildProcess {
    /// Starts a child for the slot of this number and waits until it is ready. Call it in the
    /// runtime of child processes.
    ///
    /// # Errors
    /// The reason, if the child is not ready within 30 s.
    pub(super) async fn start(command: &Command, slot: u32) -> Result<Self, String> {
        let mut group = ChildGroup::spawn(command, true).map_err(|error| error.to_string())?;
        let streams = group.take_streams().ok_or("it has no pipes")?;
        let mut child = Self {
            group,
            requests: streams.stdin,
            answers: BufReader::new(streams.stdout),
            line: Vec::new(),
            stderr: StderrRelay::start(streams.stderr),
            jobs: VecDeque::new(),
        };
        let greeted = async {
            let hello = ChildRequest::<&RawValue>::Hello { protocol: PROTOCOL_VERSION, slot };
            child.send(&hello).await?;
            child.read_answer().await?;
            let ready = matches!(child.parse_answer(), Ok(Answer::Ready { protocol: PROTOCOL_VERSION }));
            if ready { Ok(()) } else { Err(child.invalid_answer()) }
        };
        match timeout(START_TIMEOUT, greeted).await {
            Ok(Ok(())) => Ok(child),
            Ok(Err(error)) => Err(child.terminate(&error).await),
            Err(_) => Err(format!("it is not ready after {START_TIMEOUT:?}")),
        }
    }

    /// Returns the process id.
    pub(super) fn id(&self) -> u32 {
        self.group.id()
    }

    /// Sends the tasks of a batch at `places`, preceded by the batch's job if the child does not
    /// have it.
    pub(super) async fn send_batch(
        &mut self,
        batch: &Batch<'_>,
        places: Range<usize>,
        tasks: &[&RawValue],
        failures: u32,
        stop: &StopSignal,
    ) -> io::Result<()> {
        let key = (batch.job, batch.round);
        // The child uses the last job of this id and round.
        let last = self.jobs.iter().rfind(|open| (open.id, open.round) == key);
        if last.is_none_or(|open| open.spec.get() != batch.spec.get()) {
            let kind = batch.kind.clone();
            let timeout_ms = batch.policy.task_timeout_ms;
            let job = ChildRequest::Job {
                id: batch.job,
                round: batch.round,
                kind,
                version: batch.version,
                spec: batch.spec,
                timeout_ms,
            };
            self.send(&job).await?;
            let (id, round) = key;
            self.jobs.push_back(SentJob { id, round, spec: batch.spec.to_owned(), stop: stop.clone() });
            if self.jobs.len() > OPEN_JOBS_MAX {
                self.jobs.pop_front();
            }
        }
        let first = batch.first.plus(places.start as u64);
        let packed;
        let (count, tasks) = if places == (0..tasks.len()) {
            (batch.count, batch.tasks)
        } else {
            let part = tasks.get(places).unwrap_or_default();
            packed = Batch::pack(part);
            (u32::try_from(part.len()).unwrap_or(u32::MAX), &*packed)
        };
        let (job, round) = key;
        self.send(&ChildRequest::Run { job, round, first, count, failures, tasks }).await
    }

    /// Sends the child which of its jobs have ended.
    pub(super) async fn send_forget_ended(&mut self) -> io::Result<()> {
        while let Some(ended) = self.jobs.iter().find(|open| open.stop.is_stopped()) {
            let (job, round) = (ended.id, ended.round);
            self.send(&ChildRequest::<&RawValue>::Forget { job, round }).await?;
            self.jobs.retain(|open| (open.id, open.round) != (job, round));
        }
        Ok(())
    }

    /// Sends the stop of a job.
    pub(super) async fn send_stop(&mut self, job: JobId, round: Round) -> io::Result<()> {
        self.send(&ChildRequest::<&RawValue>::Stop { job, round }).await
    }

    /// Closes the input: the child ends its running task, begins no other one, and exits.
    pub(super) fn close_input(&mut self) {
        self.requests = None;
    }

    async fn send(&mut self, request: &ChildRequest<&RawValue>) -> io::Result<()> {
        let mut line = Vec::new();
        write_line(&mut line, request)?;
        let Some(requests) = &mut self.requests else { return Err(io::ErrorKind::BrokenPipe.into()) };
        timeout(REQUEST_TIMEOUT, requests.write_all(&line)).await?
    }

    /// Waits for the next answer, to be parsed by [`ChildProcess::parse_answer`]. Cancel safe.
    ///
    /// # Errors
    /// If the child has closed its answers, or writes a line beyond the limit.
    pub(super) async fn read_answer(&mut self) -> io::Result<()> {
        if self.line.ends_with(b"\n") {
            self.line.clear();
        }
        loop {
            let bytes = self.answers.fill_buf().await?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (taken, ended) = take_line(bytes, &mut self.line)?;
            self.answers.consume(taken);
            if ended {
                self.line.push(b'\n'); // marks a complete line
                return Ok(());
            }
        }
    }

    /// Parses the answer that was last read.
    pub(super) fn parse_answer(&self) -> serde_json::Result<Answer<&RawValue>> {
        serde_json::from_slice(&self.line)
    }

    /// Returns the error for an answer that does not follow the protocol.
    pub(super) fn invalid_answer(&self) -> io::Error {
        const SHOWN_BYTES: usize = 120;
        let shown = &self.line[..self.line.len().min(SHOWN_BYTES)];
        let shown = String::from_utf8_lossy(shown);
        io::Error::new(io::ErrorKind::InvalidData, format!("answered {:?}", shown.trim_end()))
    }

    /// Ends a child that cannot continue, and kills it if it has not exited. Returns the reason as
    /// a predicate: its exit with the end of its log, or its protocol error.
    pub(super) async fn terminate(mut self, error: &io::Error) -> String {
        self.close_input();
        let is_wrong = error.kind() == io::ErrorKind::InvalidData;
        let by_itself = !is_wrong && timeout(EXIT_TIMEOUT, self.group.exited()).await.is_ok();
        if !by_itself {
            self.group.terminate().await;
        }
        let status = self.group.finish();
        let log = self.stderr.read_tail().await;
        match status {
            Ok(status) if by_itself => exit_reason(status, &log, 0),
            _ if is_wrong => format!("{error} and was killed"),
            _ => format!("did not go on and was killed: {error}"),
        }
    }
}
