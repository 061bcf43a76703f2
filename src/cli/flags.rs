//! Flags that several commands share.

use std::{ffi::OsString, fmt, num::NonZeroU16, path::PathBuf, sync::Arc, time::Duration};

use clap::{Arg, ArgAction, Args};
use gristmill_producer::SubmitOptions;
use gristmill_shared::{
    Capabilities, ConnectOptions, Credentials, Durability, FailFast, HoldLimit, Keep, Lane, Policy,
    PolicyOverrides, Transport, TransportRegistry, WorkerId,
    wire::{BATCH_MAX_TASKS, now_ms},
};

use super::{
    Context,
    delays::RetryDelays,
    log::{self, LogFormat},
    warn,
};
use crate::{exit::Failure, library::processor_count, transports::DEFAULT_BROKER_URL};

/// The id of the flags that take the URL of a broker.
pub(crate) const BROKER_FLAG_ID: &str = "broker";

/// The connection to the broker.
#[derive(Debug, Clone, Args)]
pub(crate) struct BrokerFlags {
    /// The broker's URL; a password may be in it, but is better kept where other users cannot read
    /// it: GRISTMILL_PASSWORD, or a file named by GRISTMILL_PASSWORD_FILE
    #[arg(
        long,
        global = true,
        env = "GRISTMILL_BROKER",
        hide_env_values = true,
        value_name = "URL",
        default_value = DEFAULT_BROKER_URL
    )]
    broker: String,

    #[command(flatten)]
    access: AccessFlags,

    /// The time to wait for a lost broker, such as `10m`; then the program exits with code 3
    /// [default: no limit]
    #[arg(long, global = true, env = "GRISTMILL_GIVE_UP_AFTER", value_name = "DURATION", value_parser = humantime::parse_duration)]
    give_up_after: Option<Duration>,
}

/// The credentials that are not in the broker's URL.
#[derive(Debug, Clone, Args)]
pub(crate) struct AccessFlags {
    /// The password of the user in the broker's URL
    #[arg(long, global = true, env = "GRISTMILL_PASSWORD", hide_env_values = true, hide = true)]
    password: Option<SecretText>,

    /// The CAs that may have signed the broker's certificate, PEM, for a URL with TLS [default:
    /// those of the system]
    #[arg(long, global = true, env = "GRISTMILL_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// The client certificate for the broker, PEM; it authenticates this program where the broker's
    /// URL names no user
    #[arg(long, global = true, env = "GRISTMILL_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// The key of --tls-cert, PEM, without a passphrase
    #[arg(long, global = true, env = "GRISTMILL_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

/// A text that `Debug` does not show.
#[derive(Clone)]
struct SecretText(String);

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl AccessFlags {
    pub(crate) fn access(&self) -> Credentials {
        Credentials {
            password: self.password.as_ref().map(|secret| secret.0.clone()),
            tls_ca: self.tls_ca.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
        }
    }

    /// Returns the credentials as environment variables, for a child process. Paths are absolute.
    pub(crate) fn variables(&self) -> Vec<(&'static str, OsString)> {
        let path =
            |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone()).into_os_string();
        let values = [
            ("GRISTMILL_PASSWORD", self.password.as_ref().map(|secret| secret.0.clone().into())),
            ("GRISTMILL_TLS_CA", self.tls_ca.as_ref().map(path)),
            ("GRISTMILL_TLS_CERT", self.tls_cert.as_ref().map(path)),
            ("GRISTMILL_TLS_KEY", self.tls_key.as_ref().map(path)),
        ];
        values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

impl BrokerFlags {
    /// Returns the options of a connection of the process `app`.
    pub(crate) fn options(&self, app: &WorkerId) -> ConnectOptions {
        ConnectOptions::new(&self.broker)
            .credentials(self.access.access())
            .name(app.as_str())
            .give_up_after_loss(self.give_up_after)
    }

    /// Connects as `role` of a fleet; returns the transport and the id of this process.
    ///
    /// # Errors
    /// If the connection fails, or no other process can share it.
    pub(crate) async fn connect(
        &self,
        context: &Context,
        role: &str,
    ) -> Result<(Arc<dyn Transport>, WorkerId), Failure> {
        let app = process_id(role);
        let transport = connect_fleet(&context.transports, &self.options(&app)).await?;
        Ok((transport, app))
    }

    /// Connects as the operator, who declares lanes.
    ///
    /// # Errors
    /// The errors of [`BrokerFlags::connect`].
    pub(crate) async fn connect_to_declare(&self, context: &Context) -> Result<Arc<dyn Transport>, Failure> {
        let options = self.options(&process_id("setup")).must_declare(true);
        connect_fleet(&context.transports, &options).await
    }
}

/// Connects to a broker that a fleet shares. Warns if it keeps nothing.
async fn connect_fleet(
    transports: &TransportRegistry,
    options: &ConnectOptions,
) -> Result<Arc<dyn Transport>, Failure> {
    let transport = transports.connect(options).await?;
    match fleet_warning(&transport, transport.capabilities()) {
        Ok(warning) => warning.into_iter().for_each(warn),
        Err(failure) => {
            transport.close().await;
            return Err(failure);
        }
    }
    Ok(transport)
}

/// Returns a warning if the broker loses its messages when it ends.
///
/// # Errors
/// If other processes cannot share the transport.
fn fleet_warning(
    transport: impl fmt::Display,
    capabilities: Capabilities,
) -> Result<Option<String>, Failure> {
    if !capabilities.shared {
        return Err(Failure::usage(format_args!(
            "{transport} is within this process, where no other role can reach it (hint: pass a broker with --broker \
             or GRISTMILL_BROKER; `gristmill run` needs none)"
        )));
    }
    Ok((capabilities.durability == Durability::Volatile).then(|| {
        format!(
            "the broker at {transport} keeps messages in memory alone: those that wait are lost when it ends (hint: \
             `producer resume JOB --missing` sends the tasks again)"
        )
    }))
}

/// Adds the forms of URLs to the help of a flag that takes one.
pub(crate) fn add_url_forms(arg: Arg, transports: &TransportRegistry) -> Arg {
    let help = arg.get_help().filter(|_| arg.get_id() == BROKER_FLAG_ID);
    match help.map(|help| format!("{help} [form: {}]", transports.url_forms())) {
        Some(help) => arg.help(help),
        None => arg,
    }
}

/// The level and the format of the log on stderr.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogFlags {
    /// Log more: -v for main events, -vv for every failed attempt
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    /// The log filter, such as `gristmill_worker=debug`; overrides -v
    #[arg(long, global = true, env = "GRISTMILL_LOG", value_name = "FILTER")]
    log: Option<String>,

    /// The log format: text, or JSON with one object a line
    #[arg(
        long,
        global = true,
        env = "GRISTMILL_LOG_FORMAT",
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    log_format: LogFormat,
}

impl LogFlags {
    pub(crate) fn format(&self) -> LogFormat {
        self.log_format
    }

