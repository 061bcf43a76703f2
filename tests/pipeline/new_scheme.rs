//! A scheme of a program's own, `flawed://`: one registration, and everything takes its URLs.
//!
//! In this process, and by the commands of the example `own_transport`.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use gristmill::{
    Client, ConnectOptions, Finding, Lane, LedgerLocation, MemoryTransport, Registry, Transport,
    TransportDriver, TransportError, TransportRegistry,
    testing::{FaultRates, Faults, FaultyTransport, run_over},
};
use gristmill_jobs::Spin;

use crate::{
    broker_url,
    harness::{Process, ProcessOutput, Site, within},
};

const TASK_COUNT: u64 = 200;

/// The driver of a broker in this process, whose connections lose and refuse messages if the URL
/// asks for it.
#[derive(Debug, Clone)]
struct FlawedDriver {
    broker: Arc<MemoryTransport>,
    faults: Arc<Faults>,
    connections: Arc<AtomicU32>,
}

impl FlawedDriver {
    fn new() -> Self {
        // So many that a run without any does not happen.
        let faults = Faults::new(7, FaultRates { rejected: 300, ..FaultRates::default() });
        Self { broker: MemoryTransport::new(), faults, connections: Arc::default() }
    }

    /// Returns how many connections were opened by a URL.
    fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl TransportDriver for FlawedDriver {
    fn schemes(&self) -> &'static [&'static str] {
        &["flawed"]
    }

    fn url_form(&self) -> &'static str {
        "flawed://FAULTS, which is none or some"
    }

    fn check_url(&self, url: &str) -> Result<(), TransportError> {
        match url {
            "flawed://none" | "flawed://some" => Ok(()),
            _ => Err(TransportError::Invalid(format!("expected {}", self.url_form()))),
        }
    }

    async fn connect(&self, options: &ConnectOptions) -> Result<Arc<dyn Transport>, TransportError> {
        self.check_url(&options.url)?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        let connection = self.broker.connect();
        Ok(match options.url.as_str() {
            "flawed://some" => FaultyTransport::new(connection, &self.faults),
            _ => connection,
        })
    }
}

/// Returns all transports of a program with one registration, and the driver.
fn transports() -> (TransportRegistry, FlawedDriver) {
    let (mut transports, driver) = (gristmill::built_in_transports(), FlawedDriver::new());
    transports.register(driver.clone()).unwrap();
    (transports, driver)
}

fn spin() -> Spin {
    Spin { tasks: TASK_COUNT, ..Spin::default() }
}

/// The scheme decides who checks a URL; built-in ones stay as they are.
#[test]
fn urls_are_checked_by_their_transport() {
    let (transports, _) = transports();
    let error = |url: &str| transports.check_url(url).err().map(|error| error.to_string());
    assert_eq!((error("flawed://none"), error("amqp://me@host")), (None, None));
    assert_eq!(error("flawed://many").unwrap(), "expected flawed://FAULTS, which is none or some");
    assert!(error("amqp://host?heartbeat=abc").unwrap().contains("heartbeat=\"abc\""));
    let unknown = error("http://host").unwrap();
    let forms = "amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps://…; flawed://FAULTS, which is none or some";
    assert_eq!(unknown, format!("no transport for http:// (hint: expected {forms})"));
    assert!(gristmill::built_in_transports().check_url("flawed://none").is_err());
    let twice = transports.clone().register(FlawedDriver::new()).unwrap_err().to_string();
    assert!(twice.contains("two transports take URLs of flawed://"), "{twice}");
}

/// Producer, worker and sink connect by the URL, and again when a fault ends their connection.
#[tokio::test(flavor = "multi_thread")]
async fn job_runs_over_a_new_scheme() {
    let (transports, driver) = transports();
    let state = tempfile::tempdir().unwrap();
    let options = ConnectOptions::new("flawed://some").name("test");
    let run = run_over(spin(), state.path(), || transports.connect(&options));
    let end = within("the job", run).await.unwrap();
    assert!(end.verified && end.account.done == TASK_COUNT, "{end:?}");
    assert!(driver.faults.counts().rejected > 0, "no fault happened");
    assert!(driver.connections() >= 3, "{} connections", driver.connections()); // one for each role
}

