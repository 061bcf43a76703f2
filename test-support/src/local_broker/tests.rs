//! Private nodes: start, faults, and cleanup.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::{env, panic, thread};

use super::*;

/// The time limit for a running node to answer a greeting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The time for which a paused node must not answer.
const PAUSED_SILENCE: Duration = Duration::from_secs(1);

/// The environment variable that makes a copy of this test program hold a broker.
const HOLD_VARIABLE: &str = "GRISTMILL_HOLD_A_BROKER";

/// Sends the AMQP 0-9-1 header. The first byte of the answer is the type of a method frame.
fn greet(port: u16, timeout: Duration) -> io::Result<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(timeout))?;
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
fn broker_pauses_and_stops() {
    let mut broker = LocalBroker::start().unwrap();
    let port = broker.node_dir.ports.amqp;
    assert_eq!(broker.url(), format!("amqp://guest:guest@127.0.0.1:{port}"));
    assert_eq!(greet(port, ANSWER_TIMEOUT).unwrap(), 1);
    assert_eq!(broker.ctl(&["version"]).unwrap().trim(), broker.version());
    let error = broker.ctl(&["list_everything"]).unwrap_err().to_string();
    assert!(error.starts_with("rabbitmqctl list_everything: exit status: 64"), "{error}");

    broker.pause().unwrap();
    let silence = greet(port, PAUSED_SILENCE).unwrap_err();
    assert!(matches!(silence.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{silence}");
    broker.resume().unwrap();
    assert_eq!(greet(port, ANSWER_TIMEOUT).unwrap(), 1);

    broker.stop().unwrap();
    assert!(!is_open(port));
    broker.stop().unwrap(); // does nothing
}

#[test]
fn restart_keeps_address_and_data() {
    let mut broker = LocalBroker::start().unwrap();
    let url = broker.url();
    broker.ctl(&["add_vhost", "first"]).unwrap();
    broker.kill().unwrap();
    assert!(!is_open(broker.node_dir.ports.amqp));
    assert!(matches!(broker.pause(), Err(LocalBrokerError::NotRunning { .. })));
    assert!(matches!(broker.ctl(&["list_vhosts"]), Err(LocalBrokerError::Ctl { .. })));
    broker.restart().unwrap();

    broker.ctl(&["add_vhost", "second"]).unwrap();
    broker.restart().unwrap();
    let vhosts = broker.ctl(&["list_vhosts"]).unwrap();
    assert!(vhosts.contains("first") && vhosts.contains("second"), "{vhosts}");
    assert_eq!(broker.url(), url);
    assert_eq!(greet(broker.node_dir.ports.amqp, ANSWER_TIMEOUT).unwrap(), 1);
}

/// A broker that meets another's ports takes others, and its end leaves the other alone.
#[test]
fn port_clash_leaves_other_broker() {
    let other = LocalBroker::start().unwrap();
    let theirs = other.node_dir.ports;
    let free = || Ports::pick().unwrap();
    let mut ports =
        vec![free(), Ports { amqp: theirs.amqp, ..free() }, Ports { epmd: theirs.epmd, ..free() }];
    let next = || Ok(ports.pop().unwrap());
    let broker = LocalBroker::start_with(&Installation::find().unwrap(), None, START_TIMEOUT, next).unwrap();
    assert!(ports.is_empty(), "neither of the clashes was met");
    broker.ctl(&["add_vhost", "only_here"]).unwrap();
    assert!(!other.ctl(&["list_vhosts"]).unwrap().contains("only_here"));

    let (ports, dir) = (broker.node_dir.ports, broker.node_dir.dir.clone());
    assert!(is_open(ports.amqp) && is_open(ports.epmd) && dir.exists());
    panic::catch_unwind(panic::AssertUnwindSafe(move || {
        let _held = broker;
        panic!("on purpose");
    }))
    .unwrap_err();
    assert_nothing_left(ports, &dir);
    assert_eq!(greet(theirs.amqp, ANSWER_TIMEOUT).unwrap(), 1);
    other.ctl(&["list_vhosts"]).unwrap();
}

/// Runs this very test in a second process, which only holds a broker, and kills it with SIGKILL.
#[test]
fn killed_process_leaves_nothing() {
    if env::var_os(HOLD_VARIABLE).is_some() {
        let broker = LocalBroker::start().unwrap();
        let Ports { amqp, distribution, epmd, .. } = broker.node_dir.ports;
        println!("\nheld {amqp} {distribution} {epmd} {}", broker.node_dir.dir.display());
        thread::park_timeout(START_TIMEOUT); // until it is killed
        return;
    }
    let (stderr, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["killed_process_leaves_nothing", "--nocapture"])
        .env(HOLD_VARIABLE, "1")
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
    // The watchdog holds the other end of this stream until it is done.
    stderr.set_read_timeout(Some(STOP_TIMEOUT)).unwrap();
    io::copy(&mut { stderr }, &mut io::sink()).unwrap();
    assert_nothing_left(ports, &dir);
}

#[test]
fn failed_start_is_retried() {
    let home = tempfile::tempdir().unwrap();
    let error = start_fake(home.path(), "echo the disk is on fire", START_TIMEOUT);
    assert_eq!(
        error.to_string(),
        "rabbitmq-server ended before the node was ready (starts tried: 3); its last output:\nthe disk is on fire\n"
    );
}

#[test]
fn hanging_start_times_out() {
    let home = tempfile::tempdir().unwrap();
    let error = start_fake(home.path(), "echo still thinking; exec sleep 100", Duration::from_secs(1));
    assert_eq!(
        error.to_string(),
        "rabbitmq-server was not ready within 1 s and is killed; its last output:\nstill thinking\n"
    );
}

fn start_fake(home: &Path, script: &str, timeout: Duration) -> LocalBrokerError {
    let server = home.join("rabbitmq-server");
    fs::write(&server, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).unwrap();
    let installation = Installation { ctl: server.clone(), server };
    LocalBroker::start_with(&installation, None, timeout, || Ok(Ports::pick().unwrap())).unwrap_err()
}
