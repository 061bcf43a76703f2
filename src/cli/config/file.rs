//! The configuration file: TOML, with the names of flags as keys.

use std::{ops::Range, path::Path};

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::settings::{ConfigValue, Setting, Settings, read_text};
use crate::{cli::nearest_name, exit::Failure};

impl Settings {
    /// Reads the file and returns the settings that apply to `role`. Checks the whole file,
    /// including the tables of other roles.
    ///
    /// # Errors
    /// With file and line, if the file is not TOML, or has an unknown key or a value that the flag
    /// would refuse.
    pub(super) fn read_file(&self, path: &Path, role: Option<&str>) -> Result<Vec<ConfigValue>, Failure> {
        let name = path.display().to_string();
        let text = read_text(path).map_err(|why| {
            let hint = "it is named by --config or GRISTMILL_CONFIG";
            Failure::usage(format_args!("cannot read the configuration file {name}: {why} (hint: {hint})"))
        })?;
        self.parse(&name, &text, role).map_err(Failure::usage)
    }

    fn parse(&self, name: &str, text: &str, role: Option<&str>) -> Result<Vec<ConfigValue>, String> {
        let file = NamedText { name, text };
        let table = DeTable::parse(text).map_err(|error| {
            let span = error.span().unwrap_or_default();
            file.locate(
                span,
                &format!("{} (hint: expected TOML, `slots = 8`)", error.message().replace('\n', ", ")),
            )
        })?;
        let (mut for_all, mut for_role) = (Vec::new(), Vec::new());
        for (key, value) in table.get_ref() {
            let is_role = self.roles.iter().any(|role| role.as_str() == key.get_ref());
            match value.get_ref() {
                DeValue::Table(own) if is_role => {
                    for (own_key, value) in own {
                        let value = self.parse_setting(&file, Some(key.get_ref()), own_key, value)?;
                        for_role.extend((role == Some(key.get_ref())).then_some(value));
                    }
                }
                other if is_role => {
                    let (role, found) = (key.get_ref(), other.type_str());
                    let why = format!("`{role}` is of type {found}, expected a table (hint: [{role}])");
                    return Err(file.locate(key.span(), &why));
                }
                DeValue::Table(_) => return Err(file.locate(key.span(), &self.unknown_table(key.get_ref()))),
                _ => for_all.push(self.parse_setting(&file, None, key, value)?),
            }
        }
        for_all.retain(|value| for_role.iter().all(|own| own.key != value.key));
        Ok([for_all, for_role].concat())
    }

    /// Parses one setting of the file.
    fn parse_setting(
        &self,
        file: &NamedText<'_>,
        table: Option<&str>,
        key: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<ConfigValue, String> {
        let locate_error = |why: String| file.locate(key.span(), &why);
        let name: &str = key.get_ref();
        let setting = self.find(name).ok_or_else(|| locate_error(self.unknown_key(table, name)))?;
        if let Some(role) = table.filter(|role| !setting.applies_to(role)) {
            let roles = setting.roles.join(", ");
            return Err(locate_error(format!(
                "`{role}` has no setting `{name}` (hint: it is one of {roles})"
            )));
        }
        let value = value_text(setting, value.get_ref()).map_err(locate_error)?;
        setting.check(&value).map_err(locate_error)?;
        let origin = format!("{}:{}", file.name, file.line_number(&key.span()));
        Ok(ConfigValue { key: name.into(), value, origin })
    }

    fn unknown_table(&self, name: &str) -> String {
        let roles = self.roles.join(", ");
        let near = nearest_name(self.roles.iter().map(String::as_str), name);
        let near = near.map(|near| format!("; did you mean `[{near}]`?")).unwrap_or_default();
        format!("unknown table `[{name}]`{near} (hint: a table is for one command: {roles})")
    }

    fn unknown_key(&self, table: Option<&str>, name: &str) -> String {
        let is_there = |setting: &&Setting| table.is_none_or(|role| setting.applies_to(role));
        let keys = self.all.iter().filter(is_there).map(|setting| setting.key.as_str());
        let tables = self.roles.iter().filter(|_| table.is_none()).map(String::as_str);
        let known: Vec<_> = keys.chain(tables).collect();
        match nearest_name(known.iter().copied(), name) {
            Some(near) => {
                format!("unknown key `{name}`; did you mean `{near}`? (hint: --help lists them)")
            }
            None => format!("unknown key `{name}` (hint: known are {})", known.join(", ")),
        }
    }
}

/// Returns a value as the command line would write it.
fn value_text(setting: &Setting, value: &DeValue<'_>) -> Result<String, String> {
    let (key, found) = (&setting.key, value.type_str());
    match value {
        DeValue::Boolean(on) if setting.is_switch() => Ok(on.to_string()),
        _ if setting.is_switch() => Err(format!("`{key}` is {found}, expected true or false")),
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => {
            let number = i128::from_str_radix(number.as_str(), number.radix());
            number.map(|number| number.to_string()).map_err(|why| format!("`{key}`: {why}"))
        }
        DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => Err(format!("`{key}` is of type {found}, expected a string or an integer")),
    }
}

/// A text with its name, for error messages.
struct NamedText<'a> {
    name: &'a str,
    text: &'a str,
}

