//! The build of this program.

use std::{fs::File, sync::OnceLock};

use gristmill_shared::{BuildId, InvalidName};

static BUILD_ID: OnceLock<Option<BuildId>> = OnceLock::new();

/// Names the build, before [`build_id`] is asked for the first time; later it has no effect.
///
/// # Errors
/// If the name has other characters than a build id, or is too long.
pub(crate) fn name_build(name: &str) -> Result<(), InvalidName> {
    let id = BuildId::new(name)?;
    BUILD_ID.get_or_init(|| Some(id));
    Ok(())
}

/// Returns the name that was given, or else the id of the running executable, which is read once.
/// None if it cannot be read, which the log says; then the builds that work on a job cannot be told
/// apart.
pub(crate) fn build_id() -> Option<BuildId> {
    let read = || {
        let opened = std::env::current_exe().and_then(File::open);
        opened.and_then(BuildId::of).map_err(|error| {
            tracing::warn!(%error, "this program's own file cannot be read, so its build has no name");
        })
    };
    BUILD_ID.get_or_init(|| read().ok()).clone()
}
