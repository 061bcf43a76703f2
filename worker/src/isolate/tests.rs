//! Tests of a slot with children that are shell scripts, so that each of their lines is chosen.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use gristmill_process::Command;
use gristmill_shared::{
    BatchRun, Chunk, FailureKind, JobId, Kind, Policy, Round, StopSignal, TaskContext, TaskIndex, wire::Batch,
};
use serde_json::value::RawValue;
use tempfile::TempDir;

use super::{IsolatedSlot, Isolation, JobTraits};

/// The start of a script: reads the first line and is ready. `run` reads a run and is prepared.
const READY_SCRIPT: &str = r#"read -r hello; echo '{"ready":{"protocol":1}}'
    run() { read -r run && echo '{"prepared":{"micros":1500}}'; }
    "#;

/// The number of tasks that ran, outputs and failures by index.
type BatchOutcomes = (u32, Vec<(u64, String)>, Vec<(u64, FailureKind)>);

/// A batch of three tasks that begins at index 5, with the signals of its run.
struct IsolatedBench {
    dir: TempDir,
    slot: IsolatedSlot,
    stop: StopSignal,
    revoked: StopSignal,
    halt: StopSignal,
    policy: Policy,
    in_flight: u32,
    /// Time that the last run spent to open the job's state.
    prepare_time: Duration,
    /// The reason why the last run ran no task.
    unprepared: Option<String>,
}

impl IsolatedBench {
    /// A slot whose child runs in a folder of the test.
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let command = Command::new("sh").args(["-c", &format!("{READY_SCRIPT}{script}")]).dir(dir.path());
        let stop_grace = Duration::from_millis(100);
        let slot = IsolatedSlot::new(Isolation { command, stop_grace }, 3);
        let [stop, revoked, halt] = [(); 3].map(|()| StopSignal::new());
        let (policy, prepare_time) = (Policy::default(), Duration::ZERO);
        Self { dir, slot, stop, revoked, halt, policy, in_flight: 1, prepare_time, unprepared: None }
    }

    /// Runs the batch.
    fn run(&mut self) -> BatchOutcomes {
        let spec = RawValue::from_string(r#"{"a":1}"#.into()).unwrap();
        let tasks = RawValue::from_string("[10,11,12]".into()).unwrap();
        let job = JobId::generate();
        let batch = Batch {
            job,
            kind: Kind::new("test").unwrap(),
            spec: &spec,
            policy: self.policy.clone(),
            round: Round::default(),
            stage: 0,
            spent: 0,
            version: 0,
            build: None,
            first: TaskIndex(5),
            count: 3,
            tasks: &tasks,
        };
        let cx = TaskContext::new(job, batch.first, 0, self.stop.clone()).with_revoked(self.revoked.clone());
        let (mut outputs, mut failures) = (Vec::new(), Vec::new());
        let mut collect_chunk = |chunk: Chunk| {
            for done in chunk.done {
                let first = done.first.0;
                let all: Vec<Box<RawValue>> = serde_json::from_str(done.into_outputs().get()).unwrap();
                outputs.extend((first..).zip(all.iter().map(|output| output.get().to_owned())));
            }
            failures.extend(chunk.failed.into_iter().map(|failure| (failure.index.0, failure.trouble)));
        };
        let mut run = BatchRun::new(cx, &self.policy, self.halt.clone(), &mut collect_chunk);
        let job = JobTraits { sends_tasks: false, in_flight: self.in_flight };
        let ran = self.slot.process_batch(&batch, job, &mut run, &self.stop, &self.revoked).unwrap();
        self.prepare_time = run.prepare_time();
        self.unprepared = run.unprepared_reason().map(ToOwned::to_owned);
        drop(run);
        (ran, outputs, failures)
    }
}

fn outputs(of: &[(u64, &str)]) -> Vec<(u64, String)> {
    of.iter().map(|(index, output)| (*index, (*output).to_owned())).collect()
}

