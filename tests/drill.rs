//! The fault drill, held with real processes on a RabbitMQ of its own.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{Process, Site, within};

/// How often faults of this type happened.
fn done(account: &Value, name: &str) -> u64 {
    let faults = account["faults"].as_array().unwrap();
    let of = faults.iter().find(|fault| fault["type"] == name);
    of.map_or(0, |fault| fault["done"].as_u64().unwrap())
}

#[tokio::test]
async fn a_drill_with_a_broker_that_is_killed_ends_exact() {
    let words = "gristmill drill --seconds 25 --seed 4 --workers 2 --json";
    let path = std::env::var_os("PATH").unwrap_or_default(); // RabbitMQ is there, and what it needs
    let mut drill = Site::new().start_with(words, |command| command.env("PATH", path));
    for stage in ["the fleet is up", "no more faults"] {
        drill.says(stage).await; // each may take its time
    }
    let ended = drill.end().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let account: Value = serde_json::from_str(&ended.stdout).unwrap();
    let of = |what: &str| account[what].as_u64().unwrap();
    assert_eq!((of("lost"), of("double_counted")), (0, 0), "{account}");
    assert_eq!((of("done"), of("failed")), (of("tasks"), 0), "{account}");
    assert!(of("float_jobs") > 0 && of("verified") == of("jobs"), "{account}");
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
async fn a_drill_without_its_broker_says_so() {
    let ended = Site::new().run("gristmill drill --broker amqp://guest:guest@127.0.0.1:9").await;
    assert_eq!((ended.code, ended.stdout.as_str()), (3, ""), "{ended:?}");
    assert!(ended.stderr.contains("is a RabbitMQ running there?"), "{ended:?}");
}

/// A drill that is in full swing, with all that it leaves in the site's directory.
async fn in_full_swing(site: &Site) -> Process {
    let words = format!("gristmill drill --seconds 600 --seed 1 --broker {}", crate::broker_url());
    let dir = site.path("tmp");
    std::fs::create_dir(&dir).unwrap();
    let mut drill = site.start_with(&words, |command| command.env("TMPDIR", dir));
    drill.says("the fleet is up").await;
    within("a sink, three workers and a producer", async {
        while at_work(site) != 5 {
            tokio::time::sleep(Duration::from_millis(20)).await; // one producer may just make way for the next
        }
    })
    .await;
    drill
}

/// How many processes work in the site's directory, as those of a drill do.
fn at_work(site: &Site) -> usize {
    let dir = site.path("tmp");
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path().join("cwd")));
    processes.filter(|cwd| std::fs::read_link(cwd).is_ok_and(|cwd| cwd.starts_with(&dir))).count()
}

/// Waits until nobody is left; there is no event for the end of other people's children.
async fn nobody_is_left(site: &Site) {
    within("everybody to be gone", async {
        while at_work(site) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn ctrl_c_ends_a_drill_and_everybody_in_it() {
    let site = Site::new();
    let drill = in_full_swing(&site).await;
    drill.signal("-INT").await;
    let ended = drill.end().await;
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(ended.stderr.contains("ledger and logs are kept in"), "{ended:?}");
    nobody_is_left(&site).await;
}

#[tokio::test]
async fn nobody_outlives_a_drill_that_is_killed() {
    let site = Site::new();
    in_full_swing(&site).await.kill().await;
    nobody_is_left(&site).await;
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
