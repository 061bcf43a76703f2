//! Dependencies point down only: the packages that each of ours may reach, and the owners of
//! foreign crates.

use std::collections::BTreeSet;
use std::env;
use std::process::Command;

use super::WORKSPACE_ROOT;

/// Every package of ours, and the others of ours that it may reach.
const ALLOWED_DEPENDENCIES: [(&str, &[&str]); 13] = [
    ("gristmill-shared", &[]),
    ("gristmill-process", &["gristmill-shared"]),
    ("gristmill-producer", &["gristmill-shared"]),
    ("gristmill-worker", &["gristmill-shared", "gristmill-process"]),
    ("gristmill-ledger", &["gristmill-shared"]),
    ("gristmill-sqlite", &["gristmill-shared", "gristmill-ledger"]),
    ("gristmill-sink", &["gristmill-shared", "gristmill-ledger"]),
    ("gristmill-amqp", &["gristmill-shared"]),
    ("gristmill-jobs", &["gristmill-shared"]),
    ("gristmill-observe", &["gristmill-shared"]),
    ("gristmill-test-support", &[]),
    (
        "gristmill-drill",
        &[
            "gristmill-shared",
            "gristmill-ledger",
            "gristmill-sqlite",
            "gristmill-jobs",
            "gristmill-test-support",
        ],
    ),
    (
        "gristmill",
        &[
            "gristmill-shared",
            "gristmill-observe",
            "gristmill-test-support",
            "gristmill-drill",
            "gristmill-process",
            "gristmill-producer",
            "gristmill-worker",
            "gristmill-sink",
            "gristmill-ledger",
            "gristmill-sqlite",
            "gristmill-amqp",
            "gristmill-jobs",
        ],
    ),
];

/// Foreign crates, and the only packages of ours that may reach them.
const CRATE_OWNERS: [(&str, &[&str]); 9] = [
    ("lapin", &["gristmill-amqp", "gristmill"]),
    ("rustls", &["gristmill-amqp", "gristmill"]),
    ("toml", &["gristmill"]),
    ("rusqlite", &["gristmill-sqlite", "gristmill-drill", "gristmill"]),
    ("clap", &["gristmill-jobs", "gristmill-drill", "gristmill"]),
    ("indicatif", &["gristmill"]),
    ("tracing-subscriber", &["gristmill-observe", "gristmill"]),
    ("opentelemetry", &["gristmill-observe", "gristmill"]),
    ("ureq", &["gristmill-observe", "gristmill"]),
];

/// Returns the errors of a package that reaches these others.
fn dependency_errors(package: &str, reached: &BTreeSet<String>) -> Vec<String> {
    let Some((_, allowed)) = ALLOWED_DEPENDENCIES.iter().find(|(name, _)| *name == package) else {
        return vec![format!(
            "{package} is missing in the table of dependencies (hint: add it to ALLOWED_DEPENDENCIES)"
        )];
    };
    let see = |other| format!("(see: cargo tree -p {package} -e normal -i {other})");
    let ours = ALLOWED_DEPENDENCIES
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| *name != package && !allowed.contains(name));
    let upward = ours.filter(|other| reached.contains(*other)).map(|other| {
        format!("{package} depends on {other}, but dependencies point down only {}", see(other))
    });
    let foreign = CRATE_OWNERS.iter().filter_map(|(other, owners)| {
        match (reached.contains(*other), owners.contains(&package)) {
            (true, false) => {
                Some(format!("{package} depends on {other}, which only {owners:?} may {}", see(other)))
            }
            (false, true) => {
                Some(format!("{package} no longer depends on {other} (hint: shorten CRATE_OWNERS)"))
            }
            _ => None,
        }
    });
    upward.chain(foreign).collect()
}

