//! Reading beside a writer, in pages, and pruning.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use gristmill_shared::Lane;

use super::{
    Store,
    commits::ended,
    samples::{Check, SampleJob, equal, failure, holds, kept, message},
};
use crate::{
    Changes, JobChange, JobParts, JobsAfter, LedgerAccess, OutboxTarget, OutputOrder, OutputsPage, PageBound,
    PruneRule,
};

/// Commits beside which a reader reads.
const CONCURRENT_COMMITS: u64 = 100;

/// A reader beside a writer sees each commit as a whole, and neither waits for the other for ever.
pub(super) fn readers_see_whole_commits(store: &dyn Store) -> Check {
    let (mut ledger, mut job) = (store.open()?, SampleJob::new(false));
    let Some(access) = store.access() else { return Ok(()) };
    let mut access = access?;
    job.commit(&mut *ledger)?;
    let (id, is_over) = (job.id(), AtomicBool::new(false));
    let (reads, written) = thread::scope(|scope| {
        let reading = scope.spawn(|| -> Result<u64, String> {
            let (mut reads, mut last) = (0, 0);
            while !is_over.load(Ordering::Relaxed) || reads == 0 {
                let read = access.job(id, JobParts::Proof).map_err(|error| error.to_string())?;
                let seen = read.ok_or("the job is gone")?;
                let (counted, found) = (seen.record.counts.done, seen.done.len());
                if counted != found || counted < last {
                    return Err(format!("{counted} tasks done are counted, {found} are there, after {last}"));
                }
                (reads, last) = (reads + 1, counted);
            }
            Ok(reads)
        });
        let written = (0..CONCURRENT_COMMITS).try_for_each(|commit| {
            job.add_done(commit * 3, 2);
            job.commit(&mut *ledger)
        });
        is_over.store(true, Ordering::Relaxed);
        (reading.join(), written.map_err(|error| error.to_string()))
    });
    written?;
    let reads = reads.map_err(|_| "the reader panicked")??;
    holds(reads > 0, "the reader read nothing")?;
    let seen = access.job(id, JobParts::Proof)?.ok_or("the job is gone")?;
    equal("tasks done at the end", &seen.done.len(), &(2 * CONCURRENT_COMMITS))
}

/// Pages have every row once, in order, and none that came later.
pub(super) fn pages_have_every_row_once(store: &dyn Store) -> Check {
    let mut ledger = store.open()?;
    let Some(access) = store.access() else { return Ok(()) };
    let mut access = access?;
    let mut jobs: Vec<SampleJob> = (0..7).map(|_| SampleJob::new(true)).collect();
    for (place, job) in jobs.iter_mut().enumerate() {
        job.record.opened.submitted_ms += place as u64 / 2; // some at the same time
        job.commit(&mut *ledger)?;
    }
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = access.jobs(after, 2)?;
        let Some(last) = page.last() else { break };
        after = Some(JobsAfter { submitted_ms: last.opened.submitted_ms, job: last.opened.job });
        listed.extend(page.iter().map(|record| (record.opened.submitted_ms, record.opened.job)));
    }
    let mut expected: Vec<_> = jobs.iter().map(|job| (job.record.opened.submitted_ms, job.id())).collect();
    expected.sort_by_key(|(submitted_ms, job)| (*submitted_ms, job.to_string()));
    expected.reverse();
    equal("jobs, the newest first", &listed, &expected)?;

    let (firsts, failed) = ([20_u64, 0, 10, 40, 30], [5_u64, 1, 9, 7]);
    let job = &mut jobs[0];
    let change = JobChange {
        outputs: firsts.iter().map(|first| kept(*first, &["1", "2"])).collect(),
        failures: failed.iter().map(|task| (*task, Some(failure("it failed")))).collect(),
        ..job.change()
    };
    let key = ledger.commit(&Changes { jobs: vec![change], ..Changes::default() })?.keys[0];
    let snapshot = access.job(job.id(), JobParts::Record)?.ok_or("the job is not there")?;
    let later = JobChange { outputs: vec![kept(25, &["3"])], ..job.change() };
    ledger.commit(&Changes { jobs: vec![later], ..Changes::default() })?;

    let split = firsts.iter().copied().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
    for (order, expected) in [(OutputOrder::Split, split), (OutputOrder::Arrival, firsts.to_vec())] {
        let page = OutputsPage {
            order,
            after: None,
            last_output: snapshot.last_output,
            bound: PageBound { rows: 2, bytes: usize::MAX },
        };
        equal("kept outputs", &all_outputs(&mut *access, key, page)?, &expected)?;
    }
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = access.failures(key, after, 3)?;
        let Some(last) = page.last() else { break };
        after = Some(last.index.0);
        listed.extend(page.iter().map(|row| row.index.0));
    }
    equal("failures", &listed, &failed.iter().copied().collect::<BTreeSet<_>>().into_iter().collect())
}

