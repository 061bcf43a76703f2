//! What is wrong is told in a line or two, with the right exit code, and nothing is half done.

use std::{io::Write as _, os::unix::fs::PermissionsExt as _, time::Instant};

use crate::{
    broker_url,
    harness::{Ended, NODE, PATIENCE, Site},
};

/// Checks the code and the text of an error: at most two lines, on stderr alone.
fn assert_told(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!((ended.code, ended.stdout.as_str()), (code, ""), "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{part:?} is missing: {ended:?}");
    }
    let logged = ended.stderr.matches(" WARN ").count(); // that the broker is away, before it is an error
    assert!(ended.stderr.lines().count() <= 2 + logged && logged <= 1, "{ended:?}");
}

#[tokio::test]
async fn bad_parameters_are_refused_before_a_broker_is_asked_for() {
    let site = Site::new();
    for (words, parts) in [
        ("crack --hash xyz --max-length 4", ["xyz", "hex"]),
        ("crack --hash abcd --max-length 4", ["abcd", "40"]),
        (&format!("crack --hash {NODE} --max-length 0"), ["max-length", "0"]),
        (&format!("crack --hash {NODE} --max-length 99"), ["max-length", "18,446,744,073,709,551,615"]),
        (&format!("crack --hash {NODE} --max-length 4 --alphabet="), ["alphabet", "no letters"]),
        ("crak --hash x --max-length 1", ["crak", "did you mean \"crack\"?"]),
    ] {
        for how in ["gristmill run", "producer --broker amqp://localhost:1 submit"] {
            assert_told(&site.run(&format!("{how} {words}")).await, 2, &parts);
        }
    }
}

#[tokio::test]
async fn bad_limits_are_refused_with_what_would_be_good_ones() {
    let site = Site::new();
    for (flag, parts) in [
        ("--fail-fast 0", ["'0'", "a number of failed tasks from 1 on, or a share of all from 1% to 100%"]),
        ("--fail-fast 101%", ["'101%'", "--fail-fast"]),
        ("--task-timeout 5", ["'5'", "time unit needed"]),
        ("--task-timeout 1us", ["'1us'", "expected at least 1ms"]),
    ] {
        for how in ["gristmill run", "producer --broker amqp://localhost:1 submit"] {
            assert_told(&site.run(&format!("{how} spin --tasks 1 {flag}")).await, 2, &parts);
        }
    }
    assert_told(&site.run("worker --grace soon").await, 2, &["'soon'", "--grace"]);
}

#[tokio::test]
async fn a_broker_that_is_wrong_or_away_is_told_within_ten_seconds() {
    let site = Site::new();
    for (url, code, part) in [
        ("localhost", 2, "GRISTMILL_BROKER: the broker's URL has no scheme"),
        ("amqp://localhost?heartbeat=abc", 2, "GRISTMILL_BROKER: the broker's URL has heartbeat=\"abc\""),
        ("redis://localhost", 2, "no transport for redis://"),
        ("amqp://guest:secret@localhost:port", 2, "amqp://USER:PASSWORD@HOST:PORT/VHOST"),
        ("amqp://guest:secret@127.0.0.1:9", 3, "cannot reach the broker at amqp://guest@127.0.0.1:9"),
    ] {
        let began = Instant::now();
        for words in ["worker", "sink", &format!("producer submit crack --hash {NODE} --max-length 4")] {
            let ended = site.start_with(words, |command| command.env("GRISTMILL_BROKER", url)).end().await;
            assert_told(&ended, code, &[part]);
            assert!(!ended.stderr.contains("secret"), "the password is shown: {ended:?}");
        }
        assert!(began.elapsed().as_secs() < 3 * 12, "{url} took {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_refused_password_is_told_and_not_shown() {
    let url = broker_url();
    let (_, host) = url.rsplit_once('@').expect("the test broker's URL has a user");
    let site = Site::new();
    let wrong = format!("amqp://guest:not-the-password@{host}");
    let ended = site.start_with("worker", |command| command.env("GRISTMILL_BROKER", wrong)).end().await;
    assert_told(&ended, 3, &["refuses", "hint: check the user, the password"]);
    assert!(!ended.stderr.contains("not-the-password"), "{ended:?}");
    // Who gave none is told so.
    for words in ["worker", "producer wait 01890a5d-ac96-774b-bcce-b302099a8057"] {
        let none = format!("amqp://somebody@{host}");
        let ended = site.start_with(words, |command| command.env("GRISTMILL_BROKER", none)).end().await;
        assert_told(&ended, 3, &["no password was given for the user somebody", "GRISTMILL_PASSWORD_FILE"]);
        assert!(!ended.stderr.contains("check the user"), "{ended:?}");
    }
}

#[tokio::test]
async fn a_ledger_that_is_none_is_refused_and_left_as_it_is() {
    let site = Site::new();
    let path = site.path("not-a-ledger");
    std::fs::File::create(&path).unwrap().write_all(&[b'x'; 4096]).unwrap();
    let name = path.to_str().unwrap().to_owned();
    for words in [format!("sink --ledger {name}"), format!("sink jobs --ledger {name}")] {
        assert_told(&site.run(&words).await, 2, &[&name]);
    }
    assert_eq!(std::fs::read(&path).unwrap(), [b'x'; 4096]);
    let missing = site.run(&format!("sink jobs --ledger {name}-2")).await;
    assert_told(&missing, 2, &[&format!("{name}-2")]);
    assert!(!site.path("not-a-ledger-2").exists());
}

#[tokio::test]
async fn a_read_only_ledger_is_refused() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.says("serving").await;
    assert_eq!(sink.stop().await.code, 0);
    let ledger = std::fs::read_dir(site.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "ledger"))
        .expect("the sink made a ledger");
    std::fs::set_permissions(&ledger, std::fs::Permissions::from_mode(0o444)).unwrap();
    assert_told(&site.run("sink").await, 2, &[ledger.to_str().unwrap(), "is read-only"]);
}

