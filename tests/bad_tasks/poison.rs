//! Tasks that crash their worker, and their neighbours in the batch.

use futures::future::join_all;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::harness::{Process, ProcessOutput, Site, within};

/// Restarts a worker whenever it aborts, until the job is over, and returns the number of aborts.
/// An abort counts also if the end of the job was noticed first.
async fn restart_until_over(
    site: &Site,
    worker: impl Fn(&Site) -> Process + Send + Sync,
    over: CancellationToken,
) -> usize {
    let mut deaths = 0;
    loop {
        let mut process = worker(site);
        let ended = tokio::select! {
            () = process.wait() => process.output().await,
            () = over.cancelled() => process.stop().await,
        };
        if ended.code != ProcessOutput::ABORTED {
            assert!(over.is_cancelled(), "it did not abort, and ended: {ended:?}");
            return deaths;
        }
        deaths += 1;
    }
}

/// Runs a job of `tasks` tasks over three workers that are restarted when they die. Asserts that
/// exactly the tasks of `poison` fail, and returns the number of deaths.
async fn run_poisoned_job(
    spin: &str,
    tasks: u64,
    poison: &[u64],
    worker: impl Fn(&Site) -> Process + Send + Sync,
) -> usize {
    let site = Site::new();
    let _sink = site.start("sink");
    let submit = site.start(&format!("producer submit spin --tasks {tasks} {spin} --wait --json"));
    let over = CancellationToken::new();
    let workers = join_all((0..3).map(|_| restart_until_over(&site, &worker, over.clone())));
    let job = async {
        let submitted = within("the job", submit.output()).await;
        over.cancel();
        submitted
    };
    let (submitted, deaths) = tokio::join!(job, workers);
    assert_eq!(submitted.code, 1, "{submitted:?}");
    let job = submitted.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap();
    let failures = site.run(&format!("sink failures {job} --json")).await;
    let failed: Vec<serde_json::Value> =
        failures.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let indices: Vec<u64> = failed.iter().map(|row| row["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, poison, "{failed:?}");
    for row in &failed {
        assert_eq!((&row["reason"], row["losses"].as_u64()), (&"its worker died 3 times".into(), Some(3)));
    }
    let verified = site.verify(job).await;
    let (done, failed) = (verified["done"].as_u64(), verified["failed"].as_u64());
    assert_eq!((done, failed), (Some(tasks - poison.len() as u64), Some(poison.len() as u64)));
    deaths.iter().sum()
}

/// Asserts the number of deaths: `as_suspect`, and two with the whole batch before. One of the two
/// is enough if the broker ended a dead worker's consumers one after the other, and gave the batch
/// to another of them meanwhile: the next worker counts two deliveries. A worker has one consumer
/// for suspects, so there a death is a delivery.
fn assert_crash_count(deaths: usize, as_suspect: usize, why: &str) {
    assert!(
        (as_suspect + 1..=as_suspect + 2).contains(&deaths),
        "{deaths} deaths: {why}, and twice with its batch"
    );
}

/// A poison task fails alone, and its neighbours only run again.
#[tokio::test]
async fn poison_task_fails_alone() {
    let worker = |site: &Site| site.start("worker --slots 2");
    let deaths = run_poisoned_job("--batch 64 --poison 100", 201, &[100], worker).await;
    assert_crash_count(deaths, 1 + 3, "once with a part of four, three times alone");
}

#[tokio::test]
async fn several_poison_tasks_fail_alone() {
    let worker = |site: &Site| site.start("worker --slots 2");
    let spin = "--batch 32 --poison 5 --poison 77 --poison 150";
    let deaths = run_poisoned_job(spin, 200, &[5, 77, 150], worker).await;
    assert!(deaths >= 9, "{deaths} deaths, and three for each that was found alone");
}

/// A task that takes all memory fails alone.
#[tokio::test]
async fn memory_hog_fails_alone() {
    let worker = |site: &Site| {
        let inner = site.command("worker --slots 2");
        let mut limited = Command::new("/bin/sh");
        limited
            .env_clear()
            .args(["-c", "ulimit -v 1500000; exec \"$0\" \"$@\""])
            .arg(inner.as_std().get_program())
            .args(inner.as_std().get_args())
            .envs(inner.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env("MALLOC_ARENA_MAX", "2"); // what an arena reserves counts too
        Process::start("a worker with little memory", limited)
    };
    let deaths = run_poisoned_job("--batch 16 --hog 20", 60, &[20], worker).await;
    assert_crash_count(deaths, 3, "three times alone");
}
