//! No text of the front door names a broker: what it says about one comes from the driver.

use super::{code::without_tests, files};

/// The words of RabbitMQ, in lower case.
const BROKER_WORDS: [&str; 5] = ["rabbit", "amqp", "vhost", "virtual host", "consumer_timeout"];

/// Files of the front door that may use these words, each with its reason.
const NAMING_FILES: [(&str, &str); 4] = [
    ("src/cli/config/environment.rs", "variables of our own files for Docker Compose"),
    ("src/cli/drill.rs", "a drill starts a RabbitMQ of its own"),
    ("src/testing/mod.rs", "a private RabbitMQ for tests"),
    ("src/transports.rs", "the only file that names the crates of transports"),
];

/// Returns the lines outside unit tests that name a broker. Comments count: many are help texts.
fn broker_words(path: &str, source: &str) -> Vec<String> {
    let lines = without_tests(source).lines().zip(1..);
    let named = lines.filter_map(|(line, number)| {
        let line = line.to_lowercase();
        BROKER_WORDS.iter().find(|word| line.contains(**word)).map(|word| (number, word))
    });
    named.map(|(number, word)| format!("{path}:{number}: `{word}`")).collect()
}

#[test]
fn front_door_names_no_broker() {
    let sources = files(&["rs"]);
    let front_door = sources.iter().filter(|(path, _)| path.starts_with("src/"));
    let (allowed, others): (Vec<_>, Vec<_>) =
        front_door.partition(|(path, _)| NAMING_FILES.iter().any(|(file, _)| file == path));
    let named: Vec<_> = others.iter().flat_map(|(path, source)| broker_words(path, source)).collect();
    assert!(
        named.is_empty() && others.len() > 30,
        "(hint: a text about one kind of broker belongs into its driver)\n{}",
        named.join("\n")
    );
    let needless: Vec<_> =
        allowed.iter().filter(|(path, source)| broker_words(path, source).is_empty()).collect();
    assert!(needless.is_empty() && allowed.len() == NAMING_FILES.len(), "needless: {needless:?}");
}

#[test]
fn broker_words_are_found() {
    let source =
        "/// A `RabbitMQ` here\nlet url = \"AMQP://host\";\n#[cfg(test)]\nmod tests {\n // rabbit\n}\n";
    assert_eq!(broker_words("a.rs", source), ["a.rs:1: `rabbit`", "a.rs:2: `amqp`"]);
    assert!(broker_words("a.rs", "/// The broker's URL\nlet queue = lane;\n").is_empty());
}
