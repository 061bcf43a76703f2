//! Settings come from flags, the environment, a file and defaults, in this order. `--print-config`
//! shows where each comes from.

use std::{collections::BTreeMap, fs};

use crate::{
    broker_url,
    harness::{ProcessOutput, Site},
};

/// Commands that have settings; all other commands have some of theirs.
const COMMAND_LINES: [&str; 6] =
    ["gristmill run", "gristmill drill", "producer", "producer submit", "gristmill worker", "sink"];
/// Sample values, of which each flag takes at least one.
const SAMPLE_VALUES: [&str; 7] = ["7", "7s", "sample", "amqp://me@sample", "127.0.0.1:7", "json", "report"];

/// The output of `--print-config`: the value of each setting, if it has one, and its origin.
type PrintedConfig = BTreeMap<String, (Option<String>, String)>;

async fn print_config(
    site: &Site,
    words: &str,
    env: &BTreeMap<String, String>,
) -> Result<PrintedConfig, ProcessOutput> {
    let ended = site.start_with(words, |command| command.env_clear().envs(env)).output().await;
    if ended.code != 0 {
        return Err(ended);
    }
    let lines = ended.stdout.lines().map(|line| {
        let (said, origin) = line.rsplit_once("  # ").unwrap();
        let said = said.trim_end();
        let (key, value) = match said.strip_prefix("# ") {
            Some(key) => (key, None),
            None => said.split_once(" = ").map(|(key, value)| (key, Some(value.to_owned()))).unwrap(),
        };
        (key.to_owned(), (value, origin.to_owned()))
    });
    Ok(lines.collect())
}

fn variable_name(key: &str) -> String {
    format!("GRISTMILL_{}", key.to_uppercase().replace('-', "_"))
}

/// Every setting can come from a file, a variable or a flag, and its origin is shown.
#[tokio::test]
async fn settings_come_from_every_source() {
    let site = Site::new();
    let path = site.path("gristmill.toml");
    let file = path.to_str().unwrap();
    let none = BTreeMap::new();
    for command in COMMAND_LINES {
        let by_default = print_config(&site, &format!("{command} --print-config"), &none).await.unwrap();
        assert!(by_default.contains_key("log") && by_default.len() >= 5, "{command}: {by_default:?}");
        let from_file = format!("{command} --config {file} --print-config");
        let mut samples = BTreeMap::new();
        for (key, (value, origin)) in &by_default {
            assert_eq!(origin, if value.is_some() { "default" } else { "not set" }, "{command}: {key}");
            for sample in SAMPLE_VALUES {
                fs::write(&path, format!("{key} = \"{sample}\"\n")).unwrap();
                if print_config(&site, &from_file, &none).await.is_ok() {
                    samples.insert(key.clone(), sample.to_owned());
                    break;
                }
            }
            assert!(samples.contains_key(key), "{command}: no sample for {key}");
        }
        let lines = samples.iter().map(|(key, sample)| format!("{key} = \"{sample}\"\n"));
        fs::write(&path, lines.collect::<String>()).unwrap();
        let by_file = print_config(&site, &from_file, &none).await.unwrap();
        let env = samples.iter().map(|(key, sample)| (variable_name(key), sample.clone())).collect();
        let by_env = print_config(&site, &from_file, &env).await.unwrap();
        let flags: Vec<_> = samples
            .iter()
            .filter(|(key, _)| *key != "password") // which is refused there
            .map(|(key, sample)| format!("--{key}={sample}"))
            .collect();
        let by_flag = print_config(&site, &format!("{from_file} {}", flags.join(" ")), &env).await.unwrap();
        for (line, key) in (1..).zip(samples.keys()) {
            assert!(by_file[key].0.is_some(), "{command}: {key}");
            assert_eq!(by_file[key].1, format!("{file}:{line}"), "{command}: {key}");
            assert_eq!(by_env[key].1, variable_name(key), "{command}: {key}");
            let flag = if key == "password" { variable_name(key) } else { format!("--{key}") };
            assert_eq!(by_flag[key].1, flag, "{command}: {key}");
        }
    }
}

