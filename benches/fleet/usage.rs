//! Resource usage of a process, as counted by the operating system.

use std::{fs, io};

use crate::BenchResult;

/// The ticks per second of Linux' user interface, which do not depend on the kernel's own.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

/// The memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MemoryUse {
    /// The resident memory now.
    pub(crate) now: u64,
    /// The largest resident memory so far.
    pub(crate) peak: u64,
}

/// Returns the processor time of a process on all its threads, in seconds. Also works for a process
/// that has ended and was not yet waited for.
pub(crate) fn processor_seconds(pid: u32) -> BenchResult<f64> {
    seconds(pid, 11)
}

/// Returns the processor time of all processes that it has started and waited for, and of theirs.
pub(crate) fn processor_seconds_of_children(pid: u32) -> BenchResult<f64> {
    seconds(pid, 13)
}

/// Returns the sum of a pair of times, of the user and of the system, in `/proc/PID/stat`. `field`
/// is counted from what follows the name.
fn seconds(pid: u32, field: usize) -> BenchResult<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').ok_or("a stat without a name")?; // a name may hold anything
    let ticks =
        fields.split_whitespace().skip(field).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / TICKS_PER_SECOND)
}

/// Returns its memory; `None` once it has ended.
pub(crate) fn memory(pid: u32) -> Option<MemoryUse> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim_start_matches(':').trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib << 10)
    };
    Some(MemoryUse { now: bytes("VmRSS")?, peak: bytes("VmHWM")? })
}

/// Returns the value in the first line of a system file that has this name before its colon.
pub(crate) fn read_proc_field(file: &str, name: &str) -> io::Result<Option<String>> {
    let text = fs::read_to_string(file)?;
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    Ok(pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned()))
}
