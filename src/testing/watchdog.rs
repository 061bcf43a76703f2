//! A shell that outlives this process by a moment and clears up after it, however it ended.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Its argument: the directory. Its input: the process group to kill, then nothing until we are gone; the system
/// closes the pipe for us if we can't. It keeps our stderr open, so that whoever reads that to its end (a pipe
/// behind `cargo test`) knows that everything is gone. Killing takes a moment, hence the tries; they are bounded, as
/// there are systems on which nobody waits for orphans, and then their group never goes away.
const SCRIPT: &str = r#"
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

/// Kills a process group and removes a directory as soon as it is dropped, or this process ends in any other way.
#[derive(Debug)]
pub(super) struct Watchdog {
    shell: Child,
    /// `None` once the pipe is closed.
    pipe: Option<ChildStdin>,
}

impl Watchdog {
    /// Watches over `dir`; there is no group yet. In a process group of its own, out of reach of a Ctrl-C.
    pub(super) fn over(dir: &Path) -> io::Result<Self> {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "gristmill-watchdog"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }

    /// Names the process group. Called once, before the group does anything.
    pub(super) fn guard(&mut self, group: u32) -> io::Result<()> {
        self.pipe.as_mut().map_or(Ok(()), |pipe| writeln!(pipe, "{group}"))
    }
}

impl Drop for Watchdog {
    /// Returns when the group and the directory are gone, after 5 s at most.
    fn drop(&mut self) {
        self.pipe = None;
        // It ends by itself, and there is nobody to tell.
        let _ = self.shell.wait();
    }
}
