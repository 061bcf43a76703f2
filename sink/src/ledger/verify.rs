//! The proof that a job adds up, from the stored rows instead of the running counts.

use std::{collections::BTreeSet, fmt, ops::Range};

use gristmill_shared::{BuildId, JobId, wire::BuildShare};
use rusqlite::Connection;
use serde::Serialize;

use super::{
    JobRecord, JobState,
    builds::Builds,
    outcome_rows::{self, TaskSet},
};
use crate::index_set::{IndexSet, gaps};

/// Gaps that a verification lists; all are counted.
const GAPS_MAX: usize = 1_000;

/// The result of checking that every task of a job has exactly one outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// The job.
    pub job: JobId,
    /// The state of the job.
    pub state: JobState,
    /// True if the job has ended, has no gaps, and all stored data agrees.
    pub ok: bool,
    /// The number of tasks; unknown if the split was not finished and had no plan.
    pub total: Option<u64>,
    /// The minimum number of tasks that the split gave, if there is no total.
    pub reached: u64,
    /// Tasks with an output, counted in the bitmap.
    pub done: u64,
    /// Tasks that failed for good, counted in the table of failures.
    pub failed: u64,
    /// Tasks that the job's early end made unnecessary.
    pub skipped: u64,
    /// Repeated outcomes, which were ignored.
    pub duplicates: u64,
    /// Outcomes after the end, which were ignored.
    pub late: u64,
    /// Ranges of tasks that should have an outcome and have none, at most a thousand.
    pub gaps: Vec<Range<u64>>,
    /// The number of tasks that should have an outcome and have none.
    pub missing: u64,
    /// The contradictions that were found.
    pub problems: Vec<String>,
    /// The reason of an early end.
    pub stopped: Option<String>,
    /// The build that submitted the job, if known.
    pub build: Option<BuildId>,
    /// The builds that worked on the job, ordered by version and build.
    pub builds: Vec<BuildShare>,
}

impl fmt::Display for Verification {
    /// Formats one line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, failed, skipped, duplicates, late, missing, .. } = self;
        match self.total {
            Some(total) => write!(f, "{total} tasks: ")?,
            None => write!(f, "split not finished at {}: ", self.reached)?,
        }
        write!(f, "{done} done, {failed} failed, {skipped} skipped, {missing} without an outcome; ")?;
        write!(f, "{duplicates} duplicates and {late} late outcomes ignored")
    }
}

/// Checks one job, if the ledger has it.
pub(super) fn verify(connection: &Connection, job: JobId) -> rusqlite::Result<Option<Verification>> {
    let Some((seq, record)) = JobRecord::load(connection, job)? else { return Ok(None) };
    let done = outcome_rows::load_set(connection, TaskSet::Done, seq)?;
    let failed = outcome_rows::load_failed(connection, seq)?;
    let kept = if record.keeps_outputs { Some(load_kept(connection, seq)?) } else { None };
    let builds = Builds::load(connection, seq)?.shares();
    Ok(Some(Verification { builds, ..check(&record, &done, &failed, kept.as_deref()) }))
}

/// Loads the index ranges of the kept outputs.
fn load_kept(connection: &Connection, job: i64) -> rusqlite::Result<Vec<Range<u64>>> {
    let mut rows = connection.prepare("SELECT first, count FROM outputs WHERE job = ?1 ORDER BY first")?;
    rows.query_map([job], |row| {
        let (first, count): (u64, u64) = (row.get(0)?, row.get(1)?);
        Ok(first..first + count)
    })?
    .collect()
}

