//! A private RabbitMQ node, started from the local installation.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::error::{LocalBrokerError, cannot};
use super::node::{Node, Woke};
use super::place::{Installation, Place, Ports, TlsFiles};
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
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::net::TcpStream;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::{env, panic, thread};

    use super::*;

    /// How long a node that runs may take to answer a greeting.
    const ANSWER_BOUND: Duration = Duration::from_secs(20);

    /// How long a node that is paused is listened to.
    const SILENCE: Duration = Duration::from_secs(1);

    /// Tells the copy of this test program that is to be killed to hold a broker.
    const HOLD: &str = "GRISTMILL_HOLD_A_BROKER";

    /// Says hello in AMQP 0-9-1; the first byte of the answer is the type of a method frame.
    fn greet(port: u16, bound: Duration) -> io::Result<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(bound))?;
        stream.write_all(b"AMQP\0\0\x09\x01")?;
        let mut first = [0];
        stream.read_exact(&mut first)?;
        Ok(first[0])
    }

    fn is_open(port: u16) -> bool {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    }

    fn assert_nothing_left(ports: Ports, dir: &Path) {
        assert!(!is_open(ports.amqp), "the node still listens on {}", ports.amqp);
        assert!(!is_open(ports.epmd), "epmd still listens on {}", ports.epmd);
        assert!(!dir.exists(), "{} is still there", dir.display());
    }

    #[test]
    fn a_broker_answers_falls_silent_while_paused_and_stops() {
        let mut broker = LocalBroker::start().unwrap();
        let port = broker.place.ports.amqp;
        assert_eq!(broker.url(), format!("amqp://guest:guest@127.0.0.1:{port}"));
        assert_eq!(greet(port, ANSWER_BOUND).unwrap(), 1);
        assert_eq!(broker.ctl(&["version"]).unwrap().trim(), broker.version());
        let error = broker.ctl(&["list_everything"]).unwrap_err().to_string();
        assert!(error.starts_with("rabbitmqctl list_everything: exit status: 64"), "{error}");

        broker.pause().unwrap();
        let silence = greet(port, SILENCE).unwrap_err();
        assert!(matches!(silence.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{silence}");
        broker.resume().unwrap();
        assert_eq!(greet(port, ANSWER_BOUND).unwrap(), 1);

        broker.stop().unwrap();
        assert!(!is_open(port));
        broker.stop().unwrap(); // of a stopped one: nothing
    }

    #[test]
    fn a_broker_that_was_killed_or_restarted_comes_back_at_its_address_with_its_data() {
        let mut broker = LocalBroker::start().unwrap();
        let url = broker.url();
        broker.ctl(&["add_vhost", "first"]).unwrap();
        broker.kill().unwrap();
        assert!(!is_open(broker.place.ports.amqp));
        assert!(matches!(broker.pause(), Err(LocalBrokerError::NotRunning { .. })));
        assert!(matches!(broker.ctl(&["list_vhosts"]), Err(LocalBrokerError::Ctl { .. })));
        broker.restart().unwrap();

        broker.ctl(&["add_vhost", "second"]).unwrap();
        broker.restart().unwrap();
        let vhosts = broker.ctl(&["list_vhosts"]).unwrap();
        assert!(vhosts.contains("first") && vhosts.contains("second"), "{vhosts}");
        assert_eq!(broker.url(), url);
        assert_eq!(greet(broker.place.ports.amqp, ANSWER_BOUND).unwrap(), 1);
    }

    #[test]
    fn a_broker_that_meets_anothers_ports_takes_others_and_its_end_leaves_the_other_alone() {
        let other = LocalBroker::start().unwrap();
        let theirs = other.place.ports;
        let free = || Ports::pick().unwrap();
        let mut ports =
            vec![free(), Ports { amqp: theirs.amqp, ..free() }, Ports { epmd: theirs.epmd, ..free() }];
        let next = || Ok(ports.pop().unwrap());
        let broker =
            LocalBroker::start_with(&Installation::find().unwrap(), None, START_BOUND, next).unwrap();
        assert!(ports.is_empty(), "neither of the clashes was met");
        broker.ctl(&["add_vhost", "only_here"]).unwrap();
        assert!(!other.ctl(&["list_vhosts"]).unwrap().contains("only_here"));

        let (ports, dir) = (broker.place.ports, broker.place.dir.clone());
        assert!(is_open(ports.amqp) && is_open(ports.epmd) && dir.exists());
        panic::catch_unwind(panic::AssertUnwindSafe(move || {
            let _held = broker;
            panic!("on purpose");
        }))
        .unwrap_err();
        assert_nothing_left(ports, &dir);
        assert_eq!(greet(theirs.amqp, ANSWER_BOUND).unwrap(), 1);
        other.ctl(&["list_vhosts"]).unwrap();
    }

    /// Runs this very test in a second process, which only holds a broker, and kills that with SIGKILL.
    #[test]
    fn a_killed_process_leaves_nothing() {
        if env::var_os(HOLD).is_some() {
            let broker = LocalBroker::start().unwrap();
            let Ports { amqp, distribution, epmd, .. } = broker.place.ports;
            println!("\nheld {amqp} {distribution} {epmd} {}", broker.place.dir.display());
            thread::park_timeout(START_BOUND); // to be killed in
            return;
        }
        let (stderr, theirs) = UnixStream::pair().unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["a_killed_process_leaves_nothing", "--nocapture"])
            .env(HOLD, "1")
            .stdout(Stdio::piped())
            .stderr(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let held =
            lines.map(Result::unwrap).find_map(|line| line.strip_prefix("held ").map(str::to_owned)).unwrap();
        let words: Vec<&str> = held.split(' ').collect();
        let [amqp, distribution, epmd] = [0, 1, 2].map(|at| words[at].parse().unwrap());
        let (ports, dir) = (Ports { amqp, amqps: 0, distribution, epmd }, PathBuf::from(words[3]));
        assert!(is_open(ports.amqp) && is_open(ports.epmd) && dir.exists());

        child.kill().unwrap();
        child.wait().unwrap();
        // The watchdog holds this stream's other end until it is done.
        stderr.set_read_timeout(Some(STOP_BOUND)).unwrap();
        io::copy(&mut { stderr }, &mut io::sink()).unwrap();
        assert_nothing_left(ports, &dir);
    }

    #[test]
    fn a_server_that_does_not_start_is_tried_again_and_quoted() {
        let home = tempfile::tempdir().unwrap();
        let error = start_fake(home.path(), "echo the disk is on fire", START_BOUND);
        assert_eq!(
            error.to_string(),
            "rabbitmq-server ended before the node was ready (starts tried: 3); its last words:\nthe disk is on fire\n"
        );
    }

    #[test]
    fn a_server_that_hangs_is_given_up_and_quoted() {
        let home = tempfile::tempdir().unwrap();
        let error = start_fake(home.path(), "echo still thinking; exec sleep 100", Duration::from_secs(1));
        assert_eq!(
            error.to_string(),
            "rabbitmq-server was not ready within 1 s and is killed; its last words:\nstill thinking\n"
        );
    }

    fn start_fake(home: &Path, script: &str, bound: Duration) -> LocalBrokerError {
        let server = home.join("rabbitmq-server");
        fs::write(&server, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).unwrap();
        let installation = Installation { ctl: server.clone(), server };
        LocalBroker::start_with(&installation, None, bound, || Ok(Ports::pick().unwrap())).unwrap_err()
    }
}
