//! The worker on the memory transport. `prefetch` and `retry_delays` are binaries of their own,
//! each for the reason that it states.

mod blocked_broker;
mod deliveries;
mod in_flight;
mod job_state;
mod long_batches;
mod poison;
mod shared_client;
mod shutdown;
mod stop_grace;
mod support;
mod time_limits;
