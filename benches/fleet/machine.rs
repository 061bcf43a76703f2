//! The machine and the programs of a measurement.

use std::{fmt, fs, path::Path, process::Command, thread};

use serde::{Deserialize, Serialize};

use crate::{BenchResult, usage::read_proc_field};

/// The machine and the versions of the programs on it, for readers of the figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    rabbitmq: String,
    rustc: String,
    version: String,
    commit: Option<String>,
    date: String,
}

impl Machine {
    /// Detects the machine and its programs.
    pub(crate) fn detect(rabbitmq: &str) -> BenchResult<Self> {
        let unknown = || String::from("unknown");
        let memory = read_proc_field("/proc/meminfo", "MemTotal")?.unwrap_or_default();
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        let output_of = |program: &str, arguments: &[&str]| {
            let output =
                Command::new(program).args(arguments).output().ok().filter(|it| it.status.success())?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let root = env!("CARGO_MANIFEST_DIR");
        let git = |arguments: &[&str]| {
            let there = Path::new(root).join(".git").exists();
            there.then(|| output_of("git", &[&["-C", root], arguments].concat())).flatten()
        };
        let changed = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
        let mark = if changed { " and changes" } else { "" };
        Ok(Self {
            cpu: read_proc_field("/proc/cpuinfo", "model name")?.unwrap_or_else(unknown),
            cores: thread::available_parallelism()?.get(),
            memory_mib: kib >> 10,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into(),
            rabbitmq: rabbitmq.into(),
            rustc: output_of("rustc", &["--version"]).unwrap_or_else(unknown),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: git(&["rev-parse", "--short", "HEAD"]).map(|commit| commit + mark),
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, memory_mib, kernel, rabbitmq, rustc, version, commit, date } = self;
        let commit = commit.as_deref().unwrap_or("unknown commit");
        writeln!(f, "{cpu}, {cores} cores, {memory_mib} MiB, Linux {kernel}; broker and clients together")?;
        write!(f, "RabbitMQ {rabbitmq}, {rustc}, Gristmill {version} ({commit}), {date}")
    }
}
