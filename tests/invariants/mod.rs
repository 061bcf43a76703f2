//! The invariants of the workspace (ARCHITECTURE.md), as far as a program can check them.
//!
//! Not checked here: that user code never runs on a thread that does broker I/O, and that every
//! bound is written down. The tests of the roles and reviewers check those.

mod broker_words;
mod code;
mod dependencies;
mod documents;
mod limits;
mod metrics;
mod naming;
mod programs;

use std::fs;
use std::path::Path;

use code::{code_only, has_word, without_tests};

const WORKSPACE_ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Bound for the number of files, above which the walk through the checkout is taken for a mistake.
const FILES_MAX: usize = 2_000;

/// Words that may stand in some places only.
struct WordRule {
    words: &'static [&'static str],
    why: &'static str,
    /// Exceptions, each with its reason: a file, or a folder with its slash at the end.
    except: &'static [(&'static str, &'static str)],
    /// True if tests keep the rule as well.
    in_tests: bool,
}

const WORD_RULES: [WordRule; 6] = [
    WordRule {
        words: &["env::", "process::exit", "ExitCode", "tokio::signal", "signal::unix", "ctrl_c"],
        why: "only the front door reads arguments, environment and signals, and only mains exit",
        except: &[
            ("src/", "the front door"),
            ("drill/src/workspace.rs", "a drill runs its own program in a directory of its own"),
            ("observe/src/otlp/mod.rs", "the variables of OpenTelemetry"),
            ("test-support/src/node_dir.rs", "a node's environment comes from this process's"),
            ("shared/src/exit_code.rs", "the codes of every program"),
            ("examples/", "mains"),
            ("benches/", "mains"),
            ("process/src/command.rs", "a child's environment and PATH come from this process's"),
        ],
        in_tests: false,
    },
    WordRule {
        words: &[
            "unbounded",
            "unbounded_channel",
            "UnboundedSender",
            "UnboundedReceiver",
            "mpsc::channel()",
            "std::sync::mpsc::channel",
        ],
        why: "every queue has a bound that is written down",
        except: &[],
        in_tests: true,
    },
    WordRule {
        words: &["TcpListener", "TcpStream", "UdpSocket", "UnixListener", "UnixStream"],
        why: "only the metrics endpoint listens, and only transports connect",
        except: &[
            ("observe/", "the metrics endpoint"),
            ("test-support/", "free ports are found by binding them"),
            ("examples/", "a job's own code, which may use any server"),
        ],
        in_tests: false,
    },
    WordRule {
        words: &["gristmill_amqp"],
        why: "the scheme of a URL finds its transport in the registry",
        except: &[("src/transports.rs", "the transports that every program has")],
        in_tests: false,
    },
    WordRule {
        words: &["content_type:", "Message::default", "WireMessage for", "wire_message!"],
        why: "only the wire module makes messages out of values",
        except: &[
            ("shared/src/wire/", "the wire module"),
            ("shared/src/message.rs", "the type itself"),
            ("ledgers/sqlite/", "the outbox keeps messages until they are published"),
            ("transports/", "a transport makes a message again of what the broker delivers"),
        ],
        in_tests: false,
    },
    WordRule {
        words: &[
            "serde_json::to_string",
            "serde_json::to_string_pretty",
            "serde_json::to_value",
            "serde_json::to_vec",
            "serde_json::to_writer",
            "serde_json::Serializer",
            "to_raw_value",
        ],
        why: "the wire module alone writes JSON for the broker",
        except: &[
            ("shared/src/wire/", "the wire module"),
            ("producer/src/cursor.rs", "a file on the producer's own disk"),
            ("ledgers/sqlite/", "the sink's own file"),
            ("shared/src/local_input.rs", "a value of that file"),
            ("shared/src/erased/fold.rs", "a report, which the wire carries as it is"),
            ("shared/src/erased/mod.rs", "a spec, which the wire carries as it is"),
            ("shared/src/erased/batch_run.rs", "outputs, which the wire carries as they are"),
            ("shared/src/finite.rs", "the key of a map in an error's text"),
            ("shared/src/job.rs", "the report as a person reads it"),
            ("worker/src/isolate/protocol.rs", "lines to and from a child process"),
            ("src/", "what `--json` prints"),
            ("benches/", "figures, and specs for a command line"),
            ("shared/benches/", "the JSON whose cost is measured"),
            ("sink/benches/", "outputs, as a worker would encode them"),
        ],
        in_tests: false,
    },
];

