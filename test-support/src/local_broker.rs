//! A private RabbitMQ node, started from the local installation.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::error::{LocalBrokerError, cannot};
use super::node::{Node, NodeWaitOutcome};
use super::node_dir::{Installation, NodeDir, Ports, TlsFiles};
use super::watchdog::Watchdog;

/// The time limit for a node until it accepts connections. It needs about five seconds on two idle
/// cores. On two busy cores a minute was not enough.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// The time limit for a graceful shutdown of a node. It needs about one second.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// The most attempts to start a node, each with new ports and a new directory: a port may be taken
/// between the check and the bind by the node.
const START_TRIES: u32 = 3;

/// The time limit of one `rabbitmqctl` command, in seconds.
const CTL_TIMEOUT_SECONDS: &str = "60";

/// The number of lines of a node's output, and of its log, that an error shows.
const LOG_TAIL_LINES: usize = 20;

/// A private RabbitMQ node: own name, own directory, own ports on 127.0.0.1, own port mapper, no
/// plugins.
///
/// The node neither disturbs nor uses another one on the machine. All methods block; none may be
/// called on a thread that runs async code.
///
/// Dropping it kills the node and removes its directory, also in a panic. If this process ends
/// without dropping it, also by `kill -9`, a watchdog process does the same within moments.
///
/// ```no_run
/// # fn main() -> Result<(), gristmill_test_support::LocalBrokerError> {
/// let mut broker = gristmill_test_support::LocalBroker::start()?;
/// println!("RabbitMQ {} at {}", broker.version(), broker.url());
/// broker.kill()?; // as if its machine had lost power
/// broker.restart()?; // the same address, the same data
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LocalBroker {
    installation: Installation,
    node_dir: NodeDir,
    version: String,
    /// `None` while the node is down.
    node: Option<Node>,
    /// The node's port mapper, and the leader of the group that the watchdog kills.
    epmd: Child,
    /// The last field, since fields are dropped in order.
    _watchdog: Watchdog,
}

impl LocalBroker {
    /// Starts a node and waits until it accepts connections, at most 3 min. If it ends before that,
    /// starts it with new ports, up to three times in all.
    ///
    /// # Errors
    /// If there is no RabbitMQ on this machine, or it does not start. The error ends with the
    /// node's last output.
    pub fn start() -> Result<Self, LocalBrokerError> {
        Self::start_anywhere(None)
    }

    /// Starts a node that also speaks TLS, see [`tls_port`](Self::tls_port). A client with a
    /// certificate may log in by it (EXTERNAL), as the user whom its CN names.
    ///
    /// # Errors
    /// The errors of [`start`](Self::start). Without the plugin `rabbitmq_auth_mechanism_ssl` the
    /// node does not start.
    pub fn start_with_tls(tls: &TlsFiles) -> Result<Self, LocalBrokerError> {
        Self::start_anywhere(Some(tls))
    }

    fn start_anywhere(tls: Option<&TlsFiles>) -> Result<Self, LocalBrokerError> {
        let installation = Installation::find().ok_or(LocalBrokerError::NotInstalled)?;
        let ports = || Ports::pick().map_err(cannot("find free ports"));
        Self::start_with(&installation, tls, START_TIMEOUT, ports)
    }

    /// Retries until a node stays up.
    fn start_with(
        installation: &Installation,
        tls: Option<&TlsFiles>,
        timeout: Duration,
        mut ports: impl FnMut() -> Result<Ports, LocalBrokerError>,
    ) -> Result<Self, LocalBrokerError> {
        let mut tries = 1;
        loop {
            match Self::try_start(installation, tls, timeout, ports()?) {
                Err(LocalBrokerError::Ended { .. }) if tries < START_TRIES => tries += 1,
                Err(LocalBrokerError::Ended { what, log, .. }) => {
                    return Err(LocalBrokerError::Ended { what, tries, log });
                }
                result => return result,
            }
        }
    }

