//! The parts of a program that its command line needs.

use gristmill_shared::{RegisterDriverError, RegisterError, Registry, TransportRegistry};

use crate::cli::kinds::KindArgs;

/// The kinds and the transports of a program, its version and its build.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) version: &'static str,
    pub(crate) kinds: Vec<KindArgs>,
    pub(crate) registry: Registry,
    pub(crate) transports: TransportRegistry,
    /// The first kind or transport that could not be added.
    pub(crate) refused: Option<ProgramError>,
    pub(crate) build: Option<&'static str>,
}

/// The defect of a program that adds something it must not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// Of a kind.
    #[error(transparent)]
    Kind(#[from] RegisterError),
    /// Of a transport.
    #[error(transparent)]
    Transport(#[from] RegisterDriverError),
}

impl Program {
    /// Returns the kinds as flags and as jobs, and the transports.
    ///
    /// # Errors
    /// If a kind or the scheme of a transport was added twice.
    pub(crate) fn into_parts(self) -> Result<(Vec<KindArgs>, Registry, TransportRegistry), ProgramError> {
        match self.refused {
            Some(error) => Err(error),
            None => Ok((self.kinds, self.registry, self.transports)),
        }
    }

    /// Keeps the first error, which [`Program::into_parts`] returns.
    pub(crate) fn refuse(&mut self, error: impl Into<ProgramError>) {
        self.refused.get_or_insert(error.into());
    }
}
