//! The row of one job, without its outcomes.

use std::{fmt, str::FromStr, time::Duration};

use gristmill_shared::{
    Account, BuildId, Conclusion, InvalidName, JobId, Lane, Round,
    wire::{Opened, Progress, Sealed},
};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, named_params};
use serde::Serialize;

use crate::ledger::columns::{NUMBER_MAX, clamp_int, parse_json, parse_text, to_json};

/// One job in the ledger.
#[derive(Debug, Clone)]
pub(crate) struct JobRecord {
    /// The opening message of its producer.
    pub(crate) opened: Opened,
    /// True if outputs are kept beside the report.
    pub(crate) keeps_outputs: bool,
    /// The current round.
    pub(crate) round: Round,
    /// The version of the job's code in this round.
    pub(crate) version: u32,
    /// The seal of its producer, once the split is complete.
    pub(crate) seal: Option<Seal>,
    pub(crate) counts: OutcomeCounts,
    /// The end of the job, once it has ended.
    pub(crate) end: Option<JobEnd>,
    /// The time of the last outcome if the job stalls, in milliseconds since 1970.
    pub(crate) stalled_ms: Option<u64>,
}

/// The number of tasks that the split gave, and their digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) total: u64,
    pub(crate) digest: String,
}

impl From<Sealed> for Seal {
    fn from(Sealed { job: _, total, digest }: Sealed) -> Self {
        Self { total, digest }
    }
}

/// Running counts of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OutcomeCounts {
    /// Tasks with an output.
    pub(crate) done: u64,
    /// Tasks that failed for good.
    pub(crate) failed: u64,
    /// One past the highest index that has an outcome.
    pub(crate) reached: u64,
    /// Repeated outcomes.
    pub(crate) duplicates: u64,
    /// Outcomes after the end, or that the end made void.
    pub(crate) late: u64,
    /// Total time of the tasks, in microseconds of one slot.
    pub(crate) busy_us: u64,
}

impl OutcomeCounts {
    /// Returns the number of tasks with an outcome.
    pub(crate) fn outcomes(&self) -> u64 {
        self.done + self.failed
    }

    /// Returns the mean time of a task, or zero if it is unknown.
    pub(crate) fn mean_time(&self) -> Duration {
        Duration::from_micros(self.busy_us.checked_div(self.outcomes()).unwrap_or(0))
    }
}

/// The end of a job.
#[derive(Debug, Clone)]
pub(crate) struct JobEnd {
    pub(crate) state: JobState,
    /// The reason of an early end.
    pub(crate) stopped: Option<String>,
    pub(crate) skipped: u64,
    pub(crate) conclusion: Conclusion,
    pub(crate) at_ms: u64,
}

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Outcomes are missing.
    Running,
    /// Every task has an outcome.
    Finished,
    /// Ended early as intended: it has its answer, or was stopped.
    Stopped,
    /// Could not continue: the split failed, or the job's own code did.
    Failed,
}

impl JobState {
    const ALL: [Self; 4] = [Self::Running, Self::Finished, Self::Stopped, Self::Failed];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| InvalidName {
            what: "state of a job",
            got: text.into(),
            expected: "running, finished, stopped or failed",
        })
    }
}

impl JobRecord {
    pub(crate) fn new(opened: Opened, keeps_outputs: bool) -> Self {
        let (round, version, counts) = (Round(0), opened.version, OutcomeCounts::default());
        Self { opened, keeps_outputs, round, version, seal: None, counts, end: None, stalled_ms: None }
    }

    pub(crate) fn state(&self) -> JobState {
        self.end.as_ref().map_or(JobState::Running, |end| end.state)
    }

    /// Returns the build that the round is bound to, if the submitter asked for that and the round
    /// still has its version.
    pub(crate) fn bound_build(&self) -> Option<&BuildId> {
        let is_bound = self.opened.policy.same_build && self.version == self.opened.version;
        self.opened.build.as_ref().filter(|_| is_bound)
    }

