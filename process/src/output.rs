//! The result of a command.

use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

use gristmill_shared::TaskError;

/// The number of last bytes of standard error in an error of [`CommandOutput::ok`]. A reason is
/// sent and stored with each failed task, so it must be short.
const REASON_TAIL_BYTES: usize = 2 << 10;

/// The result of a command that has exited on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommandOutput {
    /// The program as it was given.
    pub program: String,
    /// The exit status, which may be a failure: see [`CommandOutput::ok`].
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// The number of bytes before `stdout` that were dropped. 0 unless the command asked for a
    /// tail.
    pub stdout_omitted: u64,
    /// The last bytes of standard error.
    pub stderr: Vec<u8>,
    /// The number of bytes before `stderr` that were dropped.
    pub stderr_omitted: u64,
}

impl CommandOutput {
    /// Returns the output if the exit code is 0.
    ///
    /// # Errors
    /// A failure that can be retried, with the exit code or the signal and the end of standard
    /// error.
    pub fn ok(self) -> Result<Self, TaskError> {
        if self.status.success() {
            return Ok(self);
        }
        let reason = exit_reason(self.status, &self.stderr, self.stderr_omitted);
        Err(TaskError::failed(format_args!("the command `{}` {reason}", self.program)))
    }

    /// Returns standard output as text.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn stdout_text(&self) -> Result<&str, TaskError> {
        std::str::from_utf8(&self.stdout).map_err(|error| {
            TaskError::failed(format_args!("the standard output of `{}` is no UTF-8: {error}", self.program))
        })
    }
}

/// Describes the exit of a process, with the end of its standard error: `exited with code 3: no
/// such file`, `was killed by signal 9`. `omitted` is the number of bytes before `stderr` that were
/// dropped.
#[must_use]
pub fn exit_reason(status: ExitStatus, stderr: &[u8], omitted: u64) -> String {
    let ended = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => format!("ended: {status}"),
    };
    ended + &tail_of(stderr, omitted)
}

/// Returns `: ` and the end of standard error, marked if bytes are missing; empty if there is none.
fn tail_of(stderr: &[u8], omitted: u64) -> String {
    let start = stderr.len().saturating_sub(REASON_TAIL_BYTES);
    let omitted = omitted + start as u64;
    let text = String::from_utf8_lossy(&stderr[start..]).replace('\0', "\u{fffd}"); // no store takes a NUL
    match (text.trim(), omitted) {
        ("", _) => String::new(),
        (text, 0) => format!(": {text}"),
        (text, _) => format!(": [{omitted} bytes before] {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_stderr_is_marked() {
        assert_eq!(tail_of(b" \n", 0), "");
        assert_eq!(tail_of(b"no\n", 0), ": no");
        assert_eq!(tail_of(b"a\0b", 7), ": [7 bytes before] a\u{fffd}b");
        let long = [b'x'; REASON_TAIL_BYTES + 5];
        assert!(tail_of(&long, 3).starts_with(": [8 bytes before] xx"));
    }
}
