//! Ledgers whose jobs this program cannot fold.

use gristmill_ledger::{Changes, JobChange, JobRecord};
use serde_json::value::RawValue;

use super::*;
use crate::tests::toy_jobs::{SubmittedJob, open_ledger};

/// A running job of other code prevents the start, and stays as it is.
#[test]
fn other_version_does_not_start() {
    let other_version = |record: &mut JobRecord| record.version = 7;
    let other_spec =
        |record: &mut JobRecord| record.opened.spec = RawValue::from_string("[1]".into()).unwrap();
    let changes: [fn(&mut JobRecord); 2] = [other_version, other_spec];
    let errors = ["has version 0 of the kind toy, and version 7 is needed", "does not fit kind toy"];
    for (change, expected) in changes.into_iter().zip(errors) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut record = JobRecord::new(SubmittedJob::toy().opened, false);
        change(&mut record);
        let changes = Changes { jobs: vec![JobChange::new(None, &record)], ..Changes::default() };
        open_ledger(&path).commit(&changes).unwrap();
        let error = config(&path).open().unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("does not start"), "{error}");
        let after = read_ledger(&path).job(record.opened.job).unwrap().unwrap();
        assert_eq!(after.summary.state, gristmill_ledger::JobState::Running, "the job was ended");
    }
}
