//! What a process has used, as the system counts it.

use std::{fs, io};

use crate::Outcome;

/// Ticks in a second, in which Linux tells programs what time was used; part of its interface, whatever the kernel's own.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) now: u64,
    /// The most that ever was.
    pub(crate) peak: u64,
}

/// Processor time that a process has used on all its threads, in seconds. Also of one that has ended and was not yet
/// waited for.
pub(crate) fn processor_seconds(pid: u32) -> Outcome<f64> {
    seconds(pid, 11)
}

/// The same of all processes that it has started and waited for, and of theirs.
pub(crate) fn processor_seconds_of_children(pid: u32) -> Outcome<f64> {
    seconds(pid, 13)
}

/// A pair of times, for the user and in the system, in `/proc/PID/stat`: counted from what follows on the name.
fn seconds(pid: u32, place: usize) -> Outcome<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').ok_or("a stat without a name")?; // which may hold anything
    let ticks =
        fields.split_whitespace().skip(place).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / TICKS_PER_SECOND)
}

/// Its memory; nothing once it has ended.
pub(crate) fn memory(pid: u32) -> Option<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim_start_matches(':').trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib << 10)
    };
    Some(Memory { now: bytes("VmRSS")?, peak: bytes("VmHWM")? })
}

/// The first line of a file of the system's that has this name before its colon.
pub(crate) fn told(file: &str, name: &str) -> io::Result<Option<String>> {
    let text = fs::read_to_string(file)?;
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    Ok(pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned()))
}
