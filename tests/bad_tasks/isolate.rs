//! `worker --isolate`: tasks that misbehave cost a child process, and nothing else.

use std::time::{Duration, Instant};

use crate::harness::{
    Process, Site,
    process_table::{children_of, has_argument, is_there, wait_gone, wait_running, wait_until},
};

/// Ways to misbehave that never end. `command:` gets the number of seconds, which tells one test's
/// command from another's.
const ENDLESS_TASKS: [&str; 4] = ["spin", "sleep", "await", "command:"];

/// Grace of these tests for tasks that go on after a stop, and for a worker that leaves.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Time between SIGTERM and SIGKILL.
const KILL_DELAY: Duration = Duration::from_secs(1);
/// Added to each bound, since the machine may be at work on other tests.
const LOAD_SLACK: Duration = Duration::from_secs(5);

/// Asserts that a process has ended within `bound` and the slack for a loaded machine.
fn assert_in_time(began: Instant, bound: Duration, what: &str) {
    let took = began.elapsed();
    println!("{what}: gone after {took:?} of at most {bound:?}");
    assert!(took <= bound + LOAD_SLACK, "{what}: {took:?} instead of {bound:?}");
}

/// A fleet whose one slot runs a misbehaving task, the eighth of twenty.
struct MisbehavingFleet {
    site: Site,
    sink: Process,
    worker: Process,
    submit: Process,
    /// The child that runs the task.
    child: u32,
    seconds: String,
}

/// Returns the child processes of a worker that run batches.
fn isolated_children(worker: &Process) -> Vec<u32> {
    children_of(worker.id()).into_iter().filter(|pid| has_argument(*pid, "--isolated-child")).collect()
}

impl MisbehavingFleet {
    /// Starts the fleet and returns once the task misbehaves. `number` is the test's own.
    async fn start(how: &str, number: u32, worker: &str, submit: &str) -> Self {
        let site = Site::new();
        let mut sink = site.start("sink");
        sink.wait_for("serving").await;
        let mut worker = site.start(&format!("worker --isolate --slots 1 {worker}"));
        let seconds = format!("4242.{number}");
        let how = if how.ends_with(':') { format!("{how}{seconds}") } else { how.to_owned() };
        let submit = site
            .start(&format!("producer submit {submit} --batch 5 --wait spin --tasks 20 --misbehave 7={how}"));
        worker.wait_for("task 7 misbehaves").await;
        if how.starts_with("command") {
            wait_running(&seconds).await;
        }
        let [child] = isolated_children(&worker)[..] else {
            panic!("not one child: {:?}", isolated_children(&worker))
        };
        Self { site, sink, worker, submit, child, seconds }
    }

    /// Waits until no process of the task is left.
    async fn wait_until_gone(&self) {
        wait_until("the end of the child", || !is_there(self.child)).await;
        wait_gone(&self.seconds).await;
    }
}

async fn read_job_id(submit: &mut Process) -> String {
    submit.wait_for("job 01").await.trim_start_matches("job ").to_owned()
}

async fn cancel(how: &str, number: u32) {
    let mut scene = MisbehavingFleet::start(how, number, "--stop-grace 2s", "").await;
    let job = read_job_id(&mut scene.submit).await;
    // Sent before the clock starts, since a producer needs time to start as well.
    let mut next = scene.site.start("producer submit spin --tasks 10 --wait");
    read_job_id(&mut next).await;
    assert_eq!(scene.site.run(&format!("producer cancel {job}")).await.code, 0);
    let cancelled = Instant::now();
    scene.wait_until_gone().await;
    assert_in_time(cancelled, STOP_GRACE + KILL_DELAY, &format!("cancelled {how}"));
    let next = next.output().await;
    assert!(next.answer().contains("sum 45"), "{how}: {next:?}");
    assert_in_time(cancelled, STOP_GRACE + KILL_DELAY, &format!("the next job after {how}"));
    scene.worker.wait_for("a task runs on after its job was stopped; ending its process").await;
    let left = scene.worker.stop().await;
    assert!(left.code == 0 && left.stderr.contains(" 0 errors"), "{how}: {left:?}");
    assert!(left.stderr.contains("0 abandoned"), "{how}: {left:?}");
    drop(scene.sink);
}

#[tokio::test]
async fn cancelled_task_leaves_nothing() {
    let cancelled = ENDLESS_TASKS.iter().zip(11..).map(|(how, number)| cancel(how, number));
    futures::future::join_all(cancelled).await;
}

async fn exceed_time_limit(how: &str, number: u32) {
    let limits = "--task-timeout 500ms --max-attempts 2";
    let scene = MisbehavingFleet::start(how, number, "-vv", limits).await;
    let child = scene.child;
    let MisbehavingFleet { site, sink, worker, mut submit, seconds, .. } = scene;
    let job = read_job_id(&mut submit).await;
    let submitted = submit.output().await;
    assert_eq!(submitted.code, 1, "{how}: {submitted:?}");
    wait_until("the end of the child", || !is_there(child)).await;
    wait_gone(&seconds).await;
    let failures = site.json(&format!("sink failures {job} --json")).await;
    assert_eq!((&failures["index"], &failures["attempts"]), (&7.into(), &2.into()), "{how}: {failures}");
    assert_eq!(failures["reason"], "it ran longer than the job's task timeout of 500ms");
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(19), Some(1)));
    let left = worker.stop().await;
    // No neighbour paid an attempt, and no thread was lost.
    assert!(left.code == 0 && left.stderr.contains(" 2 errors"), "{how}: {left:?}");
    assert!(!left.stderr.contains("abandoning its thread"), "{how}: {left:?}");
    drop(sink);
}

