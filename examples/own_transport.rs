//! A transport of one's own: a program whose `--broker` takes URLs of one more scheme.
//!
//! ```text
//! cargo run --example own_transport -- run primes --limit 100 --broker flawed://memory
//! ```
//!
//! `flawed://` goes over another transport and delivers each message three times. The account of a
//! job stays exact.

use std::{process::ExitCode, sync::Arc};

use async_trait::async_trait;
use gristmill::{
    App, ConnectOptions, Finding, FleetRole, Lane, MemoryTransport, Transport, TransportDriver,
    TransportError, TransportRegistry, built_in_transports, testing::RepeatingTransport,
};

/// The number of times that each message is delivered.
const DELIVERY_COUNT: u16 = 3;
/// The URL of the broker within this process, which no other program can join.
const MEMORY_URL: &str = "flawed://memory";

/// The driver of `flawed://`.
#[derive(Debug)]
struct FlawedDriver {
    brokers: TransportRegistry,
    memory: Arc<MemoryTransport>,
}

impl FlawedDriver {
    fn new() -> Self {
        Self { brokers: built_in_transports(), memory: MemoryTransport::new() }
    }

    /// Returns the options of the transport that `flawed://HOST` goes over: `amqp://HOST`.
    fn inner(options: &ConnectOptions) -> ConnectOptions {
        let mut inner = options.clone();
        inner.url = options.url.replacen("flawed://", "amqp://", 1);
        inner
    }
}

#[async_trait]
impl TransportDriver for FlawedDriver {
    fn schemes(&self) -> &'static [&'static str] {
        &["flawed"]
    }

    fn url_form(&self) -> &'static str {
        "flawed://USER:PASSWORD@HOST:PORT/VHOST, or flawed://memory"
    }

    fn check_url(&self, url: &str) -> Result<(), TransportError> {
        if url == MEMORY_URL {
            return Ok(());
        }
        self.brokers.check_url(&Self::inner(&ConnectOptions::new(url)).url)
    }

    async fn connect(&self, options: &ConnectOptions) -> Result<Arc<dyn Transport>, TransportError> {
        let inner: Arc<dyn Transport> = if options.url == MEMORY_URL {
            self.memory.connect()
        } else {
            self.brokers.connect(&Self::inner(options)).await?
        };
        Ok(RepeatingTransport::new(inner, DELIVERY_COUNT, 1))
    }

    async fn diagnose(
        &self,
        options: &ConnectOptions,
        lane: &Lane,
        role: Option<FleetRole>,
    ) -> Result<Vec<Finding>, TransportError> {
        let mut findings = if options.url == MEMORY_URL {
            Vec::new()
        } else {
            self.brokers.diagnose(&Self::inner(options), lane, role).await?
        };
        let found = format!("each message comes {DELIVERY_COUNT} times");
        findings.push(Finding::warning("deliveries", found).hint("use amqp:// for work that matters"));
        Ok(findings)
    }
}

fn main() -> ExitCode {
    App::with_built_in_jobs().transport(FlawedDriver::new()).main()
}
