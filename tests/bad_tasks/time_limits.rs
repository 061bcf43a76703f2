//! Tasks that do not end, and their time limits.

use crate::harness::Site;

/// A task that hangs fails alone, and its worker still drains.
#[tokio::test]
async fn hanging_task_fails_alone() {
    let site = Site::new();
    let _sink = site.start("sink");
    let mut worker = site.start("worker --slots 2");
    let submitted = site
        .run("producer submit spin --tasks 40 --batch 10 --hang 7 --task-timeout 500ms --max-attempts 1 --wait")
        .await;
    assert_eq!(submitted.code, 1, "{submitted:?}");
    let job = submitted.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap();
    let failures = site.run(&format!("sink failures {job} --json")).await;
    let failed: Vec<serde_json::Value> =
        failures.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!((failed[0]["index"].as_u64(), failed[0]["attempts"].as_u64()), (Some(7), Some(1)));
    assert_eq!(failed[0]["reason"], "it ran longer than the job's task timeout of 500ms");
    let verified = site.verify(job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(39), Some(1)));

    let warning = worker.wait_for("a task exceeded its time limit").await;
    assert!(warning.contains("index=7") && warning.contains("age="), "{warning}");
    let left = worker.stop().await; // its thread still hangs
    assert_eq!(left.code, 0, "{left:?}");
    assert!(left.stderr.lines().last().unwrap_or_default().ends_with("0 abandoned"), "{left:?}");
}

/// A worker with too many stuck threads ends with code 5, to be started again.
#[tokio::test]
async fn stuck_threads_end_the_worker() {
    let site = Site::new();
    let _sink = site.start("sink");
    let worker = site.start("worker --slots 1");
    let submit = site.start(
        "producer submit spin --tasks 20 --batch 1 --hang 3 --hang 5 --task-timeout 500ms --max-attempts 1 --wait",
    );
    let ended = worker.output().await;
    assert_eq!(ended.code, 5, "{ended:?}");
    assert!(ended.stderr.contains("2 threads are stuck in tasks"), "{ended:?}");
    let _heir = site.start("worker --slots 1");
    let submitted = submit.output().await;
    assert_eq!(submitted.code, 1, "{submitted:?}");
    let job = submitted.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap();
    let verified = site.verify(job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(18), Some(2)));
}

/// A time limit beyond half of the broker's `consumer_timeout` is warned about.
#[tokio::test]
async fn long_time_limit_is_warned_about() {
    let site = Site::new();
    let long = site.run("producer submit spin --tasks 1 --task-timeout 20m").await;
    let short = site.run("producer submit spin --tasks 1 --task-timeout 15m").await;
    assert_eq!((long.code, short.code), (0, 0), "{long:?} {short:?}");
    assert!(long.stderr.contains("set consumer_timeout on the broker to at least 40m"), "{long:?}");
    assert!(!short.stderr.contains("consumer_timeout"), "{short:?}");
}
