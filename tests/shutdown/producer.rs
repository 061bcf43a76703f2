//! Programs that are interrupted, by a person or by force, and how their jobs go on.

use std::{
    fs::OpenOptions,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::harness::{NODE, Process, Site};

/// The id in the line `job ID` that a producer says when it waits.
async fn job_of(producer: &mut Process) -> String {
    producer.says("job ").await.trim_start_matches("job ").to_owned()
}

#[tokio::test]
async fn ctrl_c_leaves_the_job_and_says_how_to_go_on() {
    let site = Site::new();
    let _sink = site.start("sink");
    // No worker: the queue fills up with a thousand batches, and the split waits.
    let mut submit = site.start("producer submit spin --tasks 3000 --batch 1 --wait");
    let job = job_of(&mut submit).await;
    submit.signal("-INT").await;
    let ended = submit.end().await;
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(ended.stderr.contains(&format!("producer resume {job}")), "{ended:?}");

    let _worker = site.start("worker --slots 2");
    let resumed = site.run(&format!("producer resume {job} --wait")).await;
    assert!(resumed.answer().contains("4498500"), "{resumed:?}");
    site.verify(&job).await;
}

#[tokio::test]
async fn a_killed_producer_goes_on_at_its_cursor_and_the_sum_is_exact() {
    let site = Site::new();
    let _sink = site.start("sink");
    // No worker: of these 2,500 batches the queue takes a thousand, and the producer cannot end before it is killed.
    let mut submit = site.start("producer submit spin --tasks 5000 --batch 2 --wait");
    let job = job_of(&mut submit).await;
    site.shown(&job, |_| true).await;
    submit.kill().await;
    let shown = site.json(&format!("sink show {job} --json")).await;
    assert_eq!(shown["sealed"], false, "it was killed too late to show anything");

    let _worker = site.start("worker --slots 2");
    let resumed = site.run(&format!("producer resume {job} --wait")).await;
    assert!(resumed.answer().contains("12497500"), "{resumed:?}");
    site.verify(&job).await;

    let again = site.run(&format!("producer resume {job} --wait --json")).await;
    let end: serde_json::Value = serde_json::from_str(again.answer()).unwrap();
    assert_eq!(end["account"]["done"], 5000, "{end}");
    assert!(again.stderr.contains("has ended"), "{again:?}");

    // Also when the ledger has forgotten it: it does not come back.
    let pruned = site.run("sink prune --older-than 0s").await;
    assert_eq!(pruned.code, 0, "{pruned:?}");
    let resumed = site.run(&format!("producer resume {job}")).await;
    assert!(resumed.code == 0 && resumed.stderr.contains("has ended"), "{resumed:?}");
    assert_eq!(site.run(&format!("sink show {job}")).await.code, 2);
}

#[tokio::test]
async fn a_killed_sink_goes_on_where_it_was() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.says("serving").await;
    let _worker = site.start("worker --slots 1");
    let mut submit = site.start("producer submit spin --tasks 300 --micros 5000 --batch 5 --wait");
    let job = job_of(&mut submit).await;
    site.first_outcomes(&job).await;
    sink.kill().await;
    let shown = site.json(&format!("sink show {job} --json")).await;
    let done = shown["account"]["done"].as_u64().unwrap();
    assert!(done > 0 && done < 300, "it was not killed in the middle: {shown}");
    let mut heir = site.start("sink");
    heir.says("serving").await;
    assert!(submit.end().await.answer().contains("44850"));
    site.verify(&job).await;
}

#[tokio::test]
async fn ctrl_c_while_connecting_ends_at_once() {
    let site = Site::new();
    for words in [&format!("producer submit crack --hash {NODE} --max-length 4"), "worker", "sink"] {
        let process = site
            .start_with(words, |command| command.env("GRISTMILL_BROKER", "amqp://guest:guest@127.0.0.1:9"));
        // Nothing is said while connecting, so there is nothing else to wait for.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let began = Instant::now();
        process.signal("-INT").await;
        let ended = process.end().await;
        assert_eq!(ended.code, 130, "{ended:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{words} went on for {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn an_interrupted_run_over_a_broker_leaves_no_job_behind() {
    let site = Site::new();
    let broker = crate::broker_url();
    let mut run =
        site.start(&format!("gristmill run spin --tasks 100000 --micros 1000 --broker {broker} --slots 1"));
    let job = job_of(&mut run).await;
    site.first_outcomes(&job).await;
    run.signal("-INT").await;
    let ended = run.end().await;
    assert_eq!(ended.code, 130, "{ended:?}");
    let _sink = site.start("sink");
    let waited = site.run(&format!("producer wait {job}")).await;
    assert!(waited.stderr.contains("cancelled: interrupted"), "{waited:?}");
}

#[tokio::test]
async fn cancelling_a_job_that_does_not_exist_is_an_error() {
    let ended = Site::new().run("producer cancel 01890a5d-ac96-774b-bcce-b302099a8057").await;
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.contains("is known on this broker"), "{ended:?}");
}

#[tokio::test]
async fn an_answer_that_cannot_be_written_is_an_error() {
    let full = OpenOptions::new().write(true).open("/dev/full").expect("every Linux has one");
    let site = Site::new();
    let words = format!("gristmill run crack --hash {NODE} --max-length 4");
    let status = site.command(&words).stdout(Stdio::from(full)).stderr(Stdio::null()).status().await.unwrap();
    assert_eq!(status.code(), Some(2));
}
