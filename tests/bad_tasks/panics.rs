//! A job's code that panics: it costs a try of its task, and the log says where, once.

use serde_json::Value;

use crate::harness::{ProcessOutput, Site};

/// A job whose task 1 panics at its only try, in one process and with no broker.
async fn run(flags: &str, backtrace: &str) -> ProcessOutput {
    let words = format!("gristmill run spin --tasks 3 --panic 1 --max-attempts 1 {flags}");
    let site = Site::at("amqp://nobody.invalid".into());
    let ended = site.start_with(&words, |command| command.env("RUST_BACKTRACE", backtrace)).output().await;
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{ended:?}");
    let partial = "no answer: 1 of 3 tasks failed; partial report: 2 tasks, sum 2";
    assert!(ended.stderr.contains(partial), "{ended:?}");
    ended
}

#[tokio::test]
async fn panic_is_one_json_object() {
    for (backtrace, has_one) in [("0", false), ("1", true)] {
        let ended = run("--log-format json", backtrace).await;
        let objects = ended.stderr.lines().map(serde_json::from_str::<Value>);
        let objects: Vec<_> = objects.collect::<Result<_, _>>().unwrap_or_else(|_| panic!("{ended:?}"));
        let [panic] = &objects.iter().filter(|object| object["level"] == "ERROR").collect::<Vec<_>>()[..]
        else {
            panic!("{ended:?}")
        };
        let fields = &panic["fields"];
        assert_eq!(fields["message"], "panic: task 1 panics, as --panic asks");
        assert!(fields["thread"].as_str().unwrap().starts_with("slot-"), "{fields}");
        assert!(fields["location"].as_str().unwrap().contains("spin.rs:"), "{fields}");
        assert_eq!(fields["backtrace"].is_string(), has_one, "{fields}");
    }
}

#[tokio::test]
async fn panic_is_one_text_line() {
    let ended = run("", "0").await;
    let lines: Vec<_> = ended.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    let [line] = lines[..] else { panic!("{ended:?}") };
    assert!(line.contains("panic: task 1 panics"), "{ended:?}");
    assert!(line.contains("spin.rs:") && line.contains("slot-"), "{ended:?}");
    // The worker's own line names the task.
    let others = ended.stderr.lines().filter(|line| line.contains("panic") && !line.contains("ERROR"));
    let others: Vec<_> = others.collect();
    assert!(others.len() == 1 && others[0].contains("a task failed for good"), "{ended:?}");
    assert!(ended.stderr.contains("warning: 1 task failed (hint: "), "{ended:?}");
}
