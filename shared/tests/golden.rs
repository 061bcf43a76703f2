//! Golden tests of the wire format against `docs/protocol.md`: its examples are the exact bytes,
//! and its tables of fields, queues and bounds are those of the code. A changed byte needs a change
//! of that page, which shows clients that may break.

#[path = "golden/page.rs"]
mod page;
#[path = "golden/values.rs"]
mod values;

use std::{collections::BTreeMap, fs, ops::ControlFlow};

use gristmill_shared::{
    BatchLimit, Headers, Job, JobError, Lane, Message, QueueRole, SplitDigest, TaskContext, TaskError,
    TaskIndex, erase,
    wire::{self, Batch, Event, Fact, PackedTasks, SinkMessage},
};
use page::{Page, PageTable};
use serde_json::{Value, json, value::RawValue};
use values::Golden;

/// Fields whose content belongs to the kind, or has one of several shapes. The tests do not descend
/// into them.
const OPAQUE_FIELDS: [&str; 5] = ["spec", "tasks", "outputs", "task", "fail_fast"];

#[test]
fn every_type_has_an_example() {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/wire");
    let mut in_source = BTreeMap::new();
    let mut by_hand = 0;
    for file in fs::read_dir(source).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        by_hand += text.matches("WireMessage for ").count();
        for declared in text.split("wire_message!(").skip(1) {
            let (of, form) = declared.split_once(", \"").unwrap();
            in_source.insert(form.split('"').next().unwrap().to_owned(), of.to_owned());
        }
    }
    assert_eq!(
        by_hand, 2,
        "only the two arms of the macro `wire_message!` may implement WireMessage, or this test misses one"
    );
    let here = values::all().into_iter().map(|golden| (golden.form.to_owned(), golden.type_name.to_owned()));
    assert_eq!(here.collect::<BTreeMap<_, _>>(), in_source);
    let on_page: Vec<_> = Page::read().examples.into_keys().collect();
    assert_eq!(on_page, in_source.into_keys().collect::<Vec<_>>());
}

#[test]
fn examples_are_exact_both_ways() {
    let page = Page::read();
    for golden in values::all() {
        let example = &page.examples[golden.form];
        assert_eq!(golden.body, *example, "{} is encoded otherwise than on the page", golden.form);
        assert_eq!(golden.recode(example).as_ref(), Ok(example), "{} comes back otherwise", golden.form);
    }
}

/// Unknown fields are ignored on every level, and the order of fields does not matter.
#[test]
fn unknown_fields_are_ignored() {
    fn extend(value: &mut Value) -> u32 {
        match value {
            Value::Object(fields) => {
                let inner = fields.iter_mut().filter(|(key, _)| !OPAQUE_FIELDS.contains(&key.as_str()));
                let extended = inner.map(|(_, field)| extend(field)).sum::<u32>();
                fields.insert("a_later_field".into(), json!({"first": [1, null]}));
                extended + 1
            }
            Value::Array(values) => values.iter_mut().map(extend).sum(),
            _ => 0,
        }
    }
    let mut extended = 0;
    for golden in values::all() {
        let mut later = parse(&golden.body); // which also sorts its fields
        extended += extend(&mut later);
        assert_eq!(golden.recode(&later.to_string()), Ok(golden.body), "{}", golden.form);
    }
    assert!(extended > 20, "objects within objects are extended too, but only {extended} were");
}

