//! Shell completions and manual pages of the command line.

use std::{collections::BTreeSet, fs, process::Command};

use crate::harness::Site;

const PROGRAM_WORDS: [(&str, &[&str]); 4] = [
    ("gristmill", &["run", "producer", "worker", "sink", "drill", "completions", "man"]),
    ("producer", &["submit", "wait", "cancel", "resume"]),
    ("worker", &["--slots", "--grace", "--metrics"]),
    ("sink", &["jobs", "show", "failures", "outputs", "verify", "retry", "prune"]),
];

#[tokio::test]
async fn completions_know_every_command() {
    let site = Site::at("amqp://nobody.invalid".into());
    for (shell, file) in [
        ("bash", "{}.bash"),
        ("zsh", "_{}"),
        ("fish", "{}.fish"),
        ("elvish", "{}.elv"),
        ("powershell", "_{}.ps1"),
    ] {
        let dir = site.path(shell);
        let ended = site.run(&format!("gristmill completions {shell} {}", dir.display())).await;
        assert_eq!((ended.code, ended.answer()), (0, ""), "{ended:?}");
        for (program, words) in PROGRAM_WORDS {
            let script = fs::read_to_string(dir.join(file.replace("{}", program))).unwrap();
            // Fish names options without their hyphens.
            let missing: Vec<_> =
                words.iter().filter(|word| !script.contains(word.trim_start_matches('-'))).collect();
            assert!(missing.is_empty(), "{shell} does not complete {missing:?} of {program}");
            // The shell checks the script, if it is installed.
            if shell == "bash" {
                let read = Command::new("bash").arg("-n").arg(dir.join(file.replace("{}", program))).status();
                assert!(read.is_ok_and(|status| status.success()), "{program}");
            }
        }
        let printed = site.run(&format!("gristmill completions {shell}")).await;
        let written = fs::read_to_string(dir.join(file.replace("{}", "gristmill"))).unwrap();
        assert_eq!(printed.stdout, written, "{shell}");
    }
    let ended = site.run("gristmill completions tcsh").await;
    assert!(ended.code == 2 && ended.stderr.contains("tcsh"), "{ended:?}");
}

#[tokio::test]
async fn every_command_has_a_man_page() {
    let site = Site::at("amqp://nobody.invalid".into());
    let dir = site.path("man1");
    let ended = site.run(&format!("gristmill man {}", dir.display())).await;
    assert_eq!((ended.code, ended.answer()), (0, ""), "{ended:?}");
    let pages: BTreeSet<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for (program, words) in PROGRAM_WORDS {
        let page = fs::read_to_string(dir.join(format!("{program}.1"))).unwrap();
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{page}");
        for word in words {
            let named = word.replace('-', "\\-");
            assert!(page.contains(&named), "{program}.1 does not name {word}");
            let own = format!("{program}-{word}.1");
            assert!(word.starts_with('-') || pages.contains(&own), "no {own}: {pages:?}");
        }
    }
    assert!(pages.contains("gristmill-producer-submit.1"), "{pages:?}");
    // A page explains what `-h` only names, under the headings of `--help`, and has no list of it.
    let page = fs::read_to_string(dir.join("gristmill-run-crack.1")).unwrap();
    for text in [
        "JOB OPTIONS",
        "BROKER OPTIONS",
        "The number of attempts after which a failing task counts as failed",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(!page.contains("More options") && !page.contains(".SH EXTRA"), "{page}");
    assert!(site.run("gristmill man").await.stdout.contains(".SH NAME"));
}

#[tokio::test]
async fn unwritable_page_is_an_error() {
    let site = Site::at("amqp://nobody.invalid".into());
    fs::write(site.path("file"), "").unwrap();
    for words in ["completions bash", "man"] {
        let ended = site.run(&format!("gristmill {words} {}", site.path("file/dir").display())).await;
        assert!(ended.code == 2 && ended.stderr.contains("cannot write to"), "{ended:?}");
    }
}