const EXCEPTION_HINT: &str = "(hint: if this place is right, say why in WORD_RULES, tests/invariants/mod.rs)";

/// Returns the violations of a rule in one file, each with its place and its reason.
fn violations(rule: &WordRule, path: &str, source: &str) -> Vec<String> {
    if (is_test(path) && !rule.in_tests) || rule.except.iter().any(|(place, _)| is_in(path, place)) {
        return Vec::new();
    }
    words_in(rule, source)
        .map(|(line, word)| format!("{path}:{line}: `{word}`: {} {EXCEPTION_HINT}", rule.why))
        .collect()
}

/// True if a file holds nothing but tests: one in a folder `tests`, a module `tests`, or the
/// conformance suite.
fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs" || part == "fuzz")
        || is_in(path, "shared/src/conformance/")
        || is_in(path, "ledgers/contract/src/conformance/")
}

/// Returns the words of a rule in a file's code, with the numbers of their lines.
fn words_in(rule: &WordRule, source: &str) -> impl Iterator<Item = (usize, &'static str)> {
    let code = code_only(source);
    let code = if rule.in_tests { code.as_str() } else { without_tests(&code) };
    let lines = code.lines().zip(1..);
    let found = lines.flat_map(|(line, number)| {
        rule.words.iter().filter(move |word| has_word(line, word)).map(move |word| (number, *word))
    });
    found.collect::<Vec<_>>().into_iter()
}

fn is_in(path: &str, place: &str) -> bool {
    if place.ends_with('/') { path.starts_with(place) } else { path == place }
}

/// Returns places that other machines do not have: home directories, and this checkout (unless it
/// lies at the very top, as in a container). Put together here, so that this file does not name
/// them.
fn machine_places() -> Vec<String> {
    let people = ["home", "root", "Users"].map(|folder| format!("/{folder}/"));
    let checkout = Path::new(WORKSPACE_ROOT)
        .parent()
        .is_some_and(|it| it.parent().is_some())
        .then(|| WORKSPACE_ROOT.to_owned());
    people.into_iter().chain(checkout).collect()
}

/// Returns the lines that name such a place.
fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let places = machine_places();
    let names = |line: &str| {
        places.iter().find(|place| {
            // Within a longer path or an address, it is another place.
            line.match_indices(place.as_str()).any(|(start, _)| {
                !line[..start].ends_with(|it: char| it.is_alphanumeric() || "_-.}".contains(it))
            })
        })
    };
    let lines = text.lines().zip(1..);
    lines
        .filter_map(|(line, number)| Some((number, names(line)?.clone())))
        .map(|(number, place)| format!("{path}:{number}: `{place}`: a path that other machines do not have"))
        .collect()
}

/// Returns the files of the checkout with one of these endings (or, for "", without any), by their
/// paths below the root.
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(WORKSPACE_ROOT).to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let hidden = name.starts_with('.') && ![".ci", ".github"].contains(&name);
            if path.is_dir() && !hidden && name != "target" {
                folders.push(path);
            } else if path.is_file()
                && endings.contains(&path.extension().map_or("", |it| it.to_str().unwrap()))
            {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(WORKSPACE_ROOT).unwrap().to_str().unwrap().to_owned(), text));
            }
        }
        assert!(found.len() < FILES_MAX, "more than {FILES_MAX} files; the last one is {:?}", found.last());
    }
    found.sort();
    found
}

