//! JSON values as rows of a CSV table (RFC 4180).

use std::{collections::HashMap, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The maximum number of columns of one kind of value: more than people read, while a row is still
/// small.
const CSV_MAX_COLUMNS: usize = 1_000;

/// The columns of the values with one name: `output` for plain values, `output.FIELD` for fields of
/// objects, `output.0` for elements of arrays.
#[derive(Debug)]
pub(crate) struct CsvColumns {
    name: &'static str,
    names: Vec<String>,
    positions: HashMap<String, usize>,
    /// True if there are too many columns: each value is one column, as JSON.
    as_json: bool,
}

impl CsvColumns {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, names: Vec::new(), positions: HashMap::new(), as_json: false }
    }

    /// Adds the columns that this value needs and that do not exist yet, in the order of the value.
    pub(crate) fn add_columns(&mut self, value: &RawValue) {
        if self.as_json {
            return;
        }
        for (column, _) in flatten(self.name, value) {
            if !self.positions.contains_key(&column) {
                self.positions.insert(column.clone(), self.names.len());
                self.names.push(column);
            }
        }
        if self.names.len() > CSV_MAX_COLUMNS {
            *self = Self { names: vec![self.name.into()], as_json: true, ..Self::new(self.name) };
        }
    }

    /// Returns the cells of the header line.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.names.iter().map(|name| quote(name))
    }

    /// Returns the cells of a value; columns that it does not have are empty.
    pub(crate) fn cells(&self, value: Option<&RawValue>) -> Vec<String> {
        let mut cells = vec![String::new(); self.names.len()];
        match value {
            None => {}
            Some(value) if self.as_json => cells[0] = quote(value.get()),
            Some(value) => {
                for (column, part) in flatten(self.name, value) {
                    if let Some(position) = self.positions.get(&column) {
                        cells[*position] = cell(part);
                    }
                }
            }
        }
        cells
    }
}

/// Splits a value into its columns, each with its name.
fn flatten<'a>(name: &str, value: &'a RawValue) -> Vec<(String, &'a RawValue)> {
    let json = value.get();
    match json.as_bytes().first() {
        Some(b'{') => {
            let Ok(JsonFields(fields)) = serde_json::from_str::<JsonFields<'a>>(json) else {
                return Vec::new();
            };
            fields.into_iter().map(|(field, value)| (format!("{name}.{field}"), value)).collect()
        }
        Some(b'[') => {
            let Ok(elements) = serde_json::from_str::<Vec<&RawValue>>(json) else { return Vec::new() };
            (0..)
                .zip(elements)
                .map(|(position, value): (usize, _)| (format!("{name}.{position}"), value))
                .collect()
        }
        _ => vec![(name.into(), value)],
    }
}

/// The fields of an object in their order. Values keep their JSON text: numbers keep their digits.
struct JsonFields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for JsonFields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(FieldsVisitor).map(Self)
    }
}

/// Returns a string as it is, null as nothing, any other value as JSON. An empty string is quoted,
/// unlike null.
fn cell(value: &RawValue) -> String {
    match value.get() {
        "null" => String::new(),
        json if json.starts_with('"') => match serde_json::from_str::<String>(json) {
            Ok(text) if text.is_empty() => "\"\"".into(),
            Ok(text) => quote(&text),
            Err(_) => quote(json), // a lone surrogate, which UTF-8 cannot encode
        },
        json => quote(json),
    }
}

/// Quotes the text if CSV requires it.
fn quote(text: &str) -> String {
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.into()).unwrap()
    }

    fn table(values: &[&str]) -> Vec<String> {
        let mut columns = CsvColumns::new("output");
        values.iter().for_each(|value| columns.add_columns(&raw(value)));
        let names = columns.names().collect::<Vec<_>>().join(",");
        let rows = values.iter().map(|value| columns.cells(Some(&raw(value))).join(","));
        [names].into_iter().chain(rows).collect()
    }

    #[test]
    fn plain_values_have_one_column() {
        let rows = table(&["7", "0.10", "true", "null", "\"\"", "\"a b\"", "18446744073709551616"]);
        assert_eq!(rows, ["output", "7", "0.10", "true", "", "\"\"", "a b", "18446744073709551616"]);
    }

    #[test]
    fn special_characters_are_quoted() {
        let rows = table(&[r#""a,b""#, r#""say \"a\"""#, r#""two\r\nlines""#, r#""\ud800""#]);
        assert_eq!(rows[1..], ["\"a,b\"", "\"say \"\"a\"\"\"", "\"two\r\nlines\"", "\"\"\"\\ud800\"\"\""]);
    }

    #[test]
    fn objects_flatten_one_level() {
        let rows = table(&[r#"{"n":1,"at":{"x":2}}"#, r#"{"n":3,"why, then":[4,5]}"#, "[6]", "8"]);
        assert_eq!(rows[0], "output.n,output.at,\"output.why, then\",output.0,output");
        assert_eq!(rows[1..], ["1,\"{\"\"x\"\":2}\",,,", "3,,\"[4,5]\",,", ",,,6,", ",,,,8"]);
    }

    #[test]
    fn too_many_columns_become_one() {
        let wide = format!("[{}]", vec!["1"; CSV_MAX_COLUMNS + 1].join(","));
        let rows = table(&["{\"n\":1}", &wide, "7"]);
        assert_eq!(
            (rows[0].as_str(), rows[1].as_str(), rows[3].as_str()),
            ("output", "\"{\"\"n\"\":1}\"", "7")
        );
        assert_eq!(table(&[&format!("[{}]", vec!["1"; CSV_MAX_COLUMNS].join(","))])[1].len(), 1_999);
    }
}
