//! The tests that the documents name exist.

use super::files;

/// Returns each `module::…::name` in backticks whose last word has as many words as a test's name.
fn named_tests(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|word| word.rsplit("::").next().is_some_and(|name| name.matches('_').count() >= 3))
}

/// True if `tests/` has a file of that module, with a test of that name.
fn test_exists(named: &str, sources: &[(String, String)]) -> bool {
    let Some((module, name)) = named.rsplit_once("::") else { return false };
    let path = format!("tests/{}.rs", module.replace("::", "/"));
    let declared = format!("fn {name}()");
    sources.iter().any(|(file, source)| *file == path && source.contains(&declared))
}

#[test]
fn documented_tests_exist() {
    let (documents, sources) = (files(&["md"]), files(&["rs"]));
    let reliability = documents.iter().find(|(path, _)| path == "docs/reliability.md").unwrap();
    let named: Vec<_> = named_tests(&reliability.1).collect();
    assert!(named.len() > 40, "only {named:?}");
    let missing: Vec<_> = named.into_iter().filter(|named| !test_exists(named, &sources)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(!test_exists("invariants::documents::test_that_does_not_exist", &sources));
}