#[tokio::test]
async fn timed_out_task_leaves_nothing() {
    let limited = ENDLESS_TASKS.iter().zip(21..).map(|(how, number)| exceed_time_limit(how, number));
    futures::future::join_all(limited).await;
}

async fn terminate(how: &str, number: u32) {
    let scene = MisbehavingFleet::start(how, number, "--grace 2s", "").await;
    let MisbehavingFleet { site: _site, sink, worker, submit, child, seconds } = scene;
    let told = Instant::now();
    let left = worker.stop().await;
    assert!(left.code == 0 && left.stderr.contains("1 abandoned"), "{how}: {left:?}");
    wait_until("the end of the child", || !is_there(child)).await;
    wait_gone(&seconds).await;
    assert_in_time(told, STOP_GRACE + KILL_DELAY, &format!("worker with {how}"));
    drop((sink, submit));
}

#[tokio::test]
async fn drained_worker_leaves_no_child() {
    let terminated = ENDLESS_TASKS.iter().zip(31..).map(|(how, number)| terminate(how, number));
    futures::future::join_all(terminated).await;
}

async fn kill(how: &str, number: u32) {
    let scene = MisbehavingFleet::start(how, number, "", "").await;
    let MisbehavingFleet { site: _site, sink, worker, submit, child, seconds } = scene;
    worker.kill().await;
    let killed = Instant::now();
    wait_until("the end of the child", || !is_there(child)).await;
    wait_gone(&seconds).await;
    assert_in_time(killed, KILL_DELAY, &format!("killed worker with {how}"));
    drop((sink, submit));
}

#[tokio::test]
async fn killed_worker_leaves_no_child() {
    let killed = ENDLESS_TASKS.iter().zip(41..).map(|(how, number)| kill(how, number));
    futures::future::join_all(killed).await;
}

/// Crashes the child at the task itself; the worker goes on.
async fn crash(how: &str, told: &[&str]) {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.wait_for("serving").await;
    let worker = site.start("worker --isolate --slots 1 -vv");
    let mut submit = site.start(&format!(
        "producer submit --max-attempts 2 --batch 10 --wait spin --tasks 40 --misbehave 7={how}"
    ));
    let job = read_job_id(&mut submit).await;
    let submitted = submit.output().await;
    assert_eq!(submitted.code, 1, "{how}: {submitted:?}");
    let failures = site.json(&format!("sink failures {job} --json")).await;
    assert_eq!((&failures["index"], &failures["attempts"]), (&7.into(), &2.into()), "{how}: {failures}");
    assert_eq!(failures["losses"], 0, "{how}: {failures}");
    let reason = failures["reason"].as_str().unwrap();
    assert!(told.iter().all(|words| reason.contains(words)), "{how}: {reason}");
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(39), Some(1)));
    let left = worker.stop().await;
    assert!(left.code == 0 && left.stderr.contains(" 2 errors"), "{how}: {left:?}");
    assert!(left.stdout.is_empty() && left.stderr.contains("task 7 prints"), "{how}: {left:?}");
}

#[tokio::test]
async fn crash_costs_one_attempt() {
    let signal = "its process was killed by signal 6";
    futures::join!(async { crash("abort", &[signal, "task 7 misbehaves: Abort"]).await }, async {
        crash("overflow", &[signal, "has overflowed its stack"]).await
    },);
}

#[tokio::test]
async fn cooperative_task_keeps_its_child() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.wait_for("serving").await;
    let worker = site.start("worker --isolate --slots 1");
    let job = site.run("producer submit --batch 1 spin --tasks 2 --micros 60000000").await;
    let job = job.answer().to_owned();
    wait_until("a child", || isolated_children(&worker).len() == 1).await;
    let before = isolated_children(&worker);
    assert_eq!(site.run(&format!("producer cancel {job}")).await.code, 0);
    let next = site.run("producer submit spin --tasks 1000 --wait").await;
    assert!(next.answer().contains("sum 499500"), "{next:?}");
    assert_eq!(isolated_children(&worker), before);
    assert_eq!(worker.stop().await.code, 0);
    wait_until("the end of the child", || !is_there(before[0])).await;
}

/// Neither the broker's URL nor a password is passed on; what user code prints is in the log.
#[tokio::test]
async fn child_knows_no_password() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.wait_for("serving").await;
    let worker = site.start_with("worker --isolate --slots 2", |command| command.env("OTHER", "shown"));
    let done = site.run("producer submit spin --tasks 1000 --fail-rate 0.001 --wait").await;
    assert!(done.answer().contains("sum 499500"), "{done:?}");
    let children = isolated_children(&worker);
    assert!(!children.is_empty());
    for child in children {
        let environment = std::fs::read(format!("/proc/{child}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment);
        assert!(environment.contains("OTHER=shown"), "{environment}");
        let ours = environment.split('\0').filter(|variable| variable.starts_with("GRISTMILL_"));
        let others: Vec<_> = ours.filter(|variable| !variable.starts_with("GRISTMILL_LEASH=")).collect();
        assert!(others.is_empty(), "{others:?}");
    }
    assert_eq!(worker.stop().await.code, 0);
}
