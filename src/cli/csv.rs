//! JSON values as rows of a table, in CSV (RFC 4180).

use std::{collections::HashMap, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The most columns that one kind of value has: more than people read, and a row of them is still
/// small.
const CSV_MAX_COLUMNS: usize = 1_000;

/// The columns of values that are shown under one name: `output` for plain values, `output.FIELD`
/// for the fields of objects, `output.0` for the elements of arrays.
#[derive(Debug)]
pub(crate) struct Columns {
    name: &'static str,
    names: Vec<String>,
    places: HashMap<String, usize>,
    /// There are too many: each value stands in one column, as JSON.
    whole: bool,
}

impl Columns {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, names: Vec::new(), places: HashMap::new(), whole: false }
    }

    /// Makes columns for what this value needs and has none yet, in that order.
    pub(crate) fn learn(&mut self, value: &RawValue) {
        if self.whole {
            return;
        }
        for (column, _) in parts(self.name, value) {
            if !self.places.contains_key(&column) {
                self.places.insert(column.clone(), self.names.len());
                self.names.push(column);
            }
        }
        if self.names.len() > CSV_MAX_COLUMNS {
            *self = Self { names: vec![self.name.into()], whole: true, ..Self::new(self.name) };
        }
    }

    /// The cells of the first line.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.names.iter().map(|name| quoted(name))
    }

    /// The cells of a value; a column that it does not have is empty.
    pub(crate) fn cells(&self, value: Option<&RawValue>) -> Vec<String> {
        let mut cells = vec![String::new(); self.names.len()];
        match value {
            None => {}
            Some(value) if self.whole => cells[0] = quoted(value.get()),
            Some(value) => {
                for (column, part) in parts(self.name, value) {
                    if let Some(place) = self.places.get(&column) {
                        cells[*place] = cell(part);
                    }
                }
            }
        }
        cells
    }
}

/// The parts of a value that stand in columns of their own, with those columns' names.
fn parts<'a>(name: &str, value: &'a RawValue) -> Vec<(String, &'a RawValue)> {
    let json = value.get();
    match json.as_bytes().first() {
        Some(b'{') => {
            let Ok(Fields(fields)) = serde_json::from_str::<Fields<'a>>(json) else { return Vec::new() };
            fields.into_iter().map(|(field, value)| (format!("{name}.{field}"), value)).collect()
        }
        Some(b'[') => {
            let Ok(elements) = serde_json::from_str::<Vec<&RawValue>>(json) else { return Vec::new() };
            (0..).zip(elements).map(|(place, value): (usize, _)| (format!("{name}.{place}"), value)).collect()
        }
        _ => vec![(name.into(), value)],
    }
}

/// The fields of an object in their order, each value as it was written: a number keeps its digits.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
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
        deserializer.deserialize_map(Object).map(Self)
    }
}

/// A text as it is, null as nothing, all else as JSON. A text that is empty has quotes, unlike
/// null.
fn cell(value: &RawValue) -> String {
    match value.get() {
        "null" => String::new(),
        json if json.starts_with('"') => match serde_json::from_str::<String>(json) {
            Ok(text) if text.is_empty() => "\"\"".into(),
            Ok(text) => quoted(&text),
            Err(_) => quoted(json), // half of a surrogate pair, which is no text in UTF-8
        },
        json => quoted(json),
    }
}

/// In quotes if the format needs them.
fn quoted(text: &str) -> String {
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
        let mut columns = Columns::new("output");
        values.iter().for_each(|value| columns.learn(&raw(value)));
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
    fn what_needs_quotes_has_them() {
        let rows = table(&[r#""a,b""#, r#""say \"a\"""#, r#""two\r\nlines""#, r#""\ud800""#]);
        assert_eq!(rows[1..], ["\"a,b\"", "\"say \"\"a\"\"\"", "\"two\r\nlines\"", "\"\"\"\\ud800\"\"\""]);
    }

    #[test]
    fn objects_and_arrays_are_flattened_one_level() {
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
