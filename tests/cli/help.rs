//! `-h` fits one screen, `--help` explains everything, and a kind's own flags come first in both.

use std::{collections::BTreeSet, path::PathBuf};

use tokio::process::Command;

use crate::harness::{Process, Site};

/// The screen that `-h` fits, in lines and columns.
const SCREEN_SIZE: (usize, usize) = (24, 80);
/// The lines of `-h` beside those of a kind's own flags.
const FRAME_LINES: usize = 14;

/// Returns the help that a program prints on a screen of 80 columns.
async fn help(words: &str) -> String {
    let mut command = Site::at("amqp://broker.invalid".into()).command(words);
    command.env("COLUMNS", SCREEN_SIZE.1.to_string());
    let ended = Process::start(words, command).output().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{words}: {ended:?}");
    ended.stdout
}

/// Returns the long names of the flags in a text.
fn flags(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| letter.is_whitespace() || "[]()'`,;:=".contains(letter));
    let flags = words.filter(|word| word.starts_with("--") && word.len() > 2);
    flags.map(|flag| flag.trim_end_matches('.')).collect()
}

fn assert_fits(words: &str, text: &str) {
    let (lines, columns) = (text.lines().count(), text.lines().map(|line| line.chars().count()).max());
    assert!(
        lines <= SCREEN_SIZE.0 && columns <= Some(SCREEN_SIZE.1),
        "{words}: {lines} x {columns:?}\n{text}"
    );
}

#[tokio::test]
async fn short_help_fits_one_screen() {
    for program in [
        "gristmill",
        "gristmill run",
        "gristmill run primes",
        "gristmill run crack",
        "gristmill producer",
        "producer",
        "producer submit",
        "producer submit primes",
        "producer submit crack",
        "producer wait",
        "producer cancel",
        "producer resume",
        "worker",
        "sink",
        "sink show",
        "sink outputs",
        "sink retry",
        "sink prune",
        "gristmill setup",
        "gristmill doctor",
        "gristmill drill",
    ] {
        let (short, long) = (help(&format!("{program} -h")).await, help(&format!("{program} --help")).await);
        assert_fits(program, &short);
        let (short, long) = (flags(&short), flags(&long));
        assert!(short.is_subset(&long), "{program}: {:?} in -h only", short.difference(&long));
    }
}

#[tokio::test]
async fn short_help_names_every_flag() {
    for program in ["gristmill run crack", "producer submit spin", "worker", "sink", "sink show"] {
        let (short, long) = (help(&format!("{program} -h")).await, help(&format!("{program} --help")).await);
        // Those that `--help` explains: each begins a line.
        let begins = |line: &&str| line.starts_with("      --") || line.starts_with("  -");
        let explained: Vec<_> = long.lines().filter(begins).flat_map(flags).collect();
        assert!(explained.len() > 10, "{long}");
        let short = flags(&short);
        let missing: Vec<_> = explained.iter().filter(|flag| !short.contains(*flag)).collect();
        assert!(missing.is_empty(), "{program} -h does not name {missing:?}");
    }
}

#[tokio::test]
async fn own_flags_of_a_kind_come_first() {
    for (program, own) in [
        ("gristmill run crack", ["--hash", "--chunk"].as_slice()),
        ("producer submit crack", &["--hash", "--chunk"]),
        ("producer submit spin", &["--tasks", "--micros", "--poison", "--seed"]),
        ("gristmill run primes", &["--limit", "--slice"]),
    ] {
        let long = help(&format!("{program} --help")).await;
        let place = |what: &str| long.find(what).unwrap_or_else(|| panic!("no {what}: {long}"));
        let headings =
            ["\nOptions:", "\nJob options:", "\nBroker options:", "\nProcess options:", "\nLogging options:"];
        let places = headings.map(place);
        // The job's come next; where clap puts the others depends on which commands have them.
        assert!(places[0] < places[1], "{program}: {places:?}");
        assert!(places[2..].iter().all(|place| *place > places[1]), "{program}: {places:?}");
        for flag in own {
            let place = place(&format!("      {flag} <"));
            assert!((places[0]..places[1]).contains(&place), "{program} {flag}: {long}");
        }
        // Nothing else is among them.
        let first = &long[places[0]..places[1]];
        for other in ["--batch", "--json", "--broker", "--lane", "--state", "--log"] {
            assert!(!first.contains(&format!("      {other}")), "{program} {other}: {first}");
        }
        let short = help(&format!("{program} -h")).await;
        let list = short.find("More options, explained by --help:").unwrap();
        assert!(own.iter().all(|flag| short.find(flag).is_some_and(|place| place < list)), "{short}");
        // A kind with many flags takes more lines, but the frame does not grow.
        let frame = short.lines().filter(|line| !line.starts_with("      ")).count();
        assert!(frame <= FRAME_LINES, "{frame} lines: {short}");
    }
}

#[tokio::test]
async fn custom_kind_flags_come_first() {
    let tests = std::env::current_exe().unwrap();
    let example: PathBuf = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/collatz");
    assert!(example.exists(), "{} is missing (hint: cargo build --examples)", example.display());
    let mut command = Command::new(example);
    command.args(["producer", "submit", "collatz", "-h"]).env("COLUMNS", SCREEN_SIZE.1.to_string());
    let short = Process::start("collatz", command).output().await.stdout;
    assert_fits("collatz", &short);
    let place = |what: &str| short.find(what).unwrap_or_else(|| panic!("no {what}: {short}"));
    assert!(place("--limit <LIMIT>") < place("More options") && place("More options") < place("--wait"));
}
