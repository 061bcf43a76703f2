//! The journal: facts about jobs, which any client can read from the start.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{Malformed, Opened, WireMessage, decode, is_zero, wire_message};
use crate::{Account, BuildId, Conclusion, JobId, Kind, Lane, LedgerId, Message, Round, TaskIndex, WorkerId};

/// `gristmill.finished.v1`: the job has ended, with this result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finished {
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: Kind,
    /// The round it ended in.
    pub round: Round,
    /// The number of tasks by outcome.
    pub account: Account,
    /// The answer for the user.
    pub conclusion: Conclusion,
    /// The builds that worked on the job, if there were several, or if outcomes of one were
    /// refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub builds: Vec<BuildShare>,
    /// The report, if it is known and not too large to travel, without the tasks that the account
    /// does not count as done.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub report: Option<Box<RawValue>>,
    /// The size of a report that is too large to travel, in bytes. The sink's ledger has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_bytes: Option<u64>,
    /// Tasks that failed for good, ascending: at most [`FINISHED_MAX_FAILURES`]. The account has
    /// the number of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailureNote>,
}

/// The largest report that [`Finished`] carries, in bytes. The journal keeps 64 MiB, which is the
/// ends of 256 jobs with such reports.
pub const FINISHED_REPORT_MAX_BYTES: usize = 256 << 10;
/// The number of failed tasks that [`Finished`] names: enough to see what is wrong. `sink failures`
/// lists all.
pub const FINISHED_MAX_FAILURES: usize = 16;

/// A task that failed for good, as [`Finished`] lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureNote {
    /// The task.
    pub index: TaskIndex,
    /// The error, at most [`FAILURE_NOTE_MAX_BYTES`].
    pub reason: String,
}

/// The longest reason of a [`FailureNote`], in bytes. All notes of one [`Finished`] stay below 16
/// KiB.
pub const FAILURE_NOTE_MAX_BYTES: usize = 512;

/// Reads a field that is present, also if its value is `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::deserialize(deserializer).map(Some)
}

wire_message!(Finished, "gristmill.finished.v1");

/// The part of one build, in one version of the job's code, in the outcomes of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildShare {
    /// The version.
    #[serde(default)]
    pub version: u32,
    /// The build; none if the worker did not report one.
    #[serde(default)]
    pub build: Option<BuildId>,
    /// The number of its outcomes that count.
    pub counted: u64,
    /// The number of its outcomes that were refused.
    #[serde(default)]
    pub refused: u64,
}

impl fmt::Display for BuildShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.build {
            Some(build) => write!(f, "build {build}")?,
            None => f.write_str("an unnamed build")?,
        }
        write!(f, " of version {}: {} outcomes", self.version, self.counted)?;
        if self.refused > 0 {
            write!(f, ", {} refused", self.refused)?;
        }
        Ok(())
    }
}

/// `gristmill.stopped.v1`: the rest of this round is not needed. Workers skip queued batches and
/// stop running ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The job.
    pub job: JobId,
    /// The round; earlier rounds are stopped as well.
    pub round: Round,
    /// The reason, for people.
    pub reason: String,
}

wire_message!(Stopped, "gristmill.stopped.v1");

/// `gristmill.reopened.v1`: failed tasks of the job were sent again in this round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reopened {
    /// The job.
    pub job: JobId,
    /// The new round.
    pub round: Round,
    /// The [version](crate::Job::VERSION) of the job's code that it belongs to.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub version: u32,
}

wire_message!(Reopened, "gristmill.reopened.v1");

