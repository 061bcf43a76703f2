//! The build id of this program.

use std::{fs::File, sync::OnceLock};

use gristmill_shared::{BuildId, InvalidName};

static BUILD_ID: OnceLock<Option<BuildId>> = OnceLock::new();

/// Names the build. Has no effect after the first call of [`build_id`].
///
/// # Errors
/// If the name has other characters than a build id, or is too long.
pub(crate) fn name_build(name: &str) -> Result<(), InvalidName> {
    let id = BuildId::new(name)?;
    BUILD_ID.get_or_init(|| Some(id));
    Ok(())
}

/// Returns the given name, or else the id of the running executable, which is read once. None if
/// the executable cannot be read: a warning is logged, and the builds that work on a job cannot be
/// told apart.
pub(crate) fn build_id() -> Option<BuildId> {
    let read = || {
        let opened = std::env::current_exe().and_then(File::open);
        opened.and_then(BuildId::from_executable).map_err(|error| {
            tracing::warn!(%error, "this program's own file cannot be read, so its build has no name");
        })
    };
    BUILD_ID.get_or_init(|| read().ok()).clone()
}
