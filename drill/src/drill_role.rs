//! The role of supervised processes: their commands, their signs of startup and their ends.

use super::{
    supervised_process::{ProcessExit, StartupSign, SupervisedProcess},
    workload::Workload,
    workspace::Workspace,
};
use gristmill_shared::Exit;

/// The role of a supervisor's processes.
#[derive(Debug)]
pub(super) enum DrillRole {
    Worker { slots: u16 },
    Sink,
    Producer(Workload),
}

impl DrillRole {
    /// Returns the arguments of the next process, or `None` if the role is done.
    pub(super) async fn next_command(&mut self, workspace: &Workspace) -> Option<Vec<String>> {
        match self {
            Self::Worker { slots } => Some(vec!["worker".into(), "--slots".into(), slots.to_string()]),
            Self::Sink => Some(vec!["sink".into()]),
            Self::Producer(workload) => workload.next_command(workspace).await,
        }
    }

    /// Returns the sign that a process is at work.
    pub(super) fn startup_sign(&self) -> StartupSign {
        match self {
            Self::Worker { .. } => StartupSign::StderrLine("taking tasks"),
            Self::Sink => StartupSign::StderrLine("serving"),
            Self::Producer(_) => StartupSign::StdoutLine,
        }
    }

    /// Records the line of a process that came up, if it did.
    pub(super) fn note_startup(&mut self, workspace: &Workspace, process: &SupervisedProcess) {
        if let (Self::Producer(workload), Some(line)) = (self, process.startup_line()) {
            workload.note_job_id(workspace, &line);
        }
    }

    /// True if a process ended by itself as it should, which only producers do.
    pub(super) fn is_done(&self, ended: &ProcessExit) -> bool {
        matches!(self, Self::Producer(_)) && ended.code() == Some(Exit::Ok as i32)
    }

    /// Records an end, by itself or by a fault.
    pub(super) fn note_exit(&mut self, ended: &ProcessExit) {
        let done = self.is_done(ended);
        if let (Self::Producer(workload), true) = (self, done) {
            workload.note_sent();
        }
    }
}
