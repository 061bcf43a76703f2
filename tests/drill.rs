//! The fault drill, held with real processes on a RabbitMQ of its own.

use serde_json::Value;

use crate::harness::Site;

/// How often faults of this type happened.
fn done(account: &Value, name: &str) -> u64 {
    let faults = account["faults"].as_array().unwrap();
    let of = faults.iter().find(|fault| fault["type"] == name);
    of.map_or(0, |fault| fault["done"].as_u64().unwrap())
}

#[tokio::test]
async fn a_drill_with_a_broker_that_is_killed_ends_exact() {
    let ended = Site::new().run("gristmill drill --seconds 25 --seed 4 --workers 2 --json").await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let account: Value = serde_json::from_str(&ended.stdout).unwrap();
    let of = |what: &str| account[what].as_u64().unwrap();
    assert_eq!((of("lost"), of("double_counted")), (0, 0), "{account}");
    assert_eq!((of("done"), of("failed")), (of("tasks"), 0), "{account}");
    assert!(of("jobs") > 0 && of("verified") == of("jobs"), "{account}");
    assert_eq!((&account["exact"], &account["report"]), (&true.into(), &"right".into()), "{account}");
    assert!(of("faults_done") >= 6 && of("types_done") >= 5, "{account}");
    for fault in ["worker killed", "sink killed", "producer killed", "broker killed"] {
        assert!(done(&account, fault) > 0, "no {fault}: {account}");
    }
    assert!(account["broker_away_seconds"].as_f64().unwrap() > 0.0, "{account}");
}

#[tokio::test]
async fn a_given_broker_is_left_in_peace_and_the_drill_still_proves_something() {
    let broker = crate::broker_url();
    let words = format!("gristmill drill --seconds 10 --seed 1 --workers 2 --json --broker {broker}");
    let ended = Site::new().run(&words).await;
    let account: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    assert_eq!((ended.code, &account["exact"]), (0, &true.into()), "{account}");
    for fault in ["broker killed", "broker paused", "connections closed"] {
        assert_eq!(done(&account, fault), 0, "{account}");
    }
}

#[tokio::test]
async fn a_drill_that_cannot_start_says_why() {
    let nobody = "gristmill drill --seconds 10 --broker amqp://guest:guest@127.0.0.1:9";
    let mut drill = Site::new().start(nobody);
    drill.says("left by itself, exit code 3").await;
    drill.signal("-INT").await;
    let ended = drill.end().await;
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(ended.stderr.contains("logs are kept in"), "{ended:?}");
}

#[tokio::test]
async fn the_same_seed_plans_the_same_faults() {
    let site = Site::new();
    let plan = async |seed: u32| site.run(&format!("gristmill drill --plan --seed {seed}")).await.stdout;
    let first = plan(7).await;
    assert!(first.lines().count() > 10, "{first}");
    assert_eq!(first, plan(7).await);
    assert_ne!(first, plan(8).await);
}
