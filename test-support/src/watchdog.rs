//! A shell that outlives this process by a moment and cleans up after it, however it ended.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// The watchdog's shell script. Its argument is the directory. Its input is the process group to
/// kill, and then nothing until this process ends; the operating system closes the pipe if this
/// process cannot. It keeps our stderr open, so that a reader of stderr to its end (a pipe behind
/// `cargo test`) knows that everything is gone. Killing takes a moment, hence the attempts. They
/// are bounded, since on some systems no process waits for orphans, and their group never
/// disappears.
const WATCHDOG_SCRIPT: &str = r#"
trap '' HUP INT TERM
read -r group
while read -r _; do :; done
tries=50
while [ -n "$group" ] && [ "$tries" -gt 0 ] && kill -s KILL -- "-$group" 2>/dev/null; do
    tries=$((tries - 1))
    sleep 0.1
done
exec rm -rf -- "$1"
"#;

/// A watchdog. It kills a process group and removes a directory when it is dropped, or when this
/// process ends in any other way.
#[derive(Debug)]
pub(super) struct Watchdog {
    shell: Child,
    /// `None` once the pipe is closed.
    pipe: Option<ChildStdin>,
}

impl Watchdog {
    /// Starts a watchdog of `dir`, which has no group yet. It runs in a process group of its own,
    /// so that a Ctrl-C does not reach it.
    pub(super) fn spawn(dir: &Path) -> io::Result<Self> {
        let mut shell = Command::new("sh")
            .args(["-c", WATCHDOG_SCRIPT, "gristmill-watchdog"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }

    /// Sets the process group. Called once, before the group does anything.
    pub(super) fn watch_group(&mut self, group: u32) -> io::Result<()> {
        self.pipe.as_mut().map_or(Ok(()), |pipe| writeln!(pipe, "{group}"))
    }
}

impl Drop for Watchdog {
    /// Returns when the group and the directory are gone, after 5 s at most.
    fn drop(&mut self) {
        self.pipe = None;
        // The shell ends by itself, and an error could not be reported.
        let _ = self.shell.wait();
    }
}
