//! Tests of the jobs as subcommands, named by their kind, as the command line offers them.

use clap::{Args, Command};
use gristmill_jobs::{Algorithm, Crack, Primes, Spin, SpinWork};
use gristmill_shared::Job;

fn parse<J: Job + Args>(arguments: &str) -> Result<J, clap::Error> {
    let command = J::augment_args(Command::new(J::KIND));
    J::from_arg_matches(&command.try_get_matches_from(arguments.split(' '))?)
}

#[test]
fn omitted_flags_equal_omitted_fields() {
    let spec = |json| serde_json::from_str::<Crack>(json).unwrap();
    assert_eq!(
        parse::<Crack>("crack --hash f00 --max-length 4").unwrap(),
        spec(r#"{"hash":"f00","max_length":4}"#)
    );
    let spec = |json| serde_json::from_str::<Primes>(json).unwrap();
    assert_eq!(parse::<Primes>("primes --limit 9").unwrap(), spec(r#"{"limit":9}"#));
    let spec = |json| serde_json::from_str::<Spin>(json).unwrap();
    assert_eq!(parse::<Spin>("spin --tasks 9").unwrap(), spec(r#"{"tasks":9}"#));
}

#[test]
fn given_flags_arrive() {
    let crack = "crack --hash f00 --algorithm md5 --max-length 4 --alphabet -a-c --chunk 7";
    let wanted = Crack {
        hash: "f00".into(),
        algorithm: Some(Algorithm::Md5),
        max_length: 4,
        alphabet: "-a-c".into(),
        chunk: 7,
    };
    assert_eq!(parse::<Crack>(crack).unwrap(), wanted);
    let spin = "spin --tasks 1000000 --micros 0 --payload 5 --fail-rate 0.5 --seed 3";
    let wanted = Spin {
        tasks: 1_000_000,
        work: SpinWork::default(),
        payload: 5,
        fail_rate: 0.5,
        seed: 3,
        ..Spin::default()
    };
    assert_eq!(parse::<Spin>(spin).unwrap(), wanted);
}

#[test]
fn work_is_measured_on_parse() {
    let spin: Spin = parse("spin --tasks 1 --micros 250").unwrap();
    let spec = serde_json::to_value(&spin).unwrap();
    assert_eq!(spec["work"]["micros"], 250);
    assert!(spec["work"]["iterations_per_micro"].as_u64().unwrap() > 0, "{spec}");
    spin.plan().unwrap();
}

#[test]
fn bad_share_is_refused() {
    for rate in ["nan", "inf", "1.01", "-0.5"] {
        let error = parse::<Spin>(&format!("spin --tasks 1 --fail-rate={rate}")).unwrap_err().to_string();
        assert!(error.contains("expected a share from 0 to 1"), "{error}");
    }
}

#[test]
fn help_has_an_example_line() {
    for command in [
        Crack::augment_args(Command::new(Crack::KIND)),
        Primes::augment_args(Command::new(Primes::KIND)),
        Spin::augment_args(Command::new(Spin::KIND)),
    ] {
        let example = format!("\n  gristmill run {} --", command.get_name());
        let help = command.clone().render_long_help().to_string();
        assert!(help.contains(&example), "{help}");
    }
}
