//! End-to-end tests: real processes on a real RabbitMQ. One binary, so that they share one broker.
//!
//! The broker is that of `GRISTMILL_TEST_BROKER`, else a private one from the local installation.
//! Without either the tests fail, and `scripts/test` names what is missing.

mod amqp;
mod bad_tasks;
mod cli;
mod crash;
mod examples;
mod harness;
mod invariants;
mod observe;
mod pipeline;
mod security;
mod shutdown;

pub(crate) use harness::broker::broker_url;
