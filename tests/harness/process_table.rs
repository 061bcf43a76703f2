//! Processes that need not be our children, found in `/proc` by an exact argument.

use std::{fs, time::Duration};

use super::within;

/// True if a process exists and has exactly this argument.
pub(crate) fn has_argument(pid: u32, argument: &str) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
}

/// True if a process exists, also as a zombie.
pub(crate) fn is_there(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

/// Returns the parent of a process, if it exists.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Returns the children of a process, zombies among them.
pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    process_ids().filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

/// Waits until a process has the argument.
pub(crate) async fn wait_running(argument: &str) {
    wait_until(argument, || process_ids().any(|pid| has_argument(pid, argument))).await;
}

/// Waits until no process has the argument.
pub(crate) async fn wait_gone(argument: &str) {
    wait_until(&format!("the end of {argument}"), || !process_ids().any(|pid| has_argument(pid, argument)))
        .await;
}

/// Waits until `is_so` holds. Polls, since no signal comes from processes that are not our
/// children.
pub(crate) async fn wait_until(what: &str, is_so: impl Fn() -> bool + Send + Sync) {
    within(what, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn process_ids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}
