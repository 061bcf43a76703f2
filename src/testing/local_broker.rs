//! A private RabbitMQ node, started from the local installation.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::error::{LocalBrokerError, cannot};
use super::node::{Node, Woke};
use super::node_dir::{Installation, Place, Ports, TlsFiles};
use super::watchdog::Watchdog;

/// How long a node may take until it accepts connections. It needs about five seconds on two idle cores, and a minute has not
/// been enough on two that many others wanted.
const START_BOUND: Duration = Duration::from_secs(180);

/// How long a node may take to stop in order. It needs about one second.
const STOP_BOUND: Duration = Duration::from_secs(30);

/// How often a start is tried, each time with new ports and a new directory: a port may be taken between our look
/// at it and the node's own.
const START_TRIES: u32 = 3;

/// How long `rabbitmqctl` may take for one command, in seconds.
const CTL_BOUND_SECONDS: &str = "60";

/// How many lines of a node's output, and of its log, an error shows.
const LOG_LINES: usize = 20;

/// A RabbitMQ node of one's own: own name, own directory, own ports on 127.0.0.1, own port mapper, no plugins.
///
/// It disturbs no other node on the machine and needs nothing of one. All methods block; none may be called on a
/// thread that runs async code.
///
/// Dropping it kills the node and removes its directory, also in a panic. The same happens, within moments, when
/// this process ends without dropping it, be it by `kill -9`: a watchdog process sees to that.
///
/// ```no_run
/// # fn main() -> Result<(), gristmill::testing::LocalBrokerError> {
/// let mut broker = gristmill::testing::LocalBroker::start()?;
/// println!("RabbitMQ {} at {}", broker.version(), broker.url());
/// broker.kill()?; // as if its machine had lost power
/// broker.restart()?; // the same address, the same data
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LocalBroker {
    installation: Installation,
    place: Place,
    version: String,
    /// `None` while the node is down.
    node: Option<Node>,
    /// The node's port mapper, and the leader of the group that the watchdog kills.
    epmd: Child,
    /// Last, so that it is dropped last.
    _watchdog: Watchdog,
}

impl LocalBroker {
    /// Starts a node and waits until it accepts connections: at most 3 min, and with new ports, up to three times,
    /// if it ends before that.
    ///
    /// # Errors
    /// No RabbitMQ on this machine, or it does not start; the error ends with the node's last words.
    pub fn start() -> Result<Self, LocalBrokerError> {
        Self::start_anywhere(None)
    }

    /// Starts a node that speaks TLS too, see [`tls_port`](Self::tls_port). Clients who have a
    /// certificate may log in by it (EXTERNAL), as the user whom its CN names.
    ///
    /// # Errors
    /// As [`start`](Self::start); without the plugin `rabbitmq_auth_mechanism_ssl` it does not start.
    pub fn start_with_tls(tls: &TlsFiles) -> Result<Self, LocalBrokerError> {
        Self::start_anywhere(Some(tls))
    }

    fn start_anywhere(tls: Option<&TlsFiles>) -> Result<Self, LocalBrokerError> {
        let installation = Installation::find().ok_or(LocalBrokerError::NotInstalled)?;
        let ports = || Ports::pick().map_err(cannot("find free ports"));
        Self::start_with(&installation, tls, START_BOUND, ports)
    }

    /// Tries until a node stays up.
    fn start_with(
        installation: &Installation,
        tls: Option<&TlsFiles>,
        bound: Duration,
        mut ports: impl FnMut() -> Result<Ports, LocalBrokerError>,
    ) -> Result<Self, LocalBrokerError> {
        let mut tries = 1;
        loop {
            match Self::try_start(installation, tls, bound, ports()?) {
                Err(LocalBrokerError::Ended { .. }) if tries < START_TRIES => tries += 1,
                Err(LocalBrokerError::Ended { what, log, .. }) => {
                    return Err(LocalBrokerError::Ended { what, tries, log });
                }
                settled => return settled,
            }
        }
    }

    fn try_start(
        installation: &Installation,
        tls: Option<&TlsFiles>,
        bound: Duration,
        ports: Ports,
    ) -> Result<Self, LocalBrokerError> {
        let place = Place::create(ports).map_err(cannot("make the node's directory"))?;
        let mut watchdog = Watchdog::over(&place.dir).map_err(cannot("start the watchdog"))?;
        place.furnish(tls).map_err(cannot("fill the node's directory"))?;
        let epmd = spawn_epmd(&place, &mut watchdog).map_err(cannot("start epmd"))?;
        let mut broker = Self {
            installation: installation.clone(),
            place,
            version: String::new(),
            node: None,
            epmd,
            _watchdog: watchdog,
        };
        broker.start_node(bound)?;
        // If another mapper had our port, the node has found that one: not ours, and gone at any time.
        if broker.epmd.try_wait().map_err(cannot("look at epmd"))?.is_some() {
            return Err(LocalBrokerError::Ended { what: "epmd", tries: 1, log: broker.last_words() });
        }
        Ok(broker)
    }

    fn start_node(&mut self, bound: Duration) -> Result<(), LocalBrokerError> {
        let group =
            i32::try_from(self.epmd.id()).map_err(io::Error::other).map_err(cannot("use a process id"))?;
        let node = Node::spawn(&self.installation.server, &self.place, group);
        let node = self.node.insert(node.map_err(cannot("run rabbitmq-server"))?);
        let woke = node.wait_ready(bound).map_err(cannot("read what the node prints"))?;
        if woke == Woke::Ready {
            node.version().unwrap_or("of unknown version").clone_into(&mut self.version);
            return Ok(());
        }
        let log = self.last_words();
        self.kill()?;
        Err(match woke {
            Woke::Late => LocalBrokerError::NotReady { waited: bound, log },
            Woke::Ready | Woke::Ended => LocalBrokerError::Ended { what: "rabbitmq-server", tries: 1, log },
        })
    }