    fn try_start(
        installation: &Installation,
        tls: Option<&TlsFiles>,
        timeout: Duration,
        ports: Ports,
    ) -> Result<Self, LocalBrokerError> {
        let node_dir = NodeDir::create(ports).map_err(cannot("make the node's directory"))?;
        let mut watchdog = Watchdog::spawn(&node_dir.dir).map_err(cannot("start the watchdog"))?;
        node_dir.write_config(tls).map_err(cannot("fill the node's directory"))?;
        let epmd = spawn_epmd(&node_dir, &mut watchdog).map_err(cannot("start epmd"))?;
        let mut broker = Self {
            installation: installation.clone(),
            node_dir,
            version: String::new(),
            node: None,
            epmd,
            _watchdog: watchdog,
        };
        broker.start_node(timeout)?;
        // If another mapper took our port, the node has registered there. It is not ours, and may
        // end at any time.
        if broker.epmd.try_wait().map_err(cannot("look at epmd"))?.is_some() {
            return Err(LocalBrokerError::Ended { what: "epmd", tries: 1, log: broker.log_tail() });
        }
        Ok(broker)
    }

    fn start_node(&mut self, timeout: Duration) -> Result<(), LocalBrokerError> {
        let group =
            i32::try_from(self.epmd.id()).map_err(io::Error::other).map_err(cannot("use a process id"))?;
        let node = Node::spawn(&self.installation.server, &self.node_dir, group);
        let node = self.node.insert(node.map_err(cannot("run rabbitmq-server"))?);
        let outcome = node.wait_ready(timeout).map_err(cannot("read what the node prints"))?;
        if outcome == NodeWaitOutcome::Ready {
            node.version().unwrap_or("of unknown version").clone_into(&mut self.version);
            return Ok(());
        }
        let log = self.log_tail();
        self.kill()?;
        Err(match outcome {
            NodeWaitOutcome::TimedOut => LocalBrokerError::NotReady { waited: timeout, log },
            NodeWaitOutcome::Ready | NodeWaitOutcome::Exited => {
                LocalBrokerError::Ended { what: "rabbitmq-server", tries: 1, log }
            }
        })
    }

