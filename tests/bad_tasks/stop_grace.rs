//! Tasks that go on after their job was stopped, and their cost to the worker and the next job.

use std::time::{Duration, Instant};

use gristmill_shared::{
    EventFilter,
    wire::{self, RunningTask, WorkerHeartbeat},
};

use crate::harness::{Process, Samples, ScrapeTarget, Site, within};

/// Flags for a task that does not end: asleep, and computing.
const HANG_FLAGS: [&str; 2] = ["--hang", "--hang-busy"];
const STUCK_METRIC: &str = "gristmill_worker_threads_stuck";
const STOP_WARNING: &str = "a task goes on after its job was stopped";
/// Time in which the worker gives up a task after `--stop-grace 1s`: generous, since machines
/// are slow.
const GIVE_UP_BOUND: Duration = Duration::from_secs(30);

/// Starts a sink and a worker with these flags.
async fn start_site(flags: &str) -> (Site, Process, Process, ScrapeTarget) {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.wait_for("serving").await;
    let mut worker = site.start(&format!("worker -v --metrics 127.0.0.1:0 {flags}"));
    let scraped = ScrapeTarget::from_log(&mut worker).await;
    (site, sink, worker, scraped)
}

/// Waits until a heartbeat has a running task of the job.
async fn wait_running(site: &Site, job: &str) -> RunningTask {
    let transport = site.transport().await;
    let lane = site.queue(gristmill_shared::QueueRole::Tasks).lane;
    let mut events = transport.events(EventFilter::Lane(lane)).await.unwrap();
    let found = within("a heartbeat that names the task", async {
        loop {
            let event = events.next().await.unwrap();
            let Ok(beat) = wire::decode::<WorkerHeartbeat>(&event) else { continue };
            if let Some(task) = beat.running.into_iter().find(|task| task.job.to_string() == job) {
                return task;
            }
        }
    })
    .await;
    within("closing", transport.close()).await;
    found
}

/// Submits a job whose task 1 does not end, and waits until that task runs.
async fn submit_hanging(site: &Site, way: &str) -> String {
    let submitted = site.run(&format!("producer submit spin --tasks 3 --batch 1 {way} 1")).await;
    let job = submitted.answer().to_owned();
    let task = wait_running(site, &job).await;
    assert_eq!((task.index.0, task.kind.as_str(), task.stuck), (1, "spin", false), "{task:?}");
    job
}

/// Runs a job to its end, which needs a free slot.
async fn run_next_job(site: &Site) {
    let next = site.run("producer submit spin --tasks 10 --micros 100 --wait").await;
    assert!(next.answer().contains("sum 45"), "{next:?}");
}

fn has_stuck(threads: f64) -> impl Fn(&Samples) -> bool {
    move |samples| samples.sum(STUCK_METRIC, "") == threads
}

/// A cancelled task frees its slot within the stop grace.
#[tokio::test]
async fn cancelled_task_frees_its_slot() {
    for way in HANG_FLAGS {
        let (site, _sink, mut worker, scraped) = start_site("--slots 1 --stop-grace 1s").await;
        let job = submit_hanging(&site, way).await;
        assert_eq!(scraped.metrics().await.sum(STUCK_METRIC, ""), 0.0);
        let cancelled = site.run(&format!("producer cancel {job}")).await;
        let began = Instant::now();
        assert_eq!(cancelled.code, 0, "{cancelled:?}");
        run_next_job(&site).await;
        assert!(began.elapsed() < GIVE_UP_BOUND, "{way}: {:?}", began.elapsed());
        let warning = worker.wait_for(STOP_WARNING).await;
        for part in [format!("job={job}"), "kind=spin".into(), "index=1".into(), "age=".into()] {
            assert!(warning.contains(&part), "no {part}: {warning}");
        }
        scraped.wait_for_samples("a stuck thread", has_stuck(1.0)).await;
        let task = wait_running(&site, &job).await;
        assert!(task.stuck && task.stopped, "{task:?}");
        assert_eq!(worker.count_lines(STOP_WARNING), 1);
        let left = worker.stop().await;
        assert_eq!(left.code, 0, "{left:?}");
        assert!(left.stderr.lines().last().unwrap_or_default().ends_with("0 abandoned"), "{left:?}");
    }
}

