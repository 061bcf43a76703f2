//! The broker of a drill: a given one, which is not harmed, or a private one, which gets faults.

use std::{
    ffi::OsString,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, WaitIdOptions};
use tokio::sync::watch;

use super::{error::DrillError, plan::DrillFault};
use gristmill_test_support::{LocalBroker, LocalBrokerError, is_stopped};

/// The broker, and the time it was away.
#[derive(Debug)]
pub(super) struct DrillBroker {
    url: String,
    variables: Vec<(&'static str, OsString)>,
    description: String,
    own: Option<Arc<Mutex<LocalBroker>>>,
    up: watch::Sender<bool>,
    away: Mutex<Duration>,
}

impl DrillBroker {
    /// Uses a given broker.
    pub(super) fn given(url: String, variables: Vec<(&'static str, OsString)>) -> Self {
        Self { variables, ..Self::new(url, "given".into(), None) }
    }

    /// Starts a private broker from the local installation.
    pub(super) async fn start() -> Result<Self, DrillError> {
        let broker = tokio::task::spawn_blocking(LocalBroker::start).await.map_err(io::Error::other);
        let broker = broker.map_err(super::error::system_error("start a broker"))??;
        let description = format!("own, RabbitMQ {}", broker.version());
        Ok(Self::new(broker.url(), description, Some(Arc::new(Mutex::new(broker)))))
    }

    fn new(url: String, description: String, own: Option<Arc<Mutex<LocalBroker>>>) -> Self {
        Self {
            url,
            variables: Vec::new(),
            description,
            own,
            up: watch::Sender::new(true),
            away: Mutex::default(),
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Returns the environment variables for access, besides the URL.
    pub(super) fn variables(&self) -> impl Iterator<Item = (&'static str, &OsString)> {
        self.variables.iter().map(|(name, value)| (*name, value))
    }

    /// Returns its description for the account.
    pub(super) fn description(&self) -> &str {
        &self.description
    }

    pub(super) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Returns the total time for which it was down or paused.
    pub(super) fn time_away(&self) -> Duration {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no fault of the drill keeps it down or paused.
    pub(super) async fn wait_up(&self) {
        let _ = self.up.subscribe().wait_for(|up| *up).await; // its sender is ours and lives
    }

    /// Injects a fault. Returns the evidence that it happened, or the reason that it did not.
    pub(super) async fn inject(&self, fault: DrillFault, duration: Duration) -> Result<String, String> {
        match fault {
            DrillFault::BrokerKilled => self.kill().await,
            DrillFault::BrokerPaused => self.pause(duration).await,
            DrillFault::ConnectionsClosed => self.close_connections().await,
            _ => Err("this is not done to a broker".into()),
        }
    }

    /// Kills it by SIGKILL and restarts it.
    async fn kill(&self) -> Result<String, String> {
        self.while_away(async {
            let began = Instant::now();
            let pid = self.with_broker(|broker| {
                let pid = broker_pid(broker).ok_or("it was down before")?;
                broker.kill().map_err(error_text)?;
                match broker.pid() {
                    None => Ok(pid),
                    Some(pid) => Err(format!("pid {pid} survived its SIGKILL")),
                }
            });
            let pid = pid.await?;
            self.with_broker(|broker| broker.restart().map_err(error_text)).await?;
            Ok(format!("pid {}, away for {:.1} s", pid.as_raw_pid(), began.elapsed().as_secs_f64()))
        })
        .await
    }

    /// Pauses it for a while: its connections stay open, and nothing answers.
    async fn pause(&self, duration: Duration) -> Result<String, String> {
        self.while_away(async {
            let pid = self.with_broker(|broker| {
                let pid = broker_pid(broker).ok_or("it was down before")?;
                broker.pause().map_err(error_text)?;
                match is_stopped(pid, WaitIdOptions::EXITED).map_err(|error| error.to_string())? {
                    true => Ok(pid),
                    false => Err("it ended instead of standing still".into()),
                }
            });
            let pid = pid.await?;
            tokio::time::sleep(duration).await;
            let still = self.with_broker(move |broker| {
                let still = is_stopped(pid, WaitIdOptions::NOHANG);
                broker.resume().map_err(error_text)?;
                still.map_err(|error| error.to_string())
            });
            match still.await? {
                true => Ok(format!("pid {}, for {:.1} s", pid.as_raw_pid(), duration.as_secs_f64())),
                false => Err("it went on before it was told to".into()),
            }
        })
        .await
    }

    /// Closes all of its connections. Fails if there were none.
    async fn close_connections(&self) -> Result<String, String> {
        let connections = self.with_broker(|broker| {
            let listed =
                broker.ctl(&["list_connections", "--no-table-headers", "pid"]).map_err(error_text)?;
            broker.ctl(&["close_all_connections", "--global", "fault drill"]).map_err(error_text)?;
            Ok(listed.lines().filter(|line| !line.trim().is_empty()).count())
        });
        match connections.await? {
            0 => Err("there were none".into()),
            count => Ok(format!("{count} of them")),
        }
    }

    /// Marks the broker as away while `what` runs.
    async fn while_away(&self, what: impl Future<Output = Result<String, String>>) -> Result<String, String> {
        let began = Instant::now();
        self.up.send_replace(false);
        let done = what.await;
        self.up.send_replace(true);
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) += began.elapsed();
        done
    }

    /// Calls `what` with the private broker, off the runtime's threads.
    async fn with_broker<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut LocalBroker) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let own = self.own.clone().ok_or("the broker is not ours")?;
        tokio::task::spawn_blocking(move || what(&mut own.lock().unwrap_or_else(PoisonError::into_inner)))
            .await
            .map_err(|error| error.to_string())?
    }
}

fn broker_pid(broker: &LocalBroker) -> Option<Pid> {
    broker.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn error_text(error: LocalBrokerError) -> String {
    gristmill_shared::error_chain(&error)
}