fn check(
    record: &JobRecord,
    done: &IndexSet,
    failed: &BTreeSet<u64>,
    kept: Option<&[Range<u64>]>,
) -> Verification {
    let reached = done.end().max(failed.last().map_or(0, |last| last + 1));
    let total = record.total();
    let account = record.account();
    let mut problems = Vec::new();
    let mut differ = |what: &str, stored: u64, found: u64| {
        if stored != found {
            problems.push(format!("the ledger counts {stored} {what}, but has {found}"));
        }
    };
    differ("tasks done", account.done, done.len());
    differ("failures", account.failed, failed.len() as u64);
    if let Some(kept) = kept {
        differ("outputs to keep", done.len(), kept.iter().map(|range| range.end - range.start).sum());
        let once = kept.windows(2).all(|pair| pair[0].end <= pair[1].start);
        if !once || kept.iter().any(|range| !done.missing(range.start..range.end).is_empty()) {
            problems.push("the kept outputs are not those of the tasks done, each once".into());
        }
    }
    let both = failed.iter().filter(|index| done.contains(**index)).count();
    if both > 0 {
        problems.push(format!("{both} tasks are both done and failed"));
    }
    if let Some(total) = total.filter(|total| reached > *total) {
        problems.push(format!("there are {total} tasks, but task {} has an outcome", reached - 1));
    }

    let (mut gaps, open) = gaps(done, failed, 0..total.unwrap_or(reached), GAPS_MAX);
    let mut missing = open;
    if matches!(record.state(), JobState::Stopped | JobState::Failed) {
        // The job was ended early: tasks without an outcome are skipped.
        if account.skipped != open {
            problems.push(format!("the ledger counts {} tasks skipped, but {open} are", account.skipped));
        }
        gaps.clear();
        missing = 0;
    }
    Verification {
        job: record.opened.job,
        state: record.state(),
        ok: problems.is_empty() && missing == 0 && record.state() != JobState::Running,
        total,
        reached,
        done: done.len(),
        failed: failed.len() as u64,
        skipped: open - missing,
        duplicates: account.duplicates,
        late: account.late,
        gaps,
        missing,
        problems,
        stopped: account.stopped,
        build: record.opened.build.clone(),
        builds: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::Lane;

    use super::*;
    use crate::{
        LedgerLocation, LedgerReader,
        engine::LedgerEngine,
        ledger::Ledger,
        tests::toy_jobs::{KeeperJob, SubmittedJob, app, delivery, registry},
    };

    /// A finished job of ten tasks, of which task 7 failed, in a ledger that is then tampered with.
    fn tampered(sql: &str) -> Verification {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let ledger = Ledger::open(LedgerLocation::File(path.clone())).unwrap();
        let mut engine = LedgerEngine::new(ledger, registry(), Lane::default(), app());
        let job = SubmittedJob::new(&KeeperJob {});
        let spans = [(0, 7, r#"["","","","","","",""]"#), (8, 2, r#"["",""]"#)];
        for message in [job.opened(), job.spans(&spans, &[7], 0), job.sealed(10)] {
            engine.accept_result(delivery(message)).unwrap();
        }
        drop(engine.commit().unwrap());
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        LedgerReader::open(&path).unwrap().verify(job.id).unwrap()
    }

    #[test]
    fn verified_job_has_summary() {
        let verification = tampered("");
        assert!(verification.ok && verification.problems.is_empty(), "{verification:?}");
        assert_eq!(
            verification.to_string(),
            "10 tasks: 9 done, 1 failed, 0 skipped, 0 without an outcome; 0 duplicates and 0 late outcomes ignored"
        );
    }

    #[test]
    fn verify_finds_contradictions() {
        let cases = [
            ("DELETE FROM done", "counts 9 tasks done, but has 0"),
            ("DELETE FROM failures", "counts 1 failures, but has 0"),
            ("UPDATE jobs SET done = 8", "counts 8 tasks done, but has 9"),
            ("UPDATE failures SET task = 3", "1 tasks are both done and failed"),
            ("UPDATE jobs SET sealed_total = 9", "there are 9 tasks, but task 9 has an outcome"),
            ("DELETE FROM outputs WHERE first = 8", "counts 9 outputs to keep, but has 7"),
            (
                "UPDATE outputs SET first = 7 WHERE first = 8",
                "the kept outputs are not those of the tasks done",
            ),
            ("UPDATE jobs SET state = 'stopped', skipped = 3", "counts 3 tasks skipped, but 0 are"),
        ];
        for (sql, problem) in cases {
            let verification = tampered(sql);
            let found = verification.problems.join("; ");
            assert!(!verification.ok && found.contains(problem), "{sql}: {found:?}");
        }
    }

    #[test]
    fn gaps_are_listed_as_ranges() {
        let verification =
            tampered("UPDATE jobs SET sealed_total = 20; DELETE FROM failures; UPDATE jobs SET failed = 0");
        assert_eq!((verification.gaps, verification.missing), (vec![7..8, 10..20], 11));
        assert!(!verification.ok);
        let running = tampered("UPDATE jobs SET state = 'running'");
        assert!(!running.ok && running.missing == 0, "a running job is not proven, whatever it has");
    }
}
