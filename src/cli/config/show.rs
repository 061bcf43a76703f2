//! `--print-config`: the settings, as a configuration file with the source of each value.

use clap::{Arg, ArgMatches};

use super::{ResolvedConfig, settings};

/// The replacement of a secret.
const HIDDEN_SECRET: &str = "***";

/// Returns a line for each setting of the given command: its value and its source.
pub(crate) fn config_text(configured: &ResolvedConfig) -> String {
    let mut lines: Vec<_> = configured
        .settings()
        .into_iter()
        .filter_map(|(arg, matches)| line(configured, arg, matches))
        .collect();
    lines.sort();
    let width = lines.iter().map(|(text, _)| text.chars().count()).max().unwrap_or_default();
    let lines: Vec<_> =
        lines.into_iter().map(|(text, origin)| format!("{text:width$}  # {origin}")).collect();
    lines.join("\n")
}

fn line(configured: &ResolvedConfig, arg: &Arg, matches: &ArgMatches) -> Option<(String, String)> {
    let (key, id) = (settings::key(arg)?, arg.get_id().as_str());
    let raw = matches.get_raw(id).and_then(|mut values| values.next());
    let Some(raw) = raw else { return Some((format!("# {key}"), "not set".into())) };
    let origin = configured.origin(arg, matches);
    let raw = raw.to_string_lossy();
    let value = if settings::is_secret(arg) { redact(&raw) } else { raw.into_owned() };
    Some((format!("{key} = {}", toml_literal(&value)), origin))
}

/// Returns a value as TOML.
fn toml_literal(value: &str) -> String {
    match value.parse::<i64>() {
        Ok(number) => number.to_string(),
        // TOML uses the escapes of JSON.
        Err(_) => serde_json::Value::from(value).to_string(),
    }
}

/// Redacts a secret: a URL is shown without its password, any other value is hidden.
fn redact(secret: &str) -> String {
    let Some((scheme, rest)) = secret.split_once("://") else { return HIDDEN_SECRET.into() };
    // An unescaped password may contain any character.
    let Some((user, place)) = rest.rsplit_once('@') else { return secret.into() };
    match user.split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:{HIDDEN_SECRET}@{place}"),
        None => secret.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_password_is_redacted() {
        assert_eq!(redact("amqp://me:secret@host:5/v?heartbeat=3"), "amqp://me:***@host:5/v?heartbeat=3");
        assert_eq!(redact("amqp://me:sec/r@e:t@host/v"), "amqp://me:***@host/v");
        assert_eq!(redact("amqps://host"), "amqps://host");
        assert_eq!(redact("amqps://me@host"), "amqps://me@host");
        for none in ["secret", "me:secret@host"] {
            assert_eq!(redact(none), "***");
        }
    }

    #[test]
    fn values_print_as_toml() {
        assert_eq!(toml_literal("8"), "8");
        assert_eq!(toml_literal("30s"), "\"30s\"");
        assert_eq!(toml_literal("a\"b\\c\n"), r#""a\"b\\c\n""#);
    }
}
