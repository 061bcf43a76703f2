//! Arrows point down only: which package of ours may reach which, and who alone may reach what others wrote.

use std::collections::BTreeSet;
use std::env;
use std::process::Command;

use super::ROOT;

/// Every package of ours, and the others of ours that it may reach.
const ARROWS: [(&str, &[&str]); 8] = [
    ("gristmill-shared", &[]),
    ("gristmill-process", &["gristmill-shared"]),
    ("gristmill-producer", &["gristmill-shared"]),
    ("gristmill-worker", &["gristmill-shared", "gristmill-process"]),
    ("gristmill-sink", &["gristmill-shared"]),
    ("gristmill-amqp", &["gristmill-shared"]),
    ("gristmill-jobs", &["gristmill-shared"]),
    (
        "gristmill",
        &[
            "gristmill-shared",
            "gristmill-process",
            "gristmill-producer",
            "gristmill-worker",
            "gristmill-sink",
            "gristmill-amqp",
            "gristmill-jobs",
        ],
    ),
];

/// Crates that belong to one corner of the house, and the packages that reach them.
const OWNERS: [(&str, &[&str]); 9] = [
    ("lapin", &["gristmill-amqp", "gristmill"]),
    ("rustls", &["gristmill-amqp", "gristmill"]),
    ("toml", &["gristmill"]),
    ("rusqlite", &["gristmill-sink", "gristmill"]),
    ("clap", &["gristmill-jobs", "gristmill"]),
    ("indicatif", &["gristmill"]),
    ("tracing-subscriber", &["gristmill"]),
    ("opentelemetry", &["gristmill"]),
    ("ureq", &["gristmill"]),
];

/// What is wrong with a package that reaches these others.
fn wrong_arrows(package: &str, reached: &BTreeSet<String>) -> Vec<String> {
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package) else {
        return vec![format!("{package} has no place in the table of arrows (hint: add it to ARROWS)")];
    };
    let see = |other| format!("(see: cargo tree -p {package} -e normal -i {other})");
    let ours =
        ARROWS.iter().map(|(name, _)| *name).filter(|name| *name != package && !allowed.contains(name));
    let upward = ours
        .filter(|other| reached.contains(*other))
        .map(|other| format!("{package} depends on {other}, but arrows point down only {}", see(other)));
    let foreign = OWNERS.iter().filter_map(|(other, owners)| {
        match (reached.contains(*other), owners.contains(&package)) {
            (true, false) => {
                Some(format!("{package} depends on {other}, which only {owners:?} may {}", see(other)))
            }
            (false, true) => Some(format!("{package} no longer depends on {other} (hint: shorten OWNERS)")),
            _ => None,
        }
    });
    upward.chain(foreign).collect()
}

/// The names in what `cargo tree --prefix none` prints.
fn names(tree: &str) -> BTreeSet<String> {
    tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Runs cargo on this workspace, without network, and returns what it prints.
fn cargo(arguments: &[&str]) -> String {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .args(["--offline", "--locked"])
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn arrows_point_down_only() {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let members: BTreeSet<_> = packages.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert!(
        ARROWS.iter().all(|(name, _)| members.contains(name)),
        "ARROWS names packages that are no more: {members:?}"
    );
    let wrong: Vec<_> = members
        .iter()
        .flat_map(|member| {
            let tree = ["tree", "-p", member, "--edges", "normal", "--prefix", "none", "--all-features"];
            let tree = cargo(&tree);
            wrong_arrows(member, &names(&tree))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// What a user builds has no place where it can be told to die, and none of what only tests need. (Cargo turns on a
/// feature for all if a dependency or a test that is built with it asks for it; `cargo build` builds no tests.)
#[test]
fn what_is_for_tests_alone_is_in_no_program() {
    let features = |edges| {
        let tree = cargo(&["tree", "-p", "gristmill", "--edges", edges, "-i", "gristmill-shared"]);
        ["fail-points", "conformance"].map(|feature| tree.contains(&format!("feature \"{feature}\"")))
    };
    assert_eq!(features("normal,build,features"), [false, false]);
    assert_eq!(features("normal,build,dev,features"), [true, true], "this test cannot see features");
}

/// Who builds Gristmill as it is gets no exporter, and none of what that needs.
#[test]
fn what_exports_spans_is_in_no_program_that_was_not_built_to() {
    let reached = |more: &[&str]| {
        names(&cargo(&[&["tree", "-p", "gristmill", "-e", "normal", "--prefix", "none"], more].concat()))
    };
    let of_export = |it: &String| it.starts_with("opentelemetry") || ["ureq", "prost"].contains(&it.as_str());
    assert!(!reached(&[]).iter().any(of_export), "{:?}", reached(&[]));
    assert!(reached(&["--features", "otlp"]).iter().any(of_export), "this test cannot see features");
}

#[test]
fn a_wrong_arrow_is_told() {
    let reached = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
    assert!(wrong_arrows("gristmill-shared", &reached(&["serde", "tokio"])).is_empty());
    let of = |package, others| wrong_arrows(package, &reached(others)).join("\n");
    assert_eq!(
        of("gristmill-worker", &["gristmill-shared", "gristmill-sink"]),
        "gristmill-worker depends on gristmill-sink, but arrows point down only \
         (see: cargo tree -p gristmill-worker -e normal -i gristmill-sink)"
    );
    assert_eq!(
        of("gristmill-shared", &["lapin"]),
        "gristmill-shared depends on lapin, which only [\"gristmill-amqp\", \"gristmill\"] may \
         (see: cargo tree -p gristmill-shared -e normal -i lapin)"
    );
    assert_eq!(
        of("gristmill-amqp", &["rustls"]),
        "gristmill-amqp no longer depends on lapin (hint: shorten OWNERS)"
    );
    assert!(of("gristmill-redis", &[]).contains("has no place in the table of arrows"));
}

#[test]
fn the_names_in_a_tree_are_read() {
    let tree = "gristmill-shared v0.1.0 (a/path)\nserde v1.0.228\nserde_derive v1.0.228 (proc-macro)\n\nserde v1.0.228 (*)\n";
    assert_eq!(names(tree).into_iter().collect::<Vec<_>>(), ["gristmill-shared", "serde", "serde_derive"]);
}
