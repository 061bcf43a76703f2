//! A role with a supervisor.

use std::sync::{Arc, Mutex};

use tokio::{task::JoinHandle, time::Duration};

use super::{Ended, Site};

/// How long a supervisor waits before it starts a role again.
const PAUSE: Duration = Duration::from_millis(200);

/// A role that is started again whenever it leaves by itself. Dropping it kills it.
pub(crate) struct Kept {
    task: JoinHandle<()>,
    left: Arc<Mutex<Vec<Ended>>>,
}

impl Kept {
    pub(crate) fn start(site: &Arc<Site>, words: &'static str) -> Self {
        let left = Arc::new(Mutex::new(Vec::new()));
        let (site, ends) = (Arc::clone(site), Arc::clone(&left));
        let task = tokio::spawn(async move {
            loop {
                // Not `end`, which fails for who serves longer than anybody has patience for.
                let ended = site.start(words).left().await;
                ends.lock().unwrap().push(ended);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { task, left }
    }

    /// It left for no other reason than that the broker was gone.
    pub(crate) fn only_the_broker_was_to_blame(&self) {
        let left = self.left.lock().unwrap();
        assert!(left.iter().all(|ended| ended.code == 3), "{left:#?}");
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}
