//! The row of one job, without its outcomes.

use gristmill_ledger::{JobEnd, JobKey, JobRecord, JobState, JobsAfter, NUMBER_MAX, OutcomeCounts, Seal};
use gristmill_shared::{BuildId, Conclusion, JobId, Lane, Round, wire::Opened};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, named_params, params};

use crate::columns::{clamp_int, parse_json, parse_text, to_json};

/// Loads one job, with its key.
pub(crate) fn load(connection: &Connection, job: JobId) -> rusqlite::Result<Option<(JobKey, JobRecord)>> {
    let sql = format!("SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?1");
    connection.prepare_cached(&sql)?.query_row([job.to_string()], from_row).optional()
}

/// Loads the running jobs of a lane.
pub(crate) fn load_running(connection: &Connection, lane: &Lane) -> rusqlite::Result<Vec<JobRecord>> {
    let sql = format!("SELECT {JOB_COLUMNS} FROM jobs WHERE state = ?1 AND lane = ?2");
    let running = [JobState::Running.as_str(), lane.as_str()];
    connection.prepare(&sql)?.query_map(running, |row| Ok(from_row(row)?.1))?.collect()
}

/// Loads the next jobs, the newest first by time of submission: a sink that starts late finds many
/// in its queue, and commits them together.
pub(crate) fn load_page(
    connection: &Connection,
    after: Option<JobsAfter>,
    most: usize,
) -> rusqlite::Result<Vec<JobRecord>> {
    let sql = format!(
        "SELECT {JOB_COLUMNS} FROM jobs WHERE (submitted_ms, id) < (?1, ?2)
         ORDER BY submitted_ms DESC, id DESC LIMIT ?3"
    );
    // Every id is less than `~`.
    let (submitted_ms, id) =
        after.map_or((NUMBER_MAX, "~".into()), |after| (after.submitted_ms, after.job.to_string()));
    let values = params![submitted_ms, id, most];
    connection.prepare(&sql)?.query_map(values, |row| Ok(from_row(row)?.1))?.collect()
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<(JobKey, JobRecord)> {
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
    let record = JobRecord { opened, keeps_outputs, round, version, seal, counts, end, stalled_ms };
    Ok((JobKey(row.get(0)?), record))
}

/// Writes a job, and returns its key. `key` is the key if it has one already.
///
/// # Errors
/// Besides those of SQLite: if the job was pruned meanwhile. Its other rows are gone too, so it
/// cannot be written again.
pub(crate) fn save(
    transaction: &Transaction<'_>,
    key: Option<JobKey>,
    record: &JobRecord,
) -> rusqlite::Result<JobKey> {
    let Opened { job, kind, spec, policy, plan, lane, submitted_ms, version, build } = &record.opened;
    let seq = match key {
        Some(JobKey(seq)) => seq,
        None => transaction.prepare_cached(INSERT_JOB_SQL)?.insert(named_params! {
            ":id": job.to_string(),
            ":kind": kind.as_str(),
            ":spec": spec.get(),
            ":policy": to_json(policy),
            ":plan": to_json(plan),
            ":lane": lane.as_str(),
            ":submitted_ms": clamp_int(*submitted_ms),
            ":keeps_outputs": record.keeps_outputs,
            ":version": version,
            ":build": build.as_ref().map(BuildId::as_str),
        })?,
    };
    let (seal, end, counts) = (record.seal.as_ref(), record.end.as_ref(), &record.counts);
    let updated = transaction.prepare_cached(UPDATE_JOB_SQL)?.execute(named_params! {
        ":seq": seq,
        ":round": record.round.0,
        ":round_version": record.version,
        ":state": record.state().as_str(),
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
        ":stalled_ms": record.stalled_ms.map(clamp_int),
    })?;
    if updated == 0 {
        return Err(rusqlite::Error::ToSqlConversionFailure(Box::new(PrunedJob(*job))));
    }
    Ok(JobKey(seq))
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