/// Gives the signal when the file exists.
fn signal_when_present(file: &Path, signal: &StopSignal) -> thread::JoinHandle<()> {
    let (file, signal) = (file.to_owned(), signal.clone());
    thread::spawn(move || {
        while !file.exists() {
            thread::park_timeout(Duration::from_millis(2));
        }
        signal.stop();
    })
}

#[test]
fn child_outcomes_reach_the_batch() {
    let script = r#"read -r job; run; echo "$hello$job$run" >seen
        echo '{"done":{"first":5,"outputs":[1]}}'; echo '{"failed":{"index":6,"rejected":"no"}}'
        echo '{"done":{"first":7,"outputs":[{"b": 2}]}}'; echo '"end"'
        run; echo '{"done":{"first":5,"outputs":[1,2,3]}}'; echo '"end"'; read -r eof"#;
    let mut bench = IsolatedBench::new(script);
    let (ran, done, failed) = bench.run();
    assert_eq!((ran, done), (3, outputs(&[(5, "1"), (7, r#"{"b": 2}"#)])));
    assert_eq!(failed, [(6, FailureKind::Rejected("no".into()))]);
    let seen = std::fs::read_to_string(bench.dir.path().join("seen")).unwrap();
    for part in
        [r#""slot":3}"#, r#""spec":{"a":1}"#, r#""first":5,"count":3,"failures":0,"tasks":[10,11,12]"#]
    {
        assert!(seen.contains(part), "{seen}");
    }
}

#[test]
fn death_before_answers_costs_nothing() {
    let script = r#"read -r job; run
        [ -e died ] || { touch died; kill -9 $$; }
        for index in 5 6 7; do
            echo "$run" >>seen; echo "{\"done\":{\"first\":$index,\"outputs\":[$index]}}"; echo '"end"'; run
        done"#;
    let mut bench = IsolatedBench::new(script);
    assert_eq!(bench.run(), (3, outputs(&[(5, "5"), (6, "6"), (7, "7")]), vec![]));
    let seen = std::fs::read_to_string(bench.dir.path().join("seen")).unwrap();
    let alone = |run: &str| run.contains(r#""count":1"#);
    assert!(seen.lines().count() == 3 && seen.lines().all(alone), "the culprit would not be found: {seen}");
}

#[test]
fn death_costs_its_task_alone() {
    let script = r#"read -r job; run
        case $run in *'"first":5'*)
            echo '{"done":{"first":5,"outputs":[1]}}'; echo 'out of luck' >&2; exit 3 ;;
        esac
        case $run in *'"first":6'*) echo 'out of luck' >&2; exit 3 ;; esac
        echo '{"done":{"first":7,"outputs":[3]}}'; echo '"end"'; read -r eof"#;
    let (ran, done, failed) = IsolatedBench::new(script).run();
    assert_eq!((ran, done), (3, outputs(&[(5, "1"), (7, "3")])));
    // After the first death either of two tasks may be the culprit; the second death is at the task
    // itself.
    assert_eq!(failed, [(6, FailureKind::Failed("its process exited with code 3: out of luck".into()))]);
}

#[test]
fn malformed_answer_ends_the_child() {
    for garbage in ["hello", r#"{"done":{"first":9,"outputs":[1]}}"#, r#"{"failed":{"index":5}}"#] {
        let (ran, done, failed) =
            IsolatedBench::new(&format!("read -r job; run; echo '{garbage}'; read -r eof")).run();
        assert_eq!((ran, done, failed.len()), (3, vec![], 3), "{garbage}: {failed:?}");
        let FailureKind::Failed(why) = &failed[0].1 else { panic!("{garbage}: {failed:?}") };
        assert!(why.starts_with("its process answered ") && why.ends_with(" and was killed"), "{why}");
    }
}

#[test]
fn excess_outputs_end_the_child() {
    let script = r#"read -r job; run; echo '{"done":{"first":5,"outputs":[1,2,3,4]}}'; read -r eof"#;
    let mut bench = IsolatedBench::new(script);
    assert_eq!(bench.run(), (3, outputs(&[(5, "1"), (6, "2"), (7, "3")]), vec![]));
    assert!(!bench.slot.has_child());
}

#[test]
fn end_without_outcomes_fails() {
    let (ran, done, failed) = IsolatedBench::new(r#"read -r job; run; echo '"end"'; read -r eof"#).run();
    assert_eq!((ran, done, failed.len()), (3, vec![], 3));
    assert!(failed.iter().all(|(_, why)| *why == FailureKind::Failed("its process answered nothing".into())));
}

#[test]
fn overdue_task_fails_alone() {
    let script = r#"read -r job; run
        case $run in
        *'"first":5'*) echo '{"done":{"first":5,"outputs":[1]}}'; sleep 60 ;;
        *) echo '{"done":{"first":7,"outputs":[3]}}'; echo '"end"'; read -r eof ;;
        esac"#;
    let mut bench = IsolatedBench::new(script);
    bench.policy.task_timeout_ms = Some(300);
    let (ran, done, failed) = bench.run();
    assert_eq!((ran, done), (3, outputs(&[(5, "1"), (7, "3")])));
    assert_eq!(failed, [(6, FailureKind::TimedOut)]);
}

/// The tasks of an abort at index 6 are in flight together, so the child dies before any outcome.
#[test]
fn death_costs_no_neighbour() {
    let script = r#"read -r job; run
        case $run in *'"count":3'*) exit 3 ;; esac
        while :; do
            echo "$run" >>seen
            case $run in
            *'"first":6'*) exit 3 ;;
            *'"first":5'*) echo '{"done":{"first":5,"outputs":[1]}}' ;;
            *) echo '{"done":{"first":7,"outputs":[3]}}' ;;
            esac
            echo '"end"'; run || exit 0
        done"#;
    let mut bench = IsolatedBench::new(script);
    bench.in_flight = 16;
    let (ran, done, failed) = bench.run();
    assert_eq!((ran, done), (3, outputs(&[(5, "1"), (7, "3")])));
    assert_eq!(failed, [(6, FailureKind::Failed("its process exited with code 3".into()))]);
    let seen = std::fs::read_to_string(bench.dir.path().join("seen")).unwrap();
    assert_eq!(seen.lines().filter(|run| run.contains(r#""count":1"#)).count(), 3, "{seen}");
}

#[test]
fn overdue_costs_no_neighbour() {
    let script = r#"read -r job; run
        case $run in *'"count":3'*) touch together; sleep 60 ;; esac
        while :; do
            case $run in
            *'"first":6'*) sleep 60 ;;
            *'"first":5'*) echo '{"done":{"first":5,"outputs":[1]}}' ;;
            *) echo '{"done":{"first":7,"outputs":[3]}}' ;;
            esac
            echo '"end"'; run || exit 0
        done"#;
    let mut bench = IsolatedBench::new(script);
    bench.in_flight = 16;
    bench.policy.task_timeout_ms = Some(300);
    let (ran, done, failed) = bench.run();
    assert!(bench.dir.path().join("together").exists());
    assert_eq!((ran, done), (3, outputs(&[(5, "1"), (7, "3")])));
    assert_eq!(failed, [(6, FailureKind::TimedOut)]);
}