    /// Returns the number of tasks: as sealed, or as planned while the split continues.
    pub(crate) fn total(&self) -> Option<u64> {
        self.seal.as_ref().map(|seal| seal.total).or(self.opened.plan.tasks)
    }

    /// Returns the exclusive upper bound of all indices that may have an outcome.
    pub(crate) fn limit(&self) -> u64 {
        self.total().unwrap_or(NUMBER_MAX)
    }

    /// Returns the number of known tasks without an outcome.
    pub(crate) fn missing_count(&self) -> u64 {
        let OutcomeCounts { done, failed, reached, .. } = self.counts;
        self.total().unwrap_or(reached).saturating_sub(done + failed)
    }

    pub(crate) fn account(&self) -> Account {
        let OutcomeCounts { done, failed, duplicates, late, .. } = self.counts;
        let end = self.end.as_ref();
        Account {
            total: self.total(),
            done,
            failed,
            skipped: end.map_or(0, |end| end.skipped),
            duplicates,
            late,
            stopped: end.and_then(|end| end.stopped.clone()),
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress {
            job: self.opened.job,
            account: self.account(),
            sealed: self.seal.is_some(),
            busy_us: self.counts.busy_us,
        }
    }

    /// Loads one job, with the number that identifies it in the other tables.
    pub(crate) fn load(connection: &Connection, job: JobId) -> rusqlite::Result<Option<(i64, Self)>> {
        let sql = format!("SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?1");
        connection.prepare_cached(&sql)?.query_row([job.to_string()], Self::from_row).optional()
    }

    /// Loads the running jobs of a lane.
    pub(crate) fn load_running(connection: &Connection, lane: &Lane) -> rusqlite::Result<Vec<Self>> {
        let sql = format!("SELECT {JOB_COLUMNS} FROM jobs WHERE state = ?1 AND lane = ?2");
        let running = [JobState::Running.as_str(), lane.as_str()];
        connection.prepare(&sql)?.query_map(running, |row| Ok(Self::from_row(row)?.1))?.collect()
    }

    /// Loads all jobs, the newest first by time of submission: a sink that starts late finds many
    /// in its queue, and commits them together.
    pub(in crate::ledger) fn load_all(connection: &Connection) -> rusqlite::Result<Vec<(i64, Self)>> {
        let sql = format!("SELECT {JOB_COLUMNS} FROM jobs ORDER BY submitted_ms DESC, id DESC");
        connection.prepare(&sql)?.query_map([], Self::from_row)?.collect()
    }

    fn from_row(row: &Row<'_>) -> rusqlite::Result<(i64, Self)> {
        let opened = Opened {
            job: parse_text(row, 1)?,
            kind: parse_text(row, 2)?,
            spec: parse_json(row, 3)?,
            policy: parse_json(row, 4)?,
            plan: parse_json(row, 5)?,
            lane: parse_text(row, 6)?,
            submitted_ms: row.get(7)?,
            version: row.get(25)?,
            build: row.get_ref(26)?.as_str_or_null()?.map(|_| parse_text(row, 26)).transpose()?,
        };
        let seal = match (row.get(11)?, row.get(12)?) {
            (Some(total), Some(digest)) => Some(Seal { total, digest }),
            _ => None,
        };
        let counts = OutcomeCounts {
            done: row.get(13)?,
            failed: row.get(14)?,
            reached: row.get(15)?,
            duplicates: row.get(16)?,
            late: row.get(17)?,
            busy_us: row.get(18)?,
        };
        let end = match parse_text(row, 10)? {
            JobState::Running => None,
            state => Some(JobEnd {
                state,
                skipped: row.get(19)?,
                stopped: row.get(20)?,
                conclusion: Conclusion { text: row.get(21)?, answered: row.get(22)? },
                at_ms: row.get(23)?,
            }),
        };
        let (keeps_outputs, round, stalled_ms) = (row.get(8)?, Round(row.get(9)?), row.get(24)?);
        let version = row.get(27)?;
        Ok((row.get(0)?, Self { opened, keeps_outputs, round, version, seal, counts, end, stalled_ms }))
    }

    /// Writes the job, and returns its number. `seq` is the number if it has one already.
    ///
    /// # Errors
    /// Besides those of SQLite: if the job was pruned meanwhile. Its other rows are gone too, so it
    /// cannot be written again.
    pub(crate) fn save(&self, transaction: &Transaction<'_>, seq: Option<i64>) -> rusqlite::Result<i64> {
        let Opened { job, kind, spec, policy, plan, lane, submitted_ms, version, build } = &self.opened;
        let seq = match seq {
            Some(seq) => seq,
            None => transaction.prepare_cached(INSERT_JOB_SQL)?.insert(named_params! {
                ":id": job.to_string(),
                ":kind": kind.as_str(),
                ":spec": spec.get(),
                ":policy": to_json(policy),
                ":plan": to_json(plan),
                ":lane": lane.as_str(),
                ":submitted_ms": clamp_int(*submitted_ms),
                ":keeps_outputs": self.keeps_outputs,
                ":version": version,
                ":build": build.as_ref().map(BuildId::as_str),
            })?,
        };
        let (seal, end, counts) = (self.seal.as_ref(), self.end.as_ref(), &self.counts);
        let updated = transaction.prepare_cached(UPDATE_JOB_SQL)?.execute(named_params! {
            ":seq": seq,
            ":round": self.round.0,
            ":round_version": self.version,
            ":state": self.state().as_str(),
            ":sealed_total": seal.map(|seal| seal.total),
            ":sealed_digest": seal.map(|seal| seal.digest.as_str()),
            ":done": counts.done,
            ":failed": counts.failed,
            ":reached": counts.reached,
            ":duplicates": clamp_int(counts.duplicates),
            ":late": clamp_int(counts.late),
            ":busy_us": clamp_int(counts.busy_us),
            ":skipped": end.map_or(0, |end| end.skipped),
            ":stopped": end.and_then(|end| end.stopped.as_deref()),
            ":conclusion": end.map(|end| end.conclusion.text.as_str()),
            ":answered": end.map(|end| end.conclusion.answered),
            ":finished_ms": end.map(|end| clamp_int(end.at_ms)),
            ":stalled_ms": self.stalled_ms.map(clamp_int),
        })?;
        if updated == 0 {
            return Err(rusqlite::Error::ToSqlConversionFailure(Box::new(PrunedJob(*job))));
        }
        Ok(seq)
    }
}

/// The error for a job whose row was deleted while the job was in memory.
#[derive(Debug, thiserror::Error)]
#[error("job {0} no longer exists (hint: `sink prune` deleted it just now; start the sink again)")]
struct PrunedJob(JobId);

const JOB_COLUMNS: &str = "seq, id, kind, spec, policy, plan, lane, submitted_ms, keeps_outputs, round, state,
    sealed_total, sealed_digest, done, failed, reached, duplicates, late, busy_us, skipped, stopped, conclusion,
    answered, finished_ms, stalled_ms, version, build, round_version";

const INSERT_JOB_SQL: &str = "
    INSERT INTO jobs (id, kind, spec, policy, plan, lane, submitted_ms, keeps_outputs, round, state, done, failed,
        reached, duplicates, late, busy_us, skipped, version, build, round_version)
    VALUES (:id, :kind, :spec, :policy, :plan, :lane, :submitted_ms, :keeps_outputs, 0, '', 0, 0, 0, 0, 0, 0, 0,
        :version, :build, 0)";

const UPDATE_JOB_SQL: &str = "
    UPDATE jobs SET round = :round, round_version = :round_version, state = :state, sealed_total = :sealed_total, sealed_digest = :sealed_digest,
        done = :done, failed = :failed, reached = :reached, duplicates = :duplicates, late = :late,
        busy_us = :busy_us, skipped = :skipped, stopped = :stopped, conclusion = :conclusion,
        answered = :answered, finished_ms = :finished_ms, stalled_ms = :stalled_ms
    WHERE seq = :seq";
