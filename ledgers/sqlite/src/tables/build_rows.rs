//! Outcomes of a job by the build of the program that made them.

use gristmill_ledger::JobKey;
use gristmill_shared::{BuildId, wire::BuildShare};
use rusqlite::{Connection, Transaction, params};

use crate::columns::{clamp_int, conversion_error};

/// Loads the builds of a job, ordered by version and build.
pub(crate) fn load(connection: &Connection, job: JobKey) -> rusqlite::Result<Vec<BuildShare>> {
    let mut rows = connection.prepare_cached(
        "SELECT version, build, counted, refused FROM builds WHERE job = ?1 ORDER BY version, build",
    )?;
    let shares = rows.query_map([job.0], |row| {
        let build = match row.get_ref(1)?.as_str()? {
            "" => None,
            text => Some(BuildId::new(text).map_err(|error| conversion_error(1, error))?),
        };
        Ok(BuildShare { version: row.get(0)?, build, counted: row.get(2)?, refused: row.get(3)? })
    })?;
    shares.collect()
}

/// Adds outcomes to the counts of their builds.
pub(crate) fn add(transaction: &Transaction<'_>, job: JobKey, shares: &[BuildShare]) -> rusqlite::Result<()> {
    let mut save = transaction.prepare_cached(
        "INSERT INTO builds (job, version, build, counted, refused) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (job, version, build)
         DO UPDATE SET counted = counted + excluded.counted, refused = refused + excluded.refused",
    )?;
    for BuildShare { version, build, counted, refused } in shares {
        let build = build.as_ref().map_or("", BuildId::as_str);
        save.execute(params![job.0, version, build, clamp_int(*counted), clamp_int(*refused)])?;
    }
    Ok(())
}