/// The state takes longer to open than a task may take to run.
#[test]
fn prepare_has_no_time_limit() {
    let script = r#"read -r job; read -r run; sleep 1; echo '{"prepared":{"micros":1000000}}'
        echo '{"done":{"first":5,"outputs":[1,2,3]}}'; echo '"end"'; read -r eof"#;
    let mut bench = IsolatedBench::new(script);
    bench.policy.task_timeout_ms = Some(300);
    assert_eq!(bench.run(), (3, outputs(&[(5, "1"), (6, "2"), (7, "3")]), vec![]));
    assert_eq!(bench.prepare_time, Duration::from_secs(1));
}

/// The job ends between two batches.
#[test]
fn idle_child_forgets_ended_job() {
    let script = r#"read -r job; run; echo '{"done":{"first":5,"outputs":[1,2,3]}}'; echo '"end"'
        read -r forget; echo "$forget" >written; mv written forgotten; read -r eof"#;
    let mut bench = IsolatedBench::new(script);
    assert_eq!(bench.run().0, 3);
    bench.slot.forget_ended();
    bench.stop.stop();
    bench.slot.forget_ended();
    let (forgotten, read) = (bench.dir.path().join("forgotten"), StopSignal::new());
    signal_when_present(&forgotten, &read).join().unwrap();
    let line = std::fs::read_to_string(forgotten).unwrap();
    assert!(line.starts_with(r#"{"forget":{"job":""#), "{line}");
    assert!(bench.slot.has_child());
}

#[test]
fn unprepared_tasks_are_not_run() {
    let script = r#"read -r job; read -r run; echo '{"unprepared":{"reason":"no server"}}'; echo '"end"'
        run; echo '{"done":{"first":5,"outputs":[1,2,3]}}'; echo '"end"'; read -r eof"#;
    let mut bench = IsolatedBench::new(script);
    assert_eq!((bench.run(), bench.unprepared.as_deref()), ((0, vec![], vec![]), Some("no server")));
    assert!(bench.slot.has_child());
}

#[test]
fn stop_ends_a_preparing_child() {
    let mut bench = IsolatedBench::new("read -r job; read -r run; touch preparing; sleep 60");
    let stopping = signal_when_present(&bench.dir.path().join("preparing"), &bench.stop);
    let began = Instant::now();
    assert_eq!(bench.run(), (0, vec![], vec![]));
    stopping.join().unwrap();
    assert!(!bench.slot.has_child() && began.elapsed() < Duration::from_secs(60));
}

#[test]
fn obeyed_stop_keeps_the_child() {
    let script = r#"read -r job; run; touch running
        read -r stop; echo "$stop" >seen; echo '{"done":{"first":5,"outputs":[1]}}'; echo '"end"'; read -r eof"#;
    let mut bench = IsolatedBench::new(script);
    let stopping = signal_when_present(&bench.dir.path().join("running"), &bench.stop);
    assert_eq!(bench.run(), (1, outputs(&[(5, "1")]), vec![]));
    stopping.join().unwrap();
    assert!(bench.slot.has_child());
    assert!(std::fs::read_to_string(bench.dir.path().join("seen")).unwrap().contains(r#"{"stop":{"job":""#));
}

#[test]
fn ignored_stop_ends_the_child() {
    let mut bench = IsolatedBench::new("read -r job; run; touch running; sleep 60");
    let stopping = signal_when_present(&bench.dir.path().join("running"), &bench.stop);
    let began = Instant::now();
    assert_eq!(bench.run(), (0, vec![], vec![]));
    stopping.join().unwrap();
    assert!(!bench.slot.has_child() && began.elapsed() < Duration::from_secs(60));
}

#[test]
fn revoked_batch_ends_the_child() {
    let mut bench = IsolatedBench::new("read -r job; run; touch running; sleep 60");
    let revoking = signal_when_present(&bench.dir.path().join("running"), &bench.revoked);
    let began = Instant::now();
    assert_eq!(bench.run(), (0, vec![], vec![]));
    revoking.join().unwrap();
    assert!(!bench.slot.has_child() && began.elapsed() < Duration::from_secs(60));
}

#[test]
fn halt_lets_the_running_task_end() {
    let script = r#"read -r job; run; touch running
        read -r eof || { echo '{"done":{"first":5,"outputs":[1]}}'; echo '"end"'; }"#;
    let mut bench = IsolatedBench::new(script);
    let halting = signal_when_present(&bench.dir.path().join("running"), &bench.halt);
    assert_eq!(bench.run(), (1, outputs(&[(5, "1")]), vec![]));
    halting.join().unwrap();
}

#[test]
fn child_start_is_retried() {
    let mut bench = IsolatedBench::new("");
    let command = Command::new("sh").args(["-c", "touch tried; exit 1"]).dir(bench.dir.path());
    bench.slot = IsolatedSlot::new(Isolation { command, stop_grace: Duration::ZERO }, 0);
    let halting = signal_when_present(&bench.dir.path().join("tried"), &bench.halt);
    assert_eq!(bench.run(), (0, vec![], vec![]));
    halting.join().unwrap();
}
