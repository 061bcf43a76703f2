//! `worker --isolate`: tasks that misbehave cost a child process, and nothing else.

use std::time::{Duration, Instant};

use crate::harness::{
    Process, Site,
    process_table::{children_of, has_argument, is_there, until, until_gone, until_running},
};

/// Acts that never end. `command:` gets the number of seconds, which tells one test's command from
/// another's.
const ENDLESS_TASKS: [&str; 4] = ["spin", "sleep", "await", "command:"];

/// Grace of these tests for tasks that go on after a stop, and for a worker that leaves.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Time between SIGTERM and SIGKILL.
const KILL_DELAY: Duration = Duration::from_secs(1);
/// Added to each bound, since the machine may be at work on other tests.
const LOAD_SLACK: Duration = Duration::from_secs(5);

/// Asserts that what was to end has ended in time.
fn in_time(began: Instant, bound: Duration, what: &str) {
    let took = began.elapsed();
    println!("{what}: gone after {took:?} of at most {bound:?}");
    assert!(took <= bound + LOAD_SLACK, "{what}: {took:?} instead of {bound:?}");
}

/// A fleet whose one slot runs a task that misbehaves, the eighth of twenty.
struct Scene {
    site: Site,
    sink: Process,
    worker: Process,
    submit: Process,
    /// The child that runs the task.
    child: u32,
    seconds: String,
}

/// The child processes of a worker that run batches.
fn isolated(worker: &Process) -> Vec<u32> {
    children_of(worker.id()).into_iter().filter(|pid| has_argument(*pid, "--isolated-child")).collect()
}

impl Scene {
    /// Returns when the task misbehaves. `number` is the test's own.
    async fn set(how: &str, number: u32, worker: &str, submit: &str) -> Self {
        let site = Site::new();
        let mut sink = site.start("sink");
        sink.says("serving").await;
        let mut worker = site.start(&format!("worker --isolate --slots 1 {worker}"));
        let seconds = format!("4242.{number}");
        let how = if how.ends_with(':') { format!("{how}{seconds}") } else { how.to_owned() };
        let submit = site
            .start(&format!("producer submit {submit} --batch 5 --wait spin --tasks 20 --misbehave 7={how}"));
        worker.says("task 7 misbehaves").await;
        if how.starts_with("command") {
            until_running(&seconds).await;
        }
        let [child] = isolated(&worker)[..] else { panic!("not one child: {:?}", isolated(&worker)) };
        Self { site, sink, worker, submit, child, seconds }
    }

    /// Waits until nothing is left of the task.
    async fn until_nothing_is_left(&self) {
        until("the end of the child", || !is_there(self.child)).await;
        until_gone(&self.seconds).await;
    }
}

async fn job_of(submit: &mut Process) -> String {
    submit.says("job ").await.trim_start_matches("job ").to_owned()
}

async fn cancel(how: &str, number: u32) {
    let mut scene = Scene::set(how, number, "--stop-grace 2s", "").await;
    let job = job_of(&mut scene.submit).await;
    assert_eq!(scene.site.run(&format!("producer cancel {job}")).await.code, 0);
    let cancelled = Instant::now();
    scene.until_nothing_is_left().await;
    in_time(cancelled, STOP_GRACE + KILL_DELAY, &format!("cancelled {how}"));
    let next = scene.site.run("producer submit spin --tasks 10 --wait").await;
    assert!(next.answer().contains("sum 45"), "{how}: {next:?}");
    in_time(cancelled, STOP_GRACE + KILL_DELAY, &format!("the next job after {how}"));
    scene.worker.says("a task runs on after its job was stopped; ending its process").await;
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

async fn time_limit(how: &str, number: u32) {
    let limits = "--task-timeout 500ms --max-attempts 2";
    let scene = Scene::set(how, number, "-vv", limits).await;
    let child = scene.child;
    let Scene { site, sink, worker, mut submit, seconds, .. } = scene;
    let job = job_of(&mut submit).await;
    let submitted = submit.end().await;
    assert_eq!(submitted.code, 1, "{how}: {submitted:?}");
    until("the end of the child", || !is_there(child)).await;
    until_gone(&seconds).await;
    let failures = site.json(&format!("sink failures {job} --json")).await;
    assert_eq!((&failures["index"], &failures["attempts"]), (&7.into(), &2.into()), "{how}: {failures}");
    assert_eq!(failures["reason"], "it ran longer than the job's task timeout of 500ms");
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(19), Some(1)));
    let left = worker.stop().await;
    // No neighbour paid an attempt, and no thread was lost.
    assert!(left.code == 0 && left.stderr.contains(" 2 errors"), "{how}: {left:?}");
    assert!(!left.stderr.contains("leaving its thread behind"), "{how}: {left:?}");
    drop(sink);
}

