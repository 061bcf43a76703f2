//! A shell that ends the commands of this process when this process has died.

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::process::Pid;

/// The environment variable by which the shell finds processes outside the groups: a command that
/// was started and not added yet, and one that has left its group by `setsid`.
const MARK_VARIABLE: &str = "GRISTMILL_LEASH";

/// The script of the leash. Reads `+GROUP` and `-GROUP` lines; its argument is the mark of this
/// process. Its input ends when this process ends, even by SIGKILL. It then sends SIGTERM to all
/// remaining groups and to all processes with the mark, and SIGKILL one second later. It closes the
/// descriptors that it may have inherited, as far as a POSIX shell can name them, and runs in `/`,
/// so that it keeps no folder in use.
const LEASH_SCRIPT: &str = r#"trap '' HUP INT QUIT TERM
exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-
mark=$1
groups=' '
while read -r line; do
    group=${line#?}
    case $line in
    +*) groups="$groups$group " ;;
    -*) case $groups in *" $group "*) groups="${groups%%" $group "*} ${groups#*" $group "}" ;; esac ;;
    esac
done
marked() { grep -alsF -- "$mark" /proc/[0-9]*/environ; }
signal() {
    for group in $groups; do kill -s "$1" -- "-$group"; done
    for process in $(marked); do
        process=${process%/environ}
        kill -s "$1" "${process#/proc/}"
    done
}
[ "$groups" = ' ' ] && [ -z "$(marked)" ] && exit
signal TERM
sleep 1
signal KILL"#;

/// The only leash of this process.
static CURRENT_LEASH: Mutex<Option<Leash>> = Mutex::new(None);

/// A running shell, and the groups that it knows.
#[derive(Debug)]
struct Leash {
    shell: Child,
    lines: ChildStdin,
    groups: BTreeSet<i32>,
}

impl Leash {
    fn start() -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", LEASH_SCRIPT, "gristmill-leash", &format!("{MARK_VARIABLE}={}", mark())])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let lines = shell.stdin.take().ok_or_else(|| io::Error::other("the shell has no input"))?;
        // The pipe of a paused shell fills up. A write then fails, and the next shell takes over.
        rustix::io::ioctl_fionbio(&lines, true)?;
        Ok(Self { shell, lines, groups: BTreeSet::new() })
    }

    /// Replaces this shell, which is dead or does not read. Kills it first, since it would end the
    /// groups at the end of its input.
    fn restart(&mut self) -> io::Result<()> {
        let _ = self.shell.kill(); // it may be dead
        self.shell.wait()?;
        let groups = std::mem::take(&mut self.groups);
        *self = Self::start()?;
        for group in groups {
            self.lines.write_all(format!("+{group}\n").as_bytes())?;
            self.groups.insert(group);
        }
        Ok(())
    }

    /// Writes a line, which is short enough for an atomic write to a pipe.
    fn write(&mut self, sign: char, group: Pid) -> io::Result<()> {
        let line = format!("{sign}{}\n", group.as_raw_nonzero());
        if self.lines.write_all(line.as_bytes()).is_err() {
            self.restart()?;
            self.lines.write_all(line.as_bytes())?;
        }
        Ok(())
    }
}

/// Returns the variable in the environment of every command of this process, with a value that is
/// unique to this process.
pub(crate) fn mark_variable() -> (&'static str, &'static str) {
    (MARK_VARIABLE, mark())
}

fn mark() -> &'static str {
    static PROCESS_MARK: OnceLock<String> = OnceLock::new();
    PROCESS_MARK.get_or_init(|| {
        // A process id may be reused, but not with the same start time.
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("{}-{}", std::process::id(), started.as_nanos())
    })
}

/// Starts the shell unless it is running.
///
/// # Errors
/// If the operating system provides no process, or there is no `/bin/sh`.
pub(crate) fn ensure() -> io::Result<()> {
    with_leash(|_| Ok(()))
}

/// Adds a group, which the shell ends when this process dies.
///
/// # Errors
/// The same as [`ensure`].
pub(crate) fn add(group: Pid) -> io::Result<()> {
    with_leash(|leash| {
        leash.write('+', group)?;
        leash.groups.insert(group.as_raw_nonzero().get());
        Ok(())
    })
}

/// Removes a group. Must be called before its leader is reaped, while the number cannot be another
/// group's.
pub(crate) fn remove(group: Pid) {
    let removed = with_leash(|leash| {
        leash.groups.remove(&group.as_raw_nonzero().get());
        leash.write('-', group)
    });
    drop(removed); // without a shell there is no group to remove
}

fn with_leash<T>(act: impl FnOnce(&mut Leash) -> io::Result<T>) -> io::Result<T> {
    let mut leash = CURRENT_LEASH.lock().unwrap_or_else(PoisonError::into_inner);
    let leash = match &mut *leash {
        Some(leash) => leash,
        none => none.insert(Leash::start()?),
    };
    act(leash)
}
