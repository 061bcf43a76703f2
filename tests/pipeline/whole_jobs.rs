//! Producer, workers and sink as processes, over RabbitMQ.

use std::time::Duration;

use gristmill_shared::{Address, Headers, Message, Outgoing, QueueRole, publish_until_stored};

use crate::harness::{AAAA_DIGEST, NODE_DIGEST, Site, within};

/// A fleet finds the word, and its ledger has the same answer.
#[tokio::test]
async fn fleet_answer_is_in_the_ledger() {
    let site = Site::new();
    let sink = site.start("sink");
    let (one, two) = (site.start("worker --slots 1"), site.start("worker --slots 1"));
    let submitted = site
        .start(&format!("producer submit crack --hash {NODE_DIGEST} --max-length 4 --wait"))
        .output()
        .await;
    assert_eq!(submitted.answer(), "node");
    let job = submitted.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap().to_owned();
    let shown = site.json(&format!("sink show {job} --json")).await;
    assert_eq!(shown["conclusion"]["text"], "node", "{shown}");
    site.verify(&job).await;
    for process in [sink, one, two] {
        let ended = process.stop().await;
        assert_eq!(ended.code, 0, "{ended:?}");
    }
}

/// Tasks wait for workers, and results wait for the sink.
#[tokio::test]
async fn queues_hold_tasks_and_results() {
    let site = Site::new();
    let submitted = site.run("producer submit primes --limit 1000000 --slice 10000 --batch 7").await;
    let job = submitted.answer().to_owned();
    let mut worker = site.start("worker --slots 2");
    worker.wait_for("taking tasks").await;
    let ended = worker.stop().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let worker = site.start("worker --slots 2");
    let sink = site.start("sink");
    assert_eq!(site.run(&format!("producer wait {job}")).await.answer(), "78498");
    let verified = site.verify(&job).await;
    assert_eq!((verified["total"].as_u64(), verified["done"].as_u64()), (Some(100), Some(100)), "{verified}");
    drop((worker, sink));
}

#[tokio::test]
async fn two_kinds_share_a_fleet() {
    let site = Site::new();
    let _roles = (site.start("sink"), site.start("worker --slots 1"), site.start("worker --slots 1"));
    let (primes, spin) = tokio::join!(
        site.run("producer submit primes --limit 2000000 --slice 10000 --wait --batch 5"),
        site.run("producer submit spin --tasks 5000 --wait --batch 20"),
    );
    assert_eq!(primes.answer(), "148933");
    assert!(spin.answer().contains("12497500"), "{spin:?}");
}