    /// Returns the filter that the flags ask for, if they do.
    pub(crate) fn filter(&self, transports: &TransportRegistry) -> Option<String> {
        self.log.clone().or(match self.verbose {
            0 => None,
            1 => Some(log::add_directives("info", transports)),
            _ => Some(log::add_directives("info,gristmill=debug", transports)),
        })
    }
}

/// The lane to work on.
#[derive(Debug, Clone, Args)]
pub(crate) struct LaneFlags {
    /// The lane: a set of queues with its own workers and its own sink
    #[arg(long, global = true, env = "GRISTMILL_LANE", default_value = "default")]
    pub(crate) lane: Lane,
}

/// The number of tasks that run at a time.
#[derive(Debug, Clone, Args)]
pub(crate) struct SlotFlags {
    /// The number of tasks to run at a time, each on a thread of its own [default: one per
    /// processor]
    #[arg(long, global = true, env = "GRISTMILL_SLOTS", value_name = "N", value_parser = parse_slots)]
    slots: Option<NonZeroU16>,

    /// The time that a task may run on after its job was stopped, such as 10s or 1m; then its slot
    /// gets another thread
    #[arg(
        long,
        global = true,
        env = "GRISTMILL_STOP_GRACE",
        value_name = "DURATION",
        value_parser = parse_time_limit,
        default_value = "10s"
    )]
    pub(crate) stop_grace: Duration,
}

fn parse_slots(text: &str) -> Result<NonZeroU16, String> {
    text.parse().map_err(|_| "expected a number from 1 to 65535".into())
}

impl SlotFlags {
    pub(crate) fn slots(&self) -> NonZeroU16 {
        self.slots.unwrap_or_else(processor_count)
    }
}

/// The policy and the batch size of a submitted job.
#[derive(Debug, Clone, Args)]
pub(crate) struct SubmitFlags {
    /// The number of tasks in one message [default: as many as take a slot about 100 ms, by
    /// measured duration: thousands of tiny ones, one long one]
    #[arg(
        long,
        global = true,
        env = "GRISTMILL_BATCH",
        value_name = "TASKS",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(BATCH_MAX_TASKS))
    )]
    batch: Option<u32>,

    /// The number of attempts after which a failing task counts as failed [default: the kind's
    /// choice, usually 5]
    #[arg(
        long,
        global = true,
        env = "GRISTMILL_MAX_ATTEMPTS",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    max_attempts: Option<u32>,

    /// The time limit of one task, such as 30s or 5m; a task that takes longer has failed, and is
    /// retried [default: the kind's choice, usually no limit]
    #[arg(long, global = true, env = "GRISTMILL_TASK_TIMEOUT", value_name = "DURATION", value_parser = parse_time_limit)]
    task_timeout: Option<Duration>,

    /// End the job when this number of tasks have failed for good: a number, 10, or a share of all,
    /// 5% [default: the kind's choice, usually never]
    #[arg(long, global = true, env = "GRISTMILL_FAIL_FAST", value_name = "N|P%")]
    fail_fast: Option<FailFast>,

    /// Let only workers of exactly this build run the tasks [default: the kind's choice, usually
    /// every build with the kind's version]
    #[arg(long, global = true)]
    same_build: bool,

    /// The delays before a failed task's second, third, ... attempt, from 1s to 24h each, at most
    /// 16; the last one repeats [default: the kind's choice, usually 1s,10s,1m,10m; of `gristmill
    /// run`: 1s,1s,5s,10s]
    #[arg(long, global = true, env = "GRISTMILL_RETRY_DELAYS", value_name = "DURATIONS")]
    retry_delays: Option<RetryDelays>,

    /// The part of the job that the ledger keeps: the report; every output as well; or every output
    /// with its task, which is then sent twice. See `sink outputs` [default: the kind's choice,
    /// usually the report]
    #[arg(long, global = true, env = "GRISTMILL_KEEP", value_name = "report|outputs|tasks")]
    keep: Option<Keep>,
}

