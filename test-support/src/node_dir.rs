//! The directory of a private node, its installation, its ports and its environment.

use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, hash, io};

/// The server script of Debian and Red Hat. The one in their PATH is a wrapper that changes the
/// user.
pub(super) const PACKAGED_SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// The environment variable that names another server. Its `rabbitmqctl` must lie beside it.
const SERVER_VARIABLE: &str = "GRISTMILL_RABBITMQ_SERVER";

/// The range of ports. It lies below the range of outgoing connections: a client that reconnects to
/// a killed node's port must never be given that very port as its own.
const PORT_RANGE: Range<u16> = 10_000..30_000;

/// The most ports that are tried.
const PORT_TRIES: u32 = 100;

/// The free disk below which a node blocks publishers. The default of 50 MB is too much for a node
/// of this size.
const NODE_CONFIG: &str = "disk_free_limit.absolute = 10MB\n";

/// An installation of RabbitMQ on this machine.
#[derive(Clone, Debug)]
pub(super) struct Installation {
    pub(super) server: PathBuf,
    pub(super) ctl: PathBuf,
}

impl Installation {
    /// Returns the one at `GRISTMILL_RABBITMQ_SERVER` if that is set, else the packaged one, else
    /// the first in PATH.
    pub(super) fn find() -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let in_path = env::split_paths(&path).map(|dir| dir.join("rabbitmq-server"));
        let found = std::iter::once(PathBuf::from(PACKAGED_SERVER)).chain(in_path).find(|it| it.is_file());
        let server = env::var_os(SERVER_VARIABLE).map(PathBuf::from).or(found)?;
        Some(Self { ctl: server.with_file_name("rabbitmqctl"), server })
    }
}

/// The certificates of a node that speaks TLS. All files are PEM, and are copied.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The CAs that may have signed the certificates of clients.
    pub ca: PathBuf,
    /// The node's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// True if clients must have a certificate too.
    pub mutual: bool,
}

/// The four ports of a node, all on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) amqp: u16,
    pub(super) amqps: u16,
    pub(super) distribution: u16,
    pub(super) epmd: u16,
}

impl Ports {
    /// Picks four ports that are free at this moment. Another process may take one before the node
    /// binds it.
    pub(super) fn pick() -> io::Result<Self> {
        let span = u64::from(PORT_RANGE.end - PORT_RANGE.start);
        let listeners: Vec<TcpListener> = (0..PORT_TRIES)
            .filter_map(|_| u16::try_from(random() % span).ok())
            .filter_map(|offset| TcpListener::bind((Ipv4Addr::LOCALHOST, PORT_RANGE.start + offset)).ok())
            .take(4)
            .collect();
        let ports = listeners.iter().map(|it| Ok(it.local_addr()?.port())).collect::<io::Result<Vec<_>>>()?;
        match ports[..] {
            [amqp, amqps, distribution, epmd] => Ok(Self { amqp, amqps, distribution, epmd }),
            _ => Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("no four free ports in {PORT_RANGE:?} after {PORT_TRIES} tries"),
            )),
        }
    }
}

/// The directory of a node, and the environment of the node and its tools.
#[derive(Debug)]
pub(super) struct NodeDir {
    pub(super) dir: PathBuf,
    pub(super) ports: Ports,
    node: String,
}

impl NodeDir {
    /// Creates the directory, accessible to this user alone. The caller removes it.
    pub(super) fn create(ports: Ports) -> io::Result<Self> {
        let id = random();
        let dir = env::temp_dir().join(format!("gristmill-broker-{}-{id:016x}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self { dir, ports, node: format!("gristmill-{id:016x}@localhost") })
    }

    /// Writes the node's configuration, its plugins, its certificates and a cookie of its own.
    pub(super) fn write_config(&self, tls: Option<&TlsFiles>) -> io::Result<()> {
        let plugins = if tls.is_some() { "[rabbitmq_auth_mechanism_ssl].\n" } else { "[].\n" };
        fs::write(self.dir.join("enabled_plugins"), plugins)?;
        let tls = match tls {
            Some(files) => {
                self.copy_tls(files)?;
                self.tls_config(files.mutual)
            }
            None => String::new(),
        };
        fs::write(self.dir.join("rabbitmq.conf"), NODE_CONFIG.to_owned() + &tls)?;
        let mut cookie = fs::OpenOptions::new();
        let mut cookie =
            cookie.write(true).create_new(true).mode(0o400).open(self.dir.join(".erlang.cookie"))?;
        write!(cookie, "{:016X}{:016X}", random(), random())
    }

    /// Copies the certificates to the paths in the configuration.
    pub(super) fn copy_tls(&self, TlsFiles { ca, cert, key, .. }: &TlsFiles) -> io::Result<()> {
        for (from, to) in [(ca, "ca.pem"), (cert, "cert.pem"), (key, "key.pem")] {
            fs::copy(from, self.dir.join(to))?;
        }
        Ok(())
    }

    /// Returns the configuration for TLS. A client with a certificate may log in by it, as the user
    /// whom its CN names.
    fn tls_config(&self, mutual: bool) -> String {
        let (port, dir) = (self.ports.amqps, self.dir.display());
        format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\n\
             ssl_options.cacertfile = {dir}/ca.pem\n\
             ssl_options.certfile = {dir}/cert.pem\n\
             ssl_options.keyfile = {dir}/key.pem\n\
             ssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = {mutual}\n\
             ssl_cert_login_from = common_name\n\
             auth_mechanisms.1 = PLAIN\n\
             auth_mechanisms.2 = EXTERNAL\n"
        )
    }

    /// Returns a command that runs in this directory, with nothing of our own environment but PATH.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Ports { amqp, distribution, epmd, .. } = self.ports;
        let mut command = Command::new(program);
        command
            .current_dir(&self.dir)
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.dir) // for the cookie
            .env("LANG", "C.UTF-8")
            .env("ERL_CRASH_DUMP_SECONDS", "0")
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", epmd.to_string())
            .env("ERL_FLAGS", "-start_epmd false") // otherwise each tool may leave a daemon behind
            .env("RABBITMQ_ALLOW_INPUT", "1") // the script then executes the node, which becomes our child
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-noinput -kernel inet_dist_use_interface {127,0,0,1}",
            )
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", self.dir.join("rabbitmq.conf"))
            .env("RABBITMQ_CONFIG_FILES", self.dir.join("conf.d"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", self.dir.join("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.dir.join("enabled_plugins"))
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", amqp.to_string())
            .env("RABBITMQ_DIST_PORT", distribution.to_string())
            .env("RABBITMQ_CTL_DIST_PORT_MIN", "0") // any port, so that many tools can run at once
            .env("RABBITMQ_CTL_DIST_PORT_MAX", "0")
            .env("RABBITMQ_MNESIA_BASE", self.dir.join("data"))
            .env("RABBITMQ_LOG_BASE", self.dir.join("log"));
        command
    }

    /// Returns the path of the node's log.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("log").join(format!("{}.log", self.node))
    }
}

/// Returns 64 random bits, from the seed that the standard library gives each hash map.
fn random() -> u64 {
    hash::RandomState::new().build_hasher().finish()
}