/// An early answer stops the fleet and leaves no task in a queue.
#[tokio::test]
async fn early_answer_empties_the_queues() {
    let site = Site::new();
    let _sink = site.start("sink");
    let (one, two) = (site.start("worker --slots 1"), site.start("worker --slots 1"));
    let submitted = site
        .run(&format!(
            "producer submit crack --hash {AAAA_DIGEST} --max-length 6 --chunk 1000 --wait --batch 4"
        ))
        .await;
    assert_eq!(submitted.answer(), "aaaa");
    let job = submitted.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap().to_owned();

    // The next job is not held up by what the first one left.
    let next = site.run("producer submit spin --tasks 100 --wait").await;
    assert!(next.answer().contains("4950"));
    for worker in [one, two] {
        let ended = worker.stop().await;
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    for role in [QueueRole::Tasks, QueueRole::Requeued] {
        assert!(site.is_empty(role).await, "{role:?} still holds tasks of a job that has ended");
    }
    let verified = site.verify(&job).await;
    let of = |what: &str| verified[what].as_u64().unwrap();
    assert_eq!(of("done") + of("failed") + of("skipped"), of("total"), "{verified}");
    assert_eq!(of("total"), 321_273, "{verified}");
    assert!(of("skipped") > of("done"), "{verified}");
}

/// A cancelled job ends, and its conclusion has the reason.
#[tokio::test]
async fn cancelled_job_ends_with_reason() {
    let site = Site::new();
    let _roles = (site.start("sink"), site.start("worker --slots 1"));
    let job = site.start("producer submit spin --tasks 1000000 --micros 1000 --batch 1");
    let id = wait_for_job(&site).await;
    let told = site.run(&format!("producer cancel {id} --reason enough")).await;
    assert_eq!(told.code, 0, "{told:?}");
    let sent = job.output().await;
    assert!(sent.stderr.contains("the job ended before its split did"), "{sent:?}");
    let waited = site.run(&format!("producer wait {id}")).await;
    assert_eq!(waited.code, 1);
    assert!(waited.stderr.contains("cancelled: enough"), "{waited:?}");
    site.verify(&id).await;
    let again = site.run(&format!("producer cancel {id}")).await;
    assert!(again.code == 0 && again.stderr.contains("had ended before"), "{again:?}");
}

/// Returns the id of the site's only job, once its sink knows it.
async fn wait_for_job(site: &Site) -> String {
    within("the sink to know the job", async {
        loop {
            let jobs = site.run("sink jobs --json").await;
            if let Ok(jobs) = serde_json::from_str::<serde_json::Value>(&jobs.stdout)
                && let Some(job) = jobs[0]["job"].as_str()
            {
                return job.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
}

/// A killed worker only costs time.
#[tokio::test]
async fn worker_crash_loses_no_task() {
    let site = Site::new();
    let sink = site.start("sink");
    let mut victim = site.start("worker --slots 1");
    victim.wait_for("taking tasks").await;
    let submitted = site.start("producer submit spin --tasks 400 --micros 5000 --batch 20 --wait");
    let job = wait_for_job(&site).await;
    // In the middle: something is done, and much is not.
    site.wait_for_outcomes(&job).await;
    victim.kill().await;
    let shown = site.json(&format!("sink show {job} --json")).await;
    assert!(
        shown["account"]["done"].as_u64().unwrap() < 400,
        "the worker was killed too late to show anything: {shown}"
    );
    let _heir = site.start("worker --slots 1");
    let ended = submitted.output().await;
    assert!(ended.answer().contains("79800"), "{ended:?}");
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(400), Some(0)));
    drop(sink);
}

/// Messages that cannot be read go to the dead queue, and the roles go on.
#[tokio::test]
async fn garbage_goes_to_the_dead_queue() {
    let site = Site::new();
    let mut sink = site.start("sink");
    let mut worker = site.start("worker --slots 1");
    worker.wait_for("taking tasks").await;
    sink.wait_for("serving").await;
    let transport = site.transport().await;
    let publisher = transport.publisher().await.unwrap();
    // The values in the second and the third body are longer than any header may be, and errors
    // quote them.
    let long = format!("{{\"busy_us\":\"{0}\",\"job\":\"{0}\",\"kind\":\"{0}\"}}", "X".repeat(70_000));
    for role in [QueueRole::Tasks, QueueRole::Results] {
        for (form, body) in
            [("", "\0garbage"), ("gristmill.batch.v1", &long), ("gristmill.results.v1", &long)]
        {
            let traceparent = Some("X".repeat(65_400)); // so that there is no room left for a reason
            let headers = Headers { traceparent, ..Headers::default() };
            let message =
                Message { body: body.to_owned().into(), form: form.into(), headers, ..Message::default() };
            let outgoing = Outgoing { to: Address::Queue(site.queue(role)), message };
            publish_until_stored(&*publisher, vec![outgoing]).await.unwrap();
        }
    }
    worker.wait_for("moving a message to the dead queue").await;
    let submitted = site.run("producer submit spin --tasks 100 --wait").await;
    assert!(submitted.answer().contains("4950"));
    within("both to be in the ledger", async {
        while site.json("sink dead --json").await["messages"].as_array().map(Vec::len) != Some(6) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(worker.count_lines("moving a message to the dead queue"), 3);
    assert!(site.is_empty(QueueRole::Tasks).await);
}
