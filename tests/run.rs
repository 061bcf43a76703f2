//! `gristmill run`: the whole pipeline in one process, with no broker.

use crate::harness::{NODE, Site};

#[tokio::test]
async fn a_word_is_found_and_printed_alone() {
    let ended = Site::new().run(&format!("gristmill run crack --hash {NODE} --max-length 4")).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "node\n"), "{ended:?}");
}

#[tokio::test]
async fn a_search_without_an_answer_says_how_much_was_searched() {
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
async fn tasks_that_fail_at_first_are_tried_again() {
    let words = "gristmill run spin --tasks 20000 --fail-rate 0.01 --seed 3 --max-attempts 3";
    let ended = Site::new().run(words).await;
    assert!(ended.answer().contains("199990000"), "{ended:?}");
}

#[tokio::test]
async fn tasks_that_fail_for_good_are_counted_and_told() {
    let words = "gristmill run spin --tasks 5000 --fail-rate 0.1 --seed 3 --max-attempts 1 --json";
    let ended = Site::new().run(words).await;
    assert_eq!(ended.code, 1);
    let end: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let (done, failed) =
        (end["account"]["done"].as_u64().unwrap(), end["account"]["failed"].as_u64().unwrap());
    assert_eq!(done + failed, 5000);
    assert!((300..700).contains(&failed), "{failed} of 5000 failed, at a rate of 0.1");
    assert!(ended.stderr.contains("tasks failed"), "{ended:?}");
    // Why, of the first, the second, the fourth and so on.
    let told =
        ended.stderr.lines().filter(|line| line.contains("WARN") && line.contains("a task failed for good"));
    let reasons: Vec<_> = told.filter(|line| line.contains("reason=")).collect();
    assert_eq!(reasons.len() as u32, failed.ilog2() + 1, "{ended:?}");
}

#[tokio::test]
async fn a_job_that_is_to_fail_fast_ends_at_so_many_failures() {
    for limit in ["20", "1%"] {
        let words = format!(
            "gristmill run spin --tasks 2000 --fail-rate 0.5 --max-attempts 1 --batch 1 --json --fail-fast {limit}"
        );
        let ended = Site::new().run(&words).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        let end: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let count = |what: &str| end["account"][what].as_u64().unwrap();
        assert!(count("failed") >= 20 && count("skipped") > 0, "{end}");
        assert_eq!(count("done") + count("failed") + count("skipped"), 2000, "{end}");
    }
}

#[tokio::test]
async fn a_million_tiny_tasks_add_up() {
    let tasks = if cfg!(debug_assertions) { 100_000_u64 } else { 1_000_000 };
    let ended = Site::new().run(&format!("gristmill run spin --tasks {tasks}")).await;
    assert!(ended.answer().contains(&(tasks * (tasks - 1) / 2).to_string()), "{ended:?}");
}