#[tokio::test]
async fn task_over_its_limit_leaves_nothing() {
    let limited = ENDLESS_TASKS.iter().zip(21..).map(|(how, number)| time_limit(how, number));
    futures::future::join_all(limited).await;
}

async fn terminate(how: &str, number: u32) {
    let scene = Scene::set(how, number, "--grace 2s", "").await;
    let Scene { site: _site, sink, worker, submit, child, seconds } = scene;
    let told = Instant::now();
    let left = worker.stop().await;
    assert!(left.code == 0 && left.stderr.contains("1 abandoned"), "{how}: {left:?}");
    until("the end of the child", || !is_there(child)).await;
    until_gone(&seconds).await;
    in_time(told, STOP_GRACE + KILL_DELAY, &format!("worker with {how}"));
    drop((sink, submit));
}

#[tokio::test]
async fn worker_that_leaves_takes_its_children_along() {
    let terminated = ENDLESS_TASKS.iter().zip(31..).map(|(how, number)| terminate(how, number));
    futures::future::join_all(terminated).await;
}

async fn kill(how: &str, number: u32) {
    let scene = Scene::set(how, number, "", "").await;
    let Scene { site: _site, sink, worker, submit, child, seconds } = scene;
    worker.kill().await;
    let killed = Instant::now();
    until("the end of the child", || !is_there(child)).await;
    until_gone(&seconds).await;
    in_time(killed, KILL_DELAY, &format!("killed worker with {how}"));
    drop((sink, submit));
}

#[tokio::test]
async fn killed_worker_leaves_no_child() {
    let killed = ENDLESS_TASKS.iter().zip(41..).map(|(how, number)| kill(how, number));
    futures::future::join_all(killed).await;
}

/// The process dies at the task itself; the worker does not.
async fn crash(how: &str, told: &[&str]) {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.says("serving").await;
    let worker = site.start("worker --isolate --slots 1 -vv");
    let mut submit = site.start(&format!(
        "producer submit --max-attempts 2 --batch 10 --wait spin --tasks 40 --misbehave 7={how}"
    ));
    let job = job_of(&mut submit).await;
    let submitted = submit.end().await;
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
async fn crash_costs_one_attempt_of_its_task() {
    let signal = "its process was killed by signal 6";
    futures::join!(async { crash("abort", &[signal, "task 7 misbehaves: Abort"]).await }, async {
        crash("overflow", &[signal, "has overflowed its stack"]).await
    },);
}

#[tokio::test]
async fn task_that_looks_for_a_stop_keeps_its_child() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.says("serving").await;
    let worker = site.start("worker --isolate --slots 1");
    let job = site.run("producer submit --batch 1 spin --tasks 2 --micros 60000000").await;
    let job = job.answer().to_owned();
    until("a child", || isolated(&worker).len() == 1).await;
    let before = isolated(&worker);
    assert_eq!(site.run(&format!("producer cancel {job}")).await.code, 0);
    let next = site.run("producer submit spin --tasks 1000 --wait").await;
    assert!(next.answer().contains("sum 499500"), "{next:?}");
    assert_eq!(isolated(&worker), before);
    assert_eq!(worker.stop().await.code, 0);
    until("the end of the child", || !is_there(before[0])).await;
}

/// Neither the broker's URL nor a password is passed on; what user code prints is in the log.
#[tokio::test]
async fn child_knows_no_password() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.says("serving").await;
    let worker = site.start_with("worker --isolate --slots 2", |command| command.env("OTHER", "shown"));
    let done = site.run("producer submit spin --tasks 1000 --fail-rate 0.001 --wait").await;
    assert!(done.answer().contains("sum 499500"), "{done:?}");
    let children = isolated(&worker);
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