#[tokio::test(flavor = "multi_thread")]
async fn client_submits_over_a_new_scheme() {
    let (transports, driver) = transports();
    let options = ConnectOptions::new("flawed://none").name("client");
    let connect = async || Client::over(transports.connect(&options).await.unwrap());
    let (submitter, server) = (connect().await, connect().await);
    let mut registry = Registry::default();
    registry.register::<Spin>().unwrap();
    let sink = server.sink(registry.clone(), LedgerLocation::Memory).unwrap();
    tokio::spawn(sink.run_until(server.transport(), std::future::pending()));
    tokio::spawn(server.worker(registry).run_until(server.transport(), std::future::pending()));
    let outcome = within("the job", submitter.run(spin())).await.unwrap();
    assert!(outcome.is_answered() && outcome.account.done == TASK_COUNT, "{outcome:?}");
    assert_eq!(driver.connections(), 2);
}

/// The doctor of a driver that has none of its own checks the connection.
#[tokio::test]
async fn doctor_examines_a_new_scheme() {
    let (transports, _) = transports();
    let findings = async |url: &str| {
        let options = ConnectOptions::new(url).name("doctor");
        transports.diagnose(&options, &Lane::default(), None).await
    };
    assert_eq!(findings("flawed://none").await.unwrap(), [Finding::ok("connection", "memory")]);
    let error = findings("flawed://many").await.unwrap_err();
    assert!(matches!(error, TransportError::Invalid(_)), "{error}");
}

/// Runs a command of the example, a program with one more transport.
async fn run_example(site: &Site, words: &str) -> ProcessOutput {
    start_example(site, words).output().await
}

fn start_example(site: &Site, words: &str) -> Process {
    let tests = std::env::current_exe().unwrap();
    let example: PathBuf =
        tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/own_transport");
    assert!(example.exists(), "{} is missing (hint: cargo build --examples)", example.display());
    let mut command = site.program(example);
    command.args(words.split_whitespace());
    Process::start("own_transport", command)
}

#[tokio::test]
async fn commands_take_a_new_scheme() {
    let site = Site::at("flawed://memory".into());
    let spin = "spin --tasks 40 --micros 1";
    let ended = run_example(&site, &format!("run {spin} --json --broker flawed://memory")).await;
    let end: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, end["account"]["done"].as_u64()), (0, Some(40)), "{ended:?}");
    let again = end["account"]["duplicates"].as_u64().unwrap() + end["account"]["late"].as_u64().unwrap();
    assert!(again >= 40, "{ended:?}");

    let ended = run_example(&site, "doctor --json").await;
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, report["findings"][0]["check"].as_str()), (0, Some("deliveries")), "{ended:?}");

    let help = run_example(&site, "worker --help").await.stdout;
    let help: Vec<_> = help.split_whitespace().collect();
    let help = help.join(" ");
    let forms = "[form: amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps://…; flawed://USER:PASSWORD@HOST:PORT/VHOST, \
                 or flawed://memory]";
    assert!(help.contains(forms), "{help}");

    for (words, error) in [
        ("worker --broker http://host", "--broker: no transport for http:// (hint: expected amqp://"),
        ("sink --broker flawed://host:port", "--broker: the broker's URL is not valid"),
    ] {
        let ended = run_example(&site, words).await;
        assert!(ended.code == 2 && ended.stderr.contains(error), "{words}: {ended:?}");
    }
}

/// A transport within one process is none for a fleet.
#[tokio::test]
async fn fleet_refuses_an_unshared_transport() {
    let site = Site::at("flawed://memory".into());
    for words in ["worker", "sink", "setup", "producer submit spin --tasks 1"] {
        let ended = run_example(&site, words).await;
        let error = "error: memory is within this process, where no other role can reach it (hint: ";
        assert!(ended.code == 2 && ended.stderr.starts_with(error), "{words}: {ended:?}");
    }
}

/// Processes of every role meet on the broker that a new scheme goes over.
#[tokio::test(flavor = "multi_thread")]
async fn fleet_works_over_a_new_scheme() {
    let site = Site::at(broker_url().replacen("amqp://", "flawed://", 1));
    let (mut sink, worker) = (start_example(&site, "sink"), start_example(&site, "worker --slots 2"));
    let ended = run_example(&site, "producer submit spin --tasks 60 --micros 1 --wait --json").await;
    let end: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, end["account"]["done"].as_u64()), (0, Some(60)), "{ended:?}");
    assert_eq!(run_example(&site, "doctor").await.code, 0);
    assert_eq!(worker.stop().await.code, 0);
    sink.signal("-TERM").await;
    sink.wait().await;
}