/// A wrong file is refused by every role, with the line and the reason.
#[tokio::test]
async fn bad_config_file_is_refused() {
    let site = Site::new();
    let path = site.path("gristmill.toml");
    let file = path.to_str().unwrap();
    for (text, part) in [
        ("lane = \"a\"\nslot = 8\n", ":2: unknown key `slot`; did you mean `slots`?"),
        ("\n\n[worker]\ngrace = 30\n", ":4: invalid value '30' for '--grace <DURATION>': time unit needed"),
        ("slots = 0\n", ":1: invalid value '0' for '--slots <N>': expected a number from 1 to 65535"),
        ("\n[wroker]\nslots = 8\n", ":2: unknown table `[wroker]`; did you mean `[worker]`?"),
        (
            "broker = \"amqp://h?heartbeat=abc\"\n",
            ":1: the broker's URL has heartbeat=\"abc\" (hint: expected seconds",
        ),
        ("slots = true\n", ":1: `slots` is of type boolean, expected a string or an integer"),
        ("[producer]\nledger = \"x\"\n", ":2: `producer` has no setting `ledger` (hint: it is one of sink)"),
        ("hash = \"x\"\n", ":1: unknown key `hash`"),
    ] {
        fs::write(&path, text).unwrap();
        for role in
            ["worker", "sink", "producer wait 01890a5d-ac96-774b-bcce-b302099a8057", "worker --print-config"]
        {
            let words = format!("{role} --config {file}");
            // The environment would take precedence.
            let ended =
                site.start_with(&words, |command| command.env_remove("GRISTMILL_BROKER")).output().await;
            assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{ended:?}");
            assert!(ended.stderr.contains(&format!("{file}{part}")), "{part:?} is missing: {ended:?}");
        }
    }
    let ended = site.run("worker --config nowhere.toml").await;
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(
        ended.stderr.contains("cannot read the configuration file nowhere.toml: No such file"),
        "{ended:?}"
    );
    let ended = site.start_with("worker", |command| command.env("GRISTMILL_SLOTS", "many")).output().await;
    assert!(ended.code == 2 && ended.stderr.contains("GRISTMILL_SLOTS: invalid value 'many'"), "{ended:?}");
}

/// A variable that is no setting is a warning and no error.
#[tokio::test]
async fn unknown_variable_is_a_warning() {
    let site = Site::new();
    for words in ["worker --print-config", "sink jobs --ledger nowhere"] {
        let plain = site.run(words).await;
        let ended = site
            .start_with(words, |command| command.env("GRISTMILL_BROKR", "amqp://se-sa-me"))
            .output()
            .await;
        assert_eq!((ended.code, &ended.stdout), (plain.code, &plain.stdout), "{ended:?}");
        let line = "warning: the environment has GRISTMILL_BROKR, which is no setting; did you mean GRISTMILL_BROKER?";
        assert!(ended.stderr.lines().any(|said| said == line), "{ended:?}");
        assert!(!ended.stderr.contains("se-sa-me"), "{ended:?}");
    }
}

/// A role's own table takes precedence, and empty variables count as unset.
#[tokio::test]
async fn role_table_overrides_top_level() {
    let site = Site::new();
    let path = site.path("gristmill.toml");
    fs::write(&path, "lane = \"day\"\nledger = \"a\"\n[worker]\nlane = \"night\"\n[sink]\nledger = \"b\"\n")
        .unwrap();
    let env =
        [("GRISTMILL_CONFIG".into(), path.display().to_string()), (variable_name("lane"), String::new())]
            .into();
    for (words, key, line) in [
        ("worker", "lane", 4),
        ("gristmill worker", "lane", 4),
        ("sink", "lane", 1),
        ("gristmill sink", "ledger", 6),
        ("sink jobs", "ledger", 6),
    ] {
        let shown = print_config(&site, &format!("{words} --print-config"), &env).await.unwrap();
        assert_eq!(shown[key].1, format!("{}:{line}", path.display()), "{words}");
    }
}

