//! Documents are short, and what they name exists: tests, links, paths.

use std::path::Path;

use super::{WORKSPACE_ROOT, files};

/// The most lines of a source, a document or a script.
const FILE_MAX_LINES: usize = 500;
const README_MAX_LINES: usize = 150;

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

/// Returns the targets of a document's links, without those that leave the repository.
fn link_targets(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
}

/// Returns the anchor that a heading has on the pages of a repository.
fn anchor(heading: &str) -> String {
    let kept = |it: &char| it.is_alphanumeric() || [' ', '-', '_'].contains(it);
    heading.to_lowercase().chars().filter(kept).map(|it| if it == ' ' { '-' } else { it }).collect()
}

/// Returns the anchors of a document's headings, without those in code blocks.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let prose = text.split("```").step_by(2);
    let headings = prose.flat_map(str::lines).filter_map(|line| {
        let heading = line.trim_start_matches('#');
        (heading.len() < line.len()).then(|| heading.strip_prefix(' ')).flatten()
    });
    headings.map(anchor)
}

/// Returns the links of a document that lead nowhere.
fn broken_links(path: &str, text: &str, documents: &[(String, String)]) -> Vec<String> {
    let folder = Path::new(path).parent().unwrap();
    let is_broken = |target: &&str| {
        let (file, heading) = target.split_once('#').unwrap_or((target, ""));
        let file = if file.is_empty() { path.to_owned() } else { normal(&folder.join(file)) };
        match documents.iter().find(|(path, _)| *path == file) {
            Some((_, text)) => !heading.is_empty() && anchors(text).all(|it| it != heading),
            None => !heading.is_empty() || !Path::new(WORKSPACE_ROOT).join(&file).exists(),
        }
    };
    let prose = text.split("```").step_by(2).collect::<String>();
    link_targets(&prose).filter(is_broken).map(|target| format!("{path}: {target}")).collect()
}

/// Returns a path without `..`.
fn normal(path: &Path) -> String {
    let mut parts = Vec::new();
    for part in path.to_str().unwrap().split('/').filter(|part| *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

#[test]
fn every_link_resolves() {
    let documents = files(&["md"]);
    let broken: Vec<_> =
        documents.iter().flat_map(|(path, text)| broken_links(path, text, &documents)).collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
    let example = [("a/b.md".to_owned(), "# One word\n[x](#one-word) [y](#two) [z](../none.md)".to_owned())];
    assert_eq!(broken_links("a/b.md", &example[0].1, &example), ["a/b.md: #two", "a/b.md: ../none.md"]);
}

/// Paths of sources in backticks, as ARCHITECTURE.md names them.
#[test]
fn architecture_names_paths_that_exist() {
    let documents = files(&["md"]);
    let (_, text) = documents.iter().find(|(path, _)| path == "ARCHITECTURE.md").unwrap();
    let quoted = text.split('`').skip(1).step_by(2);
    let paths: Vec<_> = quoted.filter(|word| word.contains("/src/")).collect();
    assert!(paths.len() > 20, "only {paths:?}");
    let missing: Vec<_> =
        paths.into_iter().filter(|path| !Path::new(WORKSPACE_ROOT).join(path).exists()).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn files_are_short() {
    let lines = |text: &str| text.lines().count();
    let all = files(&["rs", "md", "py", "sh", ""]);
    let is_ours = |path: &str| !path.starts_with("LICENSE");
    let long: Vec<_> = all
        .iter()
        .filter(|(path, text)| is_ours(path) && lines(text) > FILE_MAX_LINES)
        .map(|(path, text)| format!("{path}: {} lines", lines(text)))
        .collect();
    assert!(long.is_empty(), "\n{}", long.join("\n"));
    let (_, readme) = all.iter().find(|(path, _)| path == "README.md").unwrap();
    assert!(lines(readme) <= README_MAX_LINES, "README.md has {} lines", lines(readme));
}