impl SubmitFlags {
    /// Returns the options of a job, stated as far as its flags are. `default_policy` is that of a
    /// kind that chooses nothing.
    pub(crate) fn options(&self, lane: &Lane, default_policy: Policy) -> SubmitOptions {
        let policy = PolicyOverrides::default()
            .max_attempts(self.max_attempts)
            .task_timeout(self.task_timeout)
            .fail_fast(self.fail_fast)
            .same_build(self.same_build.then_some(true))
            .retry_delays_ms(self.retry_delays.as_ref().map(|delays| delays.millis.clone()))
            .keep(self.keep);
        SubmitOptions {
            lane: lane.clone(),
            policy,
            default_policy,
            batch: self.batch,
            ..SubmitOptions::default()
        }
    }
}

/// Returns a warning if a worker may hold a task for longer than the broker permits. A batch may
/// wait for the one before it, so a task may take half of that time.
pub(crate) fn long_task_warning(policy: &Policy, max_hold: Option<HoldLimit>) -> Option<String> {
    let HoldLimit { time, setting } = max_hold?;
    let limit = policy.task_timeout().filter(|limit| *limit > time / 2)?;
    Some(format!(
        "a task may take {} (--task-timeout), but by default this broker takes back a message after {}: the task \
         would then run again elsewhere, and finally count as poison (hint: set {setting} on the broker to at \
         least {}, or split into shorter tasks)",
        humantime::format_duration(limit),
        humantime::format_duration(time),
        humantime::format_duration(limit.saturating_mul(2)),
    ))
}

/// Parses a time limit of at least 1 ms.
fn parse_time_limit(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(limit) if limit < Duration::from_millis(1) => Err("expected at least 1ms".into()),
        Ok(limit) => Ok(limit),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns a new id for this process, for messages and for the broker's list of connections.
pub(crate) fn process_id(role: &str) -> WorkerId {
    WorkerId::generate(&format!("{role}-{}", host_name()))
}

/// Returns the host name of this machine.
pub(crate) fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => format!("host-{}", now_ms() % 1_000_000),
        host => host.into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches as _};
    use gristmill_shared::{Redelivery, memory::MemoryTransport};

    use super::*;

    #[test]
    fn fleet_needs_a_shared_transport() {
        let memory = MemoryTransport::new();
        let refused = fleet_warning(&memory, memory.capabilities()).unwrap_err();
        assert_eq!(refused.exit, crate::Exit::Usage);
        assert!(refused.to_string().starts_with("memory is within this process"), "{refused}");
    }

    #[test]
    fn forgetful_broker_is_warned_about() {
        let capabilities = |durability| Capabilities {
            durability,
            redelivery: Redelivery::OnDisconnect,
            shared: true,
            max_hold: None,
            max_message: 1,
        };
        let warning = |durability| fleet_warning("hub://host", capabilities(durability)).unwrap();
        assert!(warning(Durability::Volatile).unwrap().starts_with("the broker at hub://host keeps"));
        assert_eq!((warning(Durability::ProcessCrash), warning(Durability::PowerLoss)), (None, None));
    }

    fn options(words: &str) -> SubmitOptions {
        let command = SubmitFlags::augment_args(Command::new("submit").no_binary_name(true));
        let matches = command.get_matches_from(words.split_whitespace());
        SubmitFlags::from_arg_matches(&matches).unwrap().options(&Lane::default(), Policy::default())
    }

    /// A flag with the value of its default is stated nevertheless.
    #[test]
    fn absent_flags_state_nothing() {
        assert_eq!(options("").policy, PolicyOverrides::default());
        let stated = options(
            "--max-attempts 5 --task-timeout 2s --fail-fast 100% --same-build --retry-delays 1s,10s --keep report",
        );
        let expected = PolicyOverrides::default()
            .max_attempts(5)
            .task_timeout(Duration::from_secs(2))
            .fail_fast(FailFast::Percent(100))
            .same_build(true)
            .retry_delays_ms(vec![1_000, 10_000])
            .keep(Keep::Report);
        assert_eq!(stated.policy, expected);
    }
}
