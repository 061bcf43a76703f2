//! Processes by an exact argument, in `/proc`.

use std::{
    fs,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Whether a process has exactly this argument.
pub(crate) fn is_running(argument: &str) -> bool {
    processes().any(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    })
}

/// Waits until each argument has a process.
pub(crate) fn until_running(arguments: &[&str]) {
    until(arguments.join(" "), || arguments.iter().all(|argument| is_running(argument)));
}

/// Waits until no process has the argument.
pub(crate) fn until_gone(argument: &str) {
    until(format!("no {argument}"), || !is_running(argument));
}

/// The children of a process, zombies among them.
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

/// The operating system tells nobody of the processes of others, so it is asked again and again.
fn until(what: String, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
