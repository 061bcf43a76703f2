//! The fault drill, with real processes on a RabbitMQ of its own.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{Process, Site, within};

/// Returns how often faults of this type happened.
fn done_count(account: &Value, name: &str) -> u64 {
    let faults = account["faults"].as_array().unwrap();
    let of = faults.iter().find(|fault| fault["type"] == name);
    of.map_or(0, |fault| fault["done"].as_u64().unwrap())
}

#[tokio::test]
async fn drill_with_broker_kill_is_exact() {
    let words = "gristmill drill --seconds 25 --seed 4 --workers 2 --json";
    let path = std::env::var_os("PATH").unwrap_or_default(); // where RabbitMQ and its tools are
    let mut drill = Site::new().start_with(words, |command| command.env("PATH", path));
    for stage in ["the fleet is up", "no more faults"] {
        drill.wait_for(stage).await; // each may take its time
    }
    let ended = drill.output().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let account: Value = serde_json::from_str(&ended.stdout).unwrap();
    let of = |what: &str| account[what].as_u64().unwrap();
    assert_eq!((of("lost"), of("double_counted")), (0, 0), "{account}");
    assert_eq!((of("done"), of("failed")), (of("tasks"), 0), "{account}");
    assert!(of("float_jobs") > 0 && of("verified") == of("jobs"), "{account}");
    assert_eq!((&account["exact"], &account["report"]), (&true.into(), &"right".into()), "{account}");
    assert!(of("faults_done") >= 6 && of("types_done") >= 5, "{account}");
    for fault in ["worker killed", "sink killed", "producer killed", "broker killed"] {
        assert!(done_count(&account, fault) > 0, "no {fault}: {account}");
    }
    assert!(account["broker_away_seconds"].as_f64().unwrap() > 0.0, "{account}");
}

/// A given broker gets no faults, and the drill still proves something.
#[tokio::test]
async fn drill_spares_a_given_broker() {
    let broker = crate::broker_url();
    let words = format!("gristmill drill --seconds 10 --seed 1 --workers 2 --json --broker {broker}");
    let ended = Site::new().run(&words).await;
    let account: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    assert_eq!((ended.code, &account["exact"]), (0, &true.into()), "{account}");
    for fault in ["broker killed", "broker paused", "connections closed"] {
        assert_eq!(done_count(&account, fault), 0, "{account}");
    }
}

#[tokio::test]
async fn drill_reports_a_missing_broker() {
    let ended = Site::new().run("gristmill drill --broker amqp://guest:guest@127.0.0.1:9").await;
    assert_eq!((ended.code, ended.stdout.as_str()), (3, ""), "{ended:?}");
    assert!(ended.stderr.contains("is a broker running there?"), "{ended:?}");
}

/// Starts a drill in the site's directory, and waits until its whole fleet is at work.
async fn start_drill(site: &Site) -> Process {
    let words = format!("gristmill drill --seconds 600 --seed 1 --broker {}", crate::broker_url());
    let dir = site.path("tmp");
    std::fs::create_dir(&dir).unwrap();
    let mut drill = site.start_with(&words, |command| command.env("TMPDIR", dir));
    drill.wait_for("the fleet is up").await;
    within("a sink, three workers and a producer", async {
        while count_processes(site) != 5 {
            tokio::time::sleep(Duration::from_millis(20)).await; // one producer may just be followed by the next
        }
    })
    .await;
    drill
}

/// Returns the number of processes that have the site's directory as theirs, as those of a drill
/// do.
fn count_processes(site: &Site) -> usize {
    let dir = site.path("tmp");
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path().join("cwd")));
    processes.filter(|cwd| std::fs::read_link(cwd).is_ok_and(|cwd| cwd.starts_with(&dir))).count()
}

/// Waits until no such process is left. Polls, since the end of other processes' children is no
/// event.
async fn wait_all_gone(site: &Site) {
    within("every process to end", async {
        while count_processes(site) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Ctrl-C ends a drill and every process in it.
#[tokio::test]
async fn ctrl_c_ends_every_process() {
    let site = Site::new();
    let drill = start_drill(&site).await;
    drill.signal("-INT").await;
    let ended = drill.output().await;
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(ended.stderr.contains("ledger and logs are kept in"), "{ended:?}");
    wait_all_gone(&site).await;
}

#[tokio::test]
async fn killed_drill_leaves_no_process() {
    let site = Site::new();
    start_drill(&site).await.kill().await;
    wait_all_gone(&site).await;
}

#[tokio::test]
async fn same_seed_plans_same_faults() {
    let site = Site::new();
    let plan = async |seed: u32| site.run(&format!("gristmill drill --plan --seed {seed}")).await.stdout;
    let first = plan(7).await;
    assert!(first.lines().count() > 10, "{first}");
    assert_eq!(first, plan(7).await);
    assert_ne!(first, plan(8).await);
}
