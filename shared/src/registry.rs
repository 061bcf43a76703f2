//! The kinds of job that a process knows.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde_json::value::RawValue;

use crate::{AnyJob, InvalidName, Job, JobError, Kind, erased};

/// The kinds of job that a worker or a sink knows. Built at start, then shared.
///
/// ```
/// # use gristmill_shared::{Job, JobError, Registry, TaskContext, TaskError, TaskIndex};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Nothing;
/// # impl Job for Nothing {
/// #     const KIND: &'static str = "nothing";
/// #     type Task = (); type Output = (); type Report = ();
/// #     fn split(&self) -> impl Iterator<Item = Result<(), JobError>> + Send {
/// #         std::iter::empty()
/// #     }
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
    openers: BTreeMap<Kind, JobOpener>,
}

/// The code of a kind: its version, and the function that makes a job from a spec.
#[derive(Clone)]
struct JobOpener {
    version: u32,
    source: JobSource,
}

/// The source of a kind's jobs.
#[derive(Clone)]
enum JobSource {
    /// Decodes the job from its spec.
    Spec(fn(&RawValue) -> Result<Arc<dyn AnyJob>, JobError>),
    /// Returns this job for every spec.
    Fixed(Arc<dyn AnyJob>),
}

impl Registry {
    /// Adds a kind.
    ///
    /// # Errors
    /// If the kind is registered already, or its name is invalid.
    pub fn register<J: Job>(&mut self) -> Result<(), RegisterError> {
        let kind = Kind::new(J::KIND)?;
        let opener = JobOpener { version: J::VERSION, source: JobSource::Spec(erased::open::<J>) };
        if self.openers.insert(kind.clone(), opener).is_some() {
            return Err(RegisterError::Duplicate(kind));
        }
        Ok(())
    }

    /// Returns a registry with one job: every spec of its kind opens as this value and is not
    /// decoded. Meant for a process with all roles, so that fields that do not travel are
    /// available.
    ///
    /// # Errors
    /// If the name of its kind is invalid.
    pub fn with_job(job: Arc<dyn AnyJob>) -> Result<Self, RegisterError> {
        let kind = Kind::new(job.kind())?;
        let opener = JobOpener { version: job.version(), source: JobSource::Fixed(job) };
        Ok(Self { openers: BTreeMap::from([(kind, opener)]) })
    }

    /// Returns the names of all kinds, in alphabetical order.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.openers.keys()
    }

    /// Returns the kind as a metric label. All kinds that are not registered share one label,
    /// because messages may name any number of them.
    #[must_use]
    pub fn metric_label<'a>(&self, kind: &'a Kind) -> &'a str {
        if self.openers.contains_key(kind) { kind.as_str() } else { "unknown" }
    }

    /// Decodes a job from its parameters as they travel. Costly: callers keep the job for further
    /// batches.
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
            Some(JobOpener { source: JobSource::Spec(decode), .. }) => decode(spec).map_err(OpenError::Spec),
            Some(JobOpener { source: JobSource::Fixed(job), .. }) => Ok(Arc::clone(job)),
        }
    }

    /// Returns the version in which the kind is registered, if it is.
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

/// The error for a kind that cannot be registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Two job types have the same name on the wire.
    #[error("two jobs of kind {0} are registered (hint: give one another KIND)")]
    Duplicate(Kind),
    /// The name is no valid kind.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// The error for a job that cannot be opened in this process.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kind is not registered in this process; it may be in another.
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