    /// Returns its address, `amqp://guest:guest@127.0.0.1:PORT`, which restarts do not change.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.node_dir.ports.amqp)
    }

    /// Returns its TLS port on 127.0.0.1, if it was started with TLS.
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.node_dir.ports.amqps
    }

    /// Replaces its certificates. New connections see the new ones. The ports stay as they are.
    ///
    /// # Errors
    /// If the files cannot be copied, or the node is down.
    pub fn renew_tls(&self, tls: &TlsFiles) -> Result<(), LocalBrokerError> {
        self.node_dir.copy_tls(tls).map_err(cannot("copy certificates"))?;
        self.ctl(&["eval", "ssl:clear_pem_cache()."]).map(drop)
    }

    /// Returns its version, such as `3.10.8`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns the id of the node's process, a child of this one; `None` while it is down.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.node.as_ref().map(Node::pid)
    }

    /// Runs `rabbitmqctl` with these arguments against this node and returns its output, without
    /// progress messages.
    ///
    /// # Errors
    /// If it cannot be run, or if it fails, as it does while the node is down or paused. Bounded by
    /// 60 s.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, LocalBrokerError> {
        let mut ctl = self.node_dir.command(&self.installation.ctl);
        ctl.args(["--quiet", "--timeout", CTL_TIMEOUT_SECONDS]);
        run(ctl, "rabbitmqctl", arguments)
    }

    /// Runs a script that uses `$RABBITMQCTL` for this node, and returns its output.
    ///
    /// # Errors
    /// If it cannot be run, or if it fails. Not bounded in time.
    pub fn script(&self, path: &Path, arguments: &[&str]) -> Result<String, LocalBrokerError> {
        let mut script = self.node_dir.command(path);
        script.env("RABBITMQCTL", &self.installation.ctl);
        run(script, &path.display().to_string(), arguments)
    }

    /// Kills the node with SIGKILL. Returns when it is dead and its ports are closed. Does nothing
    /// if it is down.
    ///
    /// # Errors
    /// If the operating system refuses, which is not expected.
    pub fn kill(&mut self) -> Result<(), LocalBrokerError> {
        match self.node.take() {
            Some(mut node) => node.kill().map_err(cannot("kill the node")),
            None => Ok(()),
        }
    }

    /// Shuts the node down gracefully. Returns when it has ended, within 30 s. Does nothing if it
    /// is down.
    ///
    /// # Errors
    /// If it does not stop in time, as a paused node does not. It is killed then.
    pub fn stop(&mut self) -> Result<(), LocalBrokerError> {
        let Some(mut node) = self.node.take() else { return Ok(()) };
        match node.stop(STOP_TIMEOUT).map_err(cannot("stop the node"))? {
            NodeWaitOutcome::Ready | NodeWaitOutcome::Exited => Ok(()),
            NodeWaitOutcome::TimedOut => {
                node.kill().map_err(cannot("kill the node"))?;
                Err(LocalBrokerError::NotStopped { waited: STOP_TIMEOUT })
            }
        }
    }

    /// Starts the node again on the same ports and with the same data. Shuts it down gracefully
    /// first if it is up. Returns when it accepts connections.
    ///
    /// # Errors
    /// The errors of [`stop`](Self::stop) and [`start`](Self::start), but after a single attempt.
    pub fn restart(&mut self) -> Result<(), LocalBrokerError> {
        self.stop()?;
        self.start_node(START_TIMEOUT)
    }

    /// Freezes the node with SIGSTOP. Its connections stay open, and it answers nothing from the
    /// return of this call on.
    ///
    /// # Errors
    /// If it is down.
    pub fn pause(&mut self) -> Result<(), LocalBrokerError> {
        let node = self.node.as_ref().ok_or(LocalBrokerError::NotRunning { operation: "pause" })?;
        node.freeze().map_err(cannot("pause the node"))
    }

    /// Resumes a paused node. Does nothing if it is not paused.
    ///
    /// # Errors
    /// If it is down.
    pub fn resume(&mut self) -> Result<(), LocalBrokerError> {
        let node = self.node.as_ref().ok_or(LocalBrokerError::NotRunning { operation: "resume" })?;
        node.signal(Signal::CONT).map_err(cannot("resume the node"))
    }

    /// Returns the last lines of the node's output and of its log.
    fn log_tail(&self) -> String {
        let printed = self.node.as_ref().map_or("", Node::printed);
        let log = fs::read_to_string(self.node_dir.log()).unwrap_or_default();
        format!("{}\n{}", last_lines(printed), last_lines(&log))
    }
}

impl Drop for LocalBroker {
    fn drop(&mut self) {
        // Each may be dead already, so errors are ignored. The watchdog then only removes the
        // directory.
        let _ = self.kill();
        let _ = self.epmd.kill();
        let _ = self.epmd.wait();
    }
}

fn run(mut command: Command, name: &str, arguments: &[&str]) -> Result<String, LocalBrokerError> {
    let output = command.args(arguments).stdin(Stdio::null()).output().map_err(cannot("run a tool"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stderr, output.stdout].concat();
    Err(LocalBrokerError::Ctl {
        command: format!("{name} {}", arguments.join(" ")),
        status: output.status,
        output: String::from_utf8_lossy(&text).into_owned(),
    })
}

/// Starts a port mapper for this node alone, as the leader of a new process group. The mapper is
/// executed only after the watchdog knows the group, so that a crash of this process never leaves
/// it behind. No wait is needed: a node that does not find its mapper ends, and is started again.
fn spawn_epmd(node_dir: &NodeDir, watchdog: &mut Watchdog) -> io::Result<Child> {
    let port = node_dir.ports.epmd.to_string();
    let mut epmd = node_dir
        .command("sh")
        .args(["-c", "read -r _ && exec \"$@\"", "sh", "epmd", "-port", &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    watchdog.watch_group(epmd.id())?;
    // The pipe is closed at the end of the statement, when the taken end is dropped.
    epmd.stdin.take().map_or(Ok(()), |mut gate| writeln!(gate, "go"))?;
    Ok(epmd)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests;
