//! A process group that ends with the drill, however the drill ends.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

/// The script of the group's leader. Its input ends when the drill closes it or ends, be it by
/// SIGKILL. Then it kills its group and so itself. A stopped process dies of SIGKILL too.
const LEADER_SCRIPT: &str = "trap '' HUP INT TERM; while read -r _; do :; done; kill -s KILL 0";

/// A process group that is killed when this is dropped, or when this process ends in any other way.
#[derive(Debug)]
pub(super) struct ProcessGroup {
    shell: Child,
}

impl ProcessGroup {
    pub(super) fn new() -> io::Result<Self> {
        let shell = Command::new("sh")
            .args(["-c", LEADER_SCRIPT, "gristmill-leash"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self { shell })
    }

    /// Returns the id of the group, for processes that join it.
    pub(super) fn id(&self) -> i32 {
        self.shell.id().cast_signed()
    }
}

impl Drop for ProcessGroup {
    /// Returns when the group has been sent its SIGKILL.
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // It kills itself, and the drill is over.
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn group_member_dies_with_the_group() {
        let group = ProcessGroup::new().unwrap();
        let mut member = Command::new("sleep").arg("600").process_group(group.id()).spawn().unwrap();
        assert!(member.try_wait().unwrap().is_none());
        drop(group);
        assert_eq!(member.wait().unwrap().signal(), Some(9));
    }
}
