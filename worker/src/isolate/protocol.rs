//! The lines between a worker and a child of its own.

use std::{
    io::{self, BufRead},
    time::Duration,
};

use gristmill_shared::{FailureKind, JobId, Kind, Round, TaskIndex};
use serde::{Deserialize, Serialize};

/// Version of the format. Both sides are the same executable, so it only distinguishes a wrong
/// program.
pub(super) const PROTOCOL_VERSION: u32 = 1;

/// Bytes of the longest line: a batch of the largest tasks that a broker delivers, and some
/// reserve.
pub(super) const LINE_MAX_BYTES: usize = 16 << 20;

/// Jobs that a child keeps open. The worker knows them: the jobs of the last `job` lines, without
/// those of `forget` lines.
pub(super) const OPEN_JOBS_MAX: usize = 16;

/// A line to the child. `R` is JSON that is passed on unchanged.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ChildRequest<R> {
    /// The first line.
    Hello {
        /// See [`PROTOCOL_VERSION`].
        protocol: u32,
        /// The number of the slot that the child serves.
        slot: u32,
    },
    /// A job, before its first batch.
    Job {
        id: JobId,
        round: Round,
        kind: Kind,
        version: u32,
        spec: R,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    },
    /// Consecutive tasks to process.
    Run {
        job: JobId,
        round: Round,
        first: TaskIndex,
        count: u32,
        /// Number of earlier tries of these tasks that failed.
        failures: u32,
        tasks: R,
    },
    /// The job was stopped: its running task should end, and the rest of the batch is not needed.
    Stop { job: JobId, round: Round },
    /// The job has ended: the child drops it, and its state.
    Forget { job: JobId, round: Round },
}

/// A line from the child. Outcomes come in the order of their tasks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer<R> {
    /// The answer to `hello`.
    Ready {
        /// See [`PROTOCOL_VERSION`].
        protocol: u32,
    },
    /// The first answer to `run`: the job's state is open, or has failed to open, and the first
    /// task begins. With the time that it took, in microseconds.
    Prepared { micros: u64 },
    /// The only answer to `run` before `end` when no task runs because `prepare` failed a moment
    /// ago.
    Unprepared { reason: String },
    /// Outputs of consecutive tasks, as an array.
    Done { first: TaskIndex, outputs: R },
    /// A task that gave no output.
    Failed {
        index: TaskIndex,
        #[serde(flatten)]
        failure: AnswerFailure,
    },
    /// The only answer to `run` before `end` when the job cannot be opened.
    Refused { reason: String },
    /// The end of the batch: all of it is answered, or the job was stopped, or the input has ended.
    End,
}

/// The reason for a missing output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AnswerFailure {
    Failed(String),
    Rejected(String),
    Undecodable(String),
    /// With the wait before the next try, in milliseconds.
    Delayed(String, u64),
    TimedOut(()),
}

impl AnswerFailure {
    /// Returns `None` for a task that was stopped, which has no outcome.
    pub(super) fn from_kind(trouble: &FailureKind) -> Option<Self> {
        match trouble {
            FailureKind::Failed(reason) => Some(Self::Failed(reason.clone())),
            FailureKind::Rejected(reason) => Some(Self::Rejected(reason.clone())),
            FailureKind::Undecodable(reason) => Some(Self::Undecodable(reason.clone())),
            FailureKind::Delayed(reason, delay) => {
                let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                Some(Self::Delayed(reason.clone(), millis))
            }
            FailureKind::TimedOut => Some(Self::TimedOut(())),
            FailureKind::Stopped => None,
        }
    }

    pub(super) fn into_kind(self) -> FailureKind {
        match self {
            Self::Failed(reason) => FailureKind::Failed(reason),
            Self::Rejected(reason) => FailureKind::Rejected(reason),
            Self::Undecodable(reason) => FailureKind::Undecodable(reason),
            Self::Delayed(reason, millis) => FailureKind::Delayed(reason, Duration::from_millis(millis)),
            Self::TimedOut(()) => FailureKind::TimedOut,
        }
    }
}

