//! `--print-config`: the settings, as a configuration file that says where each comes from.

use clap::{Arg, ArgMatches};

use super::{Configured, settings};

/// What stands for a secret.
const HIDDEN: &str = "***";

/// A line for each setting of the command that was given: its value, and where it was said.
pub(crate) fn show(configured: &Configured) -> String {
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

fn line(configured: &Configured, arg: &Arg, matches: &ArgMatches) -> Option<(String, String)> {
    let (key, id) = (settings::key(arg)?, arg.get_id().as_str());
    let said = matches.get_raw(id).and_then(|mut values| values.next());
    let Some(said) = said else { return Some((format!("# {key}"), "not set".into())) };
    let origin = configured.origin(arg, matches);
    let said = said.to_string_lossy();
    let value = if settings::is_secret(arg) { redacted(&said) } else { said.into_owned() };
    Some((format!("{key} = {}", literal(&value)), origin))
}

/// A TOML value.
fn literal(value: &str) -> String {
    match value.parse::<i64>() {
        Ok(number) => number.to_string(),
        // What JSON escapes, TOML escapes so as well.
        Err(_) => serde_json::Value::from(value).to_string(),
    }
}

/// What of a secret may be seen: of a URL all but the password, of anything else nothing.
fn redacted(secret: &str) -> String {
    let Some((scheme, rest)) = secret.split_once("://") else { return HIDDEN.into() };
    // A password that is not escaped may have anything in it.
    let Some((user, place)) = rest.rsplit_once('@') else { return secret.into() };
    match user.split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:{HIDDEN}@{place}"),
        None => secret.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_url_all_but_the_password_is_shown() {
        assert_eq!(redacted("amqp://me:secret@host:5/v?heartbeat=3"), "amqp://me:***@host:5/v?heartbeat=3");
        assert_eq!(redacted("amqp://me:sec/r@e:t@host/v"), "amqp://me:***@host/v");
        assert_eq!(redacted("amqps://host"), "amqps://host");
        assert_eq!(redacted("amqps://me@host"), "amqps://me@host");
        for none in ["secret", "me:secret@host"] {
            assert_eq!(redacted(none), "***");
        }
    }

    #[test]
    fn a_value_is_one_of_toml() {
        assert_eq!(literal("8"), "8");
        assert_eq!(literal("30s"), "\"30s\"");
        assert_eq!(literal("a\"b\\c\n"), r#""a\"b\\c\n""#);
    }
}
