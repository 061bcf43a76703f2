//! What the processes at a post are there for.

use super::{
    supervised_process::{Child, Ended, Mark},
    workload::Series,
    workspace::Site,
};
use crate::Exit;

/// What the processes at a post do.
#[derive(Debug)]
pub(super) enum Duty {
    Worker { slots: u16 },
    Sink,
    Producer(Series),
}

impl Duty {
    /// What the next process is started with, or `None` if the duty is done.
    pub(super) async fn next(&mut self, site: &Site) -> Option<Vec<String>> {
        match self {
            Self::Worker { slots } => Some(vec!["worker".into(), "--slots".into(), slots.to_string()]),
            Self::Sink => Some(vec!["sink".into()]),
            Self::Producer(series) => series.next(site).await,
        }
    }

    /// What shows that a process does its duty.
    pub(super) fn mark(&self) -> Mark {
        match self {
            Self::Worker { .. } => Mark::Says("taking tasks"),
            Self::Sink => Mark::Says("serving"),
            Self::Producer(_) => Mark::Prints,
        }
    }

    /// Takes note of what a process said when it came up, if it did.
    pub(super) fn up(&mut self, site: &Site, child: &Child) {
        if let (Self::Producer(series), Some(line)) = (self, child.up()) {
            series.opened(site, &line);
        }
    }

    /// Whether a process ended as it should by itself, which only a producer ever does.
    pub(super) fn is_done(&self, ended: &Ended) -> bool {
        matches!(self, Self::Producer(_)) && ended.code() == Some(Exit::Ok as i32)
    }

    /// Draws the conclusions from an end, however it came.
    pub(super) fn follow(&mut self, ended: &Ended) {
        let done = self.is_done(ended);
        if let (Self::Producer(series), true) = (self, done) {
            series.sent();
        }
    }
}
