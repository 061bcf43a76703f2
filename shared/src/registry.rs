//! The kinds of job that a process knows.

use std::{
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use serde_json::value::RawValue;

use crate::{AnyJob, InvalidName, Job, JobError, Kind, erased, panic_text};

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
    kinds: BTreeMap<Kind, RegisteredKind>,
}

/// A function that makes a job from its spec.
pub type JobOpener = Arc<dyn Fn(&RawValue) -> Result<Arc<dyn AnyJob>, JobError> + Send + Sync>;

/// The code of a kind.
#[derive(Clone)]
struct RegisteredKind {
    version: u32,
    opener: JobOpener,
}

impl Registry {
    /// Adds a kind.
    ///
    /// # Errors
    /// If the kind is registered already, or its name is invalid.
    pub fn register<J: Job>(&mut self) -> Result<(), RegisterError> {
        self.register_with(Kind::new(J::KIND)?, J::VERSION, Arc::new(erased::open::<J>))
    }

    /// Adds a kind whose jobs `opener` makes, for instance with a setting of this process that the
    /// spec does not have. `version` is that of the jobs. The opener returns a new job of this kind
    /// and version for each spec, on the thread of the caller; [`erase`](crate::erase) makes one of
    /// a typed value. A panic counts as an error.
    ///
    /// # Errors
    /// If the kind is registered already.
    pub fn register_with(
        &mut self,
        kind: Kind,
        version: u32,
        opener: JobOpener,
    ) -> Result<(), RegisterError> {
        if self.kinds.contains_key(&kind) {
            return Err(RegisterError::Duplicate(kind));
        }
        self.kinds.insert(kind, RegisteredKind { version, opener });
        Ok(())
    }

    /// Returns a registry with one job: every spec of its kind opens as this value and is not
    /// decoded. Meant for a process with all roles, so that fields that do not travel are
    /// available.
    ///
    /// # Errors
    /// If the name of its kind is invalid.
    pub fn with_job(job: Arc<dyn AnyJob>) -> Result<Self, RegisterError> {
        let mut registry = Self::default();
        let (kind, version) = (Kind::new(job.kind())?, job.version());
        registry.register_with(kind, version, Arc::new(move |_| Ok(Arc::clone(&job))))?;
        Ok(registry)
    }

    /// Returns the names of all kinds, in alphabetical order.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.kinds.keys()
    }

    /// Returns the kind as a metric label. All kinds that are not registered share one label,
    /// because messages may name any number of them.
    #[must_use]
    pub fn metric_label<'a>(&self, kind: &'a Kind) -> &'a str {
        if self.kinds.contains_key(kind) { kind.as_str() } else { "unknown" }
    }

    /// Decodes a job from its parameters as they travel. Costly: callers keep the job for further
    /// batches.
    ///
    /// # Errors
    /// If the kind is not registered, is registered in another version, or the parameters do not
    /// fit it.
    pub fn open(&self, kind: &Kind, version: u32, spec: &RawValue) -> Result<Arc<dyn AnyJob>, OpenError> {
        let registered = self.kinds.get(kind).ok_or(OpenError::UnknownKind)?;
        let here = registered.version;
        if here != version {
            return Err(OpenError::Version { kind: kind.clone(), here, wanted: version });
        }
        let opened = catch_unwind(AssertUnwindSafe(|| (registered.opener)(spec))).unwrap_or_else(|panic| {
            let panic = panic_text(&*panic);
            Err(JobError::new(format_args!("opening a job of kind {kind} panicked: {panic}")))
        });
        let job = opened.map_err(OpenError::Spec)?;
        if (job.kind(), job.version()) != (kind.as_str(), version) {
            return Err(OpenError::Spec(JobError::new(format_args!(
                "the opener of kind {kind}, version {version}, gave a job of kind {}, version {} (hint: register it \
                 under the kind and the version of its jobs)",
                job.kind(),
                job.version()
            ))));
        }
        Ok(job)
    }

    /// Returns the version in which the kind is registered, if it is.
    #[must_use]
    pub fn version(&self, kind: &Kind) -> Option<u32> {
        self.kinds.get(kind).map(|registered| registered.version)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.kinds.keys()).finish()
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

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{TaskContext, TaskError, TaskIndex, erase, wire::PackedTasks};

    /// Counts to a limit of its spec, or of its process.
    #[derive(Serialize, Deserialize)]
    struct Bounded {
        limit: u64,
    }

    impl Job for Bounded {
        const KIND: &'static str = "bounded";
        const VERSION: u32 = 3;
        type Task = u64;
        type Output = ();
        type Report = ();

        fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
            (0..self.limit).map(Ok)
        }
        fn process(&self, _: u64, _: &TaskContext) -> Result<(), TaskError> {
            Ok(())
        }
        fn collect(&self, (): &mut (), _: TaskIndex, (): ()) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
    }

    fn kind() -> Kind {
        Kind::new(Bounded::KIND).unwrap()
    }

    fn spec() -> Box<RawValue> {
        RawValue::from_string(r#"{"limit":9}"#.into()).unwrap()
    }

    fn registered(version: u32, opener: JobOpener) -> Registry {
        let mut registry = Registry::default();
        registry.register_with(kind(), version, opener).unwrap();
        registry
    }

    fn split_size(job: &dyn AnyJob) -> u32 {
        let (mut tasks, mut digest) = (PackedTasks::default(), crate::SplitDigest::default());
        let limit = crate::BatchLimit { tasks: u32::MAX, bytes: usize::MAX };
        job.split_from(TaskIndex(0)).unwrap().split_into(&mut tasks, &mut digest, limit).unwrap();
        tasks.count()
    }

    #[test]
    fn opener_may_use_its_surroundings() {
        let most = 4;
        let opener = move |spec: &RawValue| {
            let job: Bounded = serde_json::from_str(spec.get())?;
            Ok(erase(Bounded { limit: job.limit.min(most) }))
        };
        let mut registry = registered(3, Arc::new(opener));
        assert_eq!(split_size(&*registry.open(&kind(), 3, &spec()).unwrap()), 4);
        assert_eq!(registry.version(&kind()), Some(3));
        assert!(matches!(
            registry.open(&kind(), 2, &spec()),
            Err(OpenError::Version { here: 3, wanted: 2, .. })
        ));
        // The first of two openers stays.
        assert!(matches!(registry.register::<Bounded>(), Err(RegisterError::Duplicate(_))));
        assert_eq!(split_size(&*registry.open(&kind(), 3, &spec()).unwrap()), 4);
    }

    #[test]
    fn opener_errors_are_spec_errors() {
        let why = |registry: &Registry, version| match registry.open(&kind(), version, &spec()) {
            Err(OpenError::Spec(error)) => error.to_string(),
            other => panic!("{other:?}"),
        };
        let refusing = registered(3, Arc::new(|_| Err(JobError::new("not here"))));
        assert_eq!(why(&refusing, 3), "not here");
        let panicking = registered(3, Arc::new(|_| panic!("no hands")));
        assert_eq!(why(&panicking, 3), "opening a job of kind bounded panicked: no hands");
        let other = registered(7, Arc::new(erased::open::<Bounded>));
        assert!(why(&other, 7).contains("gave a job of kind bounded, version 3"), "{}", why(&other, 7));
    }
}
