//! Failed tasks, and how they are sent again.

use crate::harness::Site;

/// Failed tasks can be sent again until they succeed.
#[tokio::test]
async fn retry_resends_until_success() {
    let site = Site::new();
    let _roles = (site.start("sink"), site.start("worker --slots 2"));
    let submitted =
        site.run("producer submit spin --tasks 500 --fail-rate 0.2 --seed 5 --max-attempts 1 --wait").await;
    assert_eq!(submitted.code, 1, "{submitted:?}");
    let job = submitted.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap().to_owned();
    let failed = failures(&site, &job).await;
    assert!((50..150).contains(&failed.len()), "{} of 500 failed at a rate of 0.2", failed.len());
    assert!(failed.iter().all(|(_, attempts)| *attempts == 1), "{failed:?}");

    // One that did not fail is not sent again.
    for other in [500, (0..500).find(|index| failed.iter().all(|(failed, _)| failed != index)).unwrap()] {
        let refused = site.run(&format!("sink retry {job} {other}")).await;
        assert!(refused.code == 2 && refused.stderr.contains("has not failed"), "{refused:?}");
    }

    // One task alone: the others stay failed. It has failed once or twice in all.
    let (one, _) = failed[0];
    let retried = site.run(&format!("sink retry {job} {one} --wait")).await;
    assert_eq!(retried.code, 1, "{retried:?}");
    let left = failures(&site, &job).await;
    assert!(left.iter().all(|(index, attempts)| *attempts == if *index == one { 2 } else { 1 }), "{left:?}");
    assert!(left.len() >= failed.len() - 1);

    // Tasks fail their first one or two tries; with a budget of one a round, three rounds are
    // enough for all.
    let mut last = retried;
    for _ in 0..2 {
        last = site.run(&format!("sink retry {job} --wait")).await;
    }
    assert_eq!(last.code, 0, "attempt numbers did not go on: {last:?}");
    assert!(last.answer().contains("124750"), "{last:?}");
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(500), Some(0)));
    assert!(failures(&site, &job).await.is_empty());
}

/// Tasks that are sent again have the delays and the number of tries of a first round.
#[tokio::test]
async fn retry_restarts_delays_and_tries() {
    let site = Site::new();
    let _sink = site.start("sink");
    let mut worker = site.start("worker --slots 1");
    let submitted = site.run("producer submit spin --tasks 3 --panic 1 --max-attempts 3 --wait").await;
    assert_eq!(submitted.code, 1, "{submitted:?}");
    let job = submitted.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap().to_owned();
    worker.wait_for("attempt=1 again_in=1s").await;
    worker.wait_for("attempt=2 again_in=10s").await;
    worker.stop().await;

    let mut worker = site.start("worker --slots 1");
    assert_eq!(site.run(&format!("sink retry {job}")).await.code, 0);
    worker.wait_for("attempt=4 again_in=1s").await;
    worker.wait_for("attempt=5 again_in=10s").await;
    assert_eq!(site.run(&format!("producer wait {job}")).await.code, 1);
    site.verify(&job).await;
}

/// Tasks of a job that was stopped are not sent again.
#[tokio::test]
async fn stopped_job_cannot_be_retried() {
    let site = Site::new();
    let _roles = (site.start("sink"), site.start("worker --slots 2"));
    let words =
        "producer submit spin --tasks 500 --fail-rate 1 --max-attempts 1 --batch 1 --fail-fast 3 --wait";
    let submitted = site.run(words).await;
    assert_eq!(submitted.code, 1, "{submitted:?}");
    let job = submitted.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap().to_owned();
    let refused = site.run(&format!("sink retry {job}")).await;
    assert!(refused.code == 2 && refused.stderr.contains("is stopped;"), "{refused:?}");
    assert!(refused.stderr.ends_with("(hint: submit it again)"), "{refused:?}");
}

/// `sink retry` reports whether a sink has taken the request.
#[tokio::test]
async fn retry_says_if_a_sink_took_it() {
    let site = Site::new();
    let sink = site.start("sink");
    let _worker = site.start("worker --slots 2");
    let submitted =
        site.run("producer submit spin --tasks 100 --fail-rate 0.2 --seed 5 --max-attempts 1 --wait").await;
    assert_eq!(submitted.code, 1, "{submitted:?}");
    let job = submitted.stderr.lines().find_map(|line| line.strip_prefix("job ")).unwrap().to_owned();

    let taken_up = site.run(&format!("sink retry {job}")).await;
    assert!(
        taken_up.code == 0 && taken_up.stderr.contains("the sink sends all that failed again"),
        "{taken_up:?}"
    );
    // A wait that begins now is for the end of this round.
    let end = site.run(&format!("producer wait {job}")).await;
    let shown = site.run(&format!("sink show {job} --json")).await;
    let shown: serde_json::Value = serde_json::from_str(shown.answer()).unwrap();
    assert_eq!((&shown["state"], &shown["round"]), (&"finished".into(), &1.into()), "{end:?}");

    assert_eq!(sink.stop().await.code, 0);
    let not_yet = site.run(&format!("sink retry {job}")).await;
    assert!(
        not_yet.code == 0 && not_yet.stderr.contains("warning: no sink has taken this up"),
        "{not_yet:?}"
    );
    let mut sink = site.start("sink");
    sink.wait_for("failed tasks are sent again").await;
}

/// Returns index and attempts of each failed task.
async fn failures(site: &Site, job: &str) -> Vec<(u64, u64)> {
    let listed = site.run(&format!("sink failures {job} --json")).await;
    let row = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        (row["index"].as_u64().unwrap(), row["attempts"].as_u64().unwrap())
    };
    listed.stdout.lines().map(row).collect()
}