fn all_outputs(access: &mut dyn LedgerAccess, key: crate::JobKey, mut page: OutputsPage) -> Check<Vec<u64>> {
    let mut firsts = Vec::new();
    loop {
        let rows = access.outputs(key, page)?;
        let Some(last) = rows.last() else { return Ok(firsts) };
        page.after = Some(match page.order {
            OutputOrder::Split => i64::try_from(last.first)?,
            OutputOrder::Arrival => last.row,
        });
        firsts.extend(rows.iter().map(|row| row.first));
        holds(firsts.len() < 100, format!("the pages do not end: {firsts:?}"))?;
    }
}

/// A page ends with the row that reaches its bound in rows or in bytes.
pub(super) fn page_ends_at_its_bound(store: &dyn Store) -> Check {
    let (mut ledger, mut job) = (store.open()?, SampleJob::new(true));
    let output = format!("\"{}\"", "x".repeat(1_000));
    let outbox =
        (0..6).map(|_| (OutboxTarget::Tasks, Lane::default(), message("t", &[b'x'; 1_000]))).collect();
    let change = JobChange {
        outputs: (0..6).map(|first| kept(first, &[&output])).collect(),
        failures: (10..16).map(|task| (task, Some(failure("it failed")))).collect(),
        ..job.change()
    };
    let key = ledger.commit(&Changes { jobs: vec![change], outbox, ..Changes::default() })?.keys[0];
    for (bound, expected) in [
        (PageBound { rows: 4, bytes: usize::MAX }, 4),
        (PageBound { rows: 100, bytes: 2_500 }, 3),
        (PageBound { rows: 100, bytes: 1 }, 1),
    ] {
        equal("outputs of a page", &ledger.kept_outputs(key, 0, bound)?.len(), &expected)?;
        equal("rows of a page", &ledger.outbox(OutboxTarget::Tasks, 0, bound)?.len(), &expected)?;
    }
    let all = PageBound { rows: 100, bytes: usize::MAX };
    equal("outputs from 3 on", &ledger.kept_outputs(key, 3, all)?.len(), &3)?;
    let after = ledger.outbox(OutboxTarget::Tasks, 0, all)?[1].row;
    equal("rows after the second", &ledger.outbox(OutboxTarget::Tasks, after, all)?.len(), &4)?;
    let wanted = BTreeSet::from([11, 13, 99]);
    let found: Vec<_> = ledger.failed_tasks(key, &wanted, all)?.iter().map(|task| task.index).collect();
    equal("wanted tasks", &found, &vec![11, 13])?;
    let bound = PageBound { rows: 2, bytes: usize::MAX };
    equal("failed tasks of a page", &ledger.failed_tasks(key, &BTreeSet::new(), bound)?.len(), &2)
}

/// Pruning deletes ended jobs with all their rows, and no running job.
pub(super) fn prune_spares_running_jobs(store: &dyn Store) -> Check {
    let mut ledger = store.open()?;
    let Some(access) = store.access() else { return Ok(()) };
    let mut access = access?;
    let (mut running, mut old, mut new) = (SampleJob::new(true), SampleJob::new(true), SampleJob::new(true));
    old.record.end = Some(ended());
    new.record.end = Some(crate::JobEnd { at_ms: 2_000, ..ended() });
    for job in [&mut running, &mut old, &mut new] {
        job.add_done(0, 4);
        let outputs = vec![kept(0, &["1", "2", "3", "4"])];
        let change = JobChange { outputs, ..job.change() };
        let key = ledger.commit(&Changes { jobs: vec![change], ..Changes::default() })?.keys[0];
        job.key = Some(key);
    }
    let report = access.prune(PruneRule { older_than: None, keep: Some(1) })?;
    equal("jobs pruned and left", &(report.pruned, report.left), &(1, 2))?;
    holds(access.job(old.id(), JobParts::Record)?.is_none(), "the older job is still there")?;
    for job in [&running, &new] {
        let seen = access.job(job.id(), JobParts::Proof)?.ok_or("a job is gone that should stay")?;
        equal("tasks done of a job that stays", &seen.done.len(), &4)?;
        equal("outputs of a job that stays", &seen.kept, &std::iter::once(0..4).collect())?;
    }
    let key = old.key.ok_or("the job has no key")?;
    equal("outcomes of a pruned job", &ledger.outcomes(key)?.done.len(), &0)?;
    let report = access.prune(PruneRule { older_than: None, keep: Some(0) })?;
    equal("jobs pruned and left", &(report.pruned, report.left), &(1, 1))?;
    running.add_done(10, 1);
    running.commit(&mut *ledger)
}
