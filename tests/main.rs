//! End-to-end tests: real processes on a real RabbitMQ. One binary, so that they share one broker.
//!
//! The broker is that of `GRISTMILL_TEST_BROKER`, else a private one from the local installation.
//! Without either the tests fail, and `scripts/test` names what is missing.

mod adaptive;
mod amqp;
mod bad_input;
mod bad_transport;
mod commands;
mod conclusion;
mod config;
mod conformance;
mod crash;
mod doctor;
mod documented_commands;
mod drill;
mod example;
mod failures;
mod faults;
mod fetch;
mod floats;
mod harness;
mod help;
mod invariants;
mod isolate;
mod library;
mod limits;
mod local_input;
mod observe;
#[cfg(feature = "otlp")]
mod otlp;
mod outputs;
mod pages;
mod panics;
mod per_job;
mod pipeline;
mod poison;
mod report;
mod retry;
mod retry_delays;
mod rights;
mod run;
mod service;
mod shards;
mod shutdown;
mod snapshots;
mod stall;
mod state;
mod stop_grace;
mod tls;
mod versions;

pub(crate) use harness::broker::broker_url;
