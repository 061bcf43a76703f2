//! Every command in README.md and docs/guide.md runs, and prints what the page shows.

use std::path::PathBuf;

use tokio::process::Command;

use crate::harness::{Process, Site};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A command line of a page, and the lines that the page shows of its output.
#[derive(Debug)]
struct DocumentedCommand {
    line: String,
    shown: Vec<String>,
}

/// Commands that are not run here, each with the reason.
const RUN_ELSEWHERE: [(&str, &str); 11] = [
    ("docker compose ", "scripts/test-compose runs them on an engine"),
    ("cargo build --release && export PATH=", "it prepares the shell"),
    ("export GRISTMILL_BROKER=", "it prepares the shell"),
    ("gristmill drill ", "crash::drill:: runs a shorter one"),
    ("cargo run --release --example fetch ", "examples::fetch:: has the server that it needs"),
    ("cargo run --example service ", "examples::service:: runs it on a broker"),
    ("cargo test -p gristmill-jobs ", "it is one of the tests"),
    ("collatz producer resume ", "shutdown::producer:: interrupts and resumes"),
    ("sink outputs JOB ", "cli::outputs:: has such a job"),
    ("sink", "fleet_of_the_readme_answers starts it"),
    ("worker --slots 8", "fleet_of_the_readme_answers starts it"),
];

/// Returns the commands in the blocks `sh` and `console` of a page. In a `console` block they begin
/// with `$ `, and the lines that follow are shown.
fn documented_commands(page: &str) -> Vec<DocumentedCommand> {
    let text = std::fs::read_to_string(PathBuf::from(ROOT).join(page)).unwrap();
    let mut commands = Vec::new();
    for block in text.split("```").skip(1).step_by(2) {
        let (kind, block) = block.split_once('\n').unwrap();
        for line in block.lines().filter(|line| !line.trim().is_empty()) {
            match (kind, line.strip_prefix("$ ")) {
                ("console", Some(command)) => {
                    commands.push(DocumentedCommand { line: command.to_owned(), shown: Vec::new() });
                }
                ("console", None) => {
                    let command: &mut DocumentedCommand = commands.last_mut().unwrap();
                    command.shown.push(line.to_owned());
                }
                ("sh", _) => {
                    let line = line.split("    #").next().unwrap().trim().to_owned();
                    commands.push(DocumentedCommand { line, shown: Vec::new() });
                }
                _ => {}
            }
        }
    }
    commands
}

fn reason_to_skip(line: &str) -> Option<&'static str> {
    let is_its =
        |start: &str| if start.ends_with([' ', '=']) { line.starts_with(start) } else { line == start };
    RUN_ELSEWHERE.iter().find(|(start, _)| is_its(start)).map(|(_, reason)| *reason)
}

/// Returns the program that `cargo run` starts, with its arguments.
fn program(site: &Site, line: &str) -> Command {
    let words = line.replace("cargo run --release ", "cargo run ");
    let words = words.strip_prefix("cargo run ").unwrap_or_else(|| panic!("{line}: not run by any test"));
    let (path, arguments) = match words.strip_prefix("--example ") {
        Some(words) => {
            let (name, arguments) = words.split_once(" -- ").unwrap();
            let tests = std::env::current_exe().unwrap();
            let examples = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples");
            (examples.join(name), arguments)
        }
        None => (env!("CARGO_BIN_EXE_gristmill").into(), words.strip_prefix("-- ").unwrap()),
    };
    let mut command = site.program(path);
    command.current_dir(ROOT).args(split_arguments(arguments));
    command
}

/// Splits words as a shell does that knows double quotes alone.
fn split_arguments(line: &str) -> Vec<String> {
    let parts = line.split('"').enumerate();
    parts.fold(Vec::new(), |mut words, (number, part)| {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
        words
    })
}

#[tokio::test]
async fn documented_commands_print_what_is_shown() {
    let site = Site::new();
    let mut ran = 0;
    for page in ["README.md", "docs/guide.md"] {
        for DocumentedCommand { line, shown } in documented_commands(page) {
            if reason_to_skip(&line).is_some() || line.starts_with("producer submit ") {
                continue;
            }
            let ended = Process::start(&line, program(&site, &line)).output().await;
            // A task of `--misbehave` fails for good with one attempt, as the page says.
            assert_eq!(ended.code, i32::from(line.contains("--misbehave")), "{page}: {line}: {ended:?}");
            if let Some(answer) = shown.last() {
                assert_eq!(ended.stdout.trim_end(), answer, "{page}: {line}");
            }
            ran += 1;
        }
    }
    assert!(ran >= 9, "only {ran} commands were found");
    let lines: Vec<_> =
        ["README.md", "docs/guide.md"].into_iter().flat_map(documented_commands).map(|it| it.line).collect();
    for (start, reason) in RUN_ELSEWHERE {
        assert!(lines.iter().any(|line| line.starts_with(start)), "no page has {start:?} ({reason})");
    }
}

#[tokio::test]
async fn fleet_of_the_readme_answers() {
    let site = Site::new();
    let fleet = ["sink", "worker --slots 8"].map(|words| site.start(words));
    let mut answers = Vec::new();
    for page in ["README.md", "docs/guide.md"] {
        for DocumentedCommand { line, .. } in documented_commands(page) {
            if line.starts_with("producer submit ") {
                answers.push(site.run(&line).await.answer().to_owned());
            }
        }
    }
    assert_eq!(answers, ["5761455", "9"]);
    for role in fleet {
        assert_eq!(role.stop().await.code, 0);
    }
}
