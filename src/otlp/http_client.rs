//! As much of HTTP as the exporter needs: a POST, and its answer.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use ureq::Agent;

/// The largest answer that is read. A good one is empty.
const ANSWER_MAX_BYTES: u64 = 64 << 10;

/// Why the last POST came to nothing: the exporter only says that it did.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, why: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

/// Blocks while it asks: the exporter's thread does nothing else.
#[derive(Debug)]
pub(super) struct Post {
    agent: Agent,
    trouble: Trouble,
}

impl Post {
    pub(super) fn new(answer_max: Duration, trouble: Trouble) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(answer_max))
            .http_status_as_error(false) // the exporter knows what they mean
            .max_redirects(0)
            .build();
        Self { agent: config.into(), trouble }
    }

    fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (parts, body) = request.into_parts();
        let (parts, mut body) = self.agent.run(Request::from_parts(parts, &body[..]))?.into_parts();
        let body = body.with_config().limit(ANSWER_MAX_BYTES).read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }
}

#[async_trait]
impl HttpClient for Post {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.post(request).map_err(|error| {
            self.trouble.set(error.to_string());
            error.into()
        })
    }
}