/// The tables list every field, and the value that an absent one stands for.
#[test]
fn tables_list_fields_and_defaults() {
    let page = Page::read();
    for golden in values::all() {
        let example = parse(&golden.body);
        for (at, table) in objects(&page, &example, "", golden.form) {
            let object = example.pointer(&at).and_then(Value::as_object).unwrap();
            let described: Vec<_> = table.column(0).map(plain).collect();
            for field in object.keys() {
                assert!(
                    described.contains(&field.as_str()),
                    "{} does not describe {at}/{field}",
                    golden.form
                );
            }
            for field in described.iter().filter(|field| !object.contains_key(**field)) {
                // The field has its default in the example, which is left out. A type that does not
                // know the field ignores every value.
                let known = ["\"?\"", "7", "[7]"].iter().any(|value| {
                    let mut changed = example.clone();
                    let object = changed.pointer_mut(&at).and_then(Value::as_object_mut).unwrap();
                    object.insert((*field).to_owned(), parse(value));
                    golden.recode(&changed.to_string()) != golden.recode(&golden.body)
                });
                assert!(known, "{}: no {at}/{field} is read", golden.form);
            }
            for (field, default) in table.column(0).map(plain).zip(table.column(2)) {
                // The example lacks optional fields, whose default need not be a value.
                if !object.contains_key(field) {
                    assert_ne!(default, "—", "{}: {at}/{field} is not in the example", golden.form);
                    if !default.starts_with('`') {
                        continue;
                    }
                }
                let change = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
                    let mut changed = example.clone();
                    change(changed.pointer_mut(&at).and_then(Value::as_object_mut).unwrap());
                    golden.recode(&changed.to_string())
                };
                let absent = change(&|object| drop(object.remove(field)));
                if default == "—" {
                    assert!(absent.is_err(), "{}: {at}/{field} is not needed", golden.form);
                } else {
                    let explicit = change(&|object| drop(object.insert(field.into(), parse(plain(default)))));
                    assert!(absent.is_ok(), "{}: {at}/{field} is needed: {absent:?}", golden.form);
                    assert_eq!(absent, explicit, "{}: {at}/{field} absent is not {default}", golden.form);
                }
            }
        }
    }
}

/// Returns the paths of an example's objects, each with the table that describes it.
fn objects<'a>(page: &'a Page, value: &Value, at: &str, name: &str) -> Vec<(String, &'a PageTable)> {
    match value {
        Value::Object(fields) => {
            let mut found = vec![(at.to_owned(), page.table(name))];
            for (key, field) in fields.iter().filter(|(key, _)| !OPAQUE_FIELDS.contains(&key.as_str())) {
                found.extend(objects(page, field, &format!("{at}/{key}"), key));
            }
            found
        }
        Value::Array(values) => (0..)
            .zip(values)
            .flat_map(|(index, value): (usize, _)| objects(page, value, &format!("{at}/{index}"), name))
            .collect(),
        _ => Vec::new(),
    }
}

/// A body of another type or version is refused, and a compressed one as well.
#[test]
fn other_types_and_versions_are_refused() {
    for golden in values::all() {
        let message = golden.message(&golden.body);
        assert!((golden.recode)(&message).is_ok());
        let next = Message { form: golden.form.replace(".v1", ".v2"), ..message.clone() };
        let packed = Message { content_encoding: "zstd".into(), ..message };
        for other in [next, packed] {
            assert!((golden.recode)(&other).is_err(), "{}", golden.form);
            assert!(SinkMessage::decode(&other).is_err(), "{}", golden.form);
            assert!(Fact::decode(&other).is_err(), "{}", golden.form);
            assert!(Event::decode(&other).is_err(), "{}", golden.form);
        }
    }
}