#[tokio::test]
async fn a_ledger_has_one_sink_and_a_lane_one_ledger() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.says("serving").await;
    assert_told(&site.run("sink").await, 2, &["ledger"]);
    let other = site.path("other.ledger");
    let ended = site.run(&format!("sink --ledger {}", other.display())).await;
    assert_told(&ended, 2, &["--adopt"]);
    let ended = sink.stop().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let mut adopting = site.start(&format!("sink --adopt --ledger {}", other.display()));
    adopting.says("serving").await;
}

#[tokio::test]
async fn a_job_is_not_begun_on_a_lane_of_another_ledger() {
    let site = Site::new();
    let other = site.path("other.ledger");
    let mut sink = site.start(&format!("sink --ledger {}", other.display()));
    sink.says("serving").await;
    assert_eq!(sink.stop().await.code, 0);
    let words = format!("gristmill run --broker {} crack --hash {NODE} --max-length 4", broker_url());
    assert_told(&site.run(&words).await, 2, &["is served with another ledger", "other.ledger"]);
    for role in [gristmill_shared::QueueRole::Results, gristmill_shared::QueueRole::Tasks] {
        assert!(site.is_empty(role).await, "{role:?}: the job was begun");
    }
}

#[tokio::test]
async fn a_wrong_job_id_is_told_from_a_slow_job() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.says("serving").await;
    let began = Instant::now();
    let ended = site.run("producer wait 01890a5d-ac96-774b-bcce-b302099a8057").await;
    assert_told(&ended, 2, &["no job 01890a5d-ac96-774b-bcce-b302099a8057 is known"]);
    assert!(began.elapsed() < PATIENCE / 4);
    assert_told(&site.run("producer wait nonsense").await, 2, &["nonsense"]);
    assert_told(&site.run("sink show 01890a5d-ac96-774b-bcce-b302099a8057").await, 2, &["01890a5d"]);
}

#[tokio::test]
async fn a_kind_no_worker_here_knows_waits_and_is_told_once() {
    let site = Site::new();
    let mut worker = site.start("worker --slots 1");
    worker.says("taking tasks").await;
    let transport = site.transport().await;
    let publisher = transport.publisher().await.unwrap();
    let job = gristmill_shared::JobId::generate();
    let batches = (0..3).map(|n| {
        let raw = |json: &str| serde_json::value::RawValue::from_string(json.into()).unwrap();
        let message = gristmill_shared::wire::Batch {
            job,
            kind: "mystery".parse().unwrap(),
            spec: &raw("{}"),
            policy: gristmill_shared::Policy::default(),
            round: gristmill_shared::Round(0),
            stage: 0,
            spent: 0,
            version: 0,
            build: None,
            first: gristmill_shared::TaskIndex(n),
            count: 1,
            tasks: &raw("[0]"),
        }
        .to_message(gristmill_shared::Headers::default(), "test");
        let to = gristmill_shared::Address::Queue(site.queue(gristmill_shared::QueueRole::Tasks));
        gristmill_shared::Outgoing { to, message }
    });
    gristmill_shared::publish_until_stored(&*publisher, batches.collect()).await.unwrap();
    let line = worker.says("no job of kind mystery is registered here").await;
    assert!(line.contains("crack, primes, spin"), "{line}");
    // The one slot takes its messages in order: when it meets this, it has met all three.
    let to = gristmill_shared::Address::Queue(site.queue(gristmill_shared::QueueRole::Tasks));
    let message = gristmill_shared::Message { body: "garbage".into(), ..Default::default() };
    gristmill_shared::publish_until_stored(&*publisher, vec![gristmill_shared::Outgoing { to, message }])
        .await
        .unwrap();
    worker.says("moving a message to the dead queue").await;
    assert_eq!(worker.said("no job of kind mystery is registered here"), 1);
    assert_eq!(worker.stop().await.code, 0);
    assert!(
        site.is_empty(gristmill_shared::QueueRole::Tasks).await,
        "put back where every worker meets it at once"
    );
}