/// Appends a value as a line. Foreign JSON may have line feeds between its tokens, which become
/// spaces; those in its strings are escaped.
pub(super) fn write_line(lines: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    let start = lines.len();
    serde_json::to_writer(&mut *lines, value)?;
    lines[start..].iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
    lines.push(b'\n');
    Ok(())
}

/// Reads the next line into `line`, without its line feed. Returns false at the end of file.
///
/// # Errors
/// If the line is longer than [`LINE_MAX_BYTES`], or cannot be read.
pub(super) fn read_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    loop {
        let bytes = match from.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if bytes.is_empty() {
            return Ok(false);
        }
        let (taken, ended) = take_line(bytes, line)?;
        from.consume(taken);
        if ended {
            return Ok(true);
        }
    }
}

/// Appends bytes up to a line feed. Returns the number of bytes taken, and whether the line has
/// ended.
pub(super) fn take_line(bytes: &[u8], line: &mut Vec<u8>) -> io::Result<(usize, bool)> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let text = &bytes[..end.unwrap_or(bytes.len())];
    if line.len() + text.len() > LINE_MAX_BYTES {
        let why = format!("wrote a line longer than {LINE_MAX_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    line.extend_from_slice(text);
    Ok((end.map_or(bytes.len(), |end| end + 1), end.is_some()))
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn line_feeds_stay_within_a_line() {
        let mut lines = Vec::new();
        let tasks: Box<RawValue> = serde_json::from_str("[1,\n \"a\\nb\"]").unwrap();
        write_line(&mut lines, &Answer::Done { first: TaskIndex(3), outputs: &tasks }).unwrap();
        write_line(&mut lines, &Answer::<&RawValue>::End).unwrap();
        let mut from = lines.as_slice();
        let mut line = Vec::new();
        assert!(read_line(&mut from, &mut line).unwrap());
        assert_eq!(String::from_utf8_lossy(&line), r#"{"done":{"first":3,"outputs":[1,  "a\nb"]}}"#);
        let Answer::Done { outputs, .. } = serde_json::from_slice::<Answer<&RawValue>>(&line).unwrap() else {
            panic!("not outputs")
        };
        assert_eq!(serde_json::from_str::<(u8, &str)>(r#"[1, "x"]"#).unwrap(), (1, "x"));
        assert_eq!(serde_json::from_str::<(u8, String)>(outputs.get()).unwrap(), (1, "a\nb".to_owned()));
        assert!(read_line(&mut from, &mut line).unwrap() && line == br#""end""#);
        assert!(!read_line(&mut from, &mut line).unwrap());
    }

    #[test]
    fn failures_survive_encoding() {
        let troubles = [
            FailureKind::Failed("a".into()),
            FailureKind::Rejected("b".into()),
            FailureKind::Undecodable("c".into()),
            FailureKind::Delayed("d".into(), Duration::from_millis(1_500)),
            FailureKind::TimedOut,
        ];
        for trouble in troubles {
            let failure = AnswerFailure::from_kind(&trouble).unwrap();
            let mut line = Vec::new();
            write_line(&mut line, &Answer::<&RawValue>::Failed { index: TaskIndex(1), failure }).unwrap();
            let answer: Answer<&RawValue> = serde_json::from_slice(&line).unwrap();
            let Answer::Failed { index: TaskIndex(1), failure } = answer else { panic!("{answer:?}") };
            assert_eq!(failure.into_kind(), trouble);
        }
        assert!(AnswerFailure::from_kind(&FailureKind::Stopped).is_none());
    }

    #[test]
    fn endless_line_is_refused() {
        let long = vec![b'x'; LINE_MAX_BYTES + 1];
        let error = read_line(&mut long.as_slice(), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("longer than 16777216 bytes"), "{error}");
    }
}