/// Restricted words stand only where their rule allows them.
#[test]
fn rules_hold_in_every_file() {
    let sources = files(&["rs"]);
    let broken: Vec<_> = WORD_RULES
        .iter()
        .flat_map(|rule| sources.iter().flat_map(|(path, source)| violations(rule, path, source)))
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// An exception that nothing needs would let the word in unseen.
#[test]
fn every_exception_is_needed() {
    let sources = files(&["rs"]);
    for rule in &WORD_RULES {
        for (place, reason) in rule.except.iter().filter(|(place, _)| !place.ends_with('/')) {
            let source = sources.iter().find(|(path, _)| path == place);
            let needed = source.is_some_and(|(_, source)| words_in(rule, source).next().is_some());
            assert!(needed, "{place} ({reason}) needs no exception from: {} (hint: remove it)", rule.why);
        }
    }
}

#[test]
fn no_file_names_a_machine_path() {
    let files = files(&["rs", "toml", "md", "yml", "yaml", "sh", "lock", "json", ""]);
    for expected in ["Cargo.toml", "src/lib.rs", "scripts/test", ".ci/run"] {
        assert!(
            files.iter().any(|(path, _)| path == expected),
            "the walk through the checkout missed {expected}"
        );
    }
    let found: Vec<_> = files.iter().flat_map(|(path, text)| machine_paths(path, text)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn broken_rule_names_its_line() {
    let of =
        |path, source| WORD_RULES.iter().flat_map(|rule| violations(rule, path, source)).collect::<Vec<_>>();
    let why = "only the front door reads arguments, environment and signals, and only mains exit";
    let source = "// std::env::var\nfn a() {\n    std::env::var(\"A\");\n}\n";
    assert_eq!(of("sink/src/a.rs", source), [format!("sink/src/a.rs:3: `env::`: {why} {EXCEPTION_HINT}")]);
    assert!(of("src/cli/a.rs", source).is_empty());
    assert!(of("sink/tests/a.rs", source).is_empty());
    assert!(of("tests/a.rs", source).is_empty());
    assert!(of("sink/src/a/tests.rs", source).is_empty());
    assert!(of("sink/src/a.rs", "env!(\"A\")\n#[cfg(test)]\nmod tests {\n use std::env::var;\n}").is_empty());

    for (source, word) in [
        ("use gristmill_amqp::AmqpDriver;", "gristmill_amqp"),
        ("fn main() -> ExitCode {", "ExitCode"),
        ("std::process::exit(1)", "process::exit"),
        ("use tokio::signal;", "tokio::signal"),
        ("let (a, b) = flume::unbounded();", "unbounded"),
        ("use tokio::sync::mpsc::unbounded_channel;", "unbounded_channel"),
        ("#[cfg(test)]\nmod tests {\n let it = mpsc::channel();\n}", "mpsc::channel()"),
        ("use tokio::net::TcpListener;", "TcpListener"),
        ("impl WireMessage for Mine {", "WireMessage for"),
        ("Message {\n  content_type: json,", "content_type:"),
        ("let body = serde_json::to_vec(&mine)?;", "serde_json::to_vec"),
    ] {
        let told = of("sink/src/a.rs", source);
        assert!(told.len() == 1 && told[0].contains(&format!("`{word}`")), "{source}: {told:?}");
    }
    assert!(of("sink/src/a.rs", "let (a, b) = tokio::sync::mpsc::channel(BOUND);").is_empty());
    assert!(of("sink/src/a.rs", "let a = connection.create_channel();").is_empty());
}

#[test]
fn machine_path_names_its_line() {
    let home = &machine_places()[0];
    let told = machine_paths("README.md", &format!("one\ncd {home}me/gristmill\n"));
    assert_eq!(told, [format!("README.md:2: `{home}`: a path that other machines do not have")]);
    assert!(machine_paths("README.md", &format!("https://example.org{home}me ../docs{home}")).is_empty());
}