#[tokio::test]
async fn early_stop_frees_the_slot() {
    for way in HANG_FLAGS {
        let (site, _sink, mut worker, scraped) = start_site("--slots 2 --stop-grace 1s").await;
        let failing = "--panic 1 --max-attempts 1 --fail-fast 1 --wait";
        let ended = site.run(&format!("producer submit spin --tasks 2 --batch 1 {way} 0 {failing}")).await;
        assert!(ended.code == 1 && ended.stderr.contains("stopped early"), "{ended:?}");
        let warning = worker.wait_for(STOP_WARNING).await;
        assert!(warning.contains("index=0"), "{warning}");
        scraped.wait_for_samples("a stuck thread", has_stuck(1.0)).await;
        run_next_job(&site).await;
        assert_eq!(worker.stop().await.code, 0);
    }
}

#[tokio::test]
async fn time_limit_frees_a_busy_slot() {
    let (site, _sink, mut worker, scraped) = start_site("--slots 1 --stop-grace 1s").await;
    let limit = "--task-timeout 500ms --max-attempts 1 --wait";
    let ended = site.run(&format!("producer submit spin --tasks 3 --batch 3 --hang-busy 1 {limit}")).await;
    assert!(ended.code == 1 && ended.stderr.contains("2 of 3 tasks done, 1 failed"), "{ended:?}");
    let warning = worker.wait_for("a task exceeded its time limit").await;
    assert!(warning.contains("index=1"), "{warning}");
    scraped.wait_for_samples("a stuck thread", has_stuck(1.0)).await;
    run_next_job(&site).await;
    assert_eq!(worker.stop().await.code, 0);
}

#[tokio::test]
async fn sigterm_waits_only_stop_grace() {
    for way in HANG_FLAGS {
        let (site, _sink, worker, _) = start_site("--slots 1 --grace 1h --stop-grace 1s").await;
        let job = submit_hanging(&site, way).await;
        assert_eq!(site.run(&format!("producer cancel {job}")).await.code, 0);
        let began = Instant::now();
        let left = worker.stop().await;
        assert_eq!(left.code, 0, "{left:?}");
        assert!(left.stderr.contains(STOP_WARNING) && began.elapsed() < GIVE_UP_BOUND, "{left:?}");
    }
}

/// A worker that drains requeues a busy task after its grace.
#[tokio::test]
async fn sigterm_requeues_a_busy_task() {
    let (site, _sink, worker, _) = start_site("--slots 1 --grace 1s --stop-grace 1s").await;
    let job = submit_hanging(&site, "--hang-busy").await;
    let left = worker.stop().await;
    assert_eq!(left.code, 0, "{left:?}");
    assert!(left.stderr.lines().last().unwrap_or_default().ends_with("1 abandoned"), "{left:?}");
    assert!(!left.stderr.contains(STOP_WARNING), "{left:?}");
    // The task is there again, and holds the next worker.
    let _next = site.start("worker --slots 1");
    assert_eq!(wait_running(&site, &job).await.index.0, 1);
}

/// `doctor` and the stall message name the task, its slot and its job.
#[tokio::test]
async fn doctor_names_the_stuck_task() {
    let (site, _sink, _worker, _) = start_site("--slots 1 --stop-grace 1h").await;
    let job = submit_hanging(&site, "--hang").await;
    let mut next = site.start("producer submit spin --tasks 10 --micros 100 --wait");
    let named = format!("task 1 of job {job} (kind spin) has held slot 0 of worker-");
    next.wait_for("no outcome").await;
    let running = next.wait_for(&named).await;
    assert!(!running.contains("the job has ended"), "{running}");
    assert_eq!(site.run(&format!("producer cancel {job}")).await.code, 0);
    let mut report = site.run("gristmill doctor").await;
    while !report.stdout.contains("the job has ended") {
        report = site.run("gristmill doctor").await; // each listens for 3 s
    }
    let line = report.stdout.lines().find(|line| line.contains(&named)).unwrap();
    assert!(line.starts_with("warning  slots"), "{line}");
    next.kill().await;
}
