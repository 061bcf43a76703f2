//! The build of this program.

use std::{fs::File, sync::OnceLock};

use gristmill_shared::BuildId;

/// Returns the id of the running executable, which is read once. None if it cannot be read, which the log says; then
/// the builds that work on a job cannot be told apart.
pub(crate) fn build_id() -> Option<BuildId> {
    static BUILD_ID: OnceLock<Option<BuildId>> = OnceLock::new();
    let read = || {
        let opened = std::env::current_exe().and_then(File::open);
        opened.and_then(BuildId::of).map_err(|error| {
            tracing::warn!(%error, "this program's own file cannot be read, so its build has no name");
        })
    };
    BUILD_ID.get_or_init(|| read().ok()).clone()
}
