//! Rust source without its comments and texts, so that rules look at the code alone.

use std::iter::Peekable;
use std::str::Chars;

/// Returns the code of a source file, line for line: comments, strings and character literals are
/// gone. This is no parser: it knows as much of Rust's grammar as is needed to find where those
/// end.
pub(super) fn code_only(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source.chars().peekable();
    while let Some(next) = rest.next() {
        let in_name = code.ends_with(is_name);
        match (next, rest.peek()) {
            ('/', Some('/')) => drop_line(&mut rest),
            ('/', Some('*')) => drop_block(&mut rest, &mut code),
            ('"', _) => drop_string(&mut rest, &mut code),
            ('b', Some('"' | '\'')) if !in_name => {}
            ('r', Some('"' | '#')) | ('b', Some('r')) if !in_name => {
                drop_raw_string(next, &mut rest, &mut code);
            }
            ('\'', Some(_)) => drop_character(&mut rest),
            _ => code.push(next),
        }
    }
    code
}

/// Returns the code without its unit tests, which by convention are a module at a file's end.
pub(super) fn without_tests(code: &str) -> &str {
    let starts_tests = |after: &str| {
        let module = after.lines().find(|line| !line.starts_with("#["));
        module.is_some_and(|line| {
            let declared = line.strip_prefix("pub(crate) ").unwrap_or(line);
            declared.starts_with("mod ") && line.ends_with('{')
        })
    };
    let marks = code.match_indices("#[cfg(test)]\n");
    let end =
        marks.map(|(start, mark)| (start, start + mark.len())).find(|&(_, end)| starts_tests(&code[end..]));
    end.map_or(code, |(start, _)| &code[..start])
}

/// True if `word` stands in `line` as a word of its own, not as a part of a longer name.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(start, _)| {
        let begins = !word.starts_with(is_name) || !line[..start].ends_with(is_name);
        let ends = !word.ends_with(is_name) || !line[start + word.len()..].starts_with(is_name);
        begins && ends
    })
}

fn is_name(it: char) -> bool {
    it.is_alphanumeric() || it == '_'
}

fn drop_line(rest: &mut Peekable<Chars<'_>>) {
    while rest.next_if(|&it| it != '\n').is_some() {}
}

fn drop_block(rest: &mut Peekable<Chars<'_>>, code: &mut String) {
    let mut depth = 1;
    rest.next();
    while depth > 0 {
        let Some(next) = rest.next() else { return };
        match (next, rest.peek()) {
            ('*', Some('/')) => depth -= 1,
            ('/', Some('*')) => depth += 1,
            _ => {
                code.extend((next == '\n').then_some('\n'));
                continue;
            }
        }
        rest.next();
    }
}

fn drop_string(rest: &mut Peekable<Chars<'_>>, code: &mut String) {
    code.push_str("\"\"");
    while let Some(next) = rest.next() {
        match next {
            '"' => return,
            '\\' => code.extend(rest.next().filter(|&it| it == '\n')),
            '\n' => code.push('\n'),
            _ => {}
        }
    }
}

/// Drops a raw string after an `r` or a `b`, if hashes and a quote follow; else that is just a
/// name.
fn drop_raw_string(first: char, rest: &mut Peekable<Chars<'_>>, code: &mut String) {
    let mut ahead = rest.clone();
    if first == 'b' {
        ahead.next();
    }
    let mut hashes = 0;
    while ahead.next_if_eq(&'#').is_some() {
        hashes += 1;
    }
    if ahead.next() != Some('"') {
        code.push(first);
        return;
    }
    code.push_str("\"\"");
    let end = format!("\"{}", "#".repeat(hashes));
    let text: String = ahead.clone().collect();
    let length = text.find(&end).map_or(text.len(), |start| start + end.len());
    code.extend(text[..length].chars().filter(|&it| it == '\n'));
    ahead.nth(text[..length].chars().count().saturating_sub(1));
    *rest = ahead;
}

/// Drops a character literal after a quote. Of a lifetime the name stays.
fn drop_character(rest: &mut Peekable<Chars<'_>>) {
    let mut ahead = rest.clone();
    let escaped = ahead.next() == Some('\\');
    if escaped {
        ahead.next();
        while ahead.next_if(|&it| it != '\'' && it != '\n').is_some() {}
    }
    if ahead.next() == Some('\'') {
        *rest = ahead;
    }
}

#[test]
fn code_only_keeps_code_and_lines() {
    let cases = [
        ("a // b\nc", "a \nc"),
        ("a /* b /* c\n */ d */ e", "a \n e"),
        (r#"f("a // \" b") // c"#, r#"f("") "#),
        ("f(r#\"a \" \n b\"#, c)", "f(\"\"\n, c)"),
        ("f(br\"a\\\", b\"c\", b'd')", "f(\"\", \"\", )"),
        ("let it = '\"'; 'b: &'a c", "let it = ; b: &a c"),
        ("'\\'' '\\u{1F600}' '\\\\' x", "   x"),
        ("for_r#x; r#type; var\"a\"", "for_r#x; r#type; var\"\""),
    ];
    for (source, code) in cases {
        assert_eq!(code_only(source), code, "of {source}");
    }
}

#[test]
fn words_match_whole_names() {
    assert!(has_word("std::env::var", "env::"));
    assert!(has_word("-> ExitCode {", "ExitCode"));
    assert!(!has_word("my_env::var", "env::"));
    assert!(!has_word("MyExitCode, ExitCodes", "ExitCode"));
}

#[test]
fn unit_tests_are_cut_off() {
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod tests {\n b }"), "a\n");
    assert_eq!(without_tests("a\n#[cfg(test)]\n#[expect(b)]\nmod tests {\n c }"), "a\n");
    for elsewhere in ["#[cfg(test)]\nuse a;\nb", "#[cfg(test)]\nmod tests;\nb"] {
        assert_eq!(without_tests(elsewhere), elsewhere);
    }
}
