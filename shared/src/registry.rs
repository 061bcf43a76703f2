//! Which kinds of job a process knows.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde_json::value::RawValue;

use crate::{AnyJob, InvalidName, Job, JobError, Kind, erased};

/// The kinds of job a worker or a sink knows. Built at start, then shared.
///
/// ```
/// # use gristmill_shared::{Job, JobError, Registry, TaskContext, TaskError, TaskIndex};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Nothing;
/// # impl Job for Nothing {
/// #     const KIND: &'static str = "nothing";
/// #     type Task = (); type Output = (); type Report = ();
/// #     fn split(&self) -> impl Iterator<Item = Result<(), JobError>> + Send { std::iter::empty() }
/// #     fn process(&self, _: (), _: &TaskContext) -> Result<(), TaskError> { Ok(()) }
/// #     fn collect(&self, _: &mut (), _: TaskIndex, _: ()) -> std::ops::ControlFlow<()> {
/// #         std::ops::ControlFlow::Continue(())
/// #     }
/// # }
/// let mut registry = Registry::default();
/// registry.register::<Nothing>()?;
/// assert!(registry.register::<Nothing>().is_err());
/// # Ok::<(), gristmill_shared::RegisterError>(())
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    openers: BTreeMap<Kind, Opener>,
}

/// The code of a kind: its version, and how a job is made of a spec.
#[derive(Clone)]
struct Opener {
    version: u32,
    open: Open,
}

/// The source of a kind's jobs.
#[derive(Clone)]
enum Open {
    /// Reads the job from its spec.
    Read(fn(&RawValue) -> Result<Arc<dyn AnyJob>, JobError>),
    /// Gives this job, whatever the spec.
    Fixed(Arc<dyn AnyJob>),
}

impl Registry {
    /// Adds a kind.
    ///
    /// # Errors
    /// If the kind is registered already, or its name is not one.
    pub fn register<J: Job>(&mut self) -> Result<(), RegisterError> {
        let kind = Kind::new(J::KIND)?;
        let opener = Opener { version: J::VERSION, open: Open::Read(erased::open::<J>) };
        if self.openers.insert(kind.clone(), opener).is_some() {
            return Err(RegisterError::Twice(kind));
        }
        Ok(())
    }

    /// Returns a registry that knows one job: every spec of its kind opens as this very value, and
    /// is not read. For a process that has all roles, so that fields that do not travel are there.
    ///
    /// # Errors
    /// If the name of its kind is not one.
    pub fn of_one(job: Arc<dyn AnyJob>) -> Result<Self, RegisterError> {
        let kind = Kind::new(job.kind())?;
        let opener = Opener { version: job.version(), open: Open::Fixed(job) };
        Ok(Self { openers: BTreeMap::from([(kind, opener)]) })
    }

    /// The names of all kinds, in alphabetical order.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.openers.keys()
    }

    /// The kind as a label of metrics: those that are not registered are one, since anybody may name any number of them.
    #[must_use]
    pub fn label<'a>(&self, kind: &'a Kind) -> &'a str {
        if self.openers.contains_key(kind) { kind.as_str() } else { "unknown" }
    }

    /// Reads a job from its parameters as they travel. Not for every batch: keep what it gives.
    ///
    /// # Errors
    /// If the kind is not registered, is registered in another version, or the parameters do not
    /// fit it.
    pub fn open(&self, kind: &Kind, version: u32, spec: &RawValue) -> Result<Arc<dyn AnyJob>, OpenError> {
        match self.openers.get(kind) {
            None => Err(OpenError::UnknownKind),
            Some(opener) if opener.version != version => {
                Err(OpenError::Version { kind: kind.clone(), here: opener.version, wanted: version })
            }
            Some(Opener { open: Open::Read(read), .. }) => read(spec).map_err(OpenError::Spec),
            Some(Opener { open: Open::Fixed(job), .. }) => Ok(Arc::clone(job)),
        }
    }

    /// The version in which the kind is registered, if it is.
    #[must_use]
    pub fn version(&self, kind: &Kind) -> Option<u32> {
        self.openers.get(kind).map(|opener| opener.version)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.openers.keys()).finish()
    }
}

/// A kind that cannot be registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Two job types have the same name on the wire.
    #[error("two jobs of kind {0} are registered (hint: give one another KIND)")]
    Twice(Kind),
    /// The name has characters a kind cannot have.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// A job that cannot be read here.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kind is not registered in this process; in another it may be.
    #[error("no job of its kind is registered here")]
    UnknownKind,
    /// The kind is registered here in another version of its code.
    #[error("this program has version {here} of the kind {kind}, and version {wanted} is needed")]
    Version {
        /// The kind.
        kind: Kind,
        /// The version that is registered here.
        here: u32,
        /// The version that the job has.
        wanted: u32,
    },
    /// The parameters do not fit the kind.
    #[error("{0}")]
    Spec(JobError),
}
