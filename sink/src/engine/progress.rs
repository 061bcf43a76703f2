//! Progress of jobs, and stalls, as events: often enough to look alive, seldom enough to cost nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use gristmill_shared::{
    JobId, Topic,
    wire::{Event, Missing, Progress},
};

/// A job's progress is told this often at most, while it moves; its end at once, and so is every doubling of its outcomes:
/// producers size batches by the first few that are measured. So often can a number double that it costs next to nothing.
const EVERY: Duration = Duration::from_millis(250);
/// Of how many jobs it is known what was told last. Beyond it that is forgotten, and so told once too often.
const TOLD_MAX_JOBS: usize = 1_000;

/// What is worth telling.
#[derive(Debug, Default)]
pub(super) struct News {
    moved: BTreeMap<JobId, (Topic, Progress)>,
    /// How many outcomes of jobs that go on were told at once the last time.
    told: BTreeMap<JobId, u64>,
    /// What is told at once: first outcomes, ends and stalls.
    now: Vec<(Topic, Event)>,
    last: Option<Instant>,
}

impl News {
    /// A job moved, and that is committed.
    pub(super) fn add(&mut self, (topic, progress): (Topic, Progress), ended: bool) {
        if ended {
            self.told.remove(&progress.job);
        }
        if ended || self.has_doubled(&progress) {
            self.moved.remove(&progress.job);
            self.now.push((topic, Event::Progress(progress)));
        } else {
            self.moved.insert(progress.job, (topic, progress));
        }
    }

    /// Whether there are twice as many outcomes as when this was last so.
    fn has_doubled(&mut self, Progress { job, account, .. }: &Progress) -> bool {
        let outcomes = account.done.saturating_add(account.failed);
        let told = self.told.get(job).copied().unwrap_or_default();
        if outcomes == 0 || outcomes / 2 < told {
            return false;
        }
        if self.told.len() >= TOLD_MAX_JOBS {
            self.told.clear();
        }
        self.told.insert(*job, outcomes);
        true
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
        if !news.is_empty() {
            self.last.get_or_insert(now); // whatever is told first starts the clock
        }
        if self.last.is_none_or(|last| now >= last + EVERY) && !self.moved.is_empty() {
            self.last = Some(now);
            let moved = std::mem::take(&mut self.moved).into_values();
            news.extend(moved.map(|(topic, progress)| (topic, Event::Progress(progress))));
        }
        news
    }
}
