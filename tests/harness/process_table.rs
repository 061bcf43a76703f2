//! Processes of others, by an exact argument, in `/proc`.

use std::{fs, time::Duration};

use super::within;

/// Returns whether a process is there and has exactly this argument.
pub(crate) fn has_argument(pid: u32, argument: &str) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
}

/// Returns whether a process is there, as a zombie also.
pub(crate) fn is_there(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

/// The parent of a process, if it is there.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The children of a process, zombies among them.
pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    all().filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

/// Waits until a process has the argument.
pub(crate) async fn until_running(argument: &str) {
    until(argument, || all().any(|pid| has_argument(pid, argument))).await;
}

/// Waits until no process has the argument.
pub(crate) async fn until_gone(argument: &str) {
    until(&format!("the end of {argument}"), || !all().any(|pid| has_argument(pid, argument))).await;
}

/// Waits until it is so. Polls, since no signal comes from processes that are not our children.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool + Send + Sync) {
    within(what, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn all() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}
