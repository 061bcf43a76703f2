//! A search for processes by an exact argument, in `/proc`.

use std::{
    fs,
    time::{Duration, Instant},
};

const WAIT_MAX: Duration = Duration::from_secs(60);

/// True if a process has exactly this argument.
pub(crate) fn is_running(argument: &str) -> bool {
    processes().any(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    })
}

/// Waits until each argument belongs to a process.
pub(crate) fn wait_running(arguments: &[&str]) {
    wait_for(arguments.join(" "), || arguments.iter().all(|argument| is_running(argument)));
}

/// Waits until no process has this argument.
pub(crate) fn wait_gone(argument: &str) {
    wait_for(format!("no {argument}"), || !is_running(argument));
}

/// Returns the children of a process, including zombies.
pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    let parent_of = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    processes().filter(|pid| parent_of(pid) == Some(parent)).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Waits until the condition holds. Polls, since processes that are not children send no signal.
pub(crate) fn wait_for(what: String, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < WAIT_MAX, "waited {WAIT_MAX:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
