//! Tasks that fail, crash, panic or do not end: what each costs its job, its worker and its
//! neighbours.

mod failures;
mod isolate;
mod panics;
mod poison;
mod retry;
mod retry_delays;
mod stop_grace;
mod time_limits;
