//! Bad input is reported in a line or two, with the right exit code, and nothing is half done.

use std::{io::Write as _, os::unix::fs::PermissionsExt as _, time::Instant};

use crate::{
    broker_url,
    harness::{NODE_DIGEST, ProcessOutput, Site, WAIT_TIMEOUT},
};

/// Checks the code and the text of an error: at most two lines, on stderr alone.
fn assert_error(ended: &ProcessOutput, code: i32, parts: &[&str]) {
    assert_eq!((ended.code, ended.stdout.as_str()), (code, ""), "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{part:?} is missing: {ended:?}");
    }
    let logged = ended.stderr.matches(" WARN ").count(); // a warning that the broker is away, before the error
    assert!(ended.stderr.lines().count() <= 2 + logged && logged <= 1, "{ended:?}");
}

/// Bad parameters are refused before a broker is contacted.
#[tokio::test]
async fn bad_parameters_need_no_broker() {
    let site = Site::new();
    for (words, parts) in [
        ("crack --hash xyz --max-length 4", ["xyz", "hex"]),
        ("crack --hash abcd --max-length 4", ["abcd", "40"]),
        (&format!("crack --hash {NODE_DIGEST} --max-length 0"), ["max-length", "0"]),
        (
            &format!("crack --hash {NODE_DIGEST} --max-length 99"),
            ["max-length", "18,446,744,073,709,551,615"],
        ),
        (&format!("crack --hash {NODE_DIGEST} --max-length 4 --alphabet="), ["alphabet", "no letters"]),
        ("crak --hash x --max-length 1", ["crak", "did you mean \"crack\"?"]),
    ] {
        for how in ["gristmill run", "producer --broker amqp://localhost:1 submit"] {
            assert_error(&site.run(&format!("{how} {words}")).await, 2, &parts);
        }
    }
}

/// A bad limit is refused, and the error names good ones.
#[tokio::test]
async fn bad_limits_name_the_range() {
    let site = Site::new();
    for (flag, parts) in [
        ("--fail-fast 0", ["'0'", "a number of failed tasks from 1 on, or a share of all from 1% to 100%"]),
        ("--fail-fast 101%", ["'101%'", "--fail-fast"]),
        ("--task-timeout 5", ["'5'", "time unit needed"]),
        ("--task-timeout 1us", ["'1us'", "expected at least 1ms"]),
    ] {
        for how in ["gristmill run", "producer --broker amqp://localhost:1 submit"] {
            assert_error(&site.run(&format!("{how} spin --tasks 1 {flag}")).await, 2, &parts);
        }
    }
    assert_error(&site.run("worker --grace soon").await, 2, &["'soon'", "--grace"]);
}

/// A broker that is wrong or away is reported within 12 seconds, without its password.
#[tokio::test]
async fn bad_broker_url_fails_in_time() {
    let site = Site::new();
    for (url, code, part) in [
        ("localhost", 2, "GRISTMILL_BROKER: the broker's URL has no scheme"),
        ("amqp://localhost?heartbeat=abc", 2, "GRISTMILL_BROKER: the broker's URL has heartbeat=\"abc\""),
        ("redis://localhost", 2, "no transport for redis://"),
        ("amqp://guest:secret@localhost:port", 2, "amqp://USER:PASSWORD@HOST:PORT/VHOST"),
        ("amqp://guest:secret@127.0.0.1:9", 3, "cannot reach the broker at amqp://guest@127.0.0.1:9"),
    ] {
        let began = Instant::now();
        for words in ["worker", "sink", &format!("producer submit crack --hash {NODE_DIGEST} --max-length 4")]
        {
            let ended = site.start_with(words, |command| command.env("GRISTMILL_BROKER", url)).output().await;
            assert_error(&ended, code, &[part]);
            assert!(!ended.stderr.contains("secret"), "the password is shown: {ended:?}");
        }
        assert!(began.elapsed().as_secs() < 3 * 12, "{url} took {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn refused_password_is_not_shown() {
    let url = broker_url();
    let (_, host) = url.rsplit_once('@').expect("the test broker's URL has a user");
    let site = Site::new();
    let wrong = format!("amqp://guest:not-the-password@{host}");
    let ended = site.start_with("worker", |command| command.env("GRISTMILL_BROKER", wrong)).output().await;
    assert_error(&ended, 3, &["refuses", "hint: check the user, the password"]);
    assert!(!ended.stderr.contains("not-the-password"), "{ended:?}");
    // A URL without a password has an error of its own.
    for words in ["worker", "producer wait 01890a5d-ac96-774b-bcce-b302099a8057"] {
        let none = format!("amqp://somebody@{host}");
        let ended = site.start_with(words, |command| command.env("GRISTMILL_BROKER", none)).output().await;
        assert_error(&ended, 3, &["no password was given for the user somebody", "GRISTMILL_PASSWORD_FILE"]);
        assert!(!ended.stderr.contains("check the user"), "{ended:?}");
    }
}

/// A file that is no ledger is refused and left as it is.
#[tokio::test]
async fn foreign_file_is_left_untouched() {
    let site = Site::new();
    let path = site.path("not-a-ledger");
    std::fs::File::create(&path).unwrap().write_all(&[b'x'; 4096]).unwrap();
    let name = path.to_str().unwrap().to_owned();
    for words in [format!("sink --ledger {name}"), format!("sink jobs --ledger {name}")] {
        assert_error(&site.run(&words).await, 2, &[&name]);
    }
    assert_eq!(std::fs::read(&path).unwrap(), [b'x'; 4096]);
    let missing = site.run(&format!("sink jobs --ledger {name}-2")).await;
    assert_error(&missing, 2, &[&format!("{name}-2")]);
    assert!(!site.path("not-a-ledger-2").exists());
}

#[tokio::test]
async fn read_only_ledger_is_refused() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.wait_for("serving").await;
    assert_eq!(sink.stop().await.code, 0);
    let ledger = std::fs::read_dir(site.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "ledger"))
        .expect("the sink made a ledger");
    std::fs::set_permissions(&ledger, std::fs::Permissions::from_mode(0o444)).unwrap();
    assert_error(&site.run("sink").await, 2, &[ledger.to_str().unwrap(), "is read-only"]);
}

