//! The typed report of a job, as `--json` prints it.

use gristmill_shared::{
    Account, Address, Conclusion, JobId, Kind, Outgoing, Round, publish_until_stored,
    wire::{Finished, WireMessage},
};
use serde_json::{Value, json};

use crate::harness::{ProcessOutput, Site};

fn parse_json(ended: &ProcessOutput) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

#[tokio::test]
async fn run_prints_the_report() {
    let ended = Site::new().run("gristmill run primes --limit 100000 --json").await;
    assert_eq!((ended.code, &parse_json(&ended)["report"]), (0, &json!(9592)), "{ended:?}");
}

/// Every command that waits prints the report.
#[tokio::test]
async fn waiting_commands_print_the_report() {
    let site = Site::new();
    let _roles = (site.start("sink"), site.start("worker --slots 2"));
    let submit = "producer submit spin --tasks 200 --fail-rate 0.2 --seed 5 --max-attempts 1 --wait --json";
    let half = site.run(submit).await;
    let end = parse_json(&half);
    let count = |what: &str| end["account"][what].as_u64().unwrap();
    // Some tasks failed: the report is that of the others, and the account says so.
    assert_eq!((half.code, end["report"]["count"].as_u64()), (1, Some(count("done"))), "{end}");
    assert!(count("failed") > 0 && count("done") > 0, "{end}");
    let named = end["failures"].as_array().unwrap();
    assert_eq!(named.len() as u64, count("failed").min(16), "{end}");
    assert!(named.iter().all(|failure| failure["reason"].is_string() && failure["index"].is_u64()), "{end}");

    let job = end["job"].as_str().unwrap();
    for words in [format!("producer wait {job} --json"), format!("producer resume {job} --wait --json")] {
        assert_eq!(parse_json(&site.run(&words).await)["report"], end["report"], "{words}");
    }
    // Tasks fail their first one or two tries.
    let retry = format!("sink retry {job} --wait --json");
    site.run(&retry).await;
    let whole = site.run(&retry).await;
    assert_eq!((whole.code, &parse_json(&whole)["report"]["count"]), (0, &json!(200)), "{whole:?}");
    assert_eq!(parse_json(&whole).get("failures"), None, "{whole:?}");
    assert_eq!(site.json(&format!("sink show {job} --json")).await["report"], parse_json(&whole)["report"]);
}

/// A report that is too large to travel is named with the command that shows it.
#[tokio::test]
async fn large_report_is_pointed_to() {
    let site = Site::new();
    let transport = site.transport().await;
    let job = JobId::generate();
    let end = Finished {
        job,
        kind: Kind::new("census").unwrap(),
        round: Round(0),
        account: Account { total: Some(1), done: 1, ..Account::default() },
        conclusion: Conclusion::answer("counted"),
        report: None,
        report_bytes: Some(300_000),
        failures: Vec::new(),
        builds: Vec::new(),
    };
    let fact = Outgoing { to: Address::Journal, message: end.message(format!("{job}/end"), "test") };
    publish_until_stored(&*transport.publisher().await.unwrap(), vec![fact]).await.unwrap();
    let ended = site.run(&format!("producer wait {job} --json")).await;
    assert_eq!((ended.code, &parse_json(&ended)["report_bytes"]), (0, &json!(300_000)), "{ended:?}");
    let hint = format!("the report takes 300,000 bytes, too many to travel (hint: `sink show {job} --json`");
    assert!(ended.stderr.contains(&hint), "{ended:?}");
    transport.close().await;
}
