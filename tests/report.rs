//! The typed report of a job, as `--json` prints it.

use gristmill_shared::{
    Account, Address, Conclusion, JobId, Kind, Outgoing, Round, publish_until_stored,
    wire::{Finished, Form},
};
use serde_json::{Value, json};

use crate::harness::{Ended, Site};

fn printed(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

#[tokio::test]
async fn run_prints_the_report() {
    let ended = Site::new().run("gristmill run primes --limit 100000 --json").await;
    assert_eq!((ended.code, &printed(&ended)["report"]), (0, &json!(9592)), "{ended:?}");
}

#[tokio::test]
async fn every_command_that_waits_prints_the_report() {
    let site = Site::new();
    let _roles = (site.start("sink"), site.start("worker --slots 2"));
    let submit = "producer submit spin --tasks 200 --fail-rate 0.2 --seed 5 --max-attempts 1 --wait --json";
    let half = site.run(submit).await;
    let end = printed(&half);
    let count = |what: &str| end["account"][what].as_u64().unwrap();
    // Some tasks failed: the report is that of the others, and the account says so.
    assert_eq!((half.code, end["report"]["count"].as_u64()), (1, Some(count("done"))), "{end}");
    assert!(count("failed") > 0 && count("done") > 0, "{end}");
    let named = end["failures"].as_array().unwrap();
    assert_eq!(named.len() as u64, count("failed").min(16), "{end}");
    assert!(named.iter().all(|failure| failure["reason"].is_string() && failure["index"].is_u64()), "{end}");

    let job = end["job"].as_str().unwrap();
    for words in [format!("producer wait {job} --json"), format!("producer resume {job} --wait --json")] {
        assert_eq!(printed(&site.run(&words).await)["report"], end["report"], "{words}");
    }
    // Tasks fail their first one or two tries.
    let retry = format!("sink retry {job} --wait --json");
    site.run(&retry).await;
    let whole = site.run(&retry).await;
    assert_eq!((whole.code, &printed(&whole)["report"]["count"]), (0, &json!(200)), "{whole:?}");
    assert_eq!(printed(&whole).get("failures"), None, "{whole:?}");
    assert_eq!(site.json(&format!("sink show {job} --json")).await["report"], printed(&whole)["report"]);
}

#[tokio::test]
async fn a_report_that_does_not_travel_is_pointed_to() {
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
    assert_eq!((ended.code, &printed(&ended)["report_bytes"]), (0, &json!(300_000)), "{ended:?}");
    let hint = format!("the report takes 300,000 bytes, too many to travel (hint: `sink show {job} --json`");
    assert!(ended.stderr.contains(&hint), "{ended:?}");
    transport.close().await;
}
