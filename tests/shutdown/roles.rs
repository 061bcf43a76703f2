//! Sinks and producers that are told to leave in the middle of a job.

use std::time::Duration;

use gristmill::testing::LocalBroker;

use crate::harness::{Process, Site, within};

/// The id in the line `job ID` that a producer says when it waits.
async fn job_of(producer: &mut Process) -> String {
    producer.says("job ").await.trim_start_matches("job ").to_owned()
}

/// Waits until the producer's cursor says that so many tasks are stored.
async fn confirmed(site: &Site, job: &str, tasks: u64) -> u64 {
    let cursor = site.path(&format!("jobs/{job}.json"));
    within("the cursor", async {
        loop {
            let text = std::fs::read(&cursor).unwrap();
            let read: serde_json::Value = serde_json::from_slice(&text).unwrap();
            if let Some(confirmed) = read["confirmed"].as_u64().filter(|confirmed| *confirmed >= tasks) {
                return confirmed;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_producer_that_is_told_to_leave_saves_its_cursor_and_nothing_is_sent_twice() {
    let site = Site::new();
    let _sink = site.start("sink");
    // No worker, and more batches than the queue takes.
    let mut submit = site.start("producer submit spin --tasks 1500 --batch 1 --wait");
    let job = job_of(&mut submit).await;
    confirmed(&site, &job, 1).await;
    let ended = submit.stop().await;
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(ended.stderr.contains(&format!("producer resume {job}")), "{ended:?}");
    let left_at = confirmed(&site, &job, 1).await;
    assert!(left_at < 1500, "it was not told in the middle");

    let _worker = site.start("worker --slots 2");
    let resumed = site.run(&format!("producer resume {job} --wait")).await;
    assert!(resumed.answer().contains("1124250"), "{resumed:?}");
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["duplicates"].as_u64()), (Some(1500), Some(0)));
}

#[tokio::test]
async fn a_sink_that_is_told_to_leave_commits_what_it_has_and_says_what_it_did() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.says("serving").await;
    let _worker = site.start("worker --slots 1");
    let mut submit = site.start("producer submit spin --tasks 600 --micros 4000 --batch 5 --wait");
    let job = job_of(&mut submit).await;
    site.first_outcomes(&job).await;
    let ended = sink.stop().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let shown = site.json(&format!("sink show {job} --json")).await;
    let done = shown["account"]["done"].as_u64().unwrap();
    assert!(done > 0 && done < 600, "it was not told in the middle: {shown}");
    let account = ended.stderr.lines().last().unwrap();
    assert!(account.starts_with(&format!("stopped: {done} outcomes from ")), "{ended:?}");

    let _heir = site.start("sink");
    assert!(submit.end().await.answer().contains("179700"));
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["duplicates"].as_u64()), (Some(600), Some(0)));
}

#[tokio::test]
async fn a_second_signal_stops_at_once_even_if_the_broker_does_not_answer() {
    let broker = std::thread::spawn(LocalBroker::start).join().unwrap().unwrap();
    let (site, url) = (Site::new(), broker.url());
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    let mut sink = start("sink");
    sink.says("serving").await;
    let mut submit = start("producer submit spin --tasks 100000 --batch 1 --wait");
    let job = job_of(&mut submit).await;
    confirmed(&site, &job, 1).await;
    let broker = std::thread::spawn(move || {
        let mut broker = broker;
        broker.pause().unwrap();
        broker
    });
    let broker = broker.join().unwrap();
    for process in [&submit, &sink] {
        process.signal("-TERM").await;
    }
    sink.says("leaving").await;
    for mut process in [submit, sink] {
        // The producer says nothing when it is told to leave, and signals that come close together may count as one.
        loop {
            process.signal("-TERM").await;
            tokio::select! {
                () = process.gone() => break,
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
        let ended = process.end().await;
        assert_eq!(ended.code, 130, "{ended:?}");
        // Who leaves in order waits for the broker, and then gives an account.
        assert!(!ended.stderr.contains("interrupted; ") && !ended.stderr.contains("stopped: "), "{ended:?}");
    }
    drop(broker);
}

#[tokio::test]
async fn a_job_is_sent_by_one_producer_at_a_time() {
    let site = Site::new();
    let _sink = site.start("sink");
    let mut submit = site.start("producer submit spin --tasks 1500 --batch 1 --wait");
    let job = job_of(&mut submit).await;
    confirmed(&site, &job, 1).await;
    let refused = site.run(&format!("producer resume {job}")).await;
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("another producer is sending job"), "{refused:?}");
    submit.kill().await;
    let _worker = site.start("worker --slots 2");
    let resumed = site.run(&format!("producer resume {job} --wait")).await;
    assert!(resumed.answer().contains("1124250"), "{resumed:?}");
    site.verify(&job).await;
}
