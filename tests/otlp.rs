//! `--otlp`: what a collector gets to see, and what it costs when there is none.

use std::collections::BTreeSet;

use tokio::net::TcpListener;

use crate::harness::{Collector, Exported, Process, Site, within};

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:1";

/// The spans of one name and process.
fn of<'a>(spans: &'a [Exported], service: &str, name: &str) -> Vec<&'a Exported> {
    spans.iter().filter(|it| it.service == service && it.span.name == name).collect()
}

fn ids(spans: &[&Exported]) -> BTreeSet<String> {
    spans.iter().map(|it| it.id()).collect()
}

fn parents(spans: &[&Exported]) -> BTreeSet<String> {
    spans.iter().map(|it| it.parent()).collect()
}

#[tokio::test]
async fn a_job_is_one_trace_from_its_producer_through_workers_to_its_sink() {
    let (site, collector) = (Site::new(), Collector::start().await);
    let url = collector.url();
    let sink = site.start(&format!("sink --otlp {url}"));
    let mut worker = site.start_with("worker --slots 1", |command| {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &url).env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=stone")
    });
    worker.says(&format!("spans go to {url}/v1/traces")).await;
    let ended = site.run(&format!("producer submit spin --tasks 20 --batch 5 --otlp {url}")).await;
    let job = ended.answer().to_owned();
    let ended = site.run(&format!("producer wait {job}")).await;
    assert!(ended.answer().contains("190"), "{ended:?}");
    for process in [worker, sink] {
        let ended = Process::stop(process).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(!ended.stderr.contains("DEBUG"), "the log is as without: {ended:?}");
        assert!(!ended.stderr.contains("did not get"), "{ended:?}");
    }

    let spans = collector.taken();
    let trace = job.replace('-', "");
    assert!(spans.iter().all(|it| it.trace() == trace), "{spans:#?}");
    let sent = of(&spans, "gristmill-producer", "send");
    let run = of(&spans, "gristmill-worker", "batch");
    let folded = of(&spans, "gristmill-sink", "results");
    assert_eq!((sent.len(), sent.len() + run.len() + folded.len()), (4, spans.len()), "{spans:#?}");
    assert_eq!(parents(&sent), BTreeSet::from([String::new()]), "{sent:#?}");
    assert_eq!(parents(&run), ids(&sent), "{spans:#?}");
    assert!(!folded.is_empty() && parents(&folded).is_subset(&ids(&run)), "{spans:#?}");
    assert!(run.iter().all(|it| it.head.contains("x-key: stone\r\n")), "{run:#?}");
    for it in &spans {
        assert!(0 < it.span.start_time_unix_nano, "{it:#?}");
        assert!(it.span.start_time_unix_nano <= it.span.end_time_unix_nano, "{it:#?}");
    }
}

#[tokio::test]
async fn tasks_that_are_sent_again_belong_to_the_trace() {
    let (site, collector) = (Site::new(), Collector::start().await);
    let words = "gristmill run spin --tasks 3 --batch 3 --slots 1 --fail-rate 1 --max-attempts 2";
    let ended = site.run(&format!("{words} --otlp {}", collector.url())).await;
    assert_eq!(ended.code, 1, "every task fails: {ended:?}");
    let spans = collector.taken();
    let traces: BTreeSet<_> = spans.iter().map(Exported::trace).collect();
    assert_eq!(traces.len(), 1, "{spans:#?}");
    let [sent, run, folded] = ["send", "batch", "results"].map(|name| of(&spans, "gristmill", name));
    let (first, again): (Vec<_>, Vec<_>) = run.iter().partition(|it| ids(&sent).contains(&it.parent()));
    assert_eq!((sent.len(), first.len(), again.len()), (1, 1, 3), "{spans:#?}");
    assert_eq!(parents(&again), ids(&first), "{spans:#?}");
    assert!(!folded.is_empty() && parents(&folded).is_subset(&ids(&again)), "{spans:#?}");
}

#[tokio::test]
async fn a_collector_that_is_away_changes_nothing_and_is_told_of_once() {
    let site = Site::new();
    let [sink, worker] =
        ["sink", "worker --slots 1"].map(|words| site.start(&format!("{words} --otlp {NOBODY}")));
    // More than go together, so they are tried again and again.
    let words = "producer submit spin --tasks 2000 --batch 1 --wait";
    let producer = site.run(&format!("{words} --otlp {NOBODY}")).await;
    assert!(producer.answer().contains("1999000"), "{producer:?}");
    let [sink, worker] = [sink.stop().await, worker.stop().await];
    for (ended, least) in [(producer, 2000), (worker, 2000), (sink, 1)] {
        assert_eq!(ended.code, 0, "{ended:?}");
        let times = |text| ended.stderr.lines().filter(|line| line.contains(text)).count();
        assert_eq!((times("spans cannot go to"), times("spans did not get to")), (1, 1), "{}", ended.stderr);
        let last = ended.stderr.lines().find(|line| line.contains("did not get to")).unwrap();
        let counts: Vec<u64> = last.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert!(counts.len() == 2 && counts[0] == counts[1] && counts[0] >= least, "all of them: {last}");
        assert!(ended.stderr.contains("refused"), "it says why: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_collector_that_is_silent_keeps_nobody_for_long() {
    let site = Site::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let ended = within("the end", site.run(&format!("gristmill run spin --tasks 10 --otlp {url}"))).await;
    assert!(ended.answer().contains("45"), "{ended:?}");
    assert!(ended.stderr.contains(&format!("spans did not get to {url}")), "{ended:?}");
}

#[tokio::test]
async fn where_spans_cannot_go_is_told_before_anything_is_done() {
    let site = Site::at("amqp://nobody.invalid".into());
    let ended = site.run("worker --otlp collector:4318").await;
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.contains("--otlp \"collector:4318\": expected http://HOST:PORT"), "{ended:?}");
    // What was said to all programs is no reason not to work.
    for (variables, warned) in [(&[][..], true), (&[("OTEL_SDK_DISABLED", "true")], false)] {
        let standard = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318");
        let ended = site.start_with("gristmill run spin --tasks 10", |command| {
            command.envs(variables.iter().copied().chain([standard]))
        });
        let ended = ended.end().await;
        assert!(ended.answer().contains("45"), "{ended:?}");
        assert_eq!(ended.stderr.contains("warning: no spans are sent: OTEL_"), warned, "{ended:?}");
    }
    // Who takes no role needs no collector.
    let ended =
        site.start_with("sink jobs", |command| command.env("GRISTMILL_OTLP", "collector:4318")).end().await;
    assert!(!ended.stderr.contains("collector"), "{ended:?}");
}
