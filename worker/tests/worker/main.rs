//! The worker on the memory transport.

mod blocked_broker;
mod deliveries;
mod in_flight;
mod job_state;
mod long_batches;
mod poison;
mod shared_client;
mod shutdown;
mod stop_grace;
mod time_limits;
