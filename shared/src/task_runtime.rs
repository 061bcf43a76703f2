//! The runtime for the async code of tasks: one per process, separate from the broker's.

use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::TaskError;

/// The number of runtime threads. They drive sockets, timers and spawned futures; a slot polls its
/// own futures on its own thread.
const RUNTIME_THREADS: usize = 2;
/// The most threads for blocking calls, such as name resolution and files. Bounded, so that many
/// slots do not start hundreds of threads.
const RUNTIME_BLOCKING_THREADS: usize = 64;

/// Returns the runtime that all slots of this process share; builds it at the first call.
///
/// # Errors
/// If the caller is async code, where waiting would block a runtime, or if the operating system has
/// no threads or files left for a runtime; a later call tries again.
pub(crate) fn task_runtime() -> Result<&'static Handle, TaskError> {
    static TASK_RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static BUILD_LOCK: Mutex<()> = Mutex::new(());
    if Handle::try_current().is_ok() {
        return Err(TaskError::reject(
            "cx.block_on was called from within async code, which it would block (hint: await the future instead)",
        ));
    }
    if let Some(runtime) = TASK_RUNTIME.get() {
        return Ok(runtime.handle());
    }
    let _build_guard = BUILD_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = TASK_RUNTIME.get() {
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
    Ok(TASK_RUNTIME.get_or_init(|| runtime).handle())
}
