//! Sinks and producers that drain in the middle of a job.

use std::time::Duration;

use gristmill::testing::LocalBroker;

use crate::harness::{Process, Site, within};

/// Returns the id in the line `job ID` that a waiting producer prints.
async fn read_job_id(producer: &mut Process) -> String {
    producer.wait_for("job 01").await.trim_start_matches("job ").to_owned()
}

/// Waits until the producer's cursor has at least `tasks` stored tasks, and returns their number.
async fn wait_confirmed(site: &Site, job: &str, tasks: u64) -> u64 {
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

/// A producer that receives SIGTERM saves its cursor, and nothing is sent twice.
#[tokio::test]
async fn producer_stop_saves_its_cursor() {
    let site = Site::new();
    let _sink = site.start("sink");
    // No worker, and more batches than the queue takes.
    let mut submit = site.start("producer submit spin --tasks 1500 --batch 1 --wait");
    let job = read_job_id(&mut submit).await;
    wait_confirmed(&site, &job, 1).await;
    let ended = submit.stop().await;
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(ended.stderr.contains(&format!("producer resume {job}")), "{ended:?}");
    let left_at = wait_confirmed(&site, &job, 1).await;
    assert!(left_at < 1500, "it was not told in the middle");

    let _worker = site.start("worker --slots 2");
    let resumed = site.run(&format!("producer resume {job} --wait")).await;
    assert!(resumed.answer().contains("1124250"), "{resumed:?}");
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["duplicates"].as_u64()), (Some(1500), Some(0)));
}

/// A sink that receives SIGTERM commits what it has, and prints its account.
#[tokio::test]
async fn sink_stop_commits_what_it_has() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.wait_for("serving").await;
    let _worker = site.start("worker --slots 1");
    let mut submit = site.start("producer submit spin --tasks 600 --micros 4000 --batch 5 --wait");
    let job = read_job_id(&mut submit).await;
    site.wait_for_outcomes(&job).await;
    let ended = sink.stop().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let shown = site.json(&format!("sink show {job} --json")).await;
    let done = shown["account"]["done"].as_u64().unwrap();
    assert!(done > 0 && done < 600, "it was not told in the middle: {shown}");
    let account = ended.stderr.lines().last().unwrap();
    assert!(account.starts_with(&format!("stopped: {done} outcomes from ")), "{ended:?}");

    let _heir = site.start("sink");
    assert!(submit.output().await.answer().contains("179700"));
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["duplicates"].as_u64()), (Some(600), Some(0)));
}

/// A second signal ends a role at once, even if the broker does not answer.
#[tokio::test]
async fn second_signal_needs_no_broker() {
    let broker = std::thread::spawn(LocalBroker::start).join().unwrap().unwrap();
    let (site, url) = (Site::new(), broker.url());
    let start = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_BROKER", &url));
    let mut sink = start("sink");
    sink.wait_for("serving").await;
    let mut submit = start("producer submit spin --tasks 100000 --batch 1 --wait");
    let job = read_job_id(&mut submit).await;
    wait_confirmed(&site, &job, 1).await;
    let broker = std::thread::spawn(move || {
        let mut broker = broker;
        broker.pause().unwrap();
        broker
    });
    let broker = broker.join().unwrap();
    for process in [&submit, &sink] {
        process.signal("-TERM").await;
    }
    sink.wait_for("leaving").await;
    for mut process in [submit, sink] {
        // The producer logs nothing when it drains, and signals that come close together may count
        // as one.
        loop {
            process.signal("-TERM").await;
            tokio::select! {
                () = process.wait() => break,
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
        let ended = process.output().await;
        assert_eq!(ended.code, 130, "{ended:?}");
        // A role that drains waits for the broker, and then prints its account.
        assert!(!ended.stderr.contains("interrupted; ") && !ended.stderr.contains("stopped: "), "{ended:?}");
    }
    drop(broker);
}

/// A job is sent by one producer at a time.
#[tokio::test]
async fn one_producer_per_job() {
    let site = Site::new();
    let _sink = site.start("sink");
    let mut submit = site.start("producer submit spin --tasks 1500 --batch 1 --wait");
    let job = read_job_id(&mut submit).await;
    wait_confirmed(&site, &job, 1).await;
    let refused = site.run(&format!("producer resume {job}")).await;
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("another producer is sending job"), "{refused:?}");
    submit.kill().await;
    let _worker = site.start("worker --slots 2");
    let resumed = site.run(&format!("producer resume {job} --wait")).await;
    assert!(resumed.answer().contains("1124250"), "{resumed:?}");
    site.verify(&job).await;
}
