//! What the broker has ended and does not let us begin again, as far as that is known just now.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// All that is interrupted; clones share it. At most one for each consumer and reader.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interruptions(watch::Sender<BTreeMap<u64, Interruption>>);

/// In which generation something is interrupted, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Interruption {
    generation: u64,
    why: String,
}

/// One interruption, which lasts until this is dropped.
#[derive(Debug)]
pub(crate) struct Interrupted {
    id: u64,
    all: Interruptions,
}

impl Interruptions {
    /// One more.
    pub(crate) fn begin(&self, generation: u64, why: String) -> Interrupted {
        let mut id = 0;
        self.0.send_modify(|all| {
            id = all.last_key_value().map_or(0, |(last, _)| last + 1);
            all.insert(id, Interruption { generation, why });
        });
        Interrupted { id, all: self.clone() }
    }

    /// Why a generation does not deliver all that it should, while it does not; of several reasons the oldest.
    pub(crate) fn of(&self, generation: u64) -> Option<String> {
        let all = self.0.borrow();
        all.values().find(|one| one.generation == generation).map(|one| one.why.clone())
    }

    /// Tells when they change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeMap<u64, Interruption>> {
        self.0.subscribe()
    }
}

impl Interrupted {
    /// It goes on, and why by now.
    pub(crate) fn go_on(&self, generation: u64, why: String) {
        let now = Interruption { generation, why };
        self.all.0.send_if_modified(|all| {
            let is_news = all.get(&self.id) != Some(&now);
            all.insert(self.id, now);
            is_news
        });
    }
}

impl Drop for Interrupted {
    fn drop(&mut self) {
        self.all.0.send_modify(|all| drop(all.remove(&self.id)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_lasts_until_it_is_dropped_and_counts_for_its_generation() {
        let all = Interruptions::default();
        let first = all.begin(1, "first".into());
        let second = all.begin(1, "second".into());
        assert_eq!((all.of(1).as_deref(), all.of(2)), (Some("first"), None));
        drop(first);
        assert_eq!(all.of(1).as_deref(), Some("second"));
        second.go_on(2, "still".into());
        assert_eq!((all.of(1), all.of(2).as_deref()), (None, Some("still")));
        drop(second);
        assert_eq!(all.of(2), None);
    }
}
