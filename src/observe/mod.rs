//! What others may see of a process: its metrics, whether it lives, and whether the broker works for it.
//!
//! ```text
//! GET /metrics   everything that is counted, in the text format of Prometheus
//! GET /healthz   200 as long as the process runs; whatever part of a role dies ends the process
//! GET /readyz    200 while the broker takes messages and delivers them, else 503 with the reason; of a sink, only
//!                once it has its lane
//! ```

mod http;
mod readiness;
mod recorder;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use gristmill_shared::{
    Transport,
    meter::{BUILD_INFO, START_TIME},
};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use self::{
    http::{Answer, CODE_NOT_FOUND, CODE_OK, CODE_UNAVAILABLE},
    readiness::Weather,
    recorder::Book,
};
use crate::{Exit, exit::Failure};

/// The text format of Prometheus.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// A window into this process. It closes when this is dropped.
#[derive(Debug)]
pub(crate) struct Window {
    weather: Arc<Mutex<Weather>>,
    _serving: AbortOnDropHandle<()>,
    following: Option<AbortOnDropHandle<()>>,
}

impl Window {
    /// Begins to count, and answers at this address from now on. Once in a process.
    ///
    /// # Errors
    /// If nobody can listen there.
    pub(crate) async fn open(address: &str, role: &str, version: &str) -> Result<Self, Failure> {
        let cannot = |error| {
            Failure::usage(format_args!(
                "cannot listen on {address} for --metrics: {error} (hint: expected HOST:PORT, as 127.0.0.1:9400, of this \
                 machine and not in use)"
            ))
        };
        let listener = TcpListener::bind(address).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let book = Arc::new(Book::of(role));
        metrics::set_global_recorder(Arc::clone(&book))
            .map_err(|_| Failure::new(Exit::Bug, "metrics are counted twice"))?;
        BUILD_INFO.set([version, role], 1.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        START_TIME.set([], now.as_secs_f64().round());
        let weather = Arc::new(Mutex::new(Weather::new(Instant::now())));
        let pane = Pane { book, weather: Arc::clone(&weather) };
        let serving = http::serve(listener, move |path| pane.answer(path));
        tracing::info!("metrics are at http://{address}/metrics");
        Ok(Self { weather, _serving: AbortOnDropHandle::new(tokio::spawn(serving)), following: None })
    }

    /// Shows the process as not ready, for this reason, however the broker is; with none, as ready as the broker is.
    pub(crate) fn wait_for(&self, to_do: Option<&'static str>) {
        lock(&self.weather).wait_for(to_do);
    }

    /// Shows how this transport is, from now on.
    pub(crate) fn follow(&mut self, transport: &dyn Transport) {
        let (mut health, weather) = (transport.health(), Arc::clone(&self.weather));
        let follow = async move {
            loop {
                lock(&weather).turn(health.borrow_and_update().clone(), Instant::now());
                if health.changed().await.is_err() {
                    return; // the transport has gone, and so will the process
                }
            }
        };
        self.following = Some(AbortOnDropHandle::new(tokio::spawn(follow)));
    }
}

/// What is seen through the window.
#[derive(Debug)]
struct Pane {
    book: Arc<Book>,
    weather: Arc<Mutex<Weather>>,
}

impl Pane {
    fn answer(&self, path: &str) -> Answer {
        match path {
            "/metrics" => {
                lock(&self.weather).count(Instant::now());
                Answer { code: CODE_OK, media: EXPOSITION, body: self.book.to_string() }
            }
            "/healthz" => Answer { code: CODE_OK, media: PLAIN, body: "alive\n".into() },
            "/readyz" => {
                let trouble = lock(&self.weather).trouble();
                let (code, body) = match trouble {
                    None => (CODE_OK, "ready\n".into()),
                    Some(why) => (CODE_UNAVAILABLE, format!("{why}\n")),
                };
                Answer { code, media: PLAIN, body }
            }
            _ => Answer {
                code: CODE_NOT_FOUND,
                media: PLAIN,
                body: "expected /metrics, /healthz or /readyz\n".into(),
            },
        }
    }
}

fn lock(weather: &Mutex<Weather>) -> MutexGuard<'_, Weather> {
    weather.lock().unwrap_or_else(PoisonError::into_inner) // nothing under the lock panics
}
