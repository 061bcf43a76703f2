//! Commits: all or nothing, and for ever.

use std::collections::{BTreeMap, BTreeSet};

use gristmill_shared::{Conclusion, JobId, Lane, LedgerId, wire::BuildShare};

use super::{
    Store,
    samples::{Check, SampleJob, WHOLE_PAGE, equal, every_part, failure, holds, kept, message, observe, raw},
};
use crate::{Changes, JobChange, JobEnd, JobKey, JobState, LedgerError, OutboxTarget, PruneRule, StoredJob};

/// The most steps after which a commit is stopped. A commit of the suite takes fewer.
const STEPS_MAX: u64 = 1 << 20;
/// Commits of the random history.
const HISTORY_COMMITS: u64 = 40;

/// Every part of a commit is there, also after a restart.
pub(super) fn commit_stores_every_part(store: &dyn Store) -> Check {
    let (mut ledger, mut job, report) = (store.open()?, SampleJob::new(true), raw("[1,2]"));
    let stranger = JobId::generate();
    ledger.commit(&every_part(&mut job, &report, stranger))?;
    let before = observe(&mut *ledger, &[job.id(), stranger])?;
    let mut ledger = store.reopen(ledger)?;
    equal("what a restart reads", &observe(&mut *ledger, &[job.id(), stranger])?, &before)?;

    let StoredJob { key, record, builds } = ledger.job(job.id())?.ok_or("the job is not there")?;
    equal("the counts", &record.counts, &job.record.counts)?;
    equal("outcomes of a build", &(builds.len(), builds.first().map(|share| share.counted)), &(1, Some(7)))?;
    let outcomes = ledger.outcomes(key)?;
    equal("tasks done", &outcomes.done.ranges().collect::<Vec<_>>(), &vec![0..5, 70_000..70_002])?;
    equal(
        "tasks refused",
        &outcomes.refused.ranges().collect::<Vec<_>>(),
        &std::iter::once(9..11).collect(),
    )?;
    equal("tasks failed", &outcomes.failed, &BTreeSet::from([6, 8]))?;
    let reasons = ledger.reasons(key, 1)?;
    equal("the first reason", &reasons, &vec![(6, "it failed".into())])?;
    let found = ledger.report(key)?.map(|report| report.get().to_owned());
    equal("the report", &found, &Some("[1,2]".into()))?;
    let payloads: Vec<_> = ledger
        .failed_tasks(key, &BTreeSet::new(), WHOLE_PAGE)?
        .into_iter()
        .map(|task| task.payload)
        .collect();
    equal("payloads", &payloads, &vec![r#"{"task":7}"#.to_owned(); 2])?;
    let firsts: Vec<_> =
        ledger.kept_outputs(key, 0, WHOLE_PAGE)?.into_iter().map(|kept| kept.first).collect();
    equal("kept outputs", &firsts, &vec![0, 70_000])?;
    equal("running jobs", &ledger.running(&Lane::default())?.len(), &1)?;
    let bodies: Vec<_> = ledger.parked(stranger)?.into_iter().map(|message| message.body.to_vec()).collect();
    equal("parked messages", &bodies, &vec![b"first".to_vec(), b"second".to_vec()])?;
    let state = ledger.outbox_state()?;
    equal("outbox rows", &state.rows, &3)?;
    equal("lanes of the outbox", &state.lanes, &vec![Lane::new("night")?])?;

    // The second commit replaces, adds and deletes.
    let settled = ledger.outbox(OutboxTarget::Journal, 0, WHOLE_PAGE)?[0].row;
    job.key = Some(key);
    job.add_done(6, 1);
    let longer = raw("[1,2,3]");
    let change = JobChange {
        failures: vec![(6, None)],
        outputs: vec![kept(6, &["6"])],
        report: Some(&longer),
        builds: vec![BuildShare { version: 3, build: None, counted: 1, refused: 0 }],
        ..job.change()
    };
    let changes = Changes {
        jobs: vec![change],
        unparked: vec![stranger],
        settled: vec![settled],
        ..Changes::default()
    };
    equal("keys", &ledger.commit(&changes)?.keys, &vec![key])?;
    drop(changes);
    let mut ledger = store.reopen(ledger)?;
    let outcomes = ledger.outcomes(key)?;
    equal("tasks done", &outcomes.done.len(), &8)?;
    equal("tasks failed", &outcomes.failed, &BTreeSet::from([8]))?;
    let found = ledger.report(key)?.map(|report| report.get().to_owned());
    equal("the report", &found, &Some("[1,2,3]".into()))?;
    let builds = ledger.job(job.id())?.ok_or("the job is not there")?.builds;
    equal("outcomes of a build", &builds.first().map(|share| (share.counted, share.refused)), &Some((8, 2)))?;
    equal("parked messages", &ledger.parked(stranger)?.len(), &0)?;
    equal("outbox rows", &ledger.outbox_state()?.rows, &2)
}

/// A commit that is stopped at any step, as by a crash, leaves nothing behind.
pub(super) fn stopped_commit_changes_nothing(store: &dyn Store) -> Check {
    let (mut ledger, mut old, report) = (store.open()?, SampleJob::new(true), raw("[1,2]"));
    let stranger = JobId::generate();
    ledger.commit(&every_part(&mut old, &report, stranger))?;
    let mut ledger = store.reopen(ledger)?;
    let settled = ledger.outbox(OutboxTarget::Journal, 0, WHOLE_PAGE)?[0].row;
    let (mut steps, mut stops) = (1, 0);
    loop {
        let mut job = SampleJob::new(true);
        let ids = [old.id(), stranger, job.id()];
        let before = observe(&mut *ledger, &ids)?;
        store.fail_after(Some(steps));
        let mut changes = every_part(&mut job, &report, stranger);
        changes.settled = vec![settled];
        let committed = ledger.commit(&changes);
        store.fail_after(None);
        drop(changes);
        ledger = store.reopen(ledger)?;
        let after = observe(&mut *ledger, &ids)?;
        if committed.is_ok() {
            holds(after != before, "a commit that succeeded changed nothing")?;
            return holds(stops > 2, format!("only {stops} commits could be stopped"));
        }
        equal(&format!("what a restart reads after {steps} steps"), &after, &before)?;
        (stops, steps) = (stops + 1, steps + 1 + steps / 8);
        holds(steps < STEPS_MAX, format!("the commit takes too many steps, or: {committed:?}"))?;
    }
}

/// A commit for which there is no room fails as a whole, and succeeds once there is room.
pub(super) fn full_store_changes_nothing(store: &dyn Store) -> Check {
    let (mut ledger, mut old, report) = (store.open()?, SampleJob::new(true), raw("[1,2]"));
    ledger.commit(&every_part(&mut old, &report, JobId::generate()))?;
    store.set_full(true);
    let mut ledger = store.reopen(ledger)?;
    let mut job = SampleJob::new(true);
    let before = observe(&mut *ledger, &[old.id(), job.id()])?;
    let large = format!("\"{}\"", "x".repeat(4 << 20));
    let outbox = vec![(OutboxTarget::Journal, Lane::default(), message("", b"fact"))];
    let change = JobChange { outputs: vec![kept(0, &[&large])], ..job.change() };
    let changes = Changes { jobs: vec![change], outbox, ..Changes::default() };
    holds(ledger.commit(&changes).is_err(), "a commit succeeded for which there is no room")?;
    store.set_full(false);
    let mut ledger = store.reopen(ledger)?;
    equal(
        "what a restart reads",
        &observe(&mut *ledger, &[old.id(), changes.jobs[0].record.opened.job])?,
        &before,
    )?;
    ledger.commit(&changes)?;
    Ok(())
}

/// Random commits, each followed by a restart, leave what a simple model has.
pub(super) fn reload_equals_model(store: &dyn Store) -> Check {
    let mut random = Random(7);
    let mut ledger = store.open()?;
    let mut jobs: Vec<(SampleJob, BTreeMap<u64, String>, Option<String>)> = Vec::new();
    for commit in 0..HISTORY_COMMITS {
        if jobs.is_empty() || random.below(5) == 0 {
            jobs.push((SampleJob::new(false), BTreeMap::new(), None));
        }
        let place = usize::try_from(random.below(jobs.len() as u64))?;
        let (job, failures, report) = &mut jobs[place];
        job.add_done(random.below(200_000), 1 + random.below(500));
        let (failed, reason) = (random.below(20), format!("failure {commit}"));
        let new_report = (random.below(2) == 0).then(|| format!("[{commit}]"));
        let mut changed = vec![(failed, Some(failure(&reason)))];
        failures.insert(failed, reason);
        let removed = random.below(20);
        if removed != failed && failures.remove(&removed).is_some() {
            changed.push((removed, None));
        }
        let raw_report = new_report.as_deref().map(raw);
        let change = JobChange { failures: changed, report: raw_report.as_deref(), ..job.change() };
        let changes = Changes { jobs: vec![change], ..Changes::default() };
        let key = ledger.commit(&changes)?.keys[0];
        drop(changes);
        job.key = Some(key);
        *report = new_report.or(report.take());
        ledger = store.reopen(ledger)?;
        for (job, failures, report) in &jobs {
            let Some(key) = job.key else { continue }; // not committed yet
            let outcomes = ledger.outcomes(key)?;
            let (found, expected): (Vec<_>, Vec<_>) =
                (outcomes.done.ranges().collect(), job.done.ranges().collect());
            equal("tasks done", &found, &expected)?;
            let expected: Vec<_> = failures.iter().map(|(task, reason)| (*task, reason.clone())).collect();
            equal("failures", &ledger.reasons(key, usize::MAX >> 1)?, &expected)?;
            equal("the report", &ledger.report(key)?.map(|report| report.get().to_owned()), report)?;
        }
    }
    Ok(())
}

/// A job that was pruned cannot be written under its old key.
pub(super) fn pruned_job_cannot_be_written(store: &dyn Store) -> Check {
    let mut ledger = store.open()?;
    let Some(access) = store.access() else { return Ok(()) };
    let mut access = access?;
    let mut job = SampleJob::new(false);
    job.record.end = Some(ended());
    job.commit(&mut *ledger)?;
    equal("jobs pruned", &access.prune(PruneRule { older_than: None, keep: Some(0) })?.pruned, &1)?;
    job.add_done(0, 3);
    let changes = Changes { jobs: vec![job.change()], ..Changes::default() };
    holds(ledger.commit(&changes).is_err(), "a job was written that is pruned")?;
    drop(changes);
    let mut ledger = store.reopen(ledger)?;
    holds(ledger.job(job.id())?.is_none(), "the job is there again")
}

/// Neither the key of a pruned job nor the number of a settled row is used again.
pub(super) fn keys_and_rows_are_not_reused(store: &dyn Store) -> Check {
    let mut ledger = store.open()?;
    let Some(access) = store.access() else { return Ok(()) };
    let mut access = access?;
    let (mut keys, mut rows): (Vec<JobKey>, Vec<i64>) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let mut job = SampleJob::new(false);
        job.record.end = Some(ended());
        let outbox = vec![(OutboxTarget::Journal, Lane::default(), message("", b"fact")); 2];
        let changes = Changes { jobs: vec![job.change()], outbox, ..Changes::default() };
        keys.extend(ledger.commit(&changes)?.keys);
        let new: Vec<i64> =
            ledger.outbox(OutboxTarget::Journal, 0, WHOLE_PAGE)?.iter().map(|row| row.row).collect();
        equal("rows", &new.len(), &2)?;
        rows.extend(&new);
        ledger.commit(&Changes { settled: new, ..Changes::default() })?;
        access.prune(PruneRule { older_than: None, keep: Some(0) })?;
        ledger = store.reopen(ledger)?;
    }
    let distinct: BTreeSet<_> = keys.iter().collect();
    holds(distinct.len() == keys.len(), format!("keys of different jobs: {keys:?}"))?;
    holds(rows.windows(2).all(|pair| pair[0] < pair[1]), format!("rows of one target: {rows:?}"))
}

/// A second sink cannot open the ledger while a first one has it, and can afterwards.
pub(super) fn second_writer_is_refused(store: &dyn Store) -> Check {
    let ledger = store.open()?;
    if store.access().is_none() {
        return Ok(()); // nothing else can reach it
    }
    match store.open() {
        Err(LedgerError::Locked { .. }) => {}
        Err(error) => return Err(format!("a second writer is told {error}").into()),
        Ok(_) => return Err("a second writer has the ledger too".into()),
    }
    drop(ledger);
    drop(store.open()?);
    Ok(())
}

/// A ledger has an id of its own, and keeps it.
pub(super) fn id_is_kept(store: &dyn Store) -> Check {
    let ledger = store.open()?;
    let id: LedgerId = ledger.id().clone();
    let ledger = store.reopen(ledger)?;
    equal("the id after a restart", ledger.id(), &id)
}

pub(super) fn ended() -> JobEnd {
    JobEnd {
        state: JobState::Finished,
        stopped: None,
        skipped: 0,
        conclusion: Conclusion::no_answer("nothing"),
        at_ms: 1_000,
    }
}

/// A small generator of numbers, so that each run has the same history.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
