//! No process of a drill outlives it, however it ends.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

/// The leader of the drill's process group. Its input ends when we let go of it or are gone, be it by SIGKILL, and
/// then it kills its group and so itself. A paused process dies of SIGKILL too.
const SCRIPT: &str = "trap '' HUP INT TERM; while read -r _; do :; done; kill -s KILL 0";

/// A process group that is killed as soon as this is dropped, or this process ends in any other way.
#[derive(Debug)]
pub(super) struct Leash {
    shell: Child,
}

impl Leash {
    pub(super) fn new() -> io::Result<Self> {
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "gristmill-leash"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self { shell })
    }

    /// The group, for those who join it.
    pub(super) fn group(&self) -> i32 {
        self.shell.id().cast_signed()
    }
}

impl Drop for Leash {
    /// Returns when the group has been sent its SIGKILL.
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // It ends by its own hand, and there is nobody to tell.
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn whoever_is_on_the_leash_dies_with_it() {
        let leash = Leash::new().unwrap();
        let mut member = Command::new("sleep").arg("600").process_group(leash.group()).spawn().unwrap();
        assert!(member.try_wait().unwrap().is_none());
        drop(leash);
        assert_eq!(member.wait().unwrap().signal(), Some(9));
    }
}