impl NamedText<'_> {
    fn line_number(&self, span: &Range<usize>) -> usize {
        let before = self.text.as_bytes().iter().take(span.start);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    fn locate(&self, span: Range<usize>, why: &str) -> String {
        format!("{}:{}: {why}", self.name, self.line_number(&span))
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, arg};

    use super::*;

    fn settings() -> Settings {
        let slots = arg!(--slots <N>).env("T_SLOTS").value_parser(clap::value_parser!(u16).range(1..));
        let lane = || arg!(--lane <LANE>).env("T_LANE");
        let adopt = arg!(--adopt).env("T_ADOPT");
        let worker = Command::new("worker").args([lane(), slots, arg!(--once)]);
        let sink = Command::new("sink").args([lane(), adopt]);
        Settings::from_command(
            &Command::new("all").arg(arg!(--log <FILTER>).env("T_LOG")).subcommands([worker, sink]),
        )
    }

    fn parse(text: &str, role: &str) -> Result<Vec<(String, String, String)>, String> {
        let values = settings().parse("f.toml", text, Some(role))?;
        Ok(values.into_iter().map(|value| (value.key, value.value, value.origin)).collect())
    }

    #[test]
    fn role_table_precedes_top_level() {
        let text = "log = \"info\"\nlane = \"day\"\n\n[worker]\nlane = \"night\"\nslots = 0x10\n[sink]\nadopt = true\n";
        let expected =
            |key: &str, value: &str, line: u8| (key.into(), value.into(), format!("f.toml:{line}"));
        let mut worker = parse(text, "worker").unwrap();
        worker.sort();
        assert_eq!(
            worker,
            [expected("lane", "night", 5), expected("log", "info", 1), expected("slots", "16", 6)]
        );
        let mut sink = parse(text, "sink").unwrap();
        sink.sort();
        assert_eq!(
            sink,
            [expected("adopt", "true", 8), expected("lane", "day", 2), expected("log", "info", 1)]
        );
    }

    #[test]
    fn errors_name_their_line() {
        for (text, parts) in [
            ("\nslot = 8", ["f.toml:2: unknown key `slot`", "did you mean `slots`?"]),
            ("once = true", ["unknown key `once`", "known are lane, slots"]), // which has no variable
            ("[wroker]\nslots = 8", ["f.toml:1: unknown table `[wroker]`", "did you mean `[worker]`?"]),
            ("[slots]\nslots = 8", ["f.toml:1: unknown table `[slots]`", "one command: worker, sink"]),
            ("wrker = 8", ["f.toml:1: unknown key `wrker`", "did you mean `worker`?"]),
            ("[sink]\nslots = 8", ["f.toml:2: `sink` has no setting `slots`", "one of worker"]),
            ("worker = 3", ["`worker` is of type integer", "expected a table (hint: [worker])"]),
            ("slots = [1]", ["`slots` is of type array", "expected a string or an integer"]),
            ("slots = 0", ["f.toml:1: invalid value '0' for '--slots <N>'", "1.."]),
            ("slots = \"many\"", ["invalid value 'many'", "--slots"]),
            ("adopt = \"yes\"", ["`adopt` is string", "expected true or false"]),
            ("lane = \"a\"\nlane = \"b\"", ["f.toml:2: duplicate key", "hint: "]),
            ("a b", ["f.toml:1: ", "expected TOML"]),
        ] {
            let error = parse(text, "worker").unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{text:?}: {part:?} is missing: {error}");
            }
        }
    }
}