/// Returns the names in the output of `cargo tree --prefix none`.
fn package_names(tree: &str) -> BTreeSet<String> {
    tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Runs cargo on this workspace, without network, and returns what it prints.
fn cargo(arguments: &[&str]) -> String {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .args(["--offline", "--locked"])
        .current_dir(WORKSPACE_ROOT)
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn dependencies_point_down() {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let members: BTreeSet<_> = packages.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert!(
        ALLOWED_DEPENDENCIES.iter().all(|(name, _)| members.contains(name)),
        "ALLOWED_DEPENDENCIES names packages that are no more: {members:?}"
    );
    let wrong: Vec<_> = members
        .iter()
        .flat_map(|member| {
            let tree = ["tree", "-p", member, "--edges", "normal", "--prefix", "none", "--all-features"];
            let tree = cargo(&tree);
            dependency_errors(member, &package_names(&tree))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The build id changes with the sources of every package.
#[test]
fn build_id_covers_every_package() {
    let script = std::fs::read_to_string(format!("{WORKSPACE_ROOT}/build.rs")).unwrap();
    let manifest = std::fs::read_to_string(format!("{WORKSPACE_ROOT}/Cargo.toml")).unwrap();
    let (_, members) = manifest.split_once("members = [").unwrap();
    let (members, _) = members.split_once(']').unwrap();
    let members: Vec<_> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.len() > 5, "{members:?}");
    let missing: Vec<_> =
        members.iter().filter(|member| !script.contains(&format!("\"{member}/src\""))).collect();
    assert!(missing.is_empty(), "build.rs does not hash the sources of {missing:?}");
}

/// A user's build has no fail points, and nothing else that only tests need. (Cargo turns on a
/// feature for all if a dependency or a test that is built with it asks for it; `cargo build`
/// builds no tests.)
#[test]
fn programs_have_no_test_features() {
    let features = |edges| {
        let tree = cargo(&["tree", "-p", "gristmill", "--edges", edges, "-i", "gristmill-shared"]);
        ["fail-points", "conformance"].map(|feature| tree.contains(&format!("feature \"{feature}\"")))
    };
    assert_eq!(features("normal,build,features"), [false, false]);
    assert_eq!(features("normal,build,dev,features"), [true, true], "this test cannot see features");
}

/// A default build has no exporter, and none of its dependencies.
#[test]
fn span_export_needs_its_feature() {
    let reached = |more: &[&str]| {
        package_names(&cargo(
            &[&["tree", "-p", "gristmill", "-e", "normal", "--prefix", "none"], more].concat(),
        ))
    };
    let of_export = |it: &String| it.starts_with("opentelemetry") || ["ureq", "prost"].contains(&it.as_str());
    assert!(!reached(&[]).iter().any(of_export), "{:?}", reached(&[]));
    assert!(reached(&["--features", "otlp"]).iter().any(of_export), "this test cannot see features");
}

#[test]
fn wrong_dependency_is_named() {
    let reached = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
    assert!(dependency_errors("gristmill-shared", &reached(&["serde", "tokio"])).is_empty());
    let of = |package, others| dependency_errors(package, &reached(others)).join("\n");
    assert_eq!(
        of("gristmill-worker", &["gristmill-shared", "gristmill-sink"]),
        "gristmill-worker depends on gristmill-sink, but dependencies point down only \
         (see: cargo tree -p gristmill-worker -e normal -i gristmill-sink)"
    );
    assert_eq!(
        of("gristmill-shared", &["lapin"]),
        "gristmill-shared depends on lapin, which only [\"gristmill-amqp\", \"gristmill\"] may \
         (see: cargo tree -p gristmill-shared -e normal -i lapin)"
    );
    assert_eq!(
        of("gristmill-amqp", &["rustls"]),
        "gristmill-amqp no longer depends on lapin (hint: shorten CRATE_OWNERS)"
    );
    assert!(of("gristmill-redis", &[]).contains("is missing in the table of dependencies"));
}

#[test]
fn tree_names_are_read() {
    let tree = "gristmill-shared v0.1.0 (a/path)\nserde v1.0.228\nserde_derive v1.0.228 (proc-macro)\n\nserde v1.0.228 (*)\n";
    assert_eq!(
        package_names(tree).into_iter().collect::<Vec<_>>(),
        ["gristmill-shared", "serde", "serde_derive"]
    );
}
