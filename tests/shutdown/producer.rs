//! Programs that are interrupted or killed, and how their jobs continue.

use std::{
    fs::OpenOptions,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::harness::{NODE_DIGEST, Process, Site};

/// Returns the id in the line `job ID` that a waiting producer prints.
async fn read_job_id(producer: &mut Process) -> String {
    producer.wait_for("job 01").await.trim_start_matches("job ").to_owned()
}

/// Ctrl-C leaves the job as it is, and prints the command that resumes it.
#[tokio::test]
async fn ctrl_c_prints_how_to_resume() {
    let site = Site::new();
    let _sink = site.start("sink");
    // No worker: the queue fills up with a thousand batches, and the split waits.
    let mut submit = site.start("producer submit spin --tasks 3000 --batch 1 --wait");
    let job = read_job_id(&mut submit).await;
    submit.signal("-INT").await;
    let ended = submit.output().await;
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(ended.stderr.contains(&format!("producer resume {job}")), "{ended:?}");

    let _worker = site.start("worker --slots 2");
    let resumed = site.run(&format!("producer resume {job} --wait")).await;
    assert!(resumed.answer().contains("4498500"), "{resumed:?}");
    site.verify(&job).await;
}

/// A killed producer goes on at its cursor, and the sum is exact.
#[tokio::test]
async fn killed_producer_resumes_at_cursor() {
    let site = Site::new();
    let _sink = site.start("sink");
    // No worker: of these 2,500 batches the queue takes a thousand, so the producer cannot end
    // before it is killed.
    let mut submit = site.start("producer submit spin --tasks 5000 --batch 2 --wait");
    let job = read_job_id(&mut submit).await;
    site.wait_shown(&job, |_| true).await;
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

/// A killed sink goes on where it was.
#[tokio::test]
async fn killed_sink_resumes_its_jobs() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.wait_for("serving").await;
    let _worker = site.start("worker --slots 1");
    let mut submit = site.start("producer submit spin --tasks 300 --micros 5000 --batch 5 --wait");
    let job = read_job_id(&mut submit).await;
    site.wait_for_outcomes(&job).await;
    sink.kill().await;
    let shown = site.json(&format!("sink show {job} --json")).await;
    let done = shown["account"]["done"].as_u64().unwrap();
    assert!(done > 0 && done < 300, "it was not killed in the middle: {shown}");
    let mut heir = site.start("sink");
    heir.wait_for("serving").await;
    assert!(submit.output().await.answer().contains("44850"));
    site.verify(&job).await;
}

#[tokio::test]
async fn ctrl_c_ends_connecting() {
    let site = Site::new();
    for words in [&format!("producer submit crack --hash {NODE_DIGEST} --max-length 4"), "worker", "sink"] {
        let process = site
            .start_with(words, |command| command.env("GRISTMILL_BROKER", "amqp://guest:guest@127.0.0.1:9"));
        // Nothing is said while connecting, so there is nothing else to wait for.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let began = Instant::now();
        process.signal("-INT").await;
        let ended = process.output().await;
        assert_eq!(ended.code, 130, "{ended:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{words} went on for {:?}", began.elapsed());
    }
}

/// An interrupted `gristmill run` over a broker leaves no job behind.
#[tokio::test]
async fn interrupted_run_cancels_its_job() {
    let site = Site::new();
    let broker = crate::broker_url();
    let mut run =
        site.start(&format!("gristmill run spin --tasks 100000 --micros 1000 --broker {broker} --slots 1"));
    let job = read_job_id(&mut run).await;
    site.wait_for_outcomes(&job).await;
    run.signal("-INT").await;
    let ended = run.output().await;
    assert_eq!(ended.code, 130, "{ended:?}");
    let _sink = site.start("sink");
    let waited = site.run(&format!("producer wait {job}")).await;
    assert!(waited.stderr.contains("cancelled: interrupted"), "{waited:?}");
}

#[tokio::test]
async fn cancel_of_unknown_job_fails() {
    let ended = Site::new().run("producer cancel 01890a5d-ac96-774b-bcce-b302099a8057").await;
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.contains("is known on this broker"), "{ended:?}");
}

/// An answer that cannot be written to stdout is an error.
#[tokio::test]
async fn unwritable_answer_is_an_error() {
    let full = OpenOptions::new().write(true).open("/dev/full").expect("every Linux has one");
    let site = Site::new();
    let words = format!("gristmill run crack --hash {NODE_DIGEST} --max-length 4");
    let status = site.command(&words).stdout(Stdio::from(full)).stderr(Stdio::null()).status().await.unwrap();
    assert_eq!(status.code(), Some(2));
}