/// `gristmill.missing.v1`: the tasks without an outcome. The sink sends it if no outcome has come
/// for a while, or as the answer to an [`Audit`](super::Audit).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The job.
    pub job: JobId,
    /// The current round, in which missing tasks are to be sent again.
    pub round: Round,
    /// The time of the last outcome, in milliseconds since 1970, if the job stalls; none in the
    /// answer to an audit.
    #[serde(default)]
    pub since_ms: Option<u64>,
    /// The first task that was checked.
    pub from: TaskIndex,
    /// The tasks: pairs of first index and number, ascending, the first [`MISSING_MAX_RANGES`].
    pub ranges: Vec<(TaskIndex, u64)>,
    /// The number of all tasks that are missing from `from` on.
    pub tasks: u64,
    /// The [version](crate::Job::VERSION) of the job's code in this round.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub version: u32,
}

/// The most ranges of missing tasks that one [`Missing`] names.
pub const MISSING_MAX_RANGES: usize = 1_000;

wire_message!(Missing, "gristmill.missing.v1");

/// `gristmill.refused.v1`: outcomes of these tasks do not count, since their code may not work on
/// the job. The job's producer sends the tasks again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The job.
    pub job: JobId,
    /// The current round, in which the tasks are to be sent again.
    pub round: Round,
    /// The worker that ran them last.
    pub worker: WorkerId,
    /// The reason of the refusal, for people.
    pub reason: String,
    /// The tasks: pairs of first index and number, ascending, at most [`MISSING_MAX_RANGES`].
    pub ranges: Vec<(TaskIndex, u64)>,
}

wire_message!(Refused, "gristmill.refused.v1");

/// `gristmill.serving.v1`: a sink with this ledger serves the lane. A sink with another ledger must
/// not serve it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// The lane.
    pub lane: Lane,
    /// The ledger.
    pub ledger: LedgerId,
    /// The location of the ledger, for people.
    pub place: String,
}

wire_message!(Serving, "gristmill.serving.v1", jobless);

/// A fact of the journal, of any type.
#[derive(Debug)]
pub enum Fact {
    /// The sink knows the job.
    Opened(Opened),
    /// The job has ended.
    Finished(Finished),
    /// The rest of the round is not needed.
    Stopped(Stopped),
    /// Failed tasks were sent again.
    Reopened(Reopened),
    /// Tasks are missing.
    Missing(Missing),
    /// Outcomes were refused.
    Refused(Refused),
    /// A sink serves a lane.
    Serving(Serving),
}

impl Fact {
    /// Decodes an entry of the journal.
    ///
    /// # Errors
    /// [`Malformed`] if it is of none of these types; readers skip it.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        match message.form.as_str() {
            Opened::TYPE => decode(message).map(Self::Opened),
            Finished::TYPE => decode(message).map(Self::Finished),
            Stopped::TYPE => decode(message).map(Self::Stopped),
            Reopened::TYPE => decode(message).map(Self::Reopened),
            Missing::TYPE => decode(message).map(Self::Missing),
            Refused::TYPE => decode(message).map(Self::Refused),
            Serving::TYPE => decode(message).map(Self::Serving),
            other => Err(Malformed::new(format_args!("no fact of the journal has the type {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_carries_report_and_failures() {
        let json = concat!(
            r#"{"job":"0193a1c2-7b40-7d10-8e5a-6f2b1c9d4e3f","kind":"count","round":0,"#,
            r#""account":{"total":2,"done":1,"failed":1,"skipped":0,"duplicates":0,"late":0,"stopped":null},"#,
            r#""conclusion":{"text":"1","answered":true},"#,
            r#""report":REPORT,"failures":[{"index":1,"reason":"cold"}]}"#
        );
        for report in ["1", "null", r#"{"a":[0.1,-0.0]}"#] {
            let json = json.replace("REPORT", report);
            let finished: Finished = serde_json::from_str(&json).unwrap();
            assert_eq!(finished.report.as_ref().map(|report| report.get()), Some(report));
            assert_eq!(finished.report_bytes, None);
            assert_eq!(finished.failures, [FailureNote { index: TaskIndex(1), reason: "cold".into() }]);
            assert_eq!(serde_json::to_string(&finished).unwrap(), json);
        }
    }
}
