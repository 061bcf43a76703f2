//! Names and comments follow CONTRIBUTING.md, as far as `scripts/naming` can measure it.

use std::process::Command;

use super::WORKSPACE_ROOT;

/// The rules that the script measures.
const RULES: usize = 10;

/// Runs `scripts/naming` on a folder, and returns its success and its output.
fn measure(root: &str) -> (bool, String) {
    let script = format!("{WORKSPACE_ROOT}/scripts/naming");
    let output = Command::new(script).args(["--list", root]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn names_keep_the_rules() {
    let (kept, figures) = measure(WORKSPACE_ROOT);
    assert!(kept, "\n{figures}");
    assert_eq!(figures.lines().filter(|line| line.starts_with("ok ")).count(), RULES, "{figures}");
}

#[test]
fn each_naming_rule_can_be_broken() {
    let folder = tempfile::tempdir().unwrap();
    let wide = "x".repeat(100);
    let test_name = "a".repeat(51);
    let code = format!(
        "/// What this is.\n/// {wide}\nstruct Pace;\nmod inner {{\n    struct Pace;\n}}\nconst LONG: u8 = 1;\n\
         #[test]\nfn {test_name}() {{}}\n"
    );
    for path in ["one/src", "two/src"] {
        std::fs::create_dir_all(folder.path().join(path)).unwrap();
        std::fs::write(folder.path().join(path).join("pace.rs"), &code).unwrap();
    }
    for (path, text) in [("docs/glossary.md", "| unused | no |\n"), ("scripts/words.txt", "stale\n")] {
        std::fs::create_dir_all(folder.path().join(path).parent().unwrap()).unwrap();
        std::fs::write(folder.path().join(path), text).unwrap();
    }
    let (kept, figures) = measure(folder.path().to_str().unwrap());
    assert!(!kept, "{figures}");
    assert_eq!(figures.matches("FAILED").count(), RULES, "{figures}");
}
