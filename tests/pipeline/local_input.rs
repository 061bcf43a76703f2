//! A job over a file that only the producer's machine has: the example `lines`.

use std::{fmt::Write as _, fs, path::PathBuf, time::Duration};

use serde_json::Value;

use crate::harness::{Process, Site, within};

/// Number of lines of the input. Of their batches the queue takes a thousand, so a producer without
/// workers cannot end.
const LINE_COUNT: u64 = 3_000;
/// The name of the input, which must not travel.
const INPUT_NAME: &str = "only-here.txt";

/// Returns the path of the example, which cargo puts beside the tests.
fn example() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/lines");
    assert!(path.exists(), "{} is missing (hint: cargo build --examples)", path.display());
    path
}

/// Starts the example on a site, in the site's directory or in another folder.
fn start(site: &Site, words: &str, folder: Option<&str>) -> Process {
    let mut command = site.program(example());
    command.args(words.split_whitespace()).current_dir(folder.map_or(site.path(""), PathBuf::from));
    Process::start("lines", command)
}

/// Writes the input: line `n` has `n % 7` words. Returns its path and the number of all words.
fn write_input(site: &Site) -> (PathBuf, u64) {
    let (mut text, mut words) = (String::new(), 0);
    for number in 0..LINE_COUNT {
        let count = number % 7;
        words += count;
        writeln!(text, "{}", "word ".repeat(usize::try_from(count).unwrap())).unwrap();
    }
    let path = site.path(INPUT_NAME);
    fs::write(&path, text).unwrap();
    (path, words)
}

fn cursor(site: &Site, job: &str) -> Value {
    let text = fs::read(site.path("jobs").join(format!("{job}.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Submits the input, and kills the producer when the broker has confirmed a part of it. Returns
/// the job.
async fn kill_in_mid_split(site: &Site) -> String {
    let mut submit = start(site, &format!("producer submit lines {INPUT_NAME} --batch 1 --wait"), None);
    let job = submit.wait_for("job 01").await.trim_start_matches("job ").to_owned();
    within("a saved cursor", async {
        while cursor(site, &job)["confirmed"].as_u64() == Some(0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    submit.kill().await;
    let left = cursor(site, &job);
    let confirmed = left["confirmed"].as_u64().unwrap();
    assert!((1..LINE_COUNT).contains(&confirmed) && left["sealed"].is_null(), "{left}");
    job
}

/// A killed producer is resumed with the file that it had read, from any folder. While the file is
/// away, the resume fails and ends nothing; it is exact when the file is back.
#[tokio::test]
async fn local_file_survives_a_killed_producer() {
    let site = Site::new();
    let (input, words) = write_input(&site);
    let _sink = start(&site, "sink", None);
    let job = kill_in_mid_split(&site).await;
    assert_eq!(cursor(&site, &job)["local"], input.to_str().unwrap());

    let hidden = site.path("hidden.txt");
    fs::rename(&input, &hidden).unwrap();
    for _ in 0..2 {
        let before = cursor(&site, &job);
        let resumed = start(&site, &format!("producer resume {job} --wait"), Some("/")).output().await;
        assert_eq!(resumed.code, 2, "{resumed:?}");
        let hint = format!("hint: put its input back in its place, then run `producer resume {job}`");
        for part in [input.to_str().unwrap(), "cannot read", "No such file", "the job is as it was", &hint] {
            assert!(resumed.stderr.contains(part), "{part}: {resumed:?}");
        }
        assert_eq!(cursor(&site, &job), before);
    }
    // The sink has the job running and without a seal.
    let shown = site.json(&format!("sink show {job} --json")).await;
    assert_eq!((&shown["state"], &shown["sealed"]), (&"running".into(), &false.into()), "{shown}");
    assert!(!shown.to_string().contains(INPUT_NAME), "the path travelled: {shown}");

    fs::rename(&hidden, &input).unwrap();
    let _worker = start(&site, "worker --slots 2", Some("/"));
    let resumed = start(&site, &format!("producer resume {job} --wait"), Some("/")).output().await;
    assert_eq!(resumed.answer(), words.to_string(), "{resumed:?}");
    let verified = site.verify(&job).await;
    assert_eq!((verified["done"].as_u64(), verified["failed"].as_u64()), (Some(LINE_COUNT), Some(0)));
}

/// A file that has changed since is not resumed, and the job goes on when it is as before.
#[tokio::test]
async fn changed_local_file_is_not_resumed() {
    let site = Site::new();
    let (input, words) = write_input(&site);
    let _sink = start(&site, "sink", None);
    let job = kill_in_mid_split(&site).await;
    let text = fs::read_to_string(&input).unwrap();
    fs::write(&input, format!("one more line\n{text}")).unwrap();
    let resumed = start(&site, &format!("producer resume {job}"), None).output().await;
    assert!(
        resumed.code == 2 && resumed.stderr.contains("gives other tasks than it gave before"),
        "{resumed:?}"
    );
    fs::write(&input, text).unwrap();
    let _worker = start(&site, "worker --slots 2", None);
    let resumed = start(&site, &format!("producer resume {job} --wait"), None).output().await;
    assert_eq!(resumed.answer(), words.to_string(), "{resumed:?}");
    assert_eq!(site.verify(&job).await["done"].as_u64(), Some(LINE_COUNT));
}

/// The example without a broker; a wrong path is refused before anything is sent.
#[tokio::test]
async fn lines_of_a_local_file_are_counted() {
    let site = Site::at("amqp://broker.invalid".into());
    let (_, words) = write_input(&site);
    let ended = start(&site, &format!("run lines {INPUT_NAME}"), None).output().await;
    assert_eq!(ended.answer(), words.to_string());
    let ended = start(&site, "run lines no-such-file", None).output().await;
    assert!(ended.code == 2 && ended.stderr.contains("cannot read no-such-file"), "{ended:?}");
}
