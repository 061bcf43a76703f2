//! The runtime on which tasks run async code: one per process, apart from the broker's.

use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::TaskError;

/// The runtime's threads. They drive sockets, timers and spawned futures; a slot polls its own
/// futures on its own thread.
const RUNTIME_THREADS: usize = 2;
/// Threads for what blocks: names that are looked up, files. Bounded so that many slots do not
/// start hundreds of them.
const RUNTIME_BLOCKING_THREADS: usize = 64;

/// Returns the runtime that all slots of this process share, and builds it at the first call.
///
/// # Errors
/// If the caller runs async code already, where waiting would block a runtime, or if the operating
/// system gives no threads or files for a runtime; a later call tries again.
pub(crate) fn task_runtime() -> Result<&'static Handle, TaskError> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static BUILDING: Mutex<()> = Mutex::new(());
    if Handle::try_current().is_ok() {
        return Err(TaskError::reject(
            "cx.block_on was called from within async code, which it would block (hint: await the future instead)",
        ));
    }
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime.handle());
    }
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime.handle());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .max_blocking_threads(RUNTIME_BLOCKING_THREADS)
        .thread_name("tasks-async")
        .enable_all()
        .build()
        .map_err(|error| {
            TaskError::failed(format_args!(
                "the runtime for async tasks cannot be started: {error} (hint: raise the limits on processes and \
                 open files)"
            ))
        })?;
    Ok(RUNTIME.get_or_init(|| runtime).handle())
}
