//! Producer, workers and sink as processes, over RabbitMQ.

use std::time::Duration;

use gristmill_shared::{Address, Headers, Message, Outgoing, QueueRole, publish_until_stored};

use crate::harness::{AAAA, NODE, Site, within};

#[tokio::test]
async fn a_fleet_finds_the_word_and_the_ledger_agrees() {
    let site = Site::new();
    let sink = site.start("sink");
    let (one, two) = (site.start("worker --slots 1"), site.start("worker --slots 1"));
    let submitted =
        site.start(&format!("producer submit crack --hash {NODE} --max-length 4 --wait")).end().await;
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

#[tokio::test]
async fn tasks_wait_for_workers_and_results_for_the_sink() {
    let site = Site::new();
    let submitted = site.run("producer submit primes --limit 1000000 --slice 10000 --batch 7").await;
    let job = submitted.answer().to_owned();
    let mut worker = site.start("worker --slots 2");
    worker.says("taking tasks").await;
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
async fn two_jobs_of_different_kinds_share_a_fleet() {
    let site = Site::new();
    let _roles = (site.start("sink"), site.start("worker --slots 1"), site.start("worker --slots 1"));
    let (primes, spin) = tokio::join!(
        site.run("producer submit primes --limit 2000000 --slice 10000 --wait --batch 5"),
        site.run("producer submit spin --tasks 5000 --wait --batch 20"),
    );
    assert_eq!(primes.answer(), "148933");
    assert!(spin.answer().contains("12497500"), "{spin:?}");
}

#[tokio::test]
async fn a_found_word_stops_the_fleet_and_leaves_no_queue_behind() {
    let site = Site::new();
    let _sink = site.start("sink");
    let (one, two) = (site.start("worker --slots 1"), site.start("worker --slots 1"));
    let submitted = site
        .run(&format!("producer submit crack --hash {AAAA} --max-length 6 --chunk 1000 --wait --batch 4"))
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
    for role in [QueueRole::Tasks, QueueRole::Again] {
        assert!(site.is_empty(role).await, "{role:?} still holds tasks of a job that has ended");
    }
    let verified = site.verify(&job).await;
    let of = |what: &str| verified[what].as_u64().unwrap();
    assert_eq!(of("done") + of("failed") + of("skipped"), of("total"), "{verified}");
    assert_eq!(of("total"), 321_273, "{verified}");
    assert!(of("skipped") > of("done"), "{verified}");
}

#[tokio::test]
async fn a_cancelled_job_ends_and_says_so() {
    let site = Site::new();
    let _roles = (site.start("sink"), site.start("worker --slots 1"));
    let job = site.start("producer submit spin --tasks 1000000 --micros 1000 --batch 1");
    let id = wait_for_job(&site).await;
    let told = site.run(&format!("producer cancel {id} --reason enough")).await;
    assert_eq!(told.code, 0, "{told:?}");
    let sent = job.end().await;
    assert!(sent.stderr.contains("the job ended before its split did"), "{sent:?}");
    let waited = site.run(&format!("producer wait {id}")).await;
    assert_eq!(waited.code, 1);
    assert!(waited.stderr.contains("cancelled: enough"), "{waited:?}");
    site.verify(&id).await;
    let again = site.run(&format!("producer cancel {id}")).await;
    assert!(again.code == 0 && again.stderr.contains("had ended before"), "{again:?}");
}

/// The id of the site's only job, once its sink knows it.
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

#[tokio::test]
async fn a_killed_worker_costs_nothing_but_time() {
    let site = Site::new();
    let sink = site.start("sink");
    let mut victim = site.start("worker --slots 1");
    victim.says("taking tasks").await;
    let submitted = site.start("producer submit spin --tasks 400 --micros 5000 --batch 20 --wait");
    let job = wait_for_job(&site).await;
    // In the middle: something is done, and much is not.
    site.first_outcomes(&job).await;
    victim.kill().await;
    let shown = site.json(&format!("sink show {job} --json")).await;
    assert!(
        shown["account"]["done"].as_u64().unwrap() < 400,
        "the worker was killed too late to show anything: {shown}"
    );
    let _heir = site.start("worker --slots 1");
    let ended = submitted.end().await;
    assert!(ended.answer().contains("79800"), "{ended:?}");
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(400), Some(0)));
    drop(sink);
}

#[tokio::test]
async fn garbage_goes_to_the_dead_and_everything_goes_on() {
    let site = Site::new();
    let mut sink = site.start("sink");
    let mut worker = site.start("worker --slots 1");
    worker.says("taking tasks").await;
    sink.says("serving").await;
    let transport = site.transport().await;
    let publisher = transport.publisher().await.unwrap();
    // What does not fit in the second and the third is longer than any header may be, and errors quote it.
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
    worker.says("moving a message to the dead queue").await;
    let submitted = site.run("producer submit spin --tasks 100 --wait").await;
    assert!(submitted.answer().contains("4950"));
    within("both to be in the ledger", async {
        while site.json("sink dead --json").await["messages"].as_array().map(Vec::len) != Some(6) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(worker.said("moving a message to the dead queue"), 3);
    assert!(site.is_empty(QueueRole::Tasks).await);
}
