//! `--otlp`: the spans that a collector receives, and the cost of a missing collector.

use std::collections::BTreeSet;

use tokio::net::TcpListener;

use crate::harness::{Collector, ExportedSpan, Process, Site, within};

/// A URL where no server listens.
const CLOSED_URL: &str = "http://127.0.0.1:1";

/// Returns the spans of one name and process.
fn select_spans<'a>(spans: &'a [ExportedSpan], service: &str, name: &str) -> Vec<&'a ExportedSpan> {
    spans.iter().filter(|it| it.service == service && it.span.name == name).collect()
}

fn span_ids(spans: &[&ExportedSpan]) -> BTreeSet<String> {
    spans.iter().map(|it| it.id()).collect()
}

fn parent_ids(spans: &[&ExportedSpan]) -> BTreeSet<String> {
    spans.iter().map(|it| it.parent()).collect()
}

/// A job is one trace from its producer through workers to its sink.
#[tokio::test]
async fn job_is_one_trace() {
    let (site, collector) = (Site::new(), Collector::start().await);
    let url = collector.url();
    let sink = site.start(&format!("sink --otlp {url}"));
    let mut worker = site.start_with("worker --slots 1", |command| {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &url).env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=stone")
    });
    worker.wait_for(&format!("spans go to {url}/v1/traces")).await;
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

    let spans = collector.spans();
    let trace = job.replace('-', "");
    assert!(spans.iter().all(|it| it.trace() == trace), "{spans:#?}");
    let sent = select_spans(&spans, "gristmill-producer", "send");
    let run = select_spans(&spans, "gristmill-worker", "batch");
    let folded = select_spans(&spans, "gristmill-sink", "results");
    assert_eq!((sent.len(), sent.len() + run.len() + folded.len()), (4, spans.len()), "{spans:#?}");
    assert_eq!(parent_ids(&sent), BTreeSet::from([String::new()]), "{sent:#?}");
    assert_eq!(parent_ids(&run), span_ids(&sent), "{spans:#?}");
    assert!(!folded.is_empty() && parent_ids(&folded).is_subset(&span_ids(&run)), "{spans:#?}");
    assert!(run.iter().all(|it| it.head.contains("x-key: stone\r\n")), "{run:#?}");
    for it in &spans {
        assert!(0 < it.span.start_time_unix_nano, "{it:#?}");
        assert!(it.span.start_time_unix_nano <= it.span.end_time_unix_nano, "{it:#?}");
    }
}

/// Tasks that are sent again belong to the trace.
#[tokio::test]
async fn retries_belong_to_the_trace() {
    let (site, collector) = (Site::new(), Collector::start().await);
    let words = "gristmill run spin --tasks 3 --batch 3 --slots 1 --fail-rate 1 --max-attempts 2";
    let ended = site.run(&format!("{words} --otlp {}", collector.url())).await;
    assert_eq!(ended.code, 1, "every task fails: {ended:?}");
    let spans = collector.spans();
    let traces: BTreeSet<_> = spans.iter().map(ExportedSpan::trace).collect();
    assert_eq!(traces.len(), 1, "{spans:#?}");
    let [sent, run, folded] =
        ["send", "batch", "results"].map(|name| select_spans(&spans, "gristmill", name));
    let (first, again): (Vec<_>, Vec<_>) = run.iter().partition(|it| span_ids(&sent).contains(&it.parent()));
    assert_eq!((sent.len(), first.len(), again.len()), (1, 1, 3), "{spans:#?}");
    assert_eq!(parent_ids(&again), span_ids(&first), "{spans:#?}");
    assert!(!folded.is_empty() && parent_ids(&folded).is_subset(&span_ids(&again)), "{spans:#?}");
}

/// A collector that is away changes nothing, and is logged once.
#[tokio::test]
async fn missing_collector_is_logged_once() {
    let site = Site::new();
    let [sink, worker] =
        ["sink", "worker --slots 1"].map(|words| site.start(&format!("{words} --otlp {CLOSED_URL}")));
    // More than one export takes, so that several of them fail.
    let words = "producer submit spin --tasks 2000 --batch 1 --wait";
    let producer = site.run(&format!("{words} --otlp {CLOSED_URL}")).await;
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

/// A collector that does not answer delays the end only shortly.
#[tokio::test]
async fn silent_collector_delays_no_exit() {
    let site = Site::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let ended = within("the end", site.run(&format!("gristmill run spin --tasks 10 --otlp {url}"))).await;
    assert!(ended.answer().contains("45"), "{ended:?}");
    assert!(ended.stderr.contains(&format!("spans did not get to {url}")), "{ended:?}");
}

/// A URL that spans cannot go to is an error before anything is done.
#[tokio::test]
async fn bad_collector_url_is_an_error() {
    let site = Site::at("amqp://nobody.invalid".into());
    let ended = site.run("worker --otlp collector:4318").await;
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.contains("--otlp \"collector:4318\": expected http://HOST:PORT"), "{ended:?}");
    // Variables that are meant for all programs are no reason not to work.
    for (variables, warned) in [(&[][..], true), (&[("OTEL_SDK_DISABLED", "true")], false)] {
        let standard = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318");
        let ended = site.start_with("gristmill run spin --tasks 10", |command| {
            command.envs(variables.iter().copied().chain([standard]))
        });
        let ended = ended.output().await;
        assert!(ended.answer().contains("45"), "{ended:?}");
        assert_eq!(ended.stderr.contains("warning: no spans are sent: OTEL_"), warned, "{ended:?}");
    }
    // A command without a role needs no collector.
    let ended = site
        .start_with("sink jobs", |command| command.env("GRISTMILL_OTLP", "collector:4318"))
        .output()
        .await;
    assert!(!ended.stderr.contains("collector"), "{ended:?}");
}
