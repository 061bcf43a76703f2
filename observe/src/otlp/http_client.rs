//! The part of HTTP that the exporter needs: a POST and its response.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use ureq::Agent;

/// The largest response that is read. A successful one is empty.
const ANSWER_MAX_BYTES: u64 = 64 << 10;

/// The reason why the last POST failed. The exporter reports only that it did.
#[derive(Debug, Clone, Default)]
pub(super) struct LastHttpError(Arc<Mutex<Option<String>>>);

impl LastHttpError {
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, why: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

/// An HTTP client that blocks: the exporter's thread has nothing else to do.
#[derive(Debug)]
pub(super) struct OtlpHttpClient {
    agent: Agent,
    last_error: LastHttpError,
}

impl OtlpHttpClient {
    pub(super) fn new(timeout: Duration, last_error: LastHttpError) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false) // the exporter interprets them
            .max_redirects(0)
            .build();
        Self { agent: config.into(), last_error }
    }

    fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (parts, body) = request.into_parts();
        let (parts, mut body) = self.agent.run(Request::from_parts(parts, &body[..]))?.into_parts();
        let body = body.with_config().limit(ANSWER_MAX_BYTES).read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }
}

#[async_trait]
impl HttpClient for OtlpHttpClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.post(request).map_err(|error| {
            self.last_error.set(error.to_string());
            error.into()
        })
    }
}