/// A ledger has one sink, and a lane has one ledger.
#[tokio::test]
async fn one_sink_per_ledger_and_lane() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.wait_for("serving").await;
    assert_error(&site.run("sink").await, 2, &["ledger"]);
    let other = site.path("other.ledger");
    let ended = site.run(&format!("sink --ledger {}", other.display())).await;
    assert_error(&ended, 2, &["--adopt"]);
    let ended = sink.stop().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let mut adopting = site.start(&format!("sink --adopt --ledger {}", other.display()));
    adopting.wait_for("serving").await;
}

/// `gristmill run` starts no job on a lane of another ledger.
#[tokio::test]
async fn run_refuses_a_foreign_lane() {
    let site = Site::new();
    let other = site.path("other.ledger");
    let mut sink = site.start(&format!("sink --ledger {}", other.display()));
    sink.wait_for("serving").await;
    assert_eq!(sink.stop().await.code, 0);
    let words = format!("gristmill run --broker {} crack --hash {NODE_DIGEST} --max-length 4", broker_url());
    assert_error(&site.run(&words).await, 2, &["is served with another ledger", "other.ledger"]);
    for role in [gristmill_shared::QueueRole::Results, gristmill_shared::QueueRole::Tasks] {
        assert!(site.is_empty(role).await, "{role:?}: the job was begun");
    }
}

/// A wrong job id is an error soon, unlike a slow job.
#[tokio::test]
async fn unknown_job_id_is_an_error() {
    let site = Site::new();
    let mut sink = site.start("sink");
    sink.wait_for("serving").await;
    let began = Instant::now();
    let ended = site.run("producer wait 01890a5d-ac96-774b-bcce-b302099a8057").await;
    assert_error(&ended, 2, &["no job 01890a5d-ac96-774b-bcce-b302099a8057 is known"]);
    assert!(began.elapsed() < WAIT_TIMEOUT / 4);
    assert_error(&site.run("producer wait nonsense").await, 2, &["nonsense"]);
    assert_error(&site.run("sink show 01890a5d-ac96-774b-bcce-b302099a8057").await, 2, &["01890a5d"]);
}

/// Tasks of a kind that this worker does not know wait for another one, and it logs them once.
#[tokio::test]
async fn unknown_kind_waits_for_a_worker() {
    let site = Site::new();
    let mut worker = site.start("worker --slots 1");
    worker.wait_for("taking tasks").await;
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
    let line = worker.wait_for("no job of kind mystery is registered here").await;
    assert!(line.contains("crack, primes, spin"), "{line}");
    // The one slot takes its messages in order: when it meets this, it has met all three.
    let to = gristmill_shared::Address::Queue(site.queue(gristmill_shared::QueueRole::Tasks));
    let message = gristmill_shared::Message { body: "garbage".into(), ..Default::default() };
    gristmill_shared::publish_until_stored(&*publisher, vec![gristmill_shared::Outgoing { to, message }])
        .await
        .unwrap();
    worker.wait_for("moving a message to the dead queue").await;
    assert_eq!(worker.count_lines("no job of kind mystery is registered here"), 1);
    assert_eq!(worker.stop().await.code, 0);
    assert!(
        site.is_empty(gristmill_shared::QueueRole::Tasks).await,
        "put back where every worker meets it at once"
    );
}