/// A password may be in a file of its own, and is never shown.
#[tokio::test]
async fn password_file_is_never_shown() {
    let (url, site) = (broker_url(), Site::new());
    let (scheme, rest) = url.split_once("://").unwrap();
    let (user, place) = rest.rsplit_once('@').expect("the test broker's URL has a user");
    let (user, password) = user.split_once(':').expect("and a password");
    let (path, broker) = (site.path("password"), format!("{scheme}://{user}@{place}"));
    fs::write(&path, format!("{password}\n")).unwrap();
    let with = |words: &str, text: &str| {
        fs::write(&path, text).unwrap();
        site.start_with(words, |command| {
            command.env("GRISTMILL_BROKER", &broker).env("GRISTMILL_PASSWORD_FILE", &path)
        })
    };
    let mut sink = with("sink", &format!("{password}\n"));
    sink.wait_for("serving").await;
    assert_eq!(sink.stop().await.code, 0);

    let ended = with("sink", "se-sa-me").output().await;
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.stderr.contains("ACCESS_REFUSED") && !ended.stderr.contains("se-sa-me"), "{ended:?}");
    let ended = with("sink --print-config", "se-sa-me").output().await;
    assert!(
        ended.stdout.contains("GRISTMILL_PASSWORD_FILE") && !ended.stdout.contains("se-sa-me"),
        "{ended:?}"
    );

    for (words, variables, part) in [
        ("sink --password se-sa-me", vec![], "visible to every user of this machine"),
        ("sink", vec![("GRISTMILL_PASSWORD", "se-sa-me")], "are both set"),
        (
            "sink",
            vec![("GRISTMILL_PASSWORD_FILE", "nowhere")],
            "GRISTMILL_PASSWORD_FILE: cannot read nowhere: No such",
        ),
        (
            "sink --broker amqp://me:se-sa-me@localhost",
            vec![],
            "two passwords, one of them in the broker's URL",
        ),
    ] {
        fs::write(&path, "se-sa-me").unwrap();
        let ended = site.start_with(words, |command| {
            command.env("GRISTMILL_BROKER", &broker).env("GRISTMILL_PASSWORD_FILE", &path).envs(variables)
        });
        let ended = ended.output().await;
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{ended:?}");
        assert!(ended.stderr.contains(part) && !ended.stderr.contains("se-sa-me"), "{part:?}: {ended:?}");
    }
}

/// Only what is wrong with a URL itself is refused before it is used, and only by commands that use
/// it.
#[tokio::test]
async fn url_is_checked_only_where_used() {
    let site = Site::new();
    for (words, variables) in [
        // Its certificates come from other flags.
        (
            "worker --broker amqps://localhost:1?auth_mechanism=external --tls-cert c --tls-key k --print-config",
            vec![],
        ),
        // The CAs as well, where the system has none.
        (
            "worker --broker amqps://me@localhost:1 --tls-ca ca --print-config",
            vec![("SSL_CERT_FILE", "/nonexistent"), ("SSL_CERT_DIR", "/nonexistent")],
        ),
        // Commands on the ledger need no broker.
        ("sink jobs", vec![("GRISTMILL_BROKER", "nonsense")]),
    ] {
        let ended = site.start_with(words, |command| command.envs(variables)).output().await;
        assert!(!ended.stderr.contains("broker"), "{words}: {ended:?}");
        assert!(!ended.stderr.contains("CA"), "{words}: {ended:?}");
    }
    let ended = site.start_with("sink", |command| command.env("GRISTMILL_BROKER", "nonsense")).output().await;
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.contains("GRISTMILL_BROKER: the broker's URL has no scheme"), "{ended:?}");
}
