//! The values in docs/limits.md are those of the constants.

use std::path::Path;

use super::files;

/// The fewest rows that the tables have together.
const ROWS_MIN: usize = 150;

/// A row of docs/limits.md that names a constant.
struct LimitRow<'a> {
    value: &'a str,
    constant: &'a str,
    path: &'a str,
}

/// Returns the rows `| what | value | `CONSTANT` in `path` |`.
fn limit_rows(text: &str) -> impl Iterator<Item = LimitRow<'_>> {
    text.lines().filter_map(|line| {
        let (left, path) = line.strip_suffix("` |")?.rsplit_once("` in `")?;
        let (left, constant) = left.rsplit_once(" | `")?;
        let (_, value) = left.rsplit_once(" | ")?;
        Some(LimitRow { value, constant, path })
    })
}

/// The value of a constant: a number, and the factor that makes microseconds of it if it is a
/// duration.
type ConstantValue = (i128, Option<i128>);

/// Evaluates a constant that is declared in this file, or else in another one of its folder.
fn evaluate(sources: &[(String, String)], path: &str, constant: &str) -> Option<ConstantValue> {
    let folder = Path::new(path).parent();
    let own = sources.iter().filter(|(file, _)| file == path);
    own.clone().next()?;
    let others = sources.iter().filter(|(file, _)| Path::new(file).parent() == folder);
    own.chain(others).find_map(|(file, text)| {
        let (_, declared) = text.split_once(&format!("const {constant}: "))?;
        let (_, expression) = declared.split_once(" = ")?;
        let (expression, _) = expression.split_once(';')?;
        expression_value(sources, file, expression)
    })
}

fn expression_value(sources: &[(String, String)], path: &str, expression: &str) -> Option<ConstantValue> {
    let expression = expression.trim();
    for (unit, micros) in [("secs", 1_000_000), ("millis", 1_000), ("micros", 1)] {
        let inside = expression.strip_prefix(&format!("Duration::from_{unit}("));
        if let Some(inside) = inside.and_then(|it| it.strip_suffix(')')) {
            return Some((number(sources, path, inside)?, Some(micros)));
        }
    }
    Some((number(sources, path, expression)?, None))
}

/// Evaluates numbers and names of constants with `+`, `-`, `*`, `/`, `<<`, parentheses and casts.
fn number(sources: &[(String, String)], path: &str, expression: &str) -> Option<i128> {
    let mut text = expression.trim().to_owned();
    for cast in ["f64", "u64", "i64", "usize", "u32"] {
        text = text.replace(&format!(" as {cast}"), "");
    }
    for operator in [" + ", " - ", " << ", " * ", " / "] {
        // The last one at the top level, so that operators of one precedence go from left to right.
        let splits = text.match_indices(operator).filter(|(at, _)| {
            let left = &text[..*at];
            left.matches('(').count() == left.matches(')').count()
        });
        if let Some((at, _)) = splits.last() {
            let left = number(sources, path, &text[..at])?;
            let right = number(sources, path, &text[at + operator.len()..])?;
            return Some(match operator {
                " + " => left + right,
                " - " => left - right,
                " << " => left << right,
                " * " => left * right,
                _ => left / right,
            });
        }
    }
    let inner = text.strip_prefix('(').and_then(|it| it.strip_suffix(')'));
    if let Some(inner) = inner {
        return number(sources, path, inner);
    }
    let digits = text.trim_end_matches(".0").replace('_', "");
    digits.parse().ok().or_else(|| Some(evaluate(sources, path, &text)?.0))
}

/// Writes a value as docs/limits.md does.
fn written(constant: &str, (value, micros): ConstantValue) -> String {
    let (value, unit) = match micros {
        Some(micros) if value * micros % 1_000_000 == 0 => (value * micros / 1_000_000, " s"),
        Some(micros) => (value * micros / 1_000, " ms"),
        None if constant.contains("BYTES") || ["MAX_MESSAGE", "MAX_PAYLOAD"].contains(&constant) => {
            match value {
                mib if mib % (1 << 20) == 0 => (mib >> 20, " MiB"),
                kib if kib % (1 << 10) == 0 => (kib >> 10, " KiB"),
                bytes => (bytes, " bytes"),
            }
        }
        None => (value, ""),
    };
    let digits = value.to_string();
    let groups: Vec<&str> = (0..digits.len().div_ceil(3))
        .rev()
        .map(|group| {
            let end = digits.len() - 3 * group;
            &digits[end.saturating_sub(3)..end]
        })
        .collect();
    groups.join(",") + unit
}

#[test]
fn documented_limits_are_the_constants() {
    let (documents, sources) = (files(&["md"]), files(&["rs"]));
    let (_, text) = documents.iter().find(|(path, _)| path == "docs/limits.md").unwrap();
    let rows: Vec<_> = limit_rows(text).collect();
    assert!(rows.len() >= ROWS_MIN, "only {} rows", rows.len());
    let wrong: Vec<_> = rows
        .iter()
        .filter_map(|LimitRow { value, constant, path }| {
            let found = evaluate(&sources, path, constant).map(|found| written(constant, found));
            (found.as_deref() != Some(*value))
                .then(|| format!("{path}: {constant} is {found:?}, not {value}"))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn wrong_limit_is_found() {
    let source = "const A_TIMEOUT: Duration = Duration::from_millis(2 * 750);\nconst B_MAX_BYTES: u64 = (3 << 20) - (1 << 19);\n\
                  const C_MAX: usize = D_MAX as usize / 2;\nconst D_MAX: u32 = 20_000;\n";
    let sources = [("a/b.rs".to_owned(), source.to_owned())];
    let value = |constant: &str| written(constant, evaluate(&sources, "a/b.rs", constant).unwrap());
    assert_eq!(
        ["A_TIMEOUT", "B_MAX_BYTES", "C_MAX", "D_MAX"].map(value),
        ["1,500 ms", "2,560 KiB", "10,000", "20,000"]
    );
    assert!(evaluate(&sources, "a/b.rs", "E_MAX").is_none());
    let row = limit_rows("| what | 9 s | `A_TIMEOUT` in `a/b.rs` |").next().unwrap();
    assert_eq!((row.value, row.constant, row.path), ("9 s", "A_TIMEOUT", "a/b.rs"));
}
