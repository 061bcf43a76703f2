//! `gristmill run`: the whole pipeline in one process, with no broker.

use crate::harness::{NODE_DIGEST, Site};

#[tokio::test]
async fn word_is_printed_alone() {
    let ended = Site::new().run(&format!("gristmill run crack --hash {NODE_DIGEST} --max-length 4")).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "node\n"), "{ended:?}");
}

/// A search without an answer says how much was searched.
#[tokio::test]
async fn failed_search_says_its_extent() {
    let zeros = "0".repeat(40);
    let ended = Site::new().run(&format!("gristmill run crack --hash {zeros} --max-length 4")).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{ended:?}");
    assert!(ended.stderr.contains("all 475,254 candidates were searched and none fits"), "{ended:?}");
}

#[tokio::test]
async fn primes_are_counted() {
    let ended = Site::new().run("gristmill run primes --limit 10000000 --slice 100000").await;
    assert_eq!(ended.answer(), "664579");
}

#[tokio::test]
async fn failed_tasks_are_retried() {
    let words = "gristmill run spin --tasks 20000 --fail-rate 0.01 --seed 3 --max-attempts 3";
    let ended = Site::new().run(words).await;
    assert!(ended.answer().contains("199990000"), "{ended:?}");
}

/// Tasks that fail for good are counted, and some are logged with their reason.
#[tokio::test]
async fn failures_are_counted_and_logged() {
    let words = "gristmill run spin --tasks 5000 --fail-rate 0.1 --seed 3 --max-attempts 1 --json";
    let ended = Site::new().run(words).await;
    assert_eq!(ended.code, 1);
    let end: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let (done, failed) =
        (end["account"]["done"].as_u64().unwrap(), end["account"]["failed"].as_u64().unwrap());
    assert_eq!(done + failed, 5000);
    assert!((300..700).contains(&failed), "{failed} of 5000 failed, at a rate of 0.1");
    assert!(ended.stderr.contains("tasks failed"), "{ended:?}");
    // The reasons of the first failure, the second, the fourth and so on.
    let told =
        ended.stderr.lines().filter(|line| line.contains("WARN") && line.contains("a task failed for good"));
    let reasons: Vec<_> = told.filter(|line| line.contains("reason=")).collect();
    assert_eq!(reasons.len() as u32, failed.ilog2() + 1, "{ended:?}");
}

/// A job with `--fail-fast` ends at that number or share of failures.
#[tokio::test]
async fn fail_fast_stops_the_job() {
    for limit in ["20", "1%"] {
        let words = format!(
            "gristmill run spin --tasks 2000 --fail-rate 0.5 --max-attempts 1 --batch 1 --json --fail-fast {limit}"
        );
        let ended = Site::new().run(&words).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        let end: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let count = |what: &str| end["account"][what].as_u64().unwrap();
        assert!(count("failed") >= 20 && count("skipped") > 0, "{end}");
        let why = end["account"]["stopped"].as_str().unwrap();
        assert!(
            why.ends_with(&format!("tasks failed, and the job was to end at {limit} (--fail-fast)")),
            "{why}"
        );
        assert_eq!(count("done") + count("failed") + count("skipped"), 2000, "{end}");
    }
}

#[tokio::test]
async fn million_tiny_tasks_add_up() {
    let tasks = if cfg!(debug_assertions) { 100_000_u64 } else { 1_000_000 };
    let ended = Site::new().run(&format!("gristmill run spin --tasks {tasks}")).await;
    assert!(ended.answer().contains(&(tasks * (tasks - 1) / 2).to_string()), "{ended:?}");
}
