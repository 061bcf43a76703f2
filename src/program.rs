//! The parts of a program that its command line needs.

use gristmill_shared::{RegisterError, Registry};

use crate::cli::kinds::KindArgs;

/// The kinds of a program, its version and its build.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) version: &'static str,
    pub(crate) kinds: Vec<KindArgs>,
    pub(crate) registry: Registry,
    /// The first kind that could not be added.
    pub(crate) refused: Option<RegisterError>,
    pub(crate) build: Option<&'static str>,
}

impl Program {
    /// Returns the kinds as flags and as jobs.
    ///
    /// # Errors
    /// If a kind was added twice.
    pub(crate) fn into_parts(self) -> Result<(Vec<KindArgs>, Registry), RegisterError> {
        match self.refused {
            Some(error) => Err(error),
            None => Ok((self.kinds, self.registry)),
        }
    }
}
