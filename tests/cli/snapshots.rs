//! The texts that users meet first, whole: help, findings of `doctor`, errors.
//!
//! A change shows in `tests/cli/snapshots/`. After a look at it, `INSTA_UPDATE=always` writes the
//! files.

use crate::harness::{ProcessOutput, Site};

/// Replaces what differs from run to run. Lanes, versions and times have names instead.
const TEXT_FILTERS: [(&str, &str); 9] = [
    (r"test-[0-9a-f-]{36}", "LANE"),
    (r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID"),
    (r"amqp://guest@[^ /]*(/[^ ]*)?", "BROKER"),
    (r"RabbitMQ [0-9.]+( on Erlang [^,;]*)?", "RabbitMQ VERSION"),
    (r"[0-9]+(\.[0-9]+)? ms", "TIME"),
    (r"/tmp/\.tmp\w+", "STATE"),
    (r"gristmill [0-9]+\.[0-9]+\.[0-9]+", "gristmill VERSION"),
    (r"PID [0-9]+|pid=[0-9]+", "PID"),
    (r" --otlp", ""), // of programs that are built with it
];

fn assert_text(name: &str, text: &str) {
    insta::with_settings!({ filters => TEXT_FILTERS, omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, text);
    });
}

fn code_and_text(ended: &ProcessOutput) -> String {
    format!("code {}\n{}{}", ended.code, ended.stdout, ended.stderr)
}

/// The short help of every command, as it stands on a screen of 80 columns.
#[tokio::test]
async fn short_help_is_as_shown() {
    let site = Site::at("amqp://broker.invalid".into());
    for words in [
        "gristmill",
        "gristmill run crack",
        "producer",
        "producer submit primes",
        "worker",
        "sink",
        "sink outputs",
        "sink retry",
        "gristmill doctor",
        "gristmill drill",
    ] {
        let started = site.start_with(&format!("{words} -h"), |command| command.env("COLUMNS", "80"));
        assert_text(&format!("help {words}").replace(' ', "_"), &started.output().await.stdout);
    }
}

#[tokio::test]
async fn errors_are_as_shown() {
    let site = Site::at("amqp://localhost:1".into());
    for (name, words) in [
        ("unknown_kind", "gristmill run crak --hash x --max-length 1"),
        ("bad_parameter", "gristmill run spin --tasks 1 --fail-fast 0"),
        ("unknown_flag", "worker --slot 4"),
        ("no_ledger", "sink show 00000000-0000-7000-8000-000000000000"),
        ("bad_broker_url", "worker --broker http://broker"),
        ("no_cursor", "producer resume 00000000-0000-7000-8000-000000000000"),
    ] {
        assert_text(&format!("error_{name}"), &code_and_text(&site.run(words).await));
    }
}

#[tokio::test]
async fn doctor_findings_are_as_shown() {
    let site = Site::new();
    // With what all lanes share, whichever tests have run before.
    assert_eq!(site.run("gristmill setup --lane snapshots").await.code, 0);
    let report = site.json("gristmill doctor --json").await;
    // The node and other tests decide what else is found.
    let findings = report["findings"].as_array().unwrap().iter();
    let of_lane = findings.filter(|it| it["check"].as_str().unwrap().contains(site.lane().as_str()));
    let lines: Vec<_> = of_lane
        .map(|it| format!("{} {} {} {}", it["verdict"], it["check"], it["found"], it["hint"]))
        .collect();
    assert!(!lines.is_empty(), "{report:#}");
    assert_text("doctor_of_an_empty_lane", &lines.join("\n"));
}
