//! Bounds: what a ledger drops, and the largest values that it keeps.

use gristmill_shared::JobId;

use super::{
    Store,
    samples::{Check, SampleJob, WHOLE_PAGE, dead, equal, failure, holds, kept, message},
};
use crate::{
    Changes, DEAD_BODY_MAX_BYTES, DEAD_MAX_MESSAGES, JobChange, NUMBER_MAX, PARKED_MAX_BYTES,
    PARKED_MAX_MESSAGES, Seal,
};

/// The oldest parked messages go beyond the bounds of number and size, and are counted.
pub(super) fn parked_messages_are_bounded(store: &dyn Store) -> Check {
    let (mut ledger, job) = (store.open()?, JobId::generate());
    let number = PARKED_MAX_MESSAGES + 3;
    let parked = (0..number).map(|index| (job, message(&index.to_string(), b"x"))).collect();
    let committed = ledger.commit(&Changes { parked, ..Changes::default() })?;
    equal("messages dropped", &committed.parked_dropped, &3)?;
    let messages = ledger.parked(job)?;
    equal("messages kept", &(messages.len() as u64), &PARKED_MAX_MESSAGES)?;
    equal("the oldest message", &messages[0].id.as_str(), &"3")?;

    let body = vec![b'x'; usize::try_from(PARKED_MAX_BYTES / 4)?];
    let parked = (0..5).map(|index| (job, message(&format!("large {index}"), &body))).collect();
    ledger.commit(&Changes { parked, ..Changes::default() })?;
    let mut ledger = store.reopen(ledger)?;
    let ids: Vec<_> = ledger.parked(job)?.into_iter().map(|message| message.id).collect();
    equal("large messages kept", &ids, &(1..5).map(|index| format!("large {index}")).collect())
}

/// The oldest dead messages go beyond the bound; of each the beginning is kept.
pub(super) fn dead_messages_are_bounded(store: &dyn Store) -> Check {
    let mut ledger = store.open()?;
    let large = vec![b'x'; DEAD_BODY_MAX_BYTES + 10];
    let number = DEAD_MAX_MESSAGES + 3;
    let mut messages: Vec<_> = (0..number).map(|index| dead(&index.to_string(), b"x")).collect();
    messages.push(dead("large", &large));
    ledger.commit(&Changes { dead: messages, ..Changes::default() })?;
    let Some(access) = store.access() else { return Ok(()) };
    let found = access?.dead()?;
    equal("messages dropped", &found.dropped, &4)?;
    equal("messages kept", &(found.messages.len() as u64), &DEAD_MAX_MESSAGES)?;
    let newest = &found.messages[0];
    equal("the newest message", &newest.reason.as_str(), &"large")?;
    equal("its size", &newest.bytes, &(large.len() as u64))?;
    equal("what is kept of it", &newest.body.len(), &DEAD_BODY_MAX_BYTES)
}

/// The largest numbers, long outputs, and any text read back as they were.
pub(super) fn extreme_values_read_back(store: &dyn Store) -> Check {
    let (mut ledger, mut job) = (store.open()?, SampleJob::new(true));
    let text = "NUL \0, quotes '\", 4 bytes \u{1F980}, and a line\nbreak";
    let long = format!("\"{}\"", "x".repeat(1 << 20));
    job.done.insert(NUMBER_MAX - 1..NUMBER_MAX);
    job.record.seal = Some(Seal { total: NUMBER_MAX, digest: text.into() });
    job.record.counts.reached = NUMBER_MAX;
    let change = JobChange {
        failures: vec![(NUMBER_MAX - 2, Some(failure(text)))],
        outputs: vec![kept(NUMBER_MAX - 1, &[&long])],
        ..job.change()
    };
    let key = ledger.commit(&Changes { jobs: vec![change], ..Changes::default() })?.keys[0];
    let mut ledger = store.reopen(ledger)?;
    let record = ledger.job(job.id())?.ok_or("the job is not there")?.record;
    equal("the seal", &record.seal, &job.record.seal)?;
    equal("the counts", &record.counts, &job.record.counts)?;
    equal("the last task done", &ledger.outcomes(key)?.done.end(), &NUMBER_MAX)?;
    equal("the reason", &ledger.reasons(key, 9)?, &vec![(NUMBER_MAX - 2, text.into())])?;
    let outputs = ledger.kept_outputs(key, 0, WHOLE_PAGE)?;
    holds(outputs.len() == 1 && outputs[0].outputs == format!("[{long}]"), "a long output is another one")
}
