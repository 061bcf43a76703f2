//! Consumers and readers that the broker has ended and that cannot be restored at present.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// All current degradations; clones share them. At most one for each consumer and reader.
#[derive(Clone, Debug, Default)]
pub(crate) struct Degradations(watch::Sender<BTreeMap<u64, Degradation>>);

/// The generation that is degraded, and the reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Degradation {
    generation: u64,
    why: String,
}

/// One degradation, which lasts until the guard is dropped.
#[derive(Debug)]
pub(crate) struct DegradedGuard {
    id: u64,
    all: Degradations,
}

impl Degradations {
    /// Adds a degradation of `generation`.
    pub(crate) fn add(&self, generation: u64, why: String) -> DegradedGuard {
        let mut id = 0;
        self.0.send_modify(|all| {
            id = all.last_key_value().map_or(0, |(last, _)| last + 1);
            all.insert(id, Degradation { generation, why });
        });
        DegradedGuard { id, all: self.clone() }
    }

    /// Returns the reason why a generation does not deliver everything, `None` if it does; the
    /// oldest of several reasons.
    pub(crate) fn reason_in(&self, generation: u64) -> Option<String> {
        let all = self.0.borrow();
        all.values().find(|one| one.generation == generation).map(|one| one.why.clone())
    }

    /// Returns a receiver that is notified of every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeMap<u64, Degradation>> {
        self.0.subscribe()
    }
}

impl DegradedGuard {
    /// Replaces the generation and the reason; the degradation continues.
    pub(crate) fn update(&self, generation: u64, why: String) {
        let now = Degradation { generation, why };
        self.all.0.send_if_modified(|all| {
            let is_news = all.get(&self.id) != Some(&now);
            all.insert(self.id, now);
            is_news
        });
    }
}

impl Drop for DegradedGuard {
    fn drop(&mut self) {
        self.all.0.send_modify(|all| drop(all.remove(&self.id)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A degradation counts only for its generation.
    #[test]
    fn degradation_ends_with_its_guard() {
        let all = Degradations::default();
        let first = all.add(1, "first".into());
        let second = all.add(1, "second".into());
        assert_eq!((all.reason_in(1).as_deref(), all.reason_in(2)), (Some("first"), None));
        drop(first);
        assert_eq!(all.reason_in(1).as_deref(), Some("second"));
        second.update(2, "still".into());
        assert_eq!((all.reason_in(1), all.reason_in(2).as_deref()), (None, Some("still")));
        drop(second);
        assert_eq!(all.reason_in(2), None);
    }
}
