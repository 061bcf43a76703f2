//! Errors as text.

use std::{error::Error, fmt::Write};

/// Returns an error with its causes on one line, each once: `cannot read x: permission denied`.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        // Some crates repeat the cause in their own text.
        if !text.ends_with(&part) {
            let _ = write!(text, ": {part}");
        }
        cause = error.source();
    }
    text
}
