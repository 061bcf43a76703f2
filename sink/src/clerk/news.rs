//! Progress of jobs, and stalls, as events: often enough to look alive, seldom enough to cost nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use gristmill_shared::{
    JobId, Topic,
    wire::{Event, Missing, Progress},
};

/// A job's progress is told this often at most, while it moves; its end at once.
const EVERY: Duration = Duration::from_millis(250);

/// What is worth telling.
#[derive(Debug, Default)]
pub(super) struct News {
    moved: BTreeMap<JobId, (Topic, Progress)>,
    /// What is told at once: ends and stalls.
    now: Vec<(Topic, Event)>,
    last: Option<Instant>,
}

impl News {
    /// A job moved, and that is committed.
    pub(super) fn add(&mut self, (topic, progress): (Topic, Progress), ended: bool) {
        if ended {
            self.moved.remove(&progress.job);
            self.now.push((topic, Event::Progress(progress)));
        } else {
            self.moved.insert(progress.job, (topic, progress));
        }
    }

    /// Jobs stall, and that is committed.
    pub(super) fn add_stalls(&mut self, stalls: impl Iterator<Item = (Topic, Missing)>) {
        self.now.extend(stalls.map(|(topic, missing)| (topic, Event::Missing(missing))));
    }

    /// When there is something to tell.
    pub(super) fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        if !self.now.is_empty() {
            return Some(now);
        }
        (!self.moved.is_empty()).then(|| self.last.map_or(now, |last| last + EVERY))
    }

    /// What is to be told now.
    pub(super) fn take(&mut self) -> Vec<(Topic, Event)> {
        let now = Instant::now();
        let mut news = std::mem::take(&mut self.now);
        if self.last.is_none_or(|last| now >= last + EVERY) && !self.moved.is_empty() {
            self.last = Some(now);
            let moved = std::mem::take(&mut self.moved).into_values();
            news.extend(moved.map(|(topic, progress)| (topic, Event::Progress(progress))));
        }
        news
    }
}
