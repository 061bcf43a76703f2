//! The broker of a drill: somebody's, which is left in peace, or one of our own, which is not.

use std::{
    ffi::OsString,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, WaitIdOptions};
use tokio::sync::watch;

use super::{supervised_process::stands_still, error::DrillError, plan::Fault};
use crate::testing::{LocalBroker, LocalBrokerError};

/// The broker, and how it has been.
#[derive(Debug)]
pub(super) struct Broker {
    url: String,
    variables: Vec<(&'static str, OsString)>,
    what: String,
    own: Option<Arc<Mutex<LocalBroker>>>,
    up: watch::Sender<bool>,
    away: Mutex<Duration>,
}

impl Broker {
    /// Somebody's broker.
    pub(super) fn given(url: String, variables: Vec<(&'static str, OsString)>) -> Self {
        Self { variables, ..Self::new(url, "given".into(), None) }
    }

    /// Starts one from the local installation.
    pub(super) async fn start() -> Result<Self, DrillError> {
        let broker = tokio::task::spawn_blocking(LocalBroker::start).await.map_err(io::Error::other);
        let broker = broker.map_err(super::error::cannot("start a broker"))??;
        let what = format!("own, RabbitMQ {}", broker.version());
        Ok(Self::new(broker.url(), what, Some(Arc::new(Mutex::new(broker)))))
    }

    fn new(url: String, what: String, own: Option<Arc<Mutex<LocalBroker>>>) -> Self {
        Self { url, variables: Vec::new(), what, own, up: watch::Sender::new(true), away: Mutex::default() }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The environment that opens its door, besides the URL.
    pub(super) fn variables(&self) -> impl Iterator<Item = (&'static str, &OsString)> {
        self.variables.iter().map(|(name, value)| (*name, value))
    }

    /// What it is, for people.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    pub(super) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// For how long it was down or paused, all in all.
    pub(super) fn away(&self) -> Duration {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is neither down nor paused, as far as this drill has a hand in it.
    pub(super) async fn until_up(&self) {
        let _ = self.up.subscribe().wait_for(|up| *up).await; // its sender is ours and lives
    }

    /// Does a fault to it. Says what happened, if it did.
    pub(super) async fn suffer(&self, fault: Fault, lasts: Duration) -> Result<String, String> {
        match fault {
            Fault::BrokerKilled => self.kill().await,
            Fault::BrokerPaused => self.pause(lasts).await,
            Fault::ConnectionsClosed => self.close_connections().await,
            _ => Err("this is not done to a broker".into()),
        }
    }

    /// Kills it with SIGKILL and starts it again.
    async fn kill(&self) -> Result<String, String> {
        self.while_away(async {
            let began = Instant::now();
            let pid = self.with(|broker| {
                let pid = pid_of(broker).ok_or("it was down before")?;
                broker.kill().map_err(text)?;
                match broker.pid() {
                    None => Ok(pid),
                    Some(pid) => Err(format!("pid {pid} survived its SIGKILL")),
                }
            });
            let pid = pid.await?;
            self.with(|broker| broker.restart().map_err(text)).await?;
            Ok(format!("pid {}, away for {:.1} s", pid.as_raw_pid(), began.elapsed().as_secs_f64()))
        })
        .await
    }

    /// Freezes it for a while: its connections stay open, and nothing answers.
    async fn pause(&self, lasts: Duration) -> Result<String, String> {
        self.while_away(async {
            let pid = self.with(|broker| {
                let pid = pid_of(broker).ok_or("it was down before")?;
                broker.pause().map_err(text)?;
                match stands_still(pid, WaitIdOptions::EXITED).map_err(|error| error.to_string())? {
                    true => Ok(pid),
                    false => Err("it ended instead of standing still".into()),
                }
            });
            let pid = pid.await?;
            tokio::time::sleep(lasts).await;
            let still = self.with(move |broker| {
                let still = stands_still(pid, WaitIdOptions::NOHANG);
                broker.resume().map_err(text)?;
                still.map_err(|error| error.to_string())
            });
            match still.await? {
                true => Ok(format!("pid {}, for {:.1} s", pid.as_raw_pid(), lasts.as_secs_f64())),
                false => Err("it went on before it was told to".into()),
            }
        })
        .await
    }

    /// Lets the broker close all connections. It happened if there were any.
    async fn close_connections(&self) -> Result<String, String> {
        let connections = self.with(|broker| {
            let listed = broker.ctl(&["list_connections", "--no-table-headers", "pid"]).map_err(text)?;
            broker.ctl(&["close_all_connections", "--global", "fault drill"]).map_err(text)?;
            Ok(listed.lines().filter(|line| !line.trim().is_empty()).count())
        });
        match connections.await? {
            0 => Err("there were none".into()),
            count => Ok(format!("{count} of them")),
        }
    }

    /// Marks the broker as away while something is done that takes it away.
    async fn while_away(&self, what: impl Future<Output = Result<String, String>>) -> Result<String, String> {
        let began = Instant::now();
        self.up.send_replace(false);
        let done = what.await;
        self.up.send_replace(true);
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) += began.elapsed();
        done
    }

    /// Does something to our own broker, off the runtime's threads.
    async fn with<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut LocalBroker) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let own = self.own.clone().ok_or("the broker is not ours")?;
        tokio::task::spawn_blocking(move || what(&mut own.lock().unwrap_or_else(PoisonError::into_inner)))
            .await
            .map_err(|error| error.to_string())?
    }
}

fn pid_of(broker: &LocalBroker) -> Option<Pid> {
    broker.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn text(error: LocalBrokerError) -> String {
    gristmill_shared::error_chain(&error)
}
