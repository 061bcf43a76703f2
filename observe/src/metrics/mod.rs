//! The HTTP endpoint of a process for its metrics, its liveness and its readiness.
//!
//! ```text
//! GET /metrics   all metrics, in the text format of Prometheus
//! GET /healthz   200 as long as the process runs; a failed part of a role ends the process
//! GET /readyz    200 while the broker accepts and delivers messages, else 503 with the reason;
//!                of a sink, only once it has claimed its lane
//! ```

mod http;
mod readiness;
mod recorder;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use gristmill_shared::{
    Transport,
    metrics::{BUILD_INFO, START_TIME},
};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use self::{
    http::{CODE_NOT_FOUND, CODE_OK, CODE_UNAVAILABLE, HttpResponse},
    readiness::Readiness,
    recorder::PrometheusRecorder,
};

/// The media type of Prometheus' text format.
const PROMETHEUS_MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN_MEDIA_TYPE: &str = "text/plain; charset=utf-8";

/// The reason why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address cannot be bound.
    #[error("cannot listen for metrics")]
    Listen(#[source] io::Error),
    /// The process has a recorder already.
    #[error("a metrics recorder is installed already")]
    RecorderInstalled,
}

/// A server of metrics and readiness. It stops when it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    readiness: Arc<Mutex<Readiness>>,
    _server: AbortOnDropHandle<()>,
    health_follower: Option<AbortOnDropHandle<()>>,
}

impl MetricsServer {
    /// Installs the recorder and serves at this address from now on. Once in a process.
    ///
    /// # Errors
    /// If the address cannot be bound, or a recorder is installed already.
    pub async fn open(address: &str, role: &str, version: &str) -> Result<Self, MetricsError> {
        let listener = TcpListener::bind(address).await.map_err(MetricsError::Listen)?;
        let address = listener.local_addr().map_err(MetricsError::Listen)?;
        let recorder = Arc::new(PrometheusRecorder::for_role(role));
        metrics::set_global_recorder(Arc::clone(&recorder)).map_err(|_| MetricsError::RecorderInstalled)?;
        BUILD_INFO.set([version, role], 1.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        START_TIME.set([], now.as_secs_f64().round());
        let readiness = Arc::new(Mutex::new(Readiness::new(Instant::now())));
        let sources = MetricsSources { recorder, readiness: Arc::clone(&readiness) };
        let server = http::serve(listener, move |path| sources.respond(path));
        tracing::info!("metrics are at http://{address}/metrics");
        Ok(Self { readiness, _server: AbortOnDropHandle::new(tokio::spawn(server)), health_follower: None })
    }

    /// Reports the process as not ready for this reason, however the broker is. With `None` its
    /// readiness is that of the broker.
    pub fn set_pending(&self, pending_step: Option<&'static str>) {
        lock(&self.readiness).set_pending(pending_step);
    }

    /// Follows the health of this transport from now on.
    pub fn follow_health(&mut self, transport: &dyn Transport) {
        let (mut health, readiness) = (transport.health(), Arc::clone(&self.readiness));
        let follow = async move {
            loop {
                lock(&readiness).set_health(health.borrow_and_update().clone(), Instant::now());
                if health.changed().await.is_err() {
                    return; // the transport was dropped, and the process ends
                }
            }
        };
        self.health_follower = Some(AbortOnDropHandle::new(tokio::spawn(follow)));
    }
}

/// The state that the server reports.
#[derive(Debug)]
struct MetricsSources {
    recorder: Arc<PrometheusRecorder>,
    readiness: Arc<Mutex<Readiness>>,
}

impl MetricsSources {
    fn respond(&self, path: &str) -> HttpResponse {
        match path {
            "/metrics" => {
                lock(&self.readiness).update_metrics(Instant::now());
                HttpResponse {
                    code: CODE_OK,
                    media_type: PROMETHEUS_MEDIA_TYPE,
                    body: self.recorder.to_string(),
                }
            }
            "/healthz" => {
                HttpResponse { code: CODE_OK, media_type: PLAIN_MEDIA_TYPE, body: "alive\n".into() }
            }
            "/readyz" => {
                let reason = lock(&self.readiness).not_ready_reason();
                let (code, body) = match reason {
                    None => (CODE_OK, "ready\n".into()),
                    Some(why) => (CODE_UNAVAILABLE, format!("{why}\n")),
                };
                HttpResponse { code, media_type: PLAIN_MEDIA_TYPE, body }
            }
            _ => HttpResponse {
                code: CODE_NOT_FOUND,
                media_type: PLAIN_MEDIA_TYPE,
                body: "expected /metrics, /healthz or /readyz\n".into(),
            },
        }
    }
}

fn lock(readiness: &Mutex<Readiness>) -> MutexGuard<'_, Readiness> {
    readiness.lock().unwrap_or_else(PoisonError::into_inner) // nothing under the lock panics
}
