//! Metrics, health, logs and traces: what a process shows of itself.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{OwnBroker, Process, Samples, ScrapeTarget, Site, within};

/// Bound for the time until `/readyz` reports that the broker is away.
const NOTICE_BOUND: Duration = Duration::from_secs(15);

const METRICS_FLAG: &str = "--metrics 127.0.0.1:0";

/// The roles' counters agree with the ledger.
#[tokio::test]
async fn metrics_agree_with_the_ledger() {
    let site = Site::new();
    let mut sink = site.start(&format!("sink {METRICS_FLAG}"));
    let mut worker = site.start(&format!("worker --slots 2 {METRICS_FLAG} -v"));
    let (of_sink, of_worker) =
        (ScrapeTarget::from_log(&mut sink).await, ScrapeTarget::from_log(&mut worker).await);
    // With `--wait` it still runs when everything is sent, and can be scraped.
    let words = "spin --tasks 2000 --micros 200 --fail-rate 0.05 --max-attempts 2 --batch 20 --wait";
    let mut producer = site.start(&format!("producer submit {words} {METRICS_FLAG} -v"));
    let of_producer = ScrapeTarget::from_log(&mut producer).await;
    let sent = |samples: &Samples| samples.sum("gristmill_producer_tasks_sent_total", "") > 1999.0;
    let samples = of_producer.wait_for_samples("everything to be sent", sent).await;
    assert!(samples.sum("gristmill_producer_batches_total", "answer=\"stored\"") > 99.0, "{samples:?}");
    for scraped in [&of_producer, &of_worker, &of_sink] {
        assert_eq!(scraped.get("/healthz").await.0, 200);
        assert_eq!(scraped.get("/readyz").await, (200, "ready\n".to_owned()));
        assert_eq!(scraped.get("/").await.0, 404);
        assert!(scraped.metrics().await.sum("gristmill_broker_state", "state=\"well\"") > 0.5);
    }
    let job = producer.wait_for("job 01").await.split("job ").nth(1).unwrap().to_owned();
    producer.output().await;

    let verified = site.verify(&job).await;
    let [done, failed] = ["done", "failed"].map(|name| verified[name].as_f64().unwrap());
    assert!(done > 0.0 && failed > 0.0 && (done + failed - 2000.0).abs() < 0.1, "{verified}");
    let ended = |samples: &Samples| samples.sum("gristmill_sink_jobs_ended_total", "") > 0.5;
    let samples = of_sink.wait_for_samples("the job's end", ended).await;
    let outcomes = |of: &str| samples.sum("gristmill_sink_outcomes_total", &format!("outcome=\"{of}\""));
    assert_eq!((outcomes("done"), outcomes("failed")), (done, failed), "{samples:?}");
    assert!(samples.sum("gristmill_sink_commit_seconds_count", "") > 0.5);
    assert_eq!(samples.sum("gristmill_sink_jobs_running", ""), 0.0);

    // All its results are confirmed, but the last acks perhaps only now.
    let settled = |samples: &Samples| samples.sum("gristmill_worker_deliveries_held", "") == 0.0;
    let samples = of_worker.wait_for_samples("everything to be settled", settled).await;
    let tasks = |of: &str| samples.sum("gristmill_worker_tasks_total", &format!("outcome=\"{of}\""));
    assert_eq!((tasks("done"), tasks("failed")), (done, failed), "{samples:?}");
    let retried = tasks("retried");
    assert!(retried >= failed, "{samples:?}");
    assert_eq!(samples.sum("gristmill_worker_batch_tasks_sum", "kind=\"spin\""), 2000.0 + retried);
    assert_eq!(samples.sum("gristmill_worker_messages_stored_total", "queue=\"retry.1s\""), retried);
    assert_eq!(samples.sum("gristmill_worker_slots", ""), 2.0);
    assert_eq!(samples.sum("gristmill_worker_slots_busy", ""), 0.0);
    assert!(!samples.has("gristmill_sink_jobs_running"), "{samples:?}");
}

/// `/readyz` soon reports that the broker is away, and that it is back.
#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_broker() {
    let broker = OwnBroker::start().await;
    let site = Site::at(broker.url());
    let job = "producer submit spin --tasks 100000 --micros 10000 --wait -v";
    let mut roles =
        ["sink", "worker --slots 1", job].map(|words| site.start(&format!("{words} {METRICS_FLAG}")));
    let mut scraped = Vec::new();
    for role in &mut roles {
        scraped.push(ScrapeTarget::from_log(role).await);
    }
    for role in &scraped {
        role.wait_ready(200).await;
    }
    broker.sync_directory().await;
    broker.with(|broker| broker.kill().unwrap()).await;
    let killed = Instant::now();
    for role in &scraped {
        let why = role.wait_ready(503).await;
        assert!(why.contains("the connection to the broker is lost: "), "{why}");
        assert_eq!(role.get("/healthz").await.0, 200);
    }
    assert!(killed.elapsed() < NOTICE_BOUND, "it took {:?}", killed.elapsed());
    let away = |samples: &Samples| samples.sum("gristmill_broker_away_seconds_total", "") > 0.5;
    for role in &scraped {
        role.wait_for_samples("a second without the broker", away).await;
    }
    broker.with(|broker| broker.restart().unwrap()).await;
    for role in &scraped {
        role.wait_ready(200).await;
        let samples = role.metrics().await;
        // A busy machine may cost a connection more.
        assert!(samples.sum("gristmill_broker_reconnects_total", "") >= 1.0, "{samples:?}");
        assert_eq!(samples.sum("gristmill_broker_state", "state=\"away\""), 0.0);
    }
}

