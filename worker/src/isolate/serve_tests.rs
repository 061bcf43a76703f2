//! Tests of the program inside a child, in which the test is the worker.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    ops::ControlFlow,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use gristmill_shared::{Job, JobError, JobId, Registry, State, TaskContext, TaskError, TaskIndex};
use serde::{Deserialize, Serialize};

use super::serve_isolated;

/// Time for which a task waits for the test.
const TASK_TIMEOUT: Duration = Duration::from_secs(10);

/// A task that gives the number of its slot.
const SLOT_TASK: u64 = 77;
/// The number of the worker's slot in these tests.
const SLOT_NUMBER: u32 = 3;

/// A job whose tasks wait for the file `go` in a folder of the test, and whose state leaves the
/// file `dropped` there when it is dropped. With the file `down` it cannot open its state.
#[derive(Debug, Serialize, Deserialize)]
struct WaitsForFile {
    dir: PathBuf,
}

struct DropMarker(PathBuf);

impl Drop for DropMarker {
    fn drop(&mut self) {
        drop(File::create(self.0.join("dropped")));
    }
}

fn wait_for(file: &Path) -> bool {
    let began = Instant::now();
    while !file.exists() && began.elapsed() < TASK_TIMEOUT {
        thread::park_timeout(Duration::from_millis(2));
    }
    file.exists()
}

impl Job for WaitsForFile {
    const KIND: &'static str = "waits";
    type Task = u64;
    type Output = u64;
    type Report = u64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        (0..3).map(Ok)
    }

    fn prepare(&self) -> Result<State, TaskError> {
        if self.dir.join("down").exists() {
            Err("no server")?;
        }
        Ok(State::new(DropMarker(self.dir.clone())))
    }

    fn process(&self, task: u64, cx: &TaskContext) -> Result<u64, TaskError> {
        if task == SLOT_TASK {
            return Ok(cx.slot().into());
        }
        if wait_for(&self.dir.join("go")) { Ok(task) } else { Err("the test gave up")? }
    }

    fn collect(&self, _: &mut u64, _: TaskIndex, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A child that is a thread, with the worker's ends of its pipes.
struct ServedChild {
    requests: File,
    answers: io::Lines<BufReader<File>>,
    serving: thread::JoinHandle<io::Result<()>>,
    job: JobId,
}

fn pipe() -> (File, File) {
    let (from, to) = io::pipe().unwrap();
    (OwnedFd::from(from).into(), OwnedFd::from(to).into())
}

impl ServedChild {
    /// Starts a child, and opens a job with a time limit for its tasks.
    fn start(dir: &Path) -> Self {
        let ((theirs, requests), (answers, to)) = (pipe(), pipe());
        let mut registry = Registry::default();
        registry.register::<WaitsForFile>().unwrap();
        let serving = thread::spawn(move || serve_isolated(registry, theirs, to));
        let job = JobId::generate();
        let mut child = Self { requests, answers: BufReader::new(answers).lines(), serving, job };
        child.send(&format!(r#"{{"hello":{{"protocol":1,"slot":{SLOT_NUMBER}}}}}"#));
        assert_eq!(child.answer(), r#"{"ready":{"protocol":1}}"#);
        child.send(&format!(
            r#"{{"job":{{"id":"{job}","round":0,"kind":"waits","version":0,"spec":{{"dir":{dir:?}}},"timeout_ms":60000}}}}"#
        ));
        child
    }

    fn send(&mut self, line: &str) {
        writeln!(self.requests, "{line}").unwrap();
    }

    fn run(&mut self, task: u64) {
        let job = self.job;
        self.send(&format!(
            r#"{{"run":{{"job":"{job}","round":0,"first":{task},"count":1,"failures":0,"tasks":[{task}]}}}}"#
        ));
    }

    fn answer(&mut self) -> String {
        self.answers.next().unwrap().unwrap()
    }

    fn end(self) {
        drop(self.requests);
        self.serving.join().unwrap().unwrap();
    }
}

#[test]
fn state_is_reported_before_a_task() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = ServedChild::start(dir.path());
    child.run(7);
    let prepared = child.answer();
    assert!(prepared.starts_with(r#"{"prepared":{"micros":"#), "{prepared}");
    File::create(dir.path().join("go")).unwrap();
    assert_eq!(child.answer(), r#"{"done":{"first":7,"outputs":[7]}}"#);
    assert_eq!(child.answer(), r#""end""#);
    child.end();
}

#[test]
fn forgotten_job_drops_its_state() {
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("go")).unwrap();
    let mut child = ServedChild::start(dir.path());
    child.run(7);
    while child.answer() != r#""end""# {}
    let dropped = dir.path().join("dropped");
    assert!(!dropped.exists());
    let job = child.job;
    child.send(&format!(r#"{{"forget":{{"job":"{job}","round":0}}}}"#));
    assert!(wait_for(&dropped), "the child is idle, and its job has ended");
    child.end();
}

#[test]
fn failed_prepare_fails_one_run() {
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("down")).unwrap();
    let mut child = ServedChild::start(dir.path());
    child.run(7);
    child.run(8);
    assert!(child.answer().starts_with(r#"{"prepared":"#));
    let reason = "preparing the job's state: no server";
    assert_eq!(child.answer(), format!(r#"{{"failed":{{"index":7,"failed":"{reason}"}}}}"#));
    assert_eq!(child.answer(), r#""end""#);
    assert_eq!(child.answer(), format!(r#"{{"unprepared":{{"reason":"{reason}"}}}}"#));
    assert_eq!(child.answer(), r#""end""#);
    child.end();
}

#[test]
fn child_has_the_slot_of_its_worker() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = ServedChild::start(dir.path());
    child.run(SLOT_TASK);
    assert!(child.answer().starts_with(r#"{"prepared":"#));
    let done = format!(r#"{{"done":{{"first":{SLOT_TASK},"outputs":[{SLOT_NUMBER}]}}}}"#);
    assert_eq!(child.answer(), done);
    child.end();
}
