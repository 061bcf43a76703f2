//! What the documents say of the tests is true: every test they name is there.

use super::files;

/// `module::…::name` in backticks, where the last word has the many words of a test's name.
fn tests_named_in(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|word| word.rsplit("::").next().is_some_and(|name| name.matches('_').count() >= 3))
}

/// Whether `tests/` has a file of that module, with a test of that name.
fn is_there(named: &str, sources: &[(String, String)]) -> bool {
    let Some((module, name)) = named.rsplit_once("::") else { return false };
    let path = format!("tests/{}.rs", module.replace("::", "/"));
    let declared = format!("fn {name}()");
    sources.iter().any(|(file, source)| *file == path && source.contains(&declared))
}

#[test]
fn every_test_that_the_documents_name_is_there() {
    let (documents, sources) = (files(&["md"]), files(&["rs"]));
    let reliability = documents.iter().find(|(path, _)| path == "docs/reliability.md").unwrap();
    let named: Vec<_> = tests_named_in(&reliability.1).collect();
    assert!(named.len() > 40, "only {named:?}");
    let missing: Vec<_> = named.into_iter().filter(|named| !is_there(named, &sources)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(!is_there("house::documents::every_test_that_nobody_has_written", &sources));
}