#[tokio::test]
async fn ready_sink_owns_its_lane() {
    let site = Site::new();
    let mut sink = site.start(&format!("sink {METRICS_FLAG}"));
    ScrapeTarget::from_log(&mut sink).await.wait_ready(200).await;
    sink.kill().await;
    let another = site.path("another.ledger").display().to_string();
    let ended = within("the end", site.run(&format!("sink --ledger {another}"))).await;
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.contains("--adopt"), "{ended:?}");
}

/// A whole pipeline in one process counts for all its roles.
#[tokio::test]
async fn run_counts_for_all_roles() {
    let site = Site::new();
    let mut running =
        site.start(&format!("gristmill run spin --tasks 100000 --micros 10000 --slots 2 {METRICS_FLAG} -v"));
    let scraped = ScrapeTarget::from_log(&mut running).await;
    scraped.wait_ready(200).await;
    let counts = [
        "gristmill_producer_tasks_sent_total",
        "gristmill_worker_tasks_total",
        "gristmill_sink_outcomes_total",
    ];
    let all = |samples: &Samples| counts.iter().all(|name| samples.sum(name, "") > 0.5);
    let samples = scraped.wait_for_samples("tasks of all roles", all).await;
    assert_eq!(samples.sum("gristmill_build_info", "role=\"run\""), 1.0, "{samples:?}");
    running.kill().await;
}

/// A process that cannot serve its metrics ends before it does anything.
#[tokio::test]
async fn bad_metrics_address_is_an_error() {
    let site = Site::new();
    let mut first = site.start(&format!("worker --slots 1 {METRICS_FLAG}"));
    let line = first.wait_for("metrics are at http://").await;
    let taken = line.split("http://").nth(1).unwrap().split('/').next().unwrap();
    for (address, why) in [(taken, "in use"), ("nowhere", "HOST:PORT")] {
        let ended = site.run(&format!("worker --metrics {address}")).await;
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(ended.stderr.contains(why) && ended.stderr.contains("--metrics"), "{ended:?}");
    }
}

/// A job's trace id is in the logs of its producer, its worker and its sink.
#[tokio::test]
async fn logs_carry_the_jobs_trace() {
    let site = Site::new();
    let debug = "-vv --log-format json";
    let [mut sink, mut worker] =
        ["sink", "worker --slots 1"].map(|words| site.start(&format!("{words} {debug}")));
    worker.wait_for("taking tasks").await;
    let ended = site.run(&format!("producer submit spin --tasks 10 --wait {debug}")).await;
    assert!(ended.answer().contains("45"), "{ended:?}");
    let said = parse_lines(&ended.stderr);
    let job = said.iter().find_map(|line| line["fields"]["message"].as_str()?.strip_prefix("job "));
    let trace = job.unwrap().replace('-', "");
    worker.wait_for(&trace).await;
    sink.wait_for(&trace).await;
    for (process, message, span) in [(worker, "a batch ran", "batch"), (sink, "taking in", "results")] {
        let ended = Process::stop(process).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        let lines = parse_lines(&ended.stderr);
        let of_trace = lines.iter().filter(|line| line["span"]["trace_id"] == trace.as_str());
        let told: Vec<_> = of_trace.filter(|line| line["fields"]["message"] == message).collect();
        assert!(!told.is_empty() && told.iter().all(|line| line["span"]["name"] == span), "{lines:#?}");
    }
}

/// Parses the lines of a JSON log, and checks the fields that each must have.
fn parse_lines(stderr: &str) -> Vec<Value> {
    let lines: Vec<Value> =
        stderr.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    for line in &lines {
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
        assert!(line["fields"]["message"].is_string(), "{line}");
    }
    lines
}

/// Warnings and errors have the format of the log.
#[tokio::test]
async fn errors_follow_the_log_format() {
    let site = Site::at("amqp://guest:guest@127.0.0.1:1".into());
    let worker =
        site.start_with("worker --log-format json", |command| command.env("GRISTMILL_BROKR", "typo"));
    let ended = within("the end", worker.output()).await;
    let lines = parse_lines(&ended.stderr);
    let warned = |what: &str| {
        let says = |line: &Value| line["fields"]["message"].as_str().unwrap().contains(what);
        lines.iter().any(|line| line["level"] == "WARN" && says(line))
    };
    assert!(warned("GRISTMILL_BROKR, which is no setting"), "{lines:#?}");
    // The reason is logged before a user has waited long.
    assert!(warned("refused (os error 111); trying for"), "{lines:#?}");
    let last = lines.last().unwrap();
    assert_eq!((ended.code, last["level"].as_str()), (3, Some("ERROR")), "{lines:#?}");
    assert!(last["fields"]["message"].as_str().unwrap().contains("cannot reach the broker"), "{last}");
}
