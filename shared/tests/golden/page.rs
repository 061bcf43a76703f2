//! The parts of `docs/protocol.md` and `docs/protocol-amqp.md` that the tests need: their examples,
//! tables and texts.

use std::{collections::BTreeMap, fs};

const PROTOCOL_PATHS: [&str; 2] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol-amqp.md"),
];

/// The parsed pages.
#[derive(Default)]
pub(crate) struct Page {
    /// The one line of each block that begins with "```json NAME".
    pub(crate) examples: BTreeMap<String, String>,
    /// The lines of each block that begins with "```text NAME".
    pub(crate) texts: BTreeMap<String, String>,
    tables: BTreeMap<String, PageTable>,
}

/// The rows of the only table under a heading, without its head.
#[derive(Default)]
pub(crate) struct PageTable(Vec<Vec<String>>);

impl PageTable {
    pub(crate) fn column(&self, number: usize) -> impl Iterator<Item = &str> {
        self.0.iter().map(move |row| row[number].as_str())
    }
}

impl Page {
    pub(crate) fn read() -> Self {
        let text = PROTOCOL_PATHS.map(|path| fs::read_to_string(path).unwrap()).concat();
        let mut page = Self::default();
        let mut heading = String::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(info) = line.strip_prefix("```") {
                let block: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
                page.take_block(info, &block);
            } else if line.starts_with('#') {
                heading = line.trim_matches(['#', ' ', '`']).to_owned();
            } else if let Some(row) = line.strip_prefix("| ") {
                let cells = row.trim_end_matches('|').split(" |").map(|cell| cell.trim().to_owned());
                page.tables.entry(heading.clone()).or_default().0.push(cells.collect());
            } else if line.starts_with("|---") {
                page.tables.entry(heading.clone()).or_default().0.clear(); // that was the head
            }
        }
        page
    }

    fn take_block(&mut self, info: &str, block: &[&str]) {
        let before = match info.split_once(' ') {
            Some(("json", name)) => {
                let [line] = block else { panic!("the example {name} has {} lines, not one", block.len()) };
                self.examples.insert(name.into(), (*line).into())
            }
            Some(("text", name)) => self.texts.insert(name.into(), block.join("\n")),
            _ => None,
        };
        assert_eq!(before, None, "there are two blocks {info}");
    }

    /// Returns the table under the heading with this name.
    pub(crate) fn table(&self, heading: &str) -> &PageTable {
        self.tables.get(heading).unwrap_or_else(|| panic!("the page has no table under {heading:?}"))
    }
}