#[test]
fn types_are_read_where_documented() {
    let page = Page::read();
    let forms = page.table("Forms");
    let travels: BTreeMap<_, _> = forms.column(0).map(plain).zip(forms.column(1)).collect();
    for golden in values::all() {
        let message = golden.message(&golden.body);
        let read = [
            ("work queues", wire::decode::<Batch<'_>>(&message).is_ok()),
            ("`results`", SinkMessage::decode(&message).is_ok()),
            ("journal", Fact::decode(&message).is_ok()),
            ("events", Event::decode(&message).is_ok()),
        ];
        let places: Vec<_> = read.iter().filter(|(_, read)| *read).map(|(place, _)| *place).collect();
        assert_eq!(travels.get(golden.form).copied(), Some(places.join(", ").as_str()), "{}", golden.form);
    }
    assert_eq!(travels.len(), values::all().len());
}

/// A batch's id has its indices, round and attempt.
#[test]
fn batch_id_matches_the_page() {
    let message = values::batch().to_message(Headers { attempt: 1, ..Headers::default() }, "app");
    assert_eq!(message.id, Page::read().texts["id of gristmill.batch.v1"]);
    assert_eq!(message.headers.attempt, 1);
}

#[test]
fn digest_matches_the_page() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct VerbatimJob(#[serde(skip)] Vec<Box<RawValue>>);
    impl Job for VerbatimJob {
        const KIND: &'static str = "as-it-is";
        type Task = Box<RawValue>;
        type Output = ();
        type Report = ();
        fn split(&self) -> impl Iterator<Item = Result<Box<RawValue>, JobError>> + Send {
            self.0.iter().cloned().map(Ok)
        }
        fn process(&self, _: Box<RawValue>, _: &TaskContext) -> Result<(), TaskError> {
            Ok(())
        }
        fn collect(&self, (): &mut (), _: TaskIndex, (): ()) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
    }
    /// Returns the digest of the tasks from index `from` on alone.
    fn digest(tasks: &[Box<RawValue>], from: u64) -> String {
        let (mut packed, mut digest) = (PackedTasks::default(), SplitDigest::default());
        let job = erase(VerbatimJob(tasks.to_vec()));
        let limit = BatchLimit { tasks: u32::MAX, bytes: usize::MAX };
        job.split_from(TaskIndex(from)).unwrap().split_into(&mut packed, &mut digest, limit).unwrap();
        digest.to_string()
    }

    let page = Page::read();
    let (tasks, sum) = page.texts["digest"].rsplit_once('\n').unwrap();
    let (tasks, hashes): (Vec<_>, Vec<_>) = tasks.lines().map(|line| line.rsplit_once(' ').unwrap()).unzip();
    let tasks: Vec<_> = tasks.iter().map(|task| RawValue::from_string((*task).into()).unwrap()).collect();
    assert_eq!(digest(&tasks, 0), sum);
    assert_eq!(digest(&[], 0), "xxh3:0000000000000000");
    assert!(page.examples["gristmill.sealed.v1"].contains(sum), "the example of a seal has another digest");
    for index in 0..tasks.len() {
        let alone = digest(&tasks[..=index], index as u64);
        assert_eq!(alone, format!("xxh3:{}", hashes[index]), "task {index}");
    }
}

#[test]
fn queues_match_the_code() {
    let page = Page::read();
    let queues = page.table("Queues");
    let mut described: Vec<_> = queues.column(0).map(|name| plain(name).to_owned()).collect();
    let cells = queues.column(3).zip(queues.column(4));
    for (name, (full, moves)) in described.iter().zip(cells) {
        let is =
            |role: &QueueRole| role.of(&Lane::default()).to_string() == format!("gristmill.default.{name}");
        let role = QueueRole::ALL.into_iter().find(is);
        let spec = role.unwrap_or_else(|| panic!("there is no queue {name}")).spec();
        let limits = [
            spec.max_messages.map(|it| format!("{it} messages")),
            spec.max_bytes.map(|it| format!("{it} bytes")),
        ];
        assert_eq!(full, limits.into_iter().flatten().collect::<Vec<_>>().join(" or "), "{name}");
        let delay = spec.delay.map(|(after, to)| (after.as_millis(), to));
        assert_eq!(delay.is_some(), !moves.is_empty(), "{name}");
        if let Some((after, to)) = delay {
            assert_eq!(
                (moves, to),
                (format!("to `again` after {after} ms").as_str(), QueueRole::Requeued),
                "{name}"
            );
        }
    }
    described.sort();
    described.dedup();
    assert_eq!(described.len(), QueueRole::ALL.len());
}

#[test]
fn bounds_match_the_code() {
    let page = Page::read();
    let bounds = page.table("Bounds");
    let described: Vec<_> =
        bounds.column(0).zip(bounds.column(1)).filter(|(name, _)| *name != "message").collect();
    let ours = [
        ("spec", wire::SPEC_MAX_BYTES),
        ("task", wire::TASK_MAX_BYTES),
        ("output", wire::OUTPUT_MAX_BYTES),
        ("reason", wire::REASON_MAX_BYTES),
        ("batch tasks", wire::BATCH_MAX_TASKS as usize),
        ("batch bytes", wire::BATCH_MAX_BYTES),
        ("results bytes", wire::RESULTS_MESSAGE_BYTES),
    ];
    let ours: Vec<_> = ours.into_iter().map(|(name, bound)| (name, bound.to_string())).collect();
    assert_eq!(described, ours.iter().map(|(name, bound)| (*name, bound.as_str())).collect::<Vec<_>>());
}

impl Golden {
    fn message(&self, body: &str) -> Message {
        Message { form: self.form.into(), body: body.to_owned().into(), ..Message::default() }
    }

    /// Decodes a body and encodes it again.
    fn recode(&self, body: &str) -> Result<String, wire::Malformed> {
        (self.recode)(&self.message(body))
    }
}

fn parse(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

/// Returns the text of a cell without its code marks.
fn plain(cell: &str) -> &str {
    cell.trim_matches('`')
}