    /// Its address, `amqp://guest:guest@127.0.0.1:PORT`; the same for as long as it lives, restarts included.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.place.ports.amqp)
    }

    /// Where it speaks TLS on 127.0.0.1, if it was started so.
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.place.ports.amqps
    }

    /// Gives it other certificates, which it shows to whoever connects from now on. Its ports stay as they are.
    ///
    /// # Errors
    /// The files cannot be copied, or the node is down.
    pub fn renew_tls(&self, tls: &TlsFiles) -> Result<(), LocalBrokerError> {
        self.place.copy_tls(tls).map_err(cannot("copy certificates"))?;
        self.ctl(&["eval", "ssl:clear_pem_cache()."]).map(drop)
    }

    /// Its version, as `3.10.8`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The node's process, a child of this one; `None` while it is down.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.node.as_ref().map(Node::pid)
    }

    /// Runs `rabbitmqctl` with these arguments against this node and returns what it printed, without its chatter.
    ///
    /// # Errors
    /// It could not be run, or it failed (as it does while the node is down or paused); bounded by 60 s.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, LocalBrokerError> {
        let mut ctl = self.place.command(&self.installation.ctl);
        ctl.args(["--quiet", "--timeout", CTL_BOUND_SECONDS]);
        run(ctl, "rabbitmqctl", arguments)
    }

    /// Runs a script that speaks to this node through `$RABBITMQCTL`, and returns what it printed.
    ///
    /// # Errors
    /// It could not be run, or it failed; not bounded.
    pub fn script(&self, path: &Path, arguments: &[&str]) -> Result<String, LocalBrokerError> {
        let mut script = self.place.command(path);
        script.env("RABBITMQCTL", &self.installation.ctl);
        run(script, &path.display().to_string(), arguments)
    }

    /// Kills the node with SIGKILL and returns when it is dead and its ports are closed. Nothing if it is down.
    ///
    /// # Errors
    /// The system refused; not to be expected.
    pub fn kill(&mut self) -> Result<(), LocalBrokerError> {
        match self.node.take() {
            Some(mut node) => node.kill().map_err(cannot("kill the node")),
            None => Ok(()),
        }
    }

    /// Stops the node in order and returns when it has ended, within 30 s. Nothing if it is down.
    ///
    /// # Errors
    /// It did not stop in time, as a paused node does; it is killed then.
    pub fn stop(&mut self) -> Result<(), LocalBrokerError> {
        let Some(mut node) = self.node.take() else { return Ok(()) };
        match node.stop(STOP_BOUND).map_err(cannot("stop the node"))? {
            Woke::Ready | Woke::Ended => Ok(()),
            Woke::Late => {
                node.kill().map_err(cannot("kill the node"))?;
                Err(LocalBrokerError::NotStopped { waited: STOP_BOUND })
            }
        }
    }

    /// Starts the node again on the same ports and with the same data, after it was stopped in order if it was up.
    /// Returns when it accepts connections.
    ///
    /// # Errors
    /// As [`stop`](Self::stop) and [`start`](Self::start), but with a single try.
    pub fn restart(&mut self) -> Result<(), LocalBrokerError> {
        self.stop()?;
        self.start_node(START_BOUND)
    }

    /// Freezes the node with SIGSTOP: its connections stay open and nothing answers from when this returns.
    ///
    /// # Errors
    /// It is down.
    pub fn pause(&mut self) -> Result<(), LocalBrokerError> {
        let node = self.node.as_ref().ok_or(LocalBrokerError::NotRunning { asked: "pause" })?;
        node.freeze().map_err(cannot("pause the node"))
    }

    /// Lets a paused node go on; nothing if it is not paused.
    ///
    /// # Errors
    /// It is down.
    pub fn resume(&mut self) -> Result<(), LocalBrokerError> {
        let node = self.node.as_ref().ok_or(LocalBrokerError::NotRunning { asked: "resume" })?;
        node.signal("CONT").map_err(cannot("resume the node"))
    }

    /// The last lines that the node printed, and those of its log.
    fn last_words(&self) -> String {
        let printed = self.node.as_ref().map_or("", Node::printed);
        let log = fs::read_to_string(self.place.log()).unwrap_or_default();
        format!("{}\n{}", last_lines(printed), last_lines(&log))
    }
}

impl Drop for LocalBroker {
    fn drop(&mut self) {
        // Each may be dead already, and there is nobody to tell. The watchdog finds nothing left but the directory.
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
    let said = [output.stderr, output.stdout].concat();
    Err(LocalBrokerError::Ctl {
        command: format!("{name} {}", arguments.join(" ")),
        status: output.status,
        said: String::from_utf8_lossy(&said).into_owned(),
    })
}

/// Starts a port mapper for this node alone, as the leader of a new process group. It starts in earnest only when
/// the watchdog knows the group, so that there is no moment at which our death would leave it behind.
/// It needs no wait: a node that does not find its mapper ends, and is tried again.
fn spawn_epmd(place: &Place, watchdog: &mut Watchdog) -> io::Result<Child> {
    let port = place.ports.epmd.to_string();
    let mut epmd = place
        .command("sh")
        .args(["-c", "read -r _ && exec \"$@\"", "sh", "epmd", "-port", &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    watchdog.guard(epmd.id())?;
    // Taking it closes it at the end of the statement.
    epmd.stdin.take().map_or(Ok(()), |mut gate| writeln!(gate, "go"))?;
    Ok(epmd)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

#[cfg(test)]
mod tests;
